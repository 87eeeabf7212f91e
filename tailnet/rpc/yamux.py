"""yamux: many byte streams over one, with a window each.  Layer L1: no I/O, no clock; spec: hashicorp/yamux, version 0.

Frame: version u8 = 0, type u8, flags u16, stream u32, length u32, all big endian; only Data frames have a body.
The side that dialled opens odd streams, the other even ones; stream 0 is the session itself.

One session per websocket: rpc/connection.py feeds it what arrived and sends what `data_to_send` gives.
Synchronous and thrifty on purpose: a coordinator holds one session per peer, and every update passes through here.
"""

import enum
import math
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

from tailnet.errors import Flood, LocalProtocolError, PeerSilent, RemoteProtocolError
from tailnet.rpc.stream_states import TRANSITIONS, StreamState, StreamStep

# Version, type and flags are read as one number: a plain Data frame is 0, so the hot path tests one integer.
HEADER: Final = struct.Struct("!III")
HEADER_BYTES: Final = 12

TYPE_DATA: Final = 0 << 16  # length: bytes of body
TYPE_WINDOW_UPDATE: Final = 1 << 16  # length: how many more bytes the receiver of this frame may send
TYPE_PING: Final = 2 << 16  # SYN asks, ACK answers; length: opaque, echoed
TYPE_GO_AWAY: Final = 3 << 16  # length: GoAwayCode
_TYPE_MASK: Final = 0xFFFF0000
FLAG_SYN: Final = 1
FLAG_ACK: Final = 2
FLAG_FIN: Final = 4
FLAG_RST: Final = 8

# Fixed by the protocol as the first window of every stream; genuine servers never grant more, and neither do we.
WINDOW_BYTES: Final = 256 * 1024
# Genuine peers, too, wait until half is consumed: fewer would stall senders, more would double the frames.
_CREDIT_BYTES: Final = WINDOW_BYTES // 2
_MAX_U32: Final = (1 << 32) - 1


class GoAwayCode(enum.IntEnum):
    """Why a side opens no more streams, or ends the session."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class SessionEvent(enum.Enum):
    """First part of each event tuple `(event, stream id, value)`."""

    OPENED = "the peer opened a stream, which is acknowledged already; value None"
    DATA = "value: memoryview of the bytes given to receive_data; copy what you keep"
    ENDED = "the peer sends no more on this stream; value None"
    RESET = "the stream is gone, both ways; value None"
    PONG = "a ping was answered; stream id 0, value its opaque number"
    GO_AWAY = "the peer takes no new streams; stream id 0, value GoAwayCode.NORMAL"


# A plain tuple: one is made per received frame, and a class would cost more than parsing the frame.
Event: TypeAlias = tuple[SessionEvent, int, Any]

_OPENED, _DATA, _ENDED = SessionEvent.OPENED, SessionEvent.DATA, SessionEvent.ENDED
_RESET, _PONG, _GO_AWAY = SessionEvent.RESET, SessionEvent.PONG, SessionEvent.GO_AWAY
_OPEN, _LOCAL_CLOSED, _REMOTE_CLOSED = StreamState.OPEN, StreamState.LOCAL_CLOSED, StreamState.REMOTE_CLOSED
_CLOSED = StreamState.CLOSED

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one peer may cost, and when it is given up.  Shared by all sessions of a server."""

    # A busy agent has some ten streams at a time.  One more than this is reset, as genuine servers do.
    max_streams: int = 256
    # Streams of ours that the peer has not acknowledged: genuine peers reset what exceeds their backlog of 256.
    max_unacknowledged: int = 256
    # Bytes held for a stream beyond the peer's window: the longest message, or some eight thousand nodes.  A peer
    # that lets more than this pile up does not read.
    max_unsent_bytes: int = 4 << 20
    # Bytes that the transport has not taken, of all streams: a peer may grant windows of 4 GiB and not read its
    # socket.  Two of the longest messages.
    max_output_bytes: int = 8 << 20
    # The same in pieces, for acknowledgements and pongs to a peer that sends but does not read; above what
    # max_output_bytes holds in short updates.
    max_output_pieces: int = 1 << 17
    # Frames that carry nothing, in 15 s: pings, go-aways, empty frames, windows that grow by next to nothing, what is
    # for streams that are gone, and streams that die before any data.  A genuine peer sends one ping in 30 s.
    max_idle_frames: int = 1024
    # Frames of fewer bytes than their own header, in 15 s.  A call has two of them; this many are 4,000 calls.
    max_tiny_frames: int = 8192
    # Streams that the peer opens, in 15 s.  Each is a call, and costs some 100 us; a busy agent makes a hundred.
    max_opened: int = 4096
    # None: the driver keeps the connection alive by other means (websocket pings).
    ping_seconds: float | None = 15.0
    # Unanswered for this long, the peer is dead.  Two pings' worth, as the reference does.
    pong_seconds: float = 30.0
    # How often budgets are refilled and ages checked when there are no pings.
    tick_seconds: float = 15.0
    # Genuine peers reset a stream that stays half closed for 5 minutes, and end a session in which a stream of
    # theirs is not acknowledged for 75 s; ages are counted from tick to tick.
    half_closed_seconds: float = 300.0
    acknowledge_seconds: float = 75.0


