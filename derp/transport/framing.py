"""What all wires that are streams of bytes do alike: websocket framing, and what the carrier did not take.  Layer L2.

A carrier adds two methods, `_receive` and `_carry`, and says how it is closed; one with a layer of its own between
(TLS) overrides `_send` too.  links.py does it for sockets, tests/support/memory_host.py in memory.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from derp.close_reason import CloseReason
from derp.protocol.websocket import Opcode, WebSocketDecoder, WebSocketError, answer_control, close_frame, encode_header
from derp.relay.pace import Pace
from derp.transport.host import Piece, Session, WireEnded

# What one receive asks for at most.  Larger brings nothing: a socket with more is ready again in the same round.
RECEIVE_BYTES: Final = 256 * 1024
# What the first one asks for; it doubles with each that comes back full.  What the bytes of strangers cost is unknown:
# 256 KiB of the smallest websocket messages take 45 ms, 4 KiB take 0.7.
FIRST_RECEIVE_BYTES: Final = 4 * 1024
# A receive itself takes some 10 us, so asking for less would only make the dear dearer.
LEAST_RECEIVE_BYTES: Final = 256
# One TLS record, which may be decrypted over what a receive asked for.
RECORD_BYTES: Final = 16 * 1024
# Sent through TLS at a time: more would only hide in `tail`, where no queue can drop it, when the kernel takes none.
# Of a wire that was full it is no more than the kernel holds for it (`limit_unsent`).
WRITE_BYTES: Final = 64 * 1024
# Websocket messages of one send: with their heads they are one encryption, which TLS takes charge of whole.
_MESSAGES_BYTES: Final = WRITE_BYTES - 32
# Stock Go clients refuse websocket messages above this; boundaries mean nothing to DERP, so larger ones are cut.
MAX_MESSAGE_BYTES: Final = 32 * 1024
_BINARY: Final = int(Opcode.BINARY)


class StreamWire(ABC):
    """A Wire (derp/transport/host.py) over some carrier of bytes.  Owned by its host, closed through it."""

    __slots__ = (
        "address",
        "appetite",
        "blocked",
        "codec",
        "ending",
        "is_newcomer",
        "kept",
        "pace",
        "paused",
        "session",
        "tail",
        "wants_out",
        "write_seconds",
    )

    is_open: bool = True
    """Whether bytes of the session flow: under TLS not before the handshake has ended."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.appetite = FIRST_RECEIVE_BYTES  # what the next receive asks for; the host lowers it
        self.session: Session | None = None
        self.codec: WebSocketDecoder | None = None
        # the stream's end came right behind bytes: whoever receives raises it once these were served
        self.ending: WireEnded | None = None
        self.is_newcomer = False  # it has not said yet what it wants: its turn comes after those who are inside
        self.kept = b""  # the unfinished rest of what was received
        self.tail = b""  # bytes on their way that the carrier did not take: before anything else
        self.blocked = False  # the carrier is full; `send` takes nothing until `writable`
        self.pace: Pace | None = None  # how fast the carrier takes bytes, once it was full
        self.paused = False  # not reading, by a rate limit or an open decision
        self.wants_out = False  # somebody waits for `writable`
        self.write_seconds: float | None = None  # how long the carrier may take nothing while it is blocked

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.address[0]}:{self.address[1]}"

    # --- the carrier's

    @abstractmethod
    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        """Put bytes that came into `into[at:]`: what a receive of `appetite` bytes gives, and RECORD_BYTES at the most.
        Return the new end, `at` when there is nothing.  WireEnded at the end of the stream, or `ending` set when bytes
        came with it."""

    @abstractmethod
    def _carry(self, pieces: Sequence[Piece], size: int) -> int:
        """Hand pieces, together `size` bytes, to the carrier as they are; return how many bytes it took, and set
        `blocked` when these are not all.  WireEnded when it failed."""

    def _send(self, pieces: Sequence[Piece], size: int) -> int:
        """The same for bytes of the session: a layer between, such as TLS, begins here."""
        return self._carry(pieces, size)

    @abstractmethod
    def want(self, *, read: bool, write: bool) -> None:
        """What the carrier shall report from now on."""

    @abstractmethod
    def end_output(self) -> None:
        """Tell the peer that no more bytes come, and go on receiving."""

    @abstractmethod
    def close(self) -> None:
        """End it at once."""

    @abstractmethod
    def peer_left(self) -> bool:
        """Whether the peer has ended its side, as far as can be known without reading."""

    @abstractmethod
    def rtt_microseconds(self) -> int:
        """The smoothed round-trip time.  OSError where nobody measures it."""

    def limit_unsent(self, size_bytes: int) -> None:  # noqa: B027  # a carrier without a kernel below has nothing to do
        """Have the carrier call itself full when it holds so many bytes that were not sent yet, where it can."""

    def version(self) -> str | None:
        """The TLS version in use, as OpenSSL spells it; None without TLS."""
        return None

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
        """Give `pieces`, together `size` bytes, to the carrier; return how many bytes it, or `tail`, has now.

        Fewer than `size` only when the link is blocked now.  WireEnded when the socket failed.
        """
        if self.blocked:
            return 0
        if self.codec is not None:
            return self._send_messages(pieces, size)
        return self._send(pieces, size)

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
        """Send bytes that may not be refused, below any websocket (an HTTP answer, a pong): what the carrier leaves
        becomes `tail`.  Callers keep them small."""
        sent = 0 if self.blocked else self._send([data], len(data))
        if sent < len(data):
            self.tail += bytes(data[sent:])

    def flush_tail(self) -> bool:
        """Send on what was left over; True when nothing is left and the link takes new bytes."""
        self.blocked = False
        if self.tail:
            tail, self.tail = self.tail, b""
            sent = self._carry([tail], len(tail))
            self.tail = tail[sent:]
        return not self.blocked
