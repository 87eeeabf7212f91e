"""One non-blocking socket each, as the reactor serves it: plain or TLS, with or without websocket framing.  Layer L2.

`receive` puts what the socket has, decrypted and unframed, into the reactor's arena; `send` gives pieces to the kernel
and says how many bytes it took charge of.  TLS is an SSLObject between memory BIOs, because one large receive then
feeds many records (an SSLSocket costs two reads a record).  Sessions decide what bytes mean.
"""

import contextlib
import select
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from derp.close_reason import CloseReason
from derp.protocol.websocket import Opcode, WebSocketDecoder, WebSocketError, answer_control, close_frame, encode_header
from derp.text import error_text
from derp.transport.host import Piece, Session, WireEnded
from derp.transport.tls_refusals import handshake_failure

# What one receive asks for at most.  Larger brings nothing: a socket with more is ready again in the same round.
RECEIVE_BYTES: Final = 256 * 1024
# What the first one asks for; it doubles with each that comes back full.  What the bytes of strangers cost is unknown:
# 256 KiB of the smallest websocket messages take 45 ms, 4 KiB take 0.7.
FIRST_RECEIVE_BYTES: Final = 4 * 1024
# A receive itself takes some 10 us, so asking for less would only make the dear dearer.
LEAST_RECEIVE_BYTES: Final = 256
# TLS records in one receive that carry less than this on average carry next to nothing: 22 bytes are around each, and
# decrypting one takes 2.5 us.  A packet's keep-alive is a record of 5 bytes, but nobody sends 64 of them at once.
MAX_TINY_RECORDS: Final = 64
_TINY_RECORD_BYTES: Final = 24
# Encrypted at a time: more would only hide in `tail`, where no queue can drop it, when the kernel takes none of it.
_TLS_WRITE_BYTES: Final = 64 * 1024
# Websocket messages of one send: with their heads they are one encryption, which TLS takes charge of whole.
_MESSAGES_BYTES: Final = _TLS_WRITE_BYTES - 32
# Stock Go clients refuse websocket messages above this; boundaries mean nothing to DERP, so larger ones are cut.
MAX_MESSAGE_BYTES: Final = 32 * 1024
_IOV_MAX: Final = 1024
# Of the kernel's TCP: the peer's FIN has come, or the connection is gone (TCP_CLOSE, TCP_CLOSE_WAIT).
_ENDED_STATES: Final = frozenset({7, 8})
_BINARY: Final = int(Opcode.BINARY)