DEFAULT_LIMITS: Final = SessionLimits()
# Budgets are for this long, or for a tick that is longer.
BUDGET_SECONDS: Final = 15.0
# A genuine peer grows a window by at least half of it; others may be more eager, but not as eager as this.
_LEAST_GROWTH_BYTES: Final = 4096


class _Stream:
    """Per stream: kept small, a coordinator has two or three of them per peer."""

    __slots__ = (
        "auto_consume",
        "consumed",
        "deadline",
        "ending",
        "receive_window",
        "send_window",
        "state",
        "unsent",
        "unsent_bytes",
        "used",
    )

    def __init__(self) -> None:
        self.state = _OPEN
        self.send_window = WINDOW_BYTES
        self.receive_window = WINDOW_BYTES
        self.consumed = 0  # handed out and consumed, but not yet credited to the peer
        self.auto_consume = True
        self.used = False  # carried data from the peer
        self.unsent: deque[Buffer] | None = None  # what the peer's window did not take
        self.unsent_bytes = 0
        self.ending = False  # FIN follows the unsent bytes
        self.deadline = 0.0  # of half-closed streams; 0: none yet


class YamuxSession:
    """One session; made when the websocket is open, thrown away with it.

    `receive_data` -> events; `send_*`, `open_stream`, `close_stream`, `reset_stream`; then `data_to_send` -> bytes
    for the socket.  `handle_timeout` whenever `next_timeout` has passed.  RemoteProtocolError (PeerSilent among
    them) means: send what `data_to_send` still gives, close the socket, and let `receive_eof` say which streams went.
    LocalProtocolError: a dead session was used, a stream we closed, or one too many opened; nothing changed.
    """

    __slots__ = (
        "_body_bytes",
        "_body_ends",
        "_body_id",
        "_body_stream",
        "_dead",
        "_gone",
        "_head",
        "_idle_frames",
        "_next_id",
        "_opened",
        "_out",
        "_out_bytes",
        "_peer_streams",
        "_ping_deadline",
        "_ping_opaque",
        "_refusing",
        "_server",
        "_stray_bytes",
        "_streams",
        "_tick_at",
        "_tiny_frames",
        "_unacknowledged",
        "limits",
        "peer_refuses",
        "unsent_bytes",
    )

    def __init__(self, *, server: bool, now: float, limits: SessionLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.peer_refuses = False  # the peer said it takes no new streams
        self._server = server
        self._next_id = 2 if server else 1
        self._streams: dict[int, _Stream] = {}
        self._peer_streams = 0
        self._unacknowledged: dict[int, float] | None = None  # id -> deadline, 0.0 until the next tick sees it
        self._refusing = False
        self._dead = False
        self._gone: tuple[int, ...] = ()  # the streams that the session's own end took along
        self._out: list[Buffer] = []
        self._out_bytes = 0  # of data
        self.unsent_bytes = 0
        """Data of all streams that waits for the peer's windows."""
        # The frame being received: an unfinished header, or what is missing of a body.
        self._head = b""
        self._body_bytes = 0
        self._body_id = 0
        self._body_stream: _Stream | None = None  # None: nobody wants this body
        self._body_ends = False
        self._stray_bytes = WINDOW_BYTES
        self._refill()
        # The table of deadlines.
        self._tick_at = now + self._tick_seconds()
        self._ping_deadline = math.inf
        self._ping_opaque = 0

    # -- receiving --------------------------------------------------------------------------------------------

    def receive_data(self, data: Buffer) -> list[Event]:
        """Take bytes off the transport, however cut; return what they mean.

        DATA views point into `data`: they are valid as long as the caller leaves it alone.
        """
        if self._dead:
            raise LocalProtocolError("this session ended; nothing can be received any more")
        if len(self._out) > self.limits.max_output_pieces:
            self.fail(f"the peer sends but does not read: {len(self._out)} pieces wait for its socket")
        events: list[Event] = []
        view = memoryview(data)
        at, size = 0, len(view)
        if self._head:
            at = min(HEADER_BYTES - len(self._head), size)
            self._head += bytes(view[:at])
            if len(self._head) < HEADER_BYTES:
                return events
            word, stream_id, length = HEADER.unpack(self._head)
            self._head = b""
            self._receive_header(word, stream_id, length, events)
        streams, unpack_from = self._streams, HEADER.unpack_from
        while True:
            if self._body_bytes:
                if at == size:
                    return events
                end = min(at + self._body_bytes, size)
                self._receive_body(view[at:end], events)
                at = end
                continue
            if size - at < HEADER_BYTES:
                self._head = bytes(view[at:])
                return events
            word, stream_id, length = unpack_from(view, at)
            at += HEADER_BYTES
            if word == 0 and 0 < length <= size - at:
                # The hot path: a whole Data frame without flags, on a stream that may receive it.
                stream = streams.get(stream_id)
                if stream is not None and stream.state is not _REMOTE_CLOSED and length <= stream.receive_window:
                    stream.receive_window -= length
                    stream.used = True
                    end = at + length
                    events.append((_DATA, stream_id, view[at:end]))
                    if length < HEADER_BYTES:
                        self._count_tiny()
                    at = end
                    if stream.auto_consume:
                        stream.consumed += length
                        if stream.consumed >= _CREDIT_BYTES:
                            self._credit(stream_id, stream)
                    continue
            self._receive_header(word, stream_id, length, events)

    def receive_eof(self) -> list[Event]:
        """The transport ended: every stream is gone, also those that a fault of the session ended before.

        What a receive had found before it raised is lost, so RESET may name a stream that was never OPENED here.
        """
        self._die()
        gone, self._gone = self._gone, ()
        return [(_RESET, stream_id, None) for stream_id in gone]

    def _receive_header(self, word: int, stream_id: int, length: int, events: list[Event]) -> None:
        kind, flags = word & _TYPE_MASK, word & 0xFFFF
        if kind == TYPE_PING:
            self._receive_ping(flags, length, events)
        elif kind == TYPE_GO_AWAY:
            self._receive_go_away(length, events)
        elif kind <= TYPE_WINDOW_UPDATE:
            self._receive_stream_frame(kind, flags, stream_id, length, events)
        elif word >> 24:
            self.fail(f"yamux version {word >> 24}, expected 0")
        else:
            self.fail(f"unknown yamux frame type {kind >> 16}")

    def _receive_stream_frame(self, kind: int, flags: int, stream_id: int, length: int, events: list[Event]) -> None:
        if flags & FLAG_SYN:
            self._accept(stream_id, events)
        if flags & FLAG_ACK and self._unacknowledged:
            self._unacknowledged.pop(stream_id, None)
        stream = self._streams.get(stream_id)
        is_stray = stream is None and not flags & FLAG_SYN
        if flags & FLAG_RST and stream is not None:
            self._count_if_empty(stream_id, stream)
            self._forget(stream_id, stream)
            events.append((_RESET, stream_id, None))
            stream = None
        if kind == TYPE_WINDOW_UPDATE:
            if is_stray or (length < _LEAST_GROWTH_BYTES and not flags):
                self._spend()
            if stream is None:
                return  # crossed our RST or FIN on the way
            if flags & FLAG_FIN:
                self._end(stream_id, stream, events)
            if length and stream.state is not _CLOSED:
                self._grow_window(stream_id, stream, length)
            return
        if stream is None or stream.state is _REMOTE_CLOSED:
            self._discard(stream_id, stream, flags, length)
            return
        if length > stream.receive_window:
            self.fail(f"{length} bytes on stream {stream_id} exceed its window of {stream.receive_window}")
        if length:
            if length < HEADER_BYTES:
                self._count_tiny()
            stream.receive_window -= length
            stream.used = True
            self._body_bytes, self._body_id, self._body_stream = length, stream_id, stream
            self._body_ends = bool(flags & FLAG_FIN)
        elif flags & FLAG_FIN:
            self._end(stream_id, stream, events)
        elif not flags:
            self._spend()

    def _receive_body(self, piece: memoryview, events: list[Event]) -> None:
        self._body_bytes -= len(piece)
        stream = self._body_stream
        if stream is None or stream.state is _CLOSED:
            return
        events.append((_DATA, self._body_id, piece))
        if stream.auto_consume:
            stream.consumed += len(piece)
            if stream.consumed >= _CREDIT_BYTES:
                self._credit(self._body_id, stream)
        if not self._body_bytes and self._body_ends:
            self._end(self._body_id, stream, events)

    def _discard(self, stream_id: int, stream: _Stream | None, flags: int, length: int) -> None:
        """Data nobody waits for: it crossed our RST, or a writer of the peer raced its own FIN.

        Both happen to genuine peers, so it is dropped; but never more than the windows we had granted.
        """
        if stream is not None and flags & FLAG_FIN:
            self.fail(f"second FIN on stream {stream_id}")
        if length > self._stray_bytes:
            self.fail(f"{length} bytes for stream {stream_id}, which is not open")
        if not length:
            self._spend()
        elif length < HEADER_BYTES:
            self._count_tiny()
        self._stray_bytes -= length
        self._body_bytes, self._body_stream = length, None

    def _accept(self, stream_id: int, events: list[Event]) -> None:
        if stream_id % 2 != self._server or not stream_id:
            self.fail(f"the peer opened stream {stream_id}, a number that is ours to give")
        # Only equality is checked, not order: a genuine peer draws its numbers before it queues the frames, so
        # streams opened together arrive in any order.
        if stream_id in self._streams:
            self.fail(f"stream {stream_id} opened twice")
        self._opened -= 1
        if self._opened < 0:
            self.fail_for_flood(f"more than {self.limits.max_opened} streams opened in {self._budget_seconds():g} s")
        if self._refusing or self._peer_streams >= self.limits.max_streams:
            self._spend()
            self._stray_bytes += WINDOW_BYTES
            self._out.append(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_RST, stream_id, 0))
            return
        self._streams[stream_id] = _Stream()
        self._peer_streams += 1
        # At once: a genuine peer drops the whole session over a stream that stays unacknowledged.
        self._out.append(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_ACK, stream_id, 0))
        events.append((_OPENED, stream_id, None))

    def _end(self, stream_id: int, stream: _Stream, events: list[Event]) -> None:
        after = TRANSITIONS.get((stream.state, StreamStep.RECEIVE_FIN))
        if after is None:
            self.fail(f"second FIN on stream {stream_id}")
        self._count_if_empty(stream_id, stream)
        stream.state = after
        if after is _CLOSED:
            self._forget(stream_id, stream)
        events.append((_ENDED, stream_id, None))

    def _count_if_empty(self, stream_id: int, stream: _Stream) -> None:
        """A stream of the peer that it ends without having sent anything cost us three frames for nothing."""
        if not stream.used and stream_id % 2 == self._server:
            stream.used = True
            self._spend()

    def _receive_ping(self, flags: int, opaque: int, events: list[Event]) -> None:
        if flags & FLAG_SYN:
            self._spend()
            self._out.append(HEADER.pack(TYPE_PING | FLAG_ACK, 0, opaque))
            return
        if self._ping_deadline != math.inf and opaque == self._ping_opaque:
            self._ping_deadline = math.inf
        else:
            self._spend()
        events.append((_PONG, 0, opaque))

    def _receive_go_away(self, code: int, events: list[Event]) -> None:
        if code != GoAwayCode.NORMAL:
            self._die()
            reason = {1: "protocol error", 2: "internal error"}.get(code, "unknown code")
            raise RemoteProtocolError(f"the peer ended the session: go away {code} ({reason})")
        self._spend()
        self.peer_refuses = True
        events.append((_GO_AWAY, 0, GoAwayCode.NORMAL))

    def _grow_window(self, stream_id: int, stream: _Stream, delta: int) -> None:
        stream.send_window += delta
        if stream.send_window > _MAX_U32:
            self.fail(f"the window of stream {stream_id} grew beyond 32 bits")
        if stream.unsent:
            self._flush(stream_id, stream)

    def _spend(self) -> None:
        self._idle_frames -= 1
        if self._idle_frames < 0:
            limit, seconds = self.limits.max_idle_frames, self._budget_seconds()
            self.fail_for_flood(f"more than {limit} frames in {seconds:g} s that carry nothing")

    def _count_tiny(self) -> None:
        self._tiny_frames -= 1
        if self._tiny_frames < 0:
            limit, seconds = self.limits.max_tiny_frames, self._budget_seconds()
            self.fail_for_flood(f"more than {limit} frames in {seconds:g} s that carry next to nothing")

    def _refill(self) -> None:
        """The budgets of the next tick.  A session that is looked at once an hour has an hour's."""
        ticks = self._budget_seconds() / BUDGET_SECONDS
        self._idle_frames = int(self.limits.max_idle_frames * ticks)
        self._tiny_frames = int(self.limits.max_tiny_frames * ticks)
        self._opened = int(self.limits.max_opened * ticks)

    def _budget_seconds(self) -> float:
        return max(self._tick_seconds(), BUDGET_SECONDS)

    # -- sending ----------------------------------------------------------------------------------------------

    def data_to_send(self) -> list[Buffer]:
        """The pieces for the transport, in order; taking them is final."""
        out = self._out
        if out:
            self._out, self._out_bytes = [], 0
        return out

    @property
    def has_output(self) -> bool:
        """Whether data_to_send would give anything: spares a call on the hot path."""
        return bool(self._out)

    def open_stream(self) -> int:
        """Open a stream; data may follow at once.  Raises LocalProtocolError when the peer takes no more."""
        if self._dead or self.peer_refuses:
            raise LocalProtocolError("the session takes no new streams: dial again")
        if self._unacknowledged is None:
            self._unacknowledged = {}
        if len(self._unacknowledged) >= self.limits.max_unacknowledged:
            raise LocalProtocolError("too many streams wait for the peer's acknowledgement: open fewer at a time")
        stream_id = self._next_id
        if stream_id >= _MAX_U32 - 1:
            raise LocalProtocolError("the session has used up its stream numbers: dial again")
        self._next_id += 2
        self._streams[stream_id] = _Stream()
        self._unacknowledged[stream_id] = 0.0
        self._out.append(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_SYN, stream_id, 0))
        return stream_id

    def send_data(self, stream_id: int, pieces: Sequence[Buffer]) -> bool:
        """Send the pieces, one after the other, as far as the peer's window goes; the rest waits for more window.

        False: nothing was taken, since more than `max_unsent_bytes` would wait for window, or `max_output_bytes` for
        the transport: this peer does not read.
        What finds nothing waiting is always taken, so that one large message is no offence.  For a stream that is
        gone the pieces go nowhere: its end is among the events, perhaps not read yet.
        The first piece is copied behind the header (make it the small one), the others are kept as they are:
        one payload may be shared by any number of streams.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return True
        if stream.ending or stream.state is _LOCAL_CLOSED:
            raise LocalProtocolError(f"stream {stream_id} was closed for sending by us")
        size = 0
        for piece in pieces:
            size += len(piece)
        if self._out_bytes > self.limits.max_output_bytes:
            return False
        if size <= stream.send_window:  # bytes that wait have used the window up
            if size:
                self._out_bytes += size
                stream.send_window -= size
                self._out.append(HEADER.pack(TYPE_DATA, stream_id, size) + pieces[0])
                self._out.extend(pieces[1:])
            return True
        if stream.unsent_bytes and stream.unsent_bytes + size > self.limits.max_unsent_bytes:
            return False
        if stream.unsent is None:
            stream.unsent = deque()
        stream.unsent.extend(piece for piece in pieces if len(piece))
        stream.unsent_bytes += size
        self.unsent_bytes += size
        self._flush(stream_id, stream)
        return True

    @property
    def waiting_bytes(self) -> int:
        """Data of all streams that waits for the peer's windows, or for the transport."""
        return self._out_bytes + self.unsent_bytes

    def unsent_bytes_of(self, stream_id: int) -> int:
        """How much waits for the peer to read; 0 for streams that are gone."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.unsent_bytes

    def close_stream(self, stream_id: int) -> None:
        """End our direction, behind what still waits.  Closing twice, or a stream that is gone, does nothing."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending or stream.state is _LOCAL_CLOSED:
            return
        if stream.unsent_bytes:
            stream.ending = True
        else:
            self._send_fin(stream_id, stream)

    def reset_stream(self, stream_id: int) -> None:
        """Drop the stream both ways, with all that waits.  A stream that is gone does nothing."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        self._out.append(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_RST, stream_id, 0))
        if stream.state is not _REMOTE_CLOSED:
            self._stray_bytes += stream.receive_window
        self._forget(stream_id, stream)

    def withhold(self, stream_id: int) -> None:
        """From now on received bytes count as consumed only when `consume` says so: back-pressure on the peer."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.auto_consume = False

    def consume(self, stream_id: int, count: int) -> None:
        """Of what was handed out while withheld, `count` bytes are done with."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not 0 <= count <= WINDOW_BYTES - stream.receive_window - stream.consumed:
            raise LocalProtocolError(f"{count} bytes were never handed out on stream {stream_id}")
        stream.consumed += count
        if stream.consumed >= _CREDIT_BYTES:
            self._credit(stream_id, stream)

    def ping(self, opaque: int) -> None:
        """Ask the peer for a PONG with the same 32-bit number."""
        self._out.append(HEADER.pack(TYPE_PING | FLAG_SYN, 0, opaque))

    def go_away(self, code: GoAwayCode = GoAwayCode.NORMAL) -> None:
        """Take no new streams of the peer; those that are open go on."""
        self._refusing = True
        self._out.append(HEADER.pack(TYPE_GO_AWAY, 0, code))

    def _credit(self, stream_id: int, stream: _Stream) -> None:
        if stream.state is _OPEN or stream.state is _LOCAL_CLOSED:
            self._out.append(HEADER.pack(TYPE_WINDOW_UPDATE, stream_id, stream.consumed))
            stream.receive_window += stream.consumed
        stream.consumed = 0

    def _flush(self, stream_id: int, stream: _Stream) -> None:
        size = min(stream.send_window, stream.unsent_bytes)
        if not size or stream.unsent is None:
            return
        self._out.append(HEADER.pack(TYPE_DATA, stream_id, size))
        stream.send_window -= size
        stream.unsent_bytes -= size
        self.unsent_bytes -= size
        self._out_bytes += size
        while size:
            piece = stream.unsent.popleft()
            if len(piece) > size:
                rest = memoryview(piece)
                stream.unsent.appendleft(rest[size:])
                piece = rest[:size]
            size -= len(piece)
            self._out.append(piece)
        if not stream.unsent_bytes:
            stream.unsent = None
            if stream.ending:
                self._send_fin(stream_id, stream)

    def _send_fin(self, stream_id: int, stream: _Stream) -> None:
        stream.ending = False
        self._out.append(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_FIN, stream_id, 0))
        stream.state = TRANSITIONS[stream.state, StreamStep.SEND_FIN]
        if stream.state is _CLOSED:
            self._forget(stream_id, stream)

    def _forget(self, stream_id: int, stream: _Stream) -> None:
        stream.state = _CLOSED
        stream.unsent = None
        self.unsent_bytes -= stream.unsent_bytes
        stream.unsent_bytes = 0
        del self._streams[stream_id]
        if stream_id % 2 == self._server:
            self._peer_streams -= 1
        elif self._unacknowledged:
            self._unacknowledged.pop(stream_id, None)

    # -- time -------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When to call handle_timeout; None once the session is dead."""
        return None if self._dead else min(self._tick_at, self._ping_deadline)

    def handle_timeout(self, now: float) -> list[Event]:
        """Keep alive, refill budgets, drop what stayed too long.  Raises PeerSilent when the peer is dead."""
        events: list[Event] = []
        if self._dead:
            raise LocalProtocolError("this session ended; it has no deadlines")
        if now >= self._ping_deadline:
            self._die()
            raise PeerSilent(f"no answer to a ping for {self.limits.pong_seconds:g} s")
        if now < self._tick_at:
            return events
        self._tick_at = now + self._tick_seconds()
        self._refill()
        self._stray_bytes = max(self._stray_bytes, WINDOW_BYTES)
        self._check_acknowledgements(now)
        self._drop_half_closed(now, events)
        if self.limits.ping_seconds is not None and self._ping_deadline == math.inf:
            self._ping_opaque = (self._ping_opaque + 1) & _MAX_U32
            self._ping_deadline = now + self.limits.pong_seconds
            self.ping(self._ping_opaque)
        return events

    def _check_acknowledgements(self, now: float) -> None:
        if not self._unacknowledged:
            return
        for stream_id, deadline in self._unacknowledged.items():
            if not deadline:
                self._unacknowledged[stream_id] = now + self.limits.acknowledge_seconds
            elif now >= deadline:
                self._die()
                raise PeerSilent(f"stream {stream_id} was not acknowledged in {self.limits.acknowledge_seconds:g} s")

    def _drop_half_closed(self, now: float, events: list[Event]) -> None:
        overdue = []
        for stream_id, stream in self._streams.items():
            # A FIN that waits behind bytes the peer does not read ages too.
            if stream.state is _LOCAL_CLOSED or stream.ending:
                if not stream.deadline:
                    stream.deadline = now + self.limits.half_closed_seconds
                elif now >= stream.deadline:
                    overdue.append(stream_id)
        for stream_id in overdue:
            self.reset_stream(stream_id)
            events.append((_RESET, stream_id, None))

    def _tick_seconds(self) -> float:
        return self.limits.tick_seconds if self.limits.ping_seconds is None else self.limits.ping_seconds

    # -- the end ----------------------------------------------------------------------------------------------

    def fail(self, reason: str) -> NoReturn:
        """End the session: the peer misbehaved, here or in a layer above.  Raises RemoteProtocolError."""
        self._end_badly()
        raise RemoteProtocolError(reason)

    def fail_for_flood(self, reason: str) -> NoReturn:
        """The same for a peer that sends more than any honest one.  Raises Flood."""
        self._end_badly()
        raise Flood(reason)

    def _end_badly(self) -> None:
        self._die()
        self._out.append(HEADER.pack(TYPE_GO_AWAY, 0, GoAwayCode.PROTOCOL_ERROR))

    def _die(self) -> None:
        self._dead = True
        self._gone += tuple(self._streams)
        for stream in self._streams.values():
            stream.state = _CLOSED
            stream.unsent = None
        self._streams.clear()
        self.unsent_bytes = 0
        self._unacknowledged = None
        self._peer_streams = 0
        self._ping_deadline = self._tick_at = math.inf
