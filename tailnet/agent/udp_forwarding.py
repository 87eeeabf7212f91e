"""Datagrams to UDP ports that an agent does not serve go to those ports of its machine's loopback.  Layer L3.

Each flow is a socket there, as with genuine agents.  Next hop: tailnet/node/flows.py.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import trio

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
    """A socket that talks to one port of this machine."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock

    async def send(self, payload: bytes) -> None:
        await self._socket.send(payload)

    async def receive(self) -> bytes:
        return await self._socket.recv(_DATAGRAM_BYTES)

    def close(self) -> None:
        self._socket.close()


async def _open_local(port: int) -> _LocalPort:
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    try:
        await sock.connect((_LOOPBACK, port))
    except BaseException:
        sock.close()
        raise
    return _LocalPort(sock)


async def forward_udp(engine: Engine, is_allowed: Callable[[int], bool]) -> None:
    """Until cancelled."""
    tunnel = engine.open_udp(None)

    async def open_far(key: FlowKey) -> _LocalPort:
        if not is_allowed(key.port):
            raise ConnectionRefusedError(f"port {key.port} is not forwarded")
        return await _open_local(key.port)

    async def back(key: FlowKey, payload: bytes) -> None:
        tunnel.send(key.source, key.source_port, payload, local_address=key.destination, local_port=key.port)

    async with trio.open_nursery() as nursery:
        flows = Flows(nursery, open_far, back)
        while True:
            heard = await tunnel.receive()
            key = FlowKey(heard.source, heard.source_port, heard.destination, heard.port)
            flows.take(key, heard.payload, idle_seconds_of(heard.port))
