"""`tailnet port-forward`: local ports, of TCP and UDP, that lead to ports of an agent (layer L4).

Next hop: reach.py, tailnet/node/membership.py, tailnet/node/flows.py.
"""

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from errno import EACCES, EADDRINUSE
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
import trio

from derp.log import set_up_logging
from derp.text import error_text, fit_to_show, host_port
from tailnet.cli.login import read_login
from tailnet.cli.output import console, say_json
from tailnet.cli.reach import in_time, reach_options, run_interruptible
from tailnet.client.agents import KnownAgent, Login, find_agent
from tailnet.errors import ConfigError, DerpError, ListenError

if TYPE_CHECKING:
    from tailnet.node.membership import Client

log = logging.getLogger(__name__)

_LOOPBACK: Final = "127.0.0.1"
_MAX_PORT: Final = 0xFFFF
# Connections at once, of all ports: below what a process may have open, and more than a browser makes to ten sites.
MAX_CONNECTIONS: Final = 512
# The longest that UDP knows.
_DATAGRAM_BYTES: Final = 0xFFFF

Local: TypeAlias = "trio.SocketListener | trio.socket.SocketType"
Listening: TypeAlias = "tuple[Forward, Sequence[Local]]"
# A local program, as sockets name it: address, port, and for IPv6 two numbers more.
Program: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Forward:
    """A local address, port 0 for a free one, and the agent's port that it leads to."""

    host: str
    port: int
    remote_port: int
    protocol: str = "tcp"


def parse_forward(text: str, protocol: str = "tcp") -> Forward:
    """Read `[[HOST:]PORT:]REMOTE`, an IPv6 HOST in brackets.  Raises ConfigError."""
    rest, _, remote = text.rpartition(":")
    host, _, local = rest.rpartition(":")
    remote_port, local_port = _port(remote), _port(local or remote)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        remote_port = None
    if not remote_port or local_port is None or (host and not local):
        shown = fit_to_show(text)
        raise ConfigError(f"--{protocol} {shown}: must look like 8080, 18080:8080 or 0.0.0.0:18080:8080 (here:agent's)")
    return Forward(host or _LOOPBACK, local_port, remote_port, protocol)


