"""A TCP connection inside the tailnet as a trio stream, and a port as a trio listener.  Layer L3.

engine.py tells a stream what happened to its connection; whatever a stream does is sent with the engine's next pump.
"""

from collections import deque
from collections.abc import Callable
from operator import index
from typing import Final

import trio

from tailnet.errors import LocalProtocolError
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import End
from tailnet.netstack.limits import KeepAliveTimes
from tailnet.netstack.stack import Listener
from tailnet.netstack.states import State

_RECEIVE_BYTES: Final = 64 * 1024
# Copied for the stack at once: of a long buffer it takes a part, and the rest would be copied again for each part.
_SEND_BYTES: Final = 64 * 1024


class TunnelStream(trio.abc.HalfCloseableStream):
    """Made by Engine.dial and TunnelListener.accept.  Errors are trio's."""

    def __init__(self, connection: Connection, pump: Callable[[], None]) -> None:
        self._connection = connection
        self._pump = pump
        self.received_bytes = self.sent_bytes = 0
        """What its user has taken, and what the stack has taken from its user."""
        self._closed = self._sent_eof = False
        self._is_sending = self._is_receiving = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def remote_address(self) -> tuple[bytes, int]:
        """The peer's address, 16 bytes, and its port."""
        return self._connection.remote_address, self._connection.remote_port

    @property
    def local_address(self) -> bytes:
        """Our own address, 16 bytes."""
        return self._connection.local_address

    @property
    def local_port(self) -> int:
        return self._connection.local_port

    @property
    def is_over(self) -> bool:
        """Nothing more will happen to the connection."""
        return self._connection.state in (State.CLOSED, State.TIME_WAIT)

    def happened(self) -> None:
        """Whoever waits looks again."""
        self._changed.unpark_all()

    def keep_alive(self, times: KeepAliveTimes) -> None:
        """When a silent peer is asked whether it lives, and given up; whoever uses the stream is told as of a loss."""
        self._connection.keep_alive(times)
        self._pump()

    async def answer(self) -> None:
        """Take a connection that was held, until the peer knows.  Raises OSError: it has given up meanwhile."""
        self._connection.accept()
        self._pump()
        await self.wait_connected()

    async def wait_connected(self) -> None:
        """Until the handshake is done.  Raises OSError: the peer refused, or did not answer."""
        connection = self._connection
        while connection.state in (State.SYN_SENT, State.SYN_RECEIVED):
            await self._changed.park()
        if connection.end is not None:
            kind = ConnectionRefusedError if connection.end is End.REFUSED else ConnectionError
            raise kind(connection.reason or connection.end.value)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._is_receiving = True
        connection = self._connection
        try:
            if connection.readable_bytes or connection.eof or connection.end is not None or self._closed:
                await trio.lowlevel.checkpoint()  # else `park` is one: a task switch for each batch, not two
            while True:
                self._check_open()
                data = connection.receive(max_bytes or _RECEIVE_BYTES)
                if data:
                    self.received_bytes += len(data)
                    if connection.is_ready:
                        self._pump()  # the peer may send more now
                    return data
                if connection.end in (None, End.CLOSED) and connection.eof:
                    return b""
                self._check_connected()
                await self._changed.park()
        finally:
            self._is_receiving = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint()
            with memoryview(data) as view:
                at = 0
                while True:
                    self._check_open()
                    if self._sent_eof:
                        raise trio.ClosedResourceError("its end was sent")
                    piece = view[at : at + _SEND_BYTES]
                    taken = self._send(piece)
                    at += taken
                    if at == len(view):
                        return
                    if taken < len(piece):
                        await self._changed.park()
        finally:
            self._is_sending = False

    def _send(self, view: memoryview) -> int:
        try:
            # The stack keeps `bytes` without copying them; whoever gave us another kind may change it.
            taken = self._connection.send(bytes(view)) if view else 0
        except LocalProtocolError as error:
            raise trio.BrokenResourceError(self._end()) from error
        self.sent_bytes += taken
        self._pump()
        return taken

    async def wait_send_all_might_not_block(self) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._check_connected()

    async def send_eof(self) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._sent_eof = True
        self._connection.send_eof()
        self._pump()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._connection.close()
            self._changed.unpark_all()
            self._pump()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Reset the connection; what was not delivered is lost."""
        self._closed = True
        self._connection.abort()
        self._changed.unpark_all()
        self._pump()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    def _check_connected(self) -> None:
        if self._connection.end not in (None, End.CLOSED) or self._connection.state is State.CLOSED:
            raise trio.BrokenResourceError(self._end())

    def _end(self) -> str:
        end = self._connection.end
        return self._connection.reason or (end.value if end is not None else "the connection is over")


class TunnelListener(trio.abc.Listener[TunnelStream]):
    """Made by Engine.listen."""

    def __init__(self, listener: Listener, adopt: Callable[[Connection], TunnelStream]) -> None:
        self._listener = listener
        self._adopt = adopt
        self._closed = False
        self._held: deque[TunnelStream] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    def happened(self) -> None:
        """A connection is there to be accepted."""
        self._changed.unpark_all()

    def offer(self, held: TunnelStream) -> None:
        """A connection is there to be answered or aborted.  The backlog of the port is the bound of their number."""
        self._held.append(held)
        self._changed.unpark_all()

    async def accept(self) -> TunnelStream:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            connection = self._listener.accept()
            if connection is not None:
                return self._adopt(connection)
            while self._held:
                if not (held := self._held.popleft()).is_over:
                    return held
            await self._changed.park()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._listener.close()
            self._changed.unpark_all()
        await trio.lowlevel.checkpoint()
