"""Ports of an agent that none of its services has lead to the same port of its machine's loopback.  Layer L3.

    SYN held -> allowed? room? -> dial 127.0.0.1 -> SYN-ACK, or a reset -> bytes both ways
Whoever dials learns at once that nothing listens there: the local dial comes before the answer to the SYN.
Next hop: tailnet/node/tunnel.py, udp_forwarding.py.
"""

import logging
import re
from dataclasses import dataclass
from typing import Final

import trio

from derp.log import Rarely, and_more
from derp.text import error_text, fit_to_show
from tailnet.agent.context import CLIENT_KEEP_ALIVE, Context
from tailnet.agent.counters import user_address
from tailnet.agent.udp_forwarding import forward_udp
from tailnet.errors import ConfigError
from tailnet.node.engine import Engine
from tailnet.node.streams import TunnelStream
from tailnet.node.tunnel import join_streams, reset_on_close

_log = logging.getLogger("tailnet.agent")
_refusals = Rarely(10.0)

LOOPBACK: Final = "127.0.0.1"
FORWARDED: Final = "forwarded"
"""The name under which these connections are counted."""
# Two descriptors each: a page of a development server opens six, a load test some hundred.
MAX_FORWARDED: Final = 1_024
# A port of loopback answers at once, or its program's backlog is full.
DIAL_SECONDS: Final = 10.0
# 1 to 8 belong to agents; the services that an agent does not have are not its machine's.
FIRST_FORWARDED: Final = 9
_MAX_PORT: Final = 0xFFFF
_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Ports:
    """Which ports lead anywhere."""

    ranges: tuple[tuple[int, int], ...] = ((FIRST_FORWARDED, _MAX_PORT),)

    def __contains__(self, port: int) -> bool:
        return port >= FIRST_FORWARDED and any(first <= port <= last for first, last in self.ranges)


def parse_ports(text: str) -> Ports:
    """Read `8080,3000-3999`; "" allows none.  Raises ConfigError."""
    ranges = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not FIRST_FORWARDED <= first <= last <= _MAX_PORT:
            raise ConfigError(
                f"ports {fit_to_show(part)}: must look like 8080 or 3000-3999, "
                f"from {FIRST_FORWARDED} to {_MAX_PORT}, the lower one first"
            )
        ranges.append((first, last))
    return Ports(tuple(ranges))


async def forward_ports(
    engine: Engine, context: Context, allowed: Ports, *, max_connections: int = MAX_FORWARDED
) -> None:
    """Serve until cancelled."""
    counters = context.counters
    async with engine.listen(None, hold=True) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(forward_udp, engine, counters, allowed.__contains__)
        while True:
            stream = await listener.accept()
            if stream.local_port not in allowed:
                reason = "it is not forwarded"
            elif counters.connections[FORWARDED] >= max_connections:
                reason = f"{max_connections} connections are open"
            else:
                await nursery.start(_forward, stream, context)
                continue
            counters.refused[FORWARDED] += 1
            stream.abort()
            held = _refusals.held_back(reason, trio.current_time())
            if held is not None:
                text = "port %d: a connection of %s was refused: %s%s"
                _log.warning(text, stream.local_port, user_address(stream), reason, and_more(held))


async def _forward(stream: TunnelStream, context: Context, task_status: trio.TaskStatus[None]) -> None:
    port, user, counters = stream.local_port, user_address(stream), context.counters
    with counters.connection(FORWARDED, stream):
        task_status.started()
        try:
            local = await _dial(port)
            async with local:
                try:
                    await stream.answer()
                    stream.keep_alive(CLIENT_KEEP_ALIVE)
                    counters.served[FORWARDED] += 1
                    went, came = await join_streams(local, stream)
                except BaseException:
                    reset_on_close(local)
                    raise
            _log.debug("port %d: a connection of %s ended, %d bytes in, %d out", port, user, came, went)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            stream.abort()
            _log.debug("port %d: a connection of %s: %s", port, user, error_text(error))
        except BaseException:
            stream.abort()
            raise


async def _dial(port: int) -> trio.SocketStream:
    """Raises OSError, trio.TooSlowError."""
    sock = trio.socket.socket()
    try:
        with trio.fail_after(DIAL_SECONDS):
            await sock.connect((LOOPBACK, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