def _port(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        return None
    return int(text) if int(text) <= _MAX_PORT else None


@click.command("port-forward")
@click.argument("agent")
@reach_options
@click.option("--tcp", "tcp", multiple=True, metavar="[[HOST:]LOCAL:]REMOTE",
              help="a local port, 0 for a free one, and the agent's; may be given several times")  # fmt: skip
@click.option("--udp", "udp", multiple=True, metavar="[[HOST:]LOCAL:]REMOTE",
              help="the same for UDP: datagrams of up to 1,232 bytes")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="a line for each connection")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def port_forward(
    agent: str,
    tcp: tuple[str, ...],
    udp: tuple[str, ...],
    relay_only: bool,
    wait: float,
    verbose: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Take connections here and lead them to ports of AGENT (an id, a name, or workspace.agent), until Ctrl-C.

    A HOST other than 127.0.0.1 lets other machines in.  When the agent goes away and comes back, so does the way to it.
    """
    login = read_login(**how)
    forwards = [parse_forward(text) for text in tcp] + [parse_forward(text, "udp") for text in udp]
    if not forwards:
        raise ConfigError("nothing to forward: say --tcp or --udp, as in --tcp 8080")
    set_up_logging("json" if as_json else "text", "debug" if verbose else "warning")
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    async def work() -> None:
        async with open_listeners(forwards) as listening:
            known = await find_agent(login, agent)
            await serve_forwards(login, known, listening, relay_only, wait, as_json)

    run_interruptible(work)


async def serve_forwards(
    login: Login, agent: KnownAgent, listening: Sequence[Listening], relay_only: bool, wait: float, as_json: bool
) -> None:
    """Until cancelled.  Raises as the tunnel does when the agent cannot be reached at first."""
    from tailnet.node.membership import open_client

    gate = trio.CapacityLimiter(MAX_CONNECTIONS)
    opening = open_client(login.url, login.token, agent.id, is_direct=not relay_only, timeout_seconds=wait)
    async with in_time(opening, agent, wait) as client, trio.open_nursery() as nursery:
        for forward, sockets in listening:
            for local in sockets:
                if isinstance(local, trio.SocketListener):
                    nursery.start_soon(trio.serve_listeners, partial(_forward, client, forward, gate), [local])
                    _say(local.socket.getsockname(), forward, agent, as_json)
                else:
                    nursery.start_soon(_forward_udp, client, forward, local)
                    _say(local.getsockname(), forward, agent, as_json)


def _say(address: Sequence[Any], forward: Forward, agent: KnownAgent, as_json: bool) -> None:
    host, port = address[:2]
    if as_json:
        event = {"event": "forwarding", "protocol": forward.protocol, "host": host, "port": port, "agent": agent.label}
        say_json(event | {"remote_port": forward.remote_port})
    else:
        remote = f"{'UDP ' if forward.protocol == 'udp' else ''}port {forward.remote_port}"
        console().print(f"{host_port(host, port)} leads to {remote} of {agent.label}")


@asynccontextmanager
async def open_listeners(forwards: Sequence[Forward]) -> AsyncIterator[list[Listening]]:
    """All local ports, or none.  Raises ListenError."""
    async with AsyncExitStack() as stack:
        listening: list[Listening] = []
        for forward in forwards:
            opened: list[Local] = []
            for local in await _bind(forward):
                if isinstance(local, trio.SocketListener):
                    await stack.enter_async_context(local)
                else:
                    stack.enter_context(local)
                opened.append(local)
            listening.append((forward, opened))
        yield listening


async def _bind(forward: Forward) -> "Sequence[Local]":
    try:
        if forward.protocol == "udp":
            return await _bind_udp(forward)
        return await trio.open_tcp_listeners(forward.port, host=forward.host)
    except OSError as error:
        place = f"--{forward.protocol}: port {forward.port} of {forward.host}"
        if error.errno == EADDRINUSE:
            reason = "is taken by another program"
        elif error.errno == EACCES:
            reason = "is for root"
        else:
            raise ListenError(f"{place} cannot be opened: {error_text(error)}") from None
        other = f"--{forward.protocol} 0:{forward.remote_port}"
        raise ListenError(f"{place} {reason}: choose another local one, as in {other}") from None


async def _bind_udp(forward: Forward) -> "list[trio.socket.SocketType]":
    """Every address of the host, as for TCP."""
    found = await trio.socket.getaddrinfo(
        forward.host, forward.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    with ExitStack() as stack:
        bound = []
        for family, kind, protocol, _, address in found:
            sock = stack.enter_context(trio.socket.socket(family, kind, protocol))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind(address)
            bound.append(sock)
        stack.pop_all()
    return bound


async def _forward(client: "Client", forward: Forward, gate: trio.CapacityLimiter, local: trio.SocketStream) -> None:
    from tailnet.node.tunnel import join_streams, reset_on_close

    async with local:
        try:
            gate.acquire_nowait()
        except trio.WouldBlock:
            log.warning("a connection was refused: %d are open already", MAX_CONNECTIONS)
            reset_on_close(local)
            return
        try:
            remote = await client.dial(forward.remote_port)
            log.debug("port %d: a connection", forward.remote_port)
            sent, received = await join_streams(local, remote)
            log.debug("port %d: a connection ended, %d bytes out, %d in", forward.remote_port, sent, received)
        except (OSError, DerpError) as error:
            log.warning("port %d of the agent: %s", forward.remote_port, error_text(error))
            reset_on_close(local)
        except trio.TooSlowError:
            log.warning("port %d of the agent: no answer in time", forward.remote_port)
            reset_on_close(local)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("port %d: a connection broke: %s", forward.remote_port, error_text(error))
            reset_on_close(local)
        finally:
            gate.release()


async def _forward_udp(client: "Client", forward: Forward, local: "trio.socket.SocketType") -> None:
    """Each local program has a flow of its own, and gets the answers to what it said."""
    from tailnet.node.flows import MAX_FLOWS, Flows, idle_seconds_of
    from tailnet.node.udp import ConnectedUdp

    async def open_far(program: Program) -> ConnectedUdp:
        log.debug("UDP port %d: a flow of %s:%d", forward.remote_port, *program[:2])
        return await client.dial_udp(forward.remote_port)

    async def back(program: Program, payload: bytes) -> None:
        await local.sendto(payload, program)

    async with trio.open_nursery() as nursery:
        flows: Flows[Program] = Flows(nursery, open_far, back, max_flows_per_owner=MAX_FLOWS)
        while True:
            payload, program = await local.recvfrom(_DATAGRAM_BYTES)
            flows.take(program, payload, idle_seconds_of(forward.remote_port))
