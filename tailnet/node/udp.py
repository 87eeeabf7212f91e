"""UDP inside the tailnet for trio's tasks: a port of ours, and one that talks to a single port of a peer.  Layer L3.

Both are made by engine.py, which tells them that something came; what is sent goes with the engine's next pump.
"""

from collections.abc import Callable
from typing import Final

import trio

from tailnet.netstack.udp import Datagram, UdpPort


class TunnelUdp:
    """Made by Engine.open_udp; `close` it.  Datagrams that come while nobody receives wait in a bounded queue."""

    def __init__(self, port: UdpPort, pump: Callable[[], None], release: Callable[[UdpPort], None]) -> None:
        self._port = port
        self._pump = pump
        self._release = release
        self._is_closed = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def port(self) -> int | None:
        """None: every port that nobody has bound."""
        return self._port.port

    def happened(self) -> None:
        """Whoever waits looks again."""
        self._changed.unpark_all()

    async def receive(self) -> Datagram:
        """The next datagram.  Raises trio.ClosedResourceError."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            datagram = self._port.receive()
            if datagram is not None:
                return datagram
            await self._changed.park()

    def send(
        self,
        address: bytes,
        port: int,
        payload: bytes,
        *,
        source: tuple[bytes, int] | None = None,
    ) -> None:
        """One datagram, which may be lost, as UdpPort.send says.  LocalProtocolError: it is too long.

        Raises trio.ClosedResourceError.
        """
        self._check_open()
        self._port.send(address, port, payload, source=source)
        self._pump()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._release(self._port)
            self._changed.unpark_all()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError


class ConnectedUdp:
    """A port of ours that talks to one port of one peer, made by Engine.dial_udp; `close` it.

    Nothing is asked of the peer: whether somebody is there tells the first answer.
    """

    def __init__(self, local: TunnelUdp, address: bytes, port: int) -> None:
        self.remote_address: Final = (address, port)
        self._local = local

    async def send(self, payload: bytes) -> None:
        """Raises LocalProtocolError when it is too long, trio.ClosedResourceError."""
        self._local.send(*self.remote_address, payload)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        """What the peer's port says next.  Raises trio.ClosedResourceError."""
        while True:
            datagram = await self._local.receive()
            if (datagram.source, datagram.source_port) == self.remote_address:
                return datagram.payload

    def close(self) -> None:
        self._local.close()
