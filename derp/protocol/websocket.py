"""RFC 6455 websocket frames for the packet path.  Layer L1: no I/O.

DERP and the tailnet RPC are byte streams inside binary messages: message boundaries mean nothing, extensions are never
agreed on, text is refused with 1003, too long a message with 1009.  So payload is handed on as it arrives, unmasked
straight into the caller's buffer, and a message is never put together.
Per receive: WebSocketDecoder.receive_into, `settle` if it spent anything, then answer what stands in .control
(answer_control).  The HTTP upgrade is protocol/upgrade.py.  Next hop: protocol/frames.py for DERP.
"""

import enum
import struct
from base64 import b64encode
from hashlib import sha1
from typing import Final, TypeAlias

from derp.errors import Flood, LocalProtocolError, RemoteProtocolError

Payload: TypeAlias = bytes | bytearray | memoryview

# What a genuine derper takes in one message (its library's default): whoever sends to one splits above this.
GENUINE_MAX_MESSAGE_BYTES: Final = 32768
MASK_BYTES: Final = 4
MAX_CONTROL_BYTES: Final = 125
# A receive of 256 KiB can hold 43,000 frames that carry nothing: control frames, empty messages, empty fragments.  Each
# costs a server 3 us.  Nobody has more than a handful under way, so one more than these at once is a flood.
MAX_IDLE_PER_RECEIVE: Final = 64
# Below this many bytes a message costs more than it carries.  A yamux header has 12; what follows one may be shorter,
# which is why such messages are counted, and cheaper than those without any payload.
TINY_BYTES: Final = 12
# What is allowed over time, in units of a tiny message: 8,192 tiny ones at once and 512 a second from then on, or a
# 32nd of that without payload (256 at once, 16 a second).  Honest peers ping once in 15 s.
_IDLE_COST: Final = 32
_BURST: Final = 8192
_RATE: Final = 512.0

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FIN: Final = 0x80
_MASKED: Final = 0x80
_RESERVED_BITS: Final = 0x70
_CONTROL_BIT: Final = 0x08


class Opcode(enum.IntEnum):
    """What a frame is."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(enum.IntEnum):
    """Why a websocket was closed; those we send or look for."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never on the wire: a close frame without a code
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011


class WebSocketError(RemoteProtocolError):
    """The peer broke RFC 6455 or our limits; tell it `close_code` (close_frame) and leave."""

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(reason)
        self.close_code = close_code


class WebSocketFlood(WebSocketError, Flood):
    """The peer sends frames that carry next to nothing, more than any honest one."""


# --- sending ---


def encode_header(opcode: int, length: int) -> bytes:
    """The head of a whole, unmasked frame of `length` payload bytes: what a server sends before them."""
    if length < 126:
        return bytes((_FIN | opcode, length))
    if length < 1 << 16:
        return _HEAD_16.pack(_FIN | opcode, 126, length)
    return _HEAD_64.pack(_FIN | opcode, 127, length)


def encode_masked(opcode: int, payload: Payload, mask: bytes) -> bytes:
    """One whole frame from a client.  `mask`: 4 fresh random bytes."""
    if len(mask) != MASK_BYTES:
        raise LocalProtocolError(f"a mask has {MASK_BYTES} bytes, got {len(mask)}")
    head = encode_header(opcode, len(payload))
    return b"".join((head[:1], bytes((head[1] | _MASKED,)), head[2:], mask, _xor(memoryview(payload), mask)))


def close_frame(code: int, reason: str = "") -> bytes:
    """A server's close frame; a client masks `close_payload`."""
    payload = close_payload(code, reason)
    return encode_header(Opcode.CLOSE, len(payload)) + payload


