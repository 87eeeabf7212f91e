"""Datagrams to UDP ports that an agent does not serve go to those ports of its machine's loopback.  Layer L3.

Each flow is a socket there, as with genuine agents.  Next hop: tailnet/node/flows.py.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from tailnet.agent.counters import Counters
from tailnet.node.engine import Engine
from tailnet.node.flows import Flows, idle_seconds_of

_LOOPBACK: Final = "127.0.0.1"
# The longest that UDP knows: one that does not fit into the tunnel is counted as such.
_DATAGRAM_BYTES: Final = 0xFFFF


class FlowKey(NamedTuple):
    """Whose datagrams these are, and to which of our addresses and ports they go."""

    source: bytes
    source_port: int
    destination: bytes
    port: int


class _LocalPort:
    """A socket that talks to one port of this machine, for a peer."""

    def __init__(self, sock: trio.socket.SocketType, counters: Counters, peer: bytes) -> None:
        self._socket = sock
        self._counters = counters
        self._peer = peer
        counters.flow_began(peer)

    async def send(self, payload: bytes) -> None:
        await self._socket.send(payload)
        self._counters.datagram_received(payload)

    async def receive(self) -> bytes:
        return await self._socket.recv(_DATAGRAM_BYTES)

    def close(self) -> None:
        self._socket.close()
        self._counters.flow_ended(self._peer)


async def _open_local(port: int) -> trio.socket.SocketType:
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    try:
        await sock.connect((_LOOPBACK, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def forward_udp(engine: Engine, counters: Counters, is_allowed: Callable[[int], bool]) -> None:
    """Until cancelled."""
    tunnel = engine.open_udp(None)

    async def open_far(key: FlowKey) -> _LocalPort:
        if not is_allowed(key.port):
            raise ConnectionRefusedError(f"port {key.port} is not forwarded")
        return _LocalPort(await _open_local(key.port), counters, key.source)

    async def back(key: FlowKey, payload: bytes) -> None:
        tunnel.send(key.source, key.source_port, payload, source=(key.destination, key.port))
        counters.datagram_sent(payload)

    async with trio.open_nursery() as nursery:
        flows = Flows(nursery, open_far, back)
        while True:
            heard = await tunnel.receive()
            key = FlowKey(heard.source, heard.source_port, heard.destination, heard.port)
            flows.take(key, heard.payload, idle_seconds_of(heard.port))
