"""One non-blocking socket each, as the reactor serves it: plain or TLS.  Layer L2.

`receive` puts what the socket has, decrypted and unframed (framing.py), into the reactor's arena; `send` gives pieces
to the kernel and says how many bytes it took charge of.  TLS is an SSLObject between memory BIOs, because one large
receive then feeds many records (an SSLSocket costs two reads a record).  Sessions decide what bytes mean.
"""

import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final

from derp.close_reason import CloseReason
from derp.text import error_text
from derp.transport import platform
from derp.transport.framing import RECEIVE_BYTES, RECORD_BYTES, WRITE_BYTES, StreamWire
from derp.transport.host import Piece, WireEnded
from derp.transport.poller import Poller
from derp.transport.tls_refusals import handshake_failure

# TLS records in one receive that carry less than this on average carry next to nothing: 22 bytes are around each, and
# decrypting one takes 2.5 us.  A packet's keep-alive is a record of 5 bytes, but nobody sends 64 of them at once.
MAX_TINY_RECORDS: Final = 64
_TINY_RECORD_BYTES: Final = 24
IOV_MAX: Final = 1024  # pieces of one sendmsg


class Link(StreamWire):
    """A plain TCP socket.  Owned by the reactor, closed through it."""

    __slots__ = ("fd", "poller", "sock")

    def __init__(self, sock: socket.socket, address: tuple[str, int]) -> None:
        super().__init__(address)
        self.sock = sock
        self.fd = sock.fileno()
        self.poller: Poller | None = None  # of the reactor that serves it

    def want(self, *, read: bool, write: bool) -> None:
        """What the reactor's set shall report."""
        if self.poller is not None:
            self.poller.change(self.fd, read=read, write=write)

    def rtt_microseconds(self) -> int:
        """The kernel's smoothed round-trip time.  Raises OSError."""
        return platform.rtt_microseconds(self.sock)

    def limit_unsent(self, size_bytes: int) -> None:
        with contextlib.suppress(OSError):  # the socket has failed, which its next event shows
            platform.limit_unsent(self.sock, size_bytes)

    def peer_left(self) -> bool:
        """Whether the peer has ended its side, though bytes that it sent before may still wait."""
        return platform.peer_left(self.sock)

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        try:
            count = self.sock.recv_into(into[at : at + self.appetite])
        except BlockingIOError:
            return at
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"receive failed: {error_text(error)}") from error
        if not count:
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        if count == self.appetite and count < RECEIVE_BYTES:
            self.appetite = min(2 * count, RECEIVE_BYTES)
        return at + count

    def _carry(self, pieces: Sequence[Piece], size: int) -> int:
        try:
            sent = self.sock.send(pieces[0]) if len(pieces) == 1 else self.sock.sendmsg(pieces[:IOV_MAX])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"send failed: {error_text(error)}") from error
        if sent < size:
            if len(pieces) > IOV_MAX and sent == sum(map(len, pieces[:IOV_MAX])):
                return sent + self._carry(pieces[IOV_MAX:], size - sent)
            self.blocked = True
        return sent

    _send = _carry  # without a call between: it is the way of packets

    def end_output(self) -> None:
        """Tell the peer that no more bytes come, and go on receiving.  A socket closed over bytes it has not read is
        reset instead, and a reset throws away what the peer has not got yet."""
        with contextlib.suppress(OSError):  # it has gone already
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