def close_payload(code: int, reason: str = "") -> bytes:
    """Two bytes of code and the reason, cut to what a control frame holds.  NO_STATUS gives an empty payload."""
    if code == CloseCode.NO_STATUS:
        return b""
    if not _may_be_sent(code):
        raise LocalProtocolError(f"{code} is no close code for the wire")
    # Cut between characters: half a character would be a violation of ours.
    text = reason.encode("utf-8", "replace")[: MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore")
    return struct.pack("!H", code) + text.encode()


def parse_close(payload: Payload) -> tuple[int, str]:
    """Code and reason of a close frame's payload.  Raises WebSocketError."""
    if len(payload) == 0:
        return CloseCode.NO_STATUS, ""
    if len(payload) == 1:
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a close frame has one byte: no room for its code")
    code = int.from_bytes(payload[:2], "big")
    if not _may_be_sent(code):
        raise WebSocketError(CloseCode.PROTOCOL_ERROR, f"a close frame has the code {code}")
    try:
        return code, bytes(payload[2:]).decode()
    except UnicodeDecodeError:
        raise WebSocketError(CloseCode.INVALID_DATA, "the reason of a close frame is not UTF-8") from None


def answer_control(opcode: int, payload: Payload, mask: bytes | None = None) -> bytes:
    """What RFC 6455 wants sent after a control frame: a pong, the echo of a close, or nothing.  `mask`: clients."""
    if opcode == Opcode.PING:
        answer, body = Opcode.PONG, bytes(payload)
    elif opcode == Opcode.CLOSE:
        answer, body = Opcode.CLOSE, bytes(payload[:2])
    else:
        return b""
    if mask is not None:
        return encode_masked(answer, body, mask)
    return encode_header(answer, len(body)) + body


def accept_token(key: str) -> str:
    """The Sec-WebSocket-Accept that proves a server read Sec-WebSocket-Key."""
    return b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


# --- receiving ---


class WebSocketDecoder:
    """Takes one side's byte stream apart.  Called by whoever owns the socket, once per receive.

    `expect_masked`: True on a server.  `max_message_bytes` bounds a message over all its fragments.
    Only a server counts frames that carry next to nothing: whom a client dialled could do worse.
    """

    __slots__ = (
        "_debt",
        "_error",
        "_head_bytes",
        "_idle",
        "_in_message",
        "_limit",
        "_long_head",
        "_mask",
        "_masked",
        "_message_bytes",
        "_remaining",
        "_settled_at",
        "_short_head",
        "_stash",
        "_unpack",
        "closed",
        "control",
        "spent",
    )

    def __init__(self, expect_masked: bool, max_message_bytes: int) -> None:
        self.control: list[tuple[int, bytes]] = []
        """Pongs and the close received, oldest first, and of pings the last one, which answers for all (RFC 6455
        section 5.5.3).  The caller answers and clears it after each receive."""
        self.spent = 0
        """What the frames since the last `settle` cost beyond their payload; 0 nearly always."""
        self.closed = False
        """The peer's close frame was received: whatever follows it is ignored."""
        self._debt = 0.0
        self._settled_at = 0.0
        self._idle = 0  # frames without payload in this receive
        self._masked = expect_masked
        self._limit = max_message_bytes
        self._error: WebSocketError | None = None
        self._stash = b""  # an unfinished head, or an unfinished control frame: at most 131 bytes
        self._remaining = 0  # payload bytes of the current frame still to come
        self._mask = b""  # turned so that its first byte belongs to the next payload byte
        self._in_message = False  # a fragmented message goes on after the current frame
        self._message_bytes = 0  # of that message, so far
        # The two heads of a whole binary message, up to 65,535 and up to 125 bytes, as big-endian shorts.
        self._long_head = 0x82FE if expect_masked else 0x827E
        self._short_head = 0x8280 if expect_masked else 0x8200
        long_head = struct.Struct("!HH4s" if expect_masked else "!HH0s")
        self._unpack = long_head.unpack_from
        self._head_bytes = long_head.size

    @property
    def is_between_messages(self) -> bool:
        """Whether nothing is begun: a new decoder would go on as well as this one."""
        return not (self._stash or self._remaining or self._in_message or self.control or self.closed or self._error)

    def receive_into(self, data: memoryview, out: bytearray | memoryview, at: int) -> int:
        """Write the payload of binary messages in `data` to `out` from `at` on; return the new end.

        Never writes more than len(data) bytes, so the caller must have that much room.  `out` may be the buffer that
        `data` views, if `at` is not beyond the start of the view.  As a memoryview it is a little faster.
        Raises WebSocketError, now and ever after; payload of the same call is lost then.
        """
        if self._error is not None:
            raise self._error
        self._idle = 0
        try:
            return self._receive(data, out, at)
        except WebSocketError as error:
            self._error = error
            raise

    def settle(self, now: float) -> None:
        """Charge what was spent, at `now` seconds.  Raises WebSocketFlood when it is more than anybody may."""
        debt = max(self._debt - (now - self._settled_at) * _RATE, 0.0) + self.spent
        self._debt, self._settled_at, self.spent = debt, now, 0
        if debt > _BURST:
            self._error = WebSocketFlood(
                CloseCode.POLICY_VIOLATION, "too many messages that carry next to nothing: write more into each"
            )
            raise self._error

    def _receive(self, data: memoryview, out: bytearray | memoryview, at: int) -> int:
        unpack, head_bytes, limit = self._unpack, self._head_bytes, self._limit
        long_head, short_head = self._long_head, self._short_head
        from_bytes = int.from_bytes
        pos, size = 0, len(data)
        straight = not (self._remaining or self._stash or self._in_message or self.closed)
        while pos < size:
            if straight and size - pos >= head_bytes:
                # The common case in a straight line: a whole binary message in one frame in this receive.
                head, length, mask = unpack(data, pos)
                if head == long_head:
                    start = pos + head_bytes
                elif head & 0xFF80 == short_head and head & 0x7F < 126:
                    length = head & 0x7F
                    start = pos + head_bytes - 2
                    mask = data[pos + 2 : start]
                else:
                    start = size + 1  # anything else, by the long way
                end = start + length
                if end <= size and length <= limit:
                    words = (length + 3) >> 2
                    if not mask:
                        out[at : at + length] = data[start:end]
                    elif words < _KNOWN_WORDS:
                        clear = from_bytes(data[start:end], "little") ^ (
                            from_bytes(mask, "little") * _ONE_IN_EACH_WORD[words]
                        )
                        out[at : at + length] = clear.to_bytes(4 * words, "little")[:length]
                        if length < TINY_BYTES:
                            self._spend(length)
                    else:
                        out[at : at + length] = _xor(data[start:end], mask)
                    pos = end
                    at += length
                    continue
            if self.closed:
                break
            pos, at = self._step(data, pos, out, at)
            straight = not (self._remaining or self._stash or self._in_message or self.closed)
        return at

    def _spend(self, length: int) -> None:
        """Count a frame with so little payload."""
        if not self._masked:
            return
        if length:
            self.spent += 1
            return
        self.spent += _IDLE_COST
        self._idle += 1
        if self._idle > MAX_IDLE_PER_RECEIVE:
            raise WebSocketFlood(
                CloseCode.POLICY_VIOLATION, f"more than {MAX_IDLE_PER_RECEIVE} messages at once that carry nothing"
            )

    def _step(self, data: memoryview, pos: int, out: bytearray | memoryview, at: int) -> tuple[int, int]:
        """One step by the long way: a piece of payload, or a head, or as much of a head as there is."""
        if self._remaining:
            piece = data[pos : pos + self._remaining]
            length = len(piece)
            out[at : at + length] = _xor(piece, self._mask) if self._masked else piece
            self._remaining -= length
            turn = length & 3
            self._mask = self._mask[turn:] + self._mask[:turn]
            return pos + length, at + length
        head = self._stash
        needed = self._needed_bytes(head)
        while len(head) < needed:
            more = bytes(data[pos : pos + needed - len(head)])
            if not more:
                self._stash = head
                return pos, at
            head += more
            pos += len(more)
            needed = self._needed_bytes(head)
        self._stash = b""
        self._begin_frame(head)
        return pos, at

    def _needed_bytes(self, head: bytes) -> int:
        """How many bytes must stand together before a frame can begin; its first two bytes are judged here."""
        if len(head) < 2:
            return 2
        opcode, length = head[0] & 0x0F, head[1] & 0x7F
        if head[0] & _RESERVED_BITS:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a reserved bit is set, but no extension was agreed on")
        if (head[1] & _MASKED != 0) != self._masked:
            side = "unmasked frame from a client" if self._masked else "masked frame from a server"
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, f"{side}: RFC 6455 section 5.1 forbids it")
        mask_bytes = MASK_BYTES if self._masked else 0
        if opcode & _CONTROL_BIT:
            if opcode > Opcode.PONG:
                raise WebSocketError(CloseCode.PROTOCOL_ERROR, f"opcode 0x{opcode:x} does not exist")
            if length > MAX_CONTROL_BYTES or not head[0] & _FIN:
                raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a control frame is whole and has at most 125 bytes")
            return 2 + mask_bytes + length
        self._check_data_opcode(opcode)
        # Lengths in a longer form than needed are taken: the library of the genuine relay takes them too.
        return 2 + (8 if length == 127 else 2 if length == 126 else 0) + mask_bytes

    def _check_data_opcode(self, opcode: int) -> None:
        if opcode > Opcode.BINARY:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, f"opcode 0x{opcode:x} does not exist")
        if (opcode == Opcode.CONTINUATION) != self._in_message:
            what = "a message inside a message" if self._in_message else "a continuation of nothing"
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, what)
        if opcode == Opcode.TEXT:
            raise WebSocketError(CloseCode.UNSUPPORTED_DATA, "text message: this stream takes only binary ones")

    def _begin_frame(self, head: bytes) -> None:
        opcode, length = head[0] & 0x0F, head[1] & 0x7F
        mask_at = 2
        if length == 126:
            length, mask_at = int.from_bytes(head[2:4], "big"), 4
        elif length == 127:
            length, mask_at = int.from_bytes(head[2:10], "big"), 10
        mask = head[mask_at : mask_at + MASK_BYTES] if self._masked else b""
        if opcode & _CONTROL_BIT:
            body = head[mask_at + len(mask) :]
            self._control_frame(opcode, _xor(memoryview(body), mask) if self._masked else body)
            return
        total = self._message_bytes + length
        if total > self._limit:
            raise WebSocketError(
                CloseCode.MESSAGE_TOO_BIG, f"a message of {total} bytes or more, limit {self._limit}: send shorter ones"
            )
        if length < TINY_BYTES:
            # An empty last fragment, as some writers end each message with, is no more idle than what it ends.
            self._spend(length or min(self._message_bytes, 1))
        self._remaining, self._mask = length, mask
        self._in_message = not head[0] & _FIN
        self._message_bytes = total if self._in_message else 0

    def _control_frame(self, opcode: int, body: bytes) -> None:
        self._spend(0)
        if opcode == Opcode.CLOSE:
            parse_close(body)
            self.closed = True
        elif opcode == Opcode.PING:
            # Only one is kept: its successor answers for it.
            self.control = [frame for frame in self.control if frame[0] != Opcode.PING]
        if len(self.control) >= MAX_IDLE_PER_RECEIVE:
            del self.control[0]  # a client is sent more, by a server that floods it
        self.control.append((opcode, body))


