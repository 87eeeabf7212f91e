"""`tailnet ping`: whether an agent answers, which way, how fast, and why not directly (layer L4).

The pings are disco's, which both sides answer beside their data.  Next hop: reach.py, tailnet/node/engine.py.
"""

import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from tailnet.cli.login import read_login
from tailnet.cli.output import console, say_json
from tailnet.cli.reach import open_reached, reach_options, run_interruptible
from tailnet.client.agents import KnownAgent, Login, find_agent

if TYPE_CHECKING:
    from derp.netcheck.report import Report
    from tailnet.node.membership import Client
    from tailnet.paths.endpoint import Endpoint

PING_INTERVAL_SECONDS: Final = 1.0
# Half a day of pings; the median of more says nothing new.
_MAX_KEPT: Final = 50_000
_MAX_SHOWN: Final = 4

Event = dict[str, Any]
Say = Callable[[Event], None]


@dataclass(slots=True)
class _Pings:
    """What came of them."""

    sent_count: int = 0
    received_count: int = 0
    seconds: list[float] = field(default_factory=list)
    is_direct: bool = False
    """By what way the last answer came."""


@click.command()
@click.argument("agent")
@reach_options
@click.option("-c", "--count", default=10, show_default=True, type=click.IntRange(1), help="how many pings")
@click.option("--interval", default=PING_INTERVAL_SECONDS, show_default=True, type=click.FloatRange(0.1, 3600),
              help="seconds from one to the next")  # fmt: skip
@click.option("--timeout", default=5.0, show_default=True, type=click.FloatRange(0.05, 60), help="seconds for each")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def ping(
    agent: str, relay_only: bool, wait: float, count: int, interval: float, timeout: float, as_json: bool, **how: Any
) -> None:
    """Ask AGENT (an id, a name, or workspace.agent) for a sign of life, and say by which way it came.

    The first answer mostly comes by a relay, while direct ways are tried.  At the end stands how many came back, the
    shortest, the median and the longest time, and, if the last came by a relay, why not directly.

    Exit status 0: it answered at least once; 1: it did not.
    """
    login = read_login(**how)
    say = say_json if as_json else _say

    async def work() -> bool:
        known = await find_agent(login, agent)
        return await _ping(login, known, relay_only, wait, count, interval, timeout, say)

    if not run_interruptible(work):
        sys.exit(1)


async def _ping(
    login: Login,
    agent: KnownAgent,
    relay_only: bool,
    wait: float,
    count: int,
    interval: float,
    timeout: float,
    say: Say,
) -> bool:
    pings = _Pings()
    async with open_reached(login, agent, relay_only=relay_only, wait_seconds=wait) as client:
        say({"event": "agent", "agent": agent.label, "id": str(agent.id)})
        try:
            for number in range(1, count + 1):
                next_at = trio.current_time() + interval
                await _ping_once(client, number, timeout, pings, say)
                if number < count:
                    await trio.sleep_until(next_at)
        finally:
            # Also when it was interrupted: what was measured stands.
            say(_summary(client, agent, pings, relay_only))
    return bool(pings.received_count)


async def _ping_once(client: "Client", number: int, timeout: float, pings: _Pings, say: Say) -> None:
    event: Event = {"event": "ping", "number": number}
    pings.sent_count += 1
    try:
        answer = await client.engine.disco_ping(client.node_key, timeout_seconds=timeout)
    except trio.TooSlowError:
        say(event | {"seconds": None, "timeout_seconds": timeout})
        return
    pings.received_count += 1
    pings.seconds.append(answer.seconds)
    del pings.seconds[:-_MAX_KEPT]
    pings.is_direct = answer.endpoint is not None
    if answer.endpoint is not None:
        say(event | {"seconds": answer.seconds, "direct": True, "endpoint": str(answer.endpoint)})
        return
    region = client.engine.relays.regions.get(answer.region or 0)
    name = region.region_name or region.region_code if region is not None else ""
    say(event | {"seconds": answer.seconds, "direct": False, "region": answer.region, "region_name": name})


def _summary(client: "Client", agent: KnownAgent, pings: _Pings, relay_only: bool) -> Event:
    lost = pings.sent_count - pings.received_count
    event: Event = {"event": "summary", "agent": agent.label, "sent": pings.sent_count}
    event |= {"received": pings.received_count, "lost": lost}
    if pings.seconds:
        times = {"min": min(pings.seconds), "median": statistics.median(pings.seconds), "max": max(pings.seconds)}
        event |= {f"{name}_seconds": seconds for name, seconds in times.items()}
    if pings.received_count and not pings.is_direct:
        peer = client.engine.core.paths.find(client.node_key)
        theirs = list(peer.candidates) if peer is not None else []
        event["why_not_direct"] = why_by_relay(
            relay_only, client.info.is_direct, client.member.place.report, client.engine.local_endpoints, theirs
        )
    return event


def why_by_relay(
    relay_only: bool,
    is_allowed: bool,
    report: "Report | None",
    ours: Iterable["Endpoint"],
    theirs: Iterable["Endpoint"],
) -> str:
    """Why packets go by a relay, from what the deployment allows, the UDP addresses of both sides and what was measured
    here."""
    ours, theirs = list(ours), sorted(theirs)
    if not is_allowed:
        return "the deployment has turned direct connections off (disable_direct_connections)"
    if relay_only:
        return "direct connections are turned off here (--relay-only)"
    if not ours:
        return "this machine has no UDP socket with an address that others could reach"
    if report is not None and report.stun_asked and not report.udp:
        return "no UDP passes here: no relay answered a STUN question; a firewall drops it"
    if not theirs:
        return "the agent has no address for direct connections: they are turned off there, or it has no UDP"
    families = [{":" in endpoint.host for endpoint in side} for side in (ours, theirs)]
    if not families[0] & families[1]:
        names = ["IPv6" if True in each else "IPv4" for each in families]
        return f"this machine has {names[0]} addresses only, and the agent {names[1]} ones"
    shown = ", ".join(map(str, theirs[:_MAX_SHOWN])) + (", ..." if len(theirs) > _MAX_SHOWN else "")
    if report is not None and report.mapping_varies:
        return (
            "this machine is behind a hard NAT, which shows each destination another port: only an agent without a NAT "
            f"of its own can be reached, and none answered at {shown}"
        )
    return f"no answer came from the agent's addresses ({shown}): a NAT or a firewall is between us"


def _say(event: Event) -> None:
    lines = console()
    match event["event"]:
        case "agent":
            lines.print(f"{event['agent']} is {event['id']}")
        case "ping":
            text, style = _ping_line(event)
            lines.print(f"{event['number']}: {text}", style=style)
        case _:
            lines.print(_summary_line(event), style="bold")
            if "why_not_direct" in event:
                lines.print(f"not direct: {event['why_not_direct']}", style="yellow")


def _ping_line(event: Event) -> tuple[str, str]:
    if event["seconds"] is None:
        return f"no answer in {event['timeout_seconds']:g} s", "red"
    time = f"{event['seconds'] * 1000:.2f} ms"
    if event["direct"]:
        return f"{time} direct by {event['endpoint']}", "green"
    return f"{time} by relay region {event['region']} {event['region_name']}".rstrip(), "green"


def _summary_line(event: Event) -> str:
    counts = f"{event['agent']}: {event['sent']} sent, {event['received']} received, {event['lost']} lost"
    if "median_seconds" not in event:
        return counts
    times = "/".join(f"{event[f'{name}_seconds'] * 1000:.2f}" for name in ("min", "median", "max"))
    return f"{counts}; min/median/max {times} ms"