class Link:
    """A plain TCP socket.  Owned by the reactor, closed through it."""

    __slots__ = (
        "address",
        "appetite",
        "blocked",
        "codec",
        "ending",
        "fd",
        "kept",
        "paused",
        "poller",
        "session",
        "sock",
        "tail",
        "wants_out",
        "write_seconds",
    )

    is_open: bool = True
    """Whether bytes of the session flow: under TLS not before the handshake has ended."""

    def __init__(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.appetite = FIRST_RECEIVE_BYTES  # what the next receive asks for; the reactor lowers it
        self.session: Session | None = None
        self.codec: WebSocketDecoder | None = None
        # the stream's end came right behind bytes: whoever receives raises it once these were served
        self.ending: WireEnded | None = None
        self.kept = b""  # the unfinished rest of what was received
        self.tail = b""  # bytes on their way that the kernel did not take: before anything else
        self.blocked = False  # the kernel is full; `send` takes nothing until `writable`
        self.paused = False  # not reading, by a rate limit or an open decision
        self.wants_out = False  # registered for EPOLLOUT
        self.write_seconds: float | None = None  # how long the kernel may take nothing while it is blocked
        self.poller: select.epoll | None = None  # of the reactor that serves it

    def want(self, *, read: bool, write: bool) -> None:
        """What the reactor's set shall report."""
        if self.poller is not None:
            self.poller.modify(self.fd, (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0))

    def version(self) -> str | None:
        """The TLS version in use, as OpenSSL spells it; None without TLS."""
        return None

    def rtt_microseconds(self) -> int:
        """The kernel's smoothed round-trip time.  Raises OSError."""
        return int.from_bytes(self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)[68:72], sys.byteorder)

    def peer_left(self) -> bool:
        """Whether the peer has ended its side, though bytes that it sent before may still wait."""
        try:
            return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED_STATES
        except (OSError, AttributeError):  # no TCP, or not on Linux: seen only when nothing waits
            pass
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # --- receiving

    def receive(self, view: memoryview, at: int, scratch: memoryview, framed: memoryview) -> int:
        """Receive into `view[at:]`, which has room for RECEIVE_BYTES and a TLS record; return the new end.

        `scratch` is a buffer for encrypted, `framed` one for websocket bytes.  WireEnded at the end of the stream, or
        `ending` set when bytes came with it; WebSocketError when the peer breaks that protocol.
        """
        codec = self.codec
        if codec is None:
            return self._receive(view, at, scratch)
        end = self._receive(framed, 0, scratch)
        if not end:
            return at
        start = at
        try:
            at = codec.receive_into(framed[:end], view, at)
            if codec.spent:
                codec.settle(time.monotonic())
        except WebSocketError as error:
            self.send_raw(close_frame(error.close_code, str(error)))
            raise
        if codec.control:
            try:
                self._answer_control(codec)
            except WireEnded as ended:
                if at == start:
                    raise
                self.ending = ended
        return at

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        try:
            count = self.sock.recv_into(into[at : at + self.appetite])
        except BlockingIOError:
            return at
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"receive failed: {error_text(error)}") from None
        if not count:
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        if count == self.appetite and count < RECEIVE_BYTES:
            self.appetite = min(2 * count, RECEIVE_BYTES)
        return at + count

    def _answer_control(self, codec: WebSocketDecoder) -> None:
        control = codec.control[:]
        codec.control.clear()
        for opcode, payload in control:
            # A peer that pings and does not read gets no further pongs: they may not pile up here.
            if len(self.tail) < MAX_MESSAGE_BYTES:
                answer = answer_control(opcode, payload)
                if answer:
                    self.send_raw(answer)
        if codec.closed:
            raise WireEnded(CloseReason.CLOSED_BY_PEER, "websocket closed by the peer")

    # --- sending

    def send(self, pieces: Sequence[Piece], size: int) -> int:
        """Give `pieces`, together `size` bytes, to the kernel; return how many bytes it, or `tail`, has now.

        Fewer than `size` only when the link is blocked now.  WireEnded when the socket failed.
        """
        if self.blocked:
            return 0
        if self.codec is not None:
            return self._send_messages(pieces, size)
        return self._send(pieces, size)

    def _send(self, pieces: Sequence[Piece], size: int) -> int:
        try:
            sent = self.sock.send(pieces[0]) if len(pieces) == 1 else self.sock.sendmsg(pieces[:_IOV_MAX])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"send failed: {error_text(error)}") from None
        if sent < size:
            if len(pieces) > _IOV_MAX and sent == sum(map(len, pieces[:_IOV_MAX])):
                return sent + self._send(pieces[_IOV_MAX:], size - sent)
            self.blocked = True
        return sent

    def _send_messages(self, pieces: Sequence[Piece], size: int) -> int:
        framed: list[Piece]
        if size <= MAX_MESSAGE_BYTES:
            # One copy of so little costs less than a gather call.
            framed = [b"".join((encode_header(_BINARY, size), *pieces))]
            total = len(framed[0])
        else:
            joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            view = memoryview(joined)
            framed, total = [], 0
            for at in range(0, min(size, _MESSAGES_BYTES), MAX_MESSAGE_BYTES):
                part = view[at : min(at + MAX_MESSAGE_BYTES, _MESSAGES_BYTES)]
                head = encode_header(_BINARY, len(part))
                framed += (head, part)
                total += len(head) + len(part)
        sent = self._send(framed, total)
        if sent < total:
            self.tail = b"".join(framed)[sent:] + self.tail
        if size > _MESSAGES_BYTES and not self.blocked:
            return _MESSAGES_BYTES + self._send_messages([memoryview(joined)[_MESSAGES_BYTES:]], size - _MESSAGES_BYTES)
        return min(size, _MESSAGES_BYTES)

    def push(self, data: Piece) -> None:
        """Send bytes that may not be refused, framed as the link is: the end of a frame that was begun."""
        if self.codec is None:
            self.send_raw(data)
            return
        view = memoryview(data)
        for at in range(0, len(view), MAX_MESSAGE_BYTES):
            part = view[at : at + MAX_MESSAGE_BYTES]
            self.send_raw(encode_header(_BINARY, len(part)) + part)

    def send_raw(self, data: Piece) -> None:
        """Send bytes that may not be refused, below any websocket (an HTTP answer, a pong): what the kernel leaves
        becomes `tail`.  Callers keep them small."""
        sent = 0 if self.blocked else self._send([data], len(data))
        if sent < len(data):
            self.tail += bytes(data[sent:])

    def flush_tail(self) -> bool:
        """Send on what was left over; True when nothing is left and the link takes new bytes."""
        self.blocked = False
        if self.tail:
            tail, self.tail = self.tail, b""
            sent = Link._send(self, [tail], len(tail))
            self.tail = tail[sent:]
        return not self.blocked

    def end_output(self) -> None:
        """Tell the peer that no more bytes come, and go on receiving.  A socket closed over bytes it has not read is
        reset instead, and a reset throws away what the peer has not got yet."""
        with contextlib.suppress(OSError):  # it has gone already
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