# --- masks ---

_HEAD_16: Final = struct.Struct("!BBH")
_HEAD_64: Final = struct.Struct("!BBQ")

# Unmasking is one XOR of two big integers, and a mask becomes as long as its payload by one multiplication with
# 0x...00000001_00000001.  Measured on 1,317 bytes (a packet of 1,280): 3.0 us with these factors ready, 3.4 with one
# made per frame, 3.4 with the mask repeated as bytes; four strided translates cost as much and lose on short frames.
# Ready are those for all that fits an Ethernet frame (0.3 MB).  What is longer goes by chunks, all of one factor:
# 4 KiB is best (32 KiB of payload in 44 us, in one piece 51; 64 KiB 88 and 182).
_KNOWN_WORDS: Final = 385
_ONE_IN_EACH_WORD: Final = [int.from_bytes(b"\x01\x00\x00\x00" * words, "little") for words in range(_KNOWN_WORDS)]
_CHUNK_WORDS: Final = 1024
_CHUNK_BYTES: Final = 4 * _CHUNK_WORDS
_ONE_IN_EACH_OF_CHUNK: Final = int.from_bytes(b"\x01\x00\x00\x00" * _CHUNK_WORDS, "little")


def _xor(payload: memoryview, mask: bytes | memoryview) -> bytes:
    """`payload` XOR the repeated mask, of any length."""
    length = len(payload)
    mask_word = int.from_bytes(mask, "little")
    if length <= _CHUNK_BYTES:
        return _xor_chunk(payload, mask_word)
    chunk_mask = mask_word * _ONE_IN_EACH_OF_CHUNK
    whole = length - length % _CHUNK_BYTES
    pieces = [
        (int.from_bytes(payload[at : at + _CHUNK_BYTES], "little") ^ chunk_mask).to_bytes(_CHUNK_BYTES, "little")
        for at in range(0, whole, _CHUNK_BYTES)
    ]
    pieces.append(_xor_chunk(payload[whole:], mask_word))
    return b"".join(pieces)


def _xor_chunk(payload: memoryview, mask_word: int) -> bytes:
    length = len(payload)
    words = (length + 3) >> 2
    known = words < _KNOWN_WORDS
    ones = _ONE_IN_EACH_WORD[words] if known else _ONE_IN_EACH_OF_CHUNK >> (32 * (_CHUNK_WORDS - words))
    clear = int.from_bytes(payload, "little") ^ (mask_word * ones)
    # The last word may hang over: its bytes beyond the payload are mask and nothing else.
    return clear.to_bytes(4 * words, "little")[:length]


def _may_be_sent(code: int) -> bool:
    # RFC 6455 section 7.4 and its registry: 1004 to 1006 and 1015 exist only inside programs.
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