class TlsLink(Link):
    """A TCP socket under TLS.  `is_open` is false until the handshake ended; `receive` drives it."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "_write_bytes", "is_open")

    def __init__(
        self, sock: socket.socket, address: tuple[str, int], context: ssl.SSLContext, server_hostname: str | None = None
    ) -> None:
        """With a `server_hostname` this is the client's side, which begins by `start`."""
        super().__init__(sock, address)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self._write_bytes = WRITE_BYTES
        self.is_open = False

    @classmethod
    def taken_over(
        cls,
        sock: socket.socket,
        address: tuple[str, int],
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> "TlsLink":
        """From whoever has shaken hands; `take_decrypted` is to be called next."""
        link = cls.__new__(cls)
        Link.__init__(link, sock, address)
        link._tls, link._incoming, link._outgoing = tls, incoming, outgoing
        link._write_bytes = WRITE_BYTES
        link.is_open = True
        return link

    def take_decrypted(self) -> bytes:
        """What had come before the link was taken over."""
        room = bytearray(RECEIVE_BYTES + RECORD_BYTES)
        try:
            return bytes(room[: self._decrypt(memoryview(room), 0)])
        except WireEnded as error:
            self.ending = error
            return b""

    def start(self) -> None:
        """Send the client's first bytes; `receive` does the rest of the handshake."""
        try:
            self._handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise WireEnded(CloseReason.TLS_FAILED, _tls_text(error)) from error

    def version(self) -> str | None:
        return self._tls.version()

    def limit_unsent(self, size_bytes: int) -> None:
        super().limit_unsent(size_bytes)
        self._write_bytes = min(size_bytes, WRITE_BYTES)

    def send(self, pieces: Sequence[Piece], size: int) -> int:
        if self.blocked:
            return 0
        if self.codec is not None or size > self._write_bytes:
            return super().send(pieces, size)
        # What `_send` does, in one call: it is the way of nearly all packets.
        try:
            self._tls.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except ssl.SSLError as error:
            raise WireEnded(CloseReason.TLS_FAILED, _tls_text(error)) from error
        encrypted = self._outgoing.read()
        if self.tail:
            self.tail += encrypted
            return size
        try:
            sent = self.sock.send(encrypted)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"send failed: {error_text(error)}") from error
        if sent < len(encrypted):
            self.blocked = True
            self.tail = encrypted[sent:]
        return size

    def receive(self, view: memoryview, at: int, scratch: memoryview, framed: memoryview) -> int:
        if self.codec is not None or self.ending is not None or not self.is_open:
            return super().receive(view, at, scratch, framed)
        # What `_receive` does, in one call and for the usual case: one record or a few, all of them whole.
        appetite = self.appetite
        try:
            count = self.sock.recv_into(scratch[:appetite])  # a stream has less room than the reactor
        except BlockingIOError:
            return at
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"receive failed: {error_text(error)}") from error
        if not count:
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        if count == appetite and count < RECEIVE_BYTES:
            self.appetite = min(2 * count, RECEIVE_BYTES)
        self._incoming.write(scratch[:count])
        return self._decrypt(view, at)

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        if self.ending is not None:
            raise self.ending
        end = super()._receive(scratch, 0, scratch)
        if not end:
            return at
        self._incoming.write(scratch[:end])
        return self._decrypt(into, at)

    def _decrypt(self, into: memoryview, at: int) -> int:
        incoming, tls = self._incoming, self._tls
        read: Any = tls.read  # with a buffer it returns a count, which its stub does not know
        start = at
        records = 0
        ending: WireEnded | None = None
        try:
            if not self.is_open:
                self._handshake()
            limit = at + RECEIVE_BYTES + RECORD_BYTES
            while at < limit:
                count = read(limit - at, into[at:limit])
                if not count:
                    ending = WireEnded(CloseReason.CLOSED_BY_PEER)
                    break
                at += count
                records += 1
                # A record never fits only in part, so what is left is in `incoming`.  Asking once more to hear "no
                # more" would raise, which costs as much as a record.
                if not incoming.pending:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ending = WireEnded(CloseReason.CLOSED_BY_PEER)
        except ssl.SSLError as error:
            if tls.server_side and not self.is_open:
                ending = WireEnded(*handshake_failure(tls, error))
            else:
                ending = WireEnded(CloseReason.TLS_FAILED, _tls_text(error))
        if records > MAX_TINY_RECORDS:
            check_tiny(records, at - start)
        if self._outgoing.pending:  # tickets, an alert
            try:
                self._send_encrypted()
            except WireEnded as error:
                ending = ending or error
        if ending is not None:
            # A peer may send its last packets and leave in one breath: they are served first.
            if at == start:
                raise ending
            self.ending = ending
        return at

    def end_output(self) -> None:
        with contextlib.suppress(ssl.SSLError, WireEnded):  # nearly always it "wants" the peer's goodbye
            try:
                self._tls.unwrap()
            finally:
                self._send_encrypted()
        super().end_output()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
            self.is_open = True
        finally:
            if self._outgoing.pending:
                self._send_encrypted()

    def _send_encrypted(self) -> None:
        self._send_records(self._outgoing.read())

    def _send_records(self, records: Piece) -> None:
        """Send what the kernel takes; the rest is `tail`, since its place in the order is fixed."""
        if self.tail or self.blocked:
            self.tail += records
            return
        sent = self._carry((records,), len(records))
        if sent < len(records):
            self.tail = bytes(records[sent:])

    def _send(self, pieces: Sequence[Piece], size: int) -> int:
        step = self._step()
        if size <= step:
            self._send_sealed(pieces, size)
            return size
        done = 0
        view = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        while done < size and not self.blocked:
            part = view[done : done + step]
            self._send_sealed((part,), len(part))
            done += len(part)
        return done

    def _send_sealed(self, pieces: Sequence[Piece], size: int) -> None:
        """Encrypt pieces, together `size` bytes, and send that."""
        self._encrypt(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._send_encrypted()

    def _step(self) -> int:
        """What is encrypted at a time.  Of a websocket's messages that is all or nothing (framing.py)."""
        return self._write_bytes if self.codec is None else WRITE_BYTES

    def _encrypt(self, data: Piece) -> None:
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise WireEnded(CloseReason.TLS_FAILED, _tls_text(error)) from error

    def send_raw(self, data: Piece) -> None:
        self._send_sealed((data,), len(data))


def check_tiny(records: int, size: int) -> None:
    """Raise WireEnded if so many TLS records of one receive carried next to nothing, `size` bytes together."""
    if records > MAX_TINY_RECORDS and size < records * _TINY_RECORD_BYTES:
        raise WireEnded(CloseReason.FLOOD, f"{records} TLS records at once that carry {size} bytes in all")


def _tls_text(error: ssl.SSLError) -> str:
    # Of a certificate we refused, why: expired, another name, an unknown authority each want another remedy.
    # Those that Python makes itself have neither.
    reason, detail = getattr(error, "reason", None), getattr(error, "verify_message", "")
    return f"TLS: {reason or error_text(error)}{f': {detail}' if detail else ''}"
