"""A link as a trio stream: for connections that leave the reactor after their first request.  Layer L2.

The socket, TLS state and bytes received so far move over whole; server/door.py hands them out.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import index
from typing import Any, Final

import trio

from derp.close_reason import CloseReason
from derp.transport.host import WireEnded
from derp.transport.links import Link, TlsLink

# Taken from the socket, or sent, at a time; decrypted it needs no more, plus one record that was begun before.
_PIECE_BYTES: Final = 64 * 1024
_ROOM_BYTES: Final = _PIECE_BYTES + 32 * 1024


class _Buffers(threading.local):
    """What every stream of a thread receives into, one at a time: what it does not give out at once it copies.

    Buffers of one's own would be most of an idle connection's memory: 160 KiB, of which a request needs one.
    """

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(_ROOM_BYTES))
        self.scratch = memoryview(bytearray(_PIECE_BYTES))


_BUFFERS: Final = _Buffers()
_NOTHING: Final = memoryview(b"")


def take_over(stream: trio.abc.Stream) -> trio.abc.Stream:
    """A connected client's socket or TLS on one, from trio's stream; any other stream is given back as it is.

    A batch of packets costs half of what trio's streams need for it: TLS is read in one piece instead of a record at a
    time, a receive has one task switch instead of two, and `send_at_once` has none.
    """
    below = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(below, trio.SocketStream) or not hasattr(socket.socket, "sendmsg"):
        return stream
    # trio keeps them to itself, and has no other way to go on with a connection.
    parts: Any = [getattr(stream, name, None) for name in ("_ssl_object", "_incoming", "_outgoing")]
    try:
        address = below.socket.getpeername()
    except OSError:
        return stream  # it is broken already, which whoever reads it hears
    if below is stream:
        return LinkStream(Link(_detach(below), address), b"")
    if None in parts:
        return stream
    link = TlsLink.taken_over(_detach(below), address, *parts)
    return LinkStream(link, link.take_decrypted())


def _detach(stream: trio.SocketStream) -> socket.socket:
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


class LinkStream(trio.abc.Stream):
    """Owns `link`, which no reactor may serve any more.  `received` is given out before anything else.

    Errors are trio's: BrokenResourceError, ClosedResourceError.  `socket` is there for servers that look at names.
    """

    def __init__(self, link: Link, received: bytes) -> None:
        self._link = link
        self._received = memoryview(received)
        self._closed = False
        self._is_sending = self._is_receiving = False

    @property
    def link(self) -> Link:
        """What this stream is made of."""
        return self._link

    @property
    def socket(self) -> socket.socket:
        """The TCP socket below; its peer is the caller."""
        return self._link.sock

    @property
    def address(self) -> tuple[str, int]:
        """The caller's, as whoever handed the link over knew it; the socket's own may be a proxy's."""
        return self._link.address[0], self._link.address[1]

    async def start_tls(self) -> None:
        """Shake hands as the client of a TlsLink.  BrokenResourceError says why it failed."""
        link = self._link
        assert isinstance(link, TlsLink)
        try:
            link.start()
            while not link.is_open:
                await trio.lowlevel.wait_readable(link.fd)
                self._receive_now()
        except WireEnded as error:
            raise trio.BrokenResourceError(str(error)) from error

    def take_received(self) -> bytes:
        """What was received and not given out; for handing the link to a reactor, after which this stream is done."""
        rest = bytes(self._received)
        self._received = _NOTHING
        self._closed = True
        return rest

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        self._check_open()
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._is_receiving = True
        try:
            if self._received or self._link.ending is not None:  # a reader of many may not keep others waiting
                await trio.lowlevel.checkpoint()
                self._check_open()
            while not self._received:
                if self._link.ending is None:
                    await trio.lowlevel.wait_readable(self._link.fd)
                self._receive_now()
        except WireEnded as error:
            self._check_open()
            if error.reason is CloseReason.CLOSED_BY_PEER:
                return b""
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            self._is_receiving = False
        data = bytes(self._received[:max_bytes])
        # An empty rest would still hold what it is a slice of.
        self._received = self._received[len(data) :] or _NOTHING
        return data

    def _receive_now(self) -> None:
        buffers = _BUFFERS
        end = self._link.receive(buffers.plain, 0, buffers.scratch, buffers.scratch)
        self._received = memoryview(bytes(buffers.plain[:end]))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending(), memoryview(data) as view:
            await trio.lowlevel.checkpoint()
            for start in range(0, len(view), _PIECE_BYTES):
                self._check_open()
                self._link.send_raw(view[start : start + _PIECE_BYTES])
                await self._wait_sent()
            await self._wait_sent()

    def send_at_once(self, data: bytes) -> bool:
        """Send without a task switch.  False: the kernel did not take all, and the next `send_all`, if only of nothing,
        waits until it has.  Raises as `send_all` does."""
        with self._sending():
            self._link.send_raw(data)
            return not self._link.tail

    def send_nowait(self, data: bytes) -> None:
        """Last words, as far as the kernel takes them: nothing while a task is sending, and no error."""
        if not self._closed and not self._is_sending:
            with suppress(WireEnded):
                self._link.send_raw(data)

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending():
            await trio.lowlevel.checkpoint()
            await self._wait_sent()

    async def _wait_sent(self) -> None:
        self._check_open()
        while self._link.tail and not self._link.flush_tail():
            await trio.lowlevel.wait_writable(self._link.fd)
            self._check_open()

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """One task sends at a time, or bytes of two would be mixed; the link's errors come out as trio's."""
        self._check_open()
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._is_sending = True
        try:
            yield
        except WireEnded as error:
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            self._is_sending = False

    async def linger(self, seconds: float, max_bytes: int) -> None:
        """Say that no more bytes come, and throw away what the peer still sends until it hangs up, for so long."""
        self._link.end_output()
        with trio.move_on_after(seconds), suppress(trio.BrokenResourceError, trio.BusyResourceError):
            while max_bytes > 0 and (data := await self.receive_some()):
                max_bytes -= len(data)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._link.fd)
            self._link.close()
        await trio.lowlevel.checkpoint()