class TlsLink(Link):
    """A TCP socket under TLS.  `is_open` is false until the handshake ended; `receive` drives it."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "is_open")

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
        self.is_open = False

    def start(self) -> None:
        """Send the client's first bytes; `receive` does the rest of the handshake."""
        try:
            self._handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise WireEnded(CloseReason.TLS_FAILED, _tls_text(error)) from None

    def version(self) -> str | None:
        return self._tls.version()

    def send(self, pieces: Sequence[Piece], size: int) -> int:
        if self.blocked:
            return 0
        if self.codec is not None or size > _TLS_WRITE_BYTES:
            return super().send(pieces, size)
        # What `_send` does, in one call: it is the way of nearly all packets.
        try:
            self._tls.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except ssl.SSLError as error:
            raise WireEnded(CloseReason.TLS_FAILED, _tls_text(error)) from None
        encrypted = self._outgoing.read()
        if self.tail:
            self.tail += encrypted
            return size
        try:
            sent = self.sock.send(encrypted)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"send failed: {error_text(error)}") from None
        if sent < len(encrypted):
            self.blocked = True
            self.tail = encrypted[sent:]
        return size

    def receive(self, view: memoryview, at: int, scratch: memoryview, framed: memoryview) -> int:
        if self.codec is not None or self.ending is not None or not self.is_open:
            return super().receive(view, at, scratch, framed)
        # What `_receive` does, in one call and for the usual case: one record or a few, all of them whole.
        try:
            count = self.sock.recv_into(scratch[: self.appetite])
        except BlockingIOError:
            return at
        except OSError as error:
            raise WireEnded(CloseReason.SOCKET_FAILED, f"receive failed: {error_text(error)}") from None
        if not count:
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        if count == self.appetite and count < RECEIVE_BYTES:
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
            limit = at + RECEIVE_BYTES + 16384
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
        if records > MAX_TINY_RECORDS and at - start < records * _TINY_RECORD_BYTES:
            raise WireEnded(CloseReason.FLOOD, f"{records} TLS records at once that carry {at - start} bytes in all")
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

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
            self.is_open = True
        finally:
            if self._outgoing.pending:
                self._send_encrypted()

    def _send_encrypted(self) -> None:
        encrypted = self._outgoing.read()
        if self.tail or self.blocked:
            self.tail += encrypted
            return
        sent = super()._send([encrypted], len(encrypted))
        if sent < len(encrypted):
            self.tail = encrypted[sent:]

    def _send(self, pieces: Sequence[Piece], size: int) -> int:
        done = 0
        joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if size <= _TLS_WRITE_BYTES:
            self._encrypt(joined)
            self._send_encrypted()
            return size
        view = memoryview(joined)
        while done < size and not self.blocked:
            part = view[done : done + _TLS_WRITE_BYTES]
            self._encrypt(part)
            self._send_encrypted()
            done += len(part)
        return done

    def _encrypt(self, data: Piece) -> None:
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise WireEnded(CloseReason.TLS_FAILED, _tls_text(error)) from None

    def send_raw(self, data: Piece) -> None:
        self._encrypt(data)
        self._send_encrypted()


def _tls_text(error: ssl.SSLError) -> str:
    # Of a certificate we refused, why: expired, another name, an unknown authority each want another remedy.
    detail = f": {error.verify_message}" if isinstance(error, ssl.SSLCertVerificationError) else ""
    return f"TLS: {error.reason or error.strerror}{detail}"
