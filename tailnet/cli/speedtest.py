"""`tailnet speedtest`: how fast the way to an agent is (layer L4).

Next hop: reach.py, tailnet/node/speedtest.py.
"""

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from tailnet.cli.login import read_login
from tailnet.cli.output import console, say_json
from tailnet.cli.reach import dial_port, open_reached, reach_options, run_interruptible
from tailnet.client.agents import KnownAgent, Login, find_agent

if TYPE_CHECKING:
    from tailnet.node.membership import Client


@click.command()
@click.argument("agent")
@reach_options
@click.option("-t", "--time", "seconds", default=5.0, show_default=True, type=click.FloatRange(0.1, 60), help="seconds")
@click.option("--reverse", is_flag=True, help="send to the agent, instead of having it send")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def speedtest(
    agent: str, relay_only: bool, wait: float, seconds: float, reverse: bool, as_json: bool, **how: Any
) -> None:
    """Measure what comes through from AGENT (an id, a name, or workspace.agent) in some seconds, or what goes there.

    A line a second on a terminal, and with --json.  Mbit/s are 10^6 bits a second.
    """
    login = read_login(**how)

    async def work() -> None:
        await _measure(login, await find_agent(login, agent), relay_only, wait, seconds, reverse, as_json)

    run_interruptible(work)


async def _measure(
    login: Login, agent: KnownAgent, relay_only: bool, wait: float, seconds: float, reverse: bool, as_json: bool
) -> None:
    from tailnet.node.speedtest import SPEEDTEST_PORT, measure

    async with open_reached(login, agent, relay_only=relay_only, wait_seconds=wait) as client:
        stream = await dial_port(client, agent, SPEEDTEST_PORT, wait, refusal="serves no speed test")
        last = None
        async with stream, aclosing(measure(stream, seconds, is_upload=reverse)) as measured:
            async for one in measured:
                if last is not None:
                    _say(last, None, reverse, agent, as_json)
                last = _event(one)
        if last is not None:
            _say(last, _way(client), reverse, agent, as_json)


def _event(one: Any) -> dict[str, Any]:
    return {
        "begin_seconds": round(one.begin_seconds, 3),
        "end_seconds": round(one.end_seconds, 3),
        "bytes": one.byte_count,
        "mbits_per_second": round(one.mbits_per_second, 3),
    }


def _way(client: "Client") -> str:
    """How the packets went at the end."""
    peer = client.engine.core.paths.find(client.node_key)
    return f"direct by {peer.best}" if peer is not None and peer.best is not None else "by relay"


def _say(one: dict[str, Any], way: str | None, reverse: bool, agent: KnownAgent, as_json: bool) -> None:
    """An interval, or with a way the result."""
    direction = "to" if reverse else "from"
    if as_json:
        event = {"event": "interval" if way is None else "result", "agent": agent.label, "direction": direction}
        say_json(event | one | ({} if way is None else {"way": way}))
    elif way is not None:
        text = f"{direction} {agent.label}: {one['mbits_per_second']:.1f} Mbit/s, {one['bytes'] / 1e6:.1f} MB"
        console().print(f"{text} in {one['end_seconds']:.1f} s, {way}", style="bold")
    elif sys.stdout.isatty():
        console().print(f"{one['end_seconds']:5.1f} s  {one['mbits_per_second']:8.1f} Mbit/s")
