"""What one replica has to do with one other: a session, and the queue to it (layer L1, timed).

A session begins with Hellos that answer each other's nonces and is one unbroken run of numbered frames from then on.  A
gap, a repeat, a closed link or a silence ends it, at both ends, and the next one begins with a Sync.
Carriers may lose, repeat and hold what they are given: a frame of another session is known by its seal and dropped.
Silence of SILENCE_SECONDS means that the other is gone.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final, NamedTuple

from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.replica.codec import (
    FRAME_OVERHEAD_BYTES,
    KINDS,
    MAX_FRAME_BYTES,
    decode_frame,
    encode_frame,
    encode_message,
)
from tailnet.replica.messages import Beat, Bye, Hello, Message, ReplicaID
from tailnet.replica.proof import NONCE_BYTES, ClusterKey, FrameKey

VERSION: Final = 1  # the lowest and the highest that this release speaks
BEAT_SECONDS: Final = 1.0
# Six beats: five may be lost or late.
SILENCE_SECONDS: Final = 6.0
# The other may be starting; all pairs of a cluster would greet at once without the range.
GREET_SECONDS: Final = (0.25, 1.0)
# Whatever went wrong unseen is right within a minute; the range keeps the pairs apart.
SYNC_SECONDS: Final = (45.0, 75.0)
# A replica that reads nothing: after this a Sync (0.1 MB for 2,400 tunnels) is cheaper than what waits.
MAX_QUEUED_BYTES: Final = 8 * 1024 * 1024
# Beats of which the one that took the least time says how far apart the wall clocks are.
_CLOCK_BEATS: Final = 8
_GREETING_START: Final = b"\x92\x00"  # an array of two, the first of which is 0: no frame of a session has that number


class Status(NamedTuple):
    """What Hellos and beats say of the sender."""

    clock: int  # the cluster's time, in units of cluster_time.py
    peer_count: int
    load: int = 0  # thousandths of a core
    map_digest: bytes = b""  # of the DERP map that it serves; empty: it has not said yet
    wall: int = 0  # its wall clock, Unix milliseconds; 0: it does not say


@dataclass(slots=True)
class Own:
    """What is the same in all pairs of a replica, and what they note together."""

    replica: ReplicaID
    name: str
    key: ClusterKey
    status: Callable[[float], Status]
    random_bytes: Callable[[int], bytes]
    capabilities: int = 0  # bits, for what a version does not say
    program: str = ""  # our release, for people
    greeting_key: FrameKey = field(init=False)
    has_output: bool = False  # some pair may have some; whoever takes all of it says that there is none
    # Messages in sessions and Hellos, by kind, of all pairs together.
    heard: Counter[type] = field(default_factory=Counter)
    sent: dict[type, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))  # a third of a Counter's cost

    def __post_init__(self) -> None:
        self.greeting_key = self.key.greeting_key(self.replica)


@dataclass(slots=True)
class Opened:
    """A session begins.  `since`: the other acknowledged what was sent up to then; None when the two never met."""

    since: float | None
    hello: Hello


@dataclass(slots=True)
class Heard:
    """Messages of the session, in order."""

    messages: list[Message]


class End(Enum):
    """Why a session is over: also the label set of the metric."""

    LINK = "link closed"
    GAP = "gap"  # a frame is missing, or came twice
    MALFORMED = "malformed"
    SLOW = "slow"  # the other does not read
    SILENCE = "silence"
    REPLACED = "replaced"  # by a new one that the other began
    LEFT = "left"  # the other had said goodbye, and its link closed or it went silent


@dataclass(slots=True)
class Ended:
    """The session is over; on the same way another one begins by itself.  `reason` is for people."""

    end: End
    reason: str


@dataclass(slots=True)
class Silent:
    """Nothing was heard for SILENCE_SECONDS: the other is gone, until it opens a session."""


@dataclass(slots=True)
class SyncDue:
    """It is time to compare what the two know."""


@dataclass(slots=True)
class Refused:
    """It greets us, and there is no common version, or it is not whom the link was dialled to."""

    reason: str


PairEvent = Opened | Heard | Ended | Silent | SyncDue | Refused


class _Session:
    __slots__ = (
        "beat_at",
        "heard_key",
        "heard_seq",
        "other_nonce",
        "own_nonce",
        "sent_key",
        "sent_seq",
        "unacknowledged",
    )

    def __init__(self, own_nonce: bytes, other_nonce: bytes, sent_key: FrameKey, heard_key: FrameKey) -> None:
        self.own_nonce = own_nonce
        self.other_nonce = other_nonce
        self.sent_key = sent_key
        self.heard_key = heard_key
        self.sent_seq = self.heard_seq = 0
        self.beat_at: float | None = None  # of an own beat that still waits for room
        # Numbers and times of own beats, one a second, until the other acknowledges them; it is silent before there are
        # more.
        self.unacknowledged: deque[tuple[int, float]] = deque(maxlen=16)


class Pair:
    """One other replica.

    `link_opened` -> frames both ways -> `link_closed`; a carrier that needs no dialling stays open.  The owner takes
    `frames_to_send` after each call, and drives the deadlines.  Raises LocalProtocolError for what is not open.
    """

    def __init__(self, own: Own, other: ReplicaID) -> None:
        self.other = other
        self.queued_bytes = 0
        self.session_count = 0
        self.stray_count = 0  # frames of no session of ours: late ones, or forged
        self.ends = dict.fromkeys(End, 0)
        self.is_leaving = False  # the other said goodbye; it does not come back under this id
        self.opened_at = self.heard_at = -inf  # the last session, and whatever proved to be the other's
        # What the other said of itself last; None until the first session.
        self.hello: Hello | None = None
        self.status: Status | Beat | None = None
        self.delay_seconds: float | None = None  # how long its last beat was on its way; the cluster knows the time
        self._own = own
        self._greeted_key = own.key.greeting_key(other)
        self._binding: bytes | None = None  # of the link; None while there is none
        self._session: _Session | None = None
        self._nonce = b""  # of the session that we offer; empty when none is on offer
        self._acknowledged_at: float | None = None
        self._wall_offsets: deque[float] = deque(maxlen=_CLOCK_BEATS)
        # Deadlines; `inf` where there is none, as the least of them is asked for after each step.
        self._silent_at = self._greet_at = self._beat_at = self._sync_at = inf
        self._queue: dict[object, bytes] = {}
        self._greetings: list[bytes] = []
        self._number = 0

    @property
    def is_open(self) -> bool:
        """Whether a session is open."""
        return self._session is not None

    @property
    def has_link(self) -> bool:
        """Whether there is a way to the other."""
        return self._binding is not None

    @property
    def is_present(self) -> bool:
        """Whether it was heard, and has not been silent since."""
        return self._silent_at != inf

    @property
    def has_output(self) -> bool:
        """Whether `frames_to_send` has any."""
        return bool(self._queue or self._greetings)

    @property
    def wall_ahead_seconds(self) -> float | None:
        """How far the other's wall clock is ahead of ours; None: it has not said yet."""
        return max(self._wall_offsets, default=None)

    # The link.

    def link_opened(self, now: float, binding: bytes = b"") -> None:
        """There is a way to the other; both ends greet.  `binding`: the exporter of the link's TLS, if it has one."""
        if self._binding is not None:
            raise LocalProtocolError("this pair has a link already")
        self._binding = binding
        self._offer(now)

    def link_closed(self, now: float) -> list[PairEvent]:
        """The way is gone; what the other is believed to hold stays until it is silent."""
        events = self._end(End.LINK, "the link was closed", now)
        self._binding, self._greet_at = None, inf
        self._greetings.clear()
        return events

    def receive_frame(self, sealed: bytes, now: float) -> list[PairEvent]:
        """One frame, as it came."""
        if self._binding is None:
            raise LocalProtocolError("a frame came over no link")
        if len(sealed) > MAX_FRAME_BYTES:  # nobody of ours sends one; the gap behind it tells if somebody did
            self.stray_count += 1
            return []
        if sealed.startswith(_GREETING_START):
            return self._greeted(sealed, now)
        session = self._session
        frame = session.heard_key.unseal(sealed) if session is not None else None
        if session is None or frame is None:
            self.stray_count += 1
            return []
        try:
            seq, messages = decode_frame(frame)
        except RemoteProtocolError as error:
            return self._end(End.MALFORMED, str(error), now)
        if seq != session.heard_seq + 1:
            return self._end(End.GAP, f"frame {seq} came after {session.heard_seq}", now)
        session.heard_seq = seq
        self.heard_at, self._silent_at = now, now + SILENCE_SECONDS
        for message in messages:
            if type(message) is Beat:
                self.status = message
                if message.wall:
                    self._wall_offsets.append((message.wall - self._own.status(now).wall) / 1000)
                unacknowledged = session.unacknowledged
                while unacknowledged and unacknowledged[0][0] <= message.heard_seq:
                    self._acknowledged_at = unacknowledged.popleft()[1]
            elif type(message) is Bye:
                self.is_leaving = True
            elif type(message) is Hello:
                return self._end(End.MALFORMED, "a Hello inside a session", now)
        return [Heard(messages)]

    # What goes out.

    def send(self, encoded: bytes, now: float, replaces: object = None) -> list[PairEvent]:
        """Queue an encoded message; one with the same `replaces` that still waits goes.

        Without a session it is dropped: a Sync tells all that matters.  Above MAX_QUEUED_BYTES the session ends.
        """
        if self._session is None:
            return []
        self._number += 1
        key: object = self._number
        if replaces is not None:
            key = ("replaces", replaces)
            self.queued_bytes -= len(self._queue.pop(key, b""))
        self._queue[key] = encoded
        self._own.has_output = True
        self.queued_bytes += len(encoded)
        if self.queued_bytes > MAX_QUEUED_BYTES:
            return self._end(End.SLOW, "the other reads too slowly", now)
        return []

    def frames_to_send(self, limit_bytes: int = MAX_QUEUED_BYTES) -> list[bytes]:
        """Everything that waits, in sealed frames; stops when more than `limit_bytes` have been taken."""
        session, queue = self._session, self._queue
        frames, self._greetings = self._greetings, []
        taken = 0
        while session is not None and queue and taken <= limit_bytes:
            if self.queued_bytes <= MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES:
                part = list(queue.values())
                queue.clear()
                self.queued_bytes = 0
            else:
                part = self._take_part()
            session.sent_seq += 1
            frame = session.sent_key.seal(encode_frame(session.sent_seq, part))
            frames.append(frame)
            taken += len(frame)
        if session is not None and session.beat_at is not None and not queue:
            # Everything that was queued up to that beat is in frames of these numbers.
            session.unacknowledged.append((session.sent_seq, session.beat_at))
            session.beat_at = None
        elif queue:
            self._own.has_output = True
        return frames

    def _take_part(self) -> list[bytes]:
        """The first messages that wait, as many as fit into a frame."""
        size, part = FRAME_OVERHEAD_BYTES, []
        for encoded in self._queue.values():
            if size + len(encoded) > MAX_FRAME_BYTES:
                break
            size += len(encoded)
            part.append(encoded)
        for key in list(self._queue)[: len(part)]:
            del self._queue[key]
        self.queued_bytes -= size - FRAME_OVERHEAD_BYTES
        return part

    # Time.

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        due = self.due()
        return due if due != inf else None

    def due(self) -> float:
        """The same, and `inf` for never: a cluster asks all its pairs after each step."""
        due = self._beat_at  # `min` of four costs twice as much
        if self._silent_at < due:
            due = self._silent_at
        if self._sync_at < due:
            due = self._sync_at
        return due if due < self._greet_at else self._greet_at

    def handle_timeout(self, now: float) -> list[PairEvent]:
        """Greet again, beat, compare, or find that the other is silent."""
        events: list[PairEvent] = []
        if self._silent_at <= now:
            events += [*self._end(End.SILENCE, "silence", now), Silent()]
            self._silent_at = inf
            self._greet_at = inf if self._binding is None else now
        if self._greet_at <= now:
            self._greet(b"", now)
        if self._sync_at <= now:
            self._sync_at = now + self._between(*SYNC_SECONDS)
            events.append(SyncDue())
        if self._beat_at <= now:
            events += self._beat(now)
        return events

    def beat(self, now: float) -> list[PairEvent]:
        """Say now, if there is a session, what the next beat would say, as the clock has changed."""
        return [] if self._session is None else self._beat(now)

    def excuse(self, now: float) -> None:
        """We slept, or are deaf: the other has all its time anew."""
        if self._silent_at != inf:
            self._silent_at = now + SILENCE_SECONDS

    def _beat(self, now: float) -> list[PairEvent]:
        session = self._session
        assert session is not None  # the deadline is set with the session
        self._beat_at = now + BEAT_SECONDS
        session.beat_at = now
        clock, peer_count, load, digest, wall = self._own.status(now)
        beat = Beat(clock, session.sent_seq, session.heard_seq, peer_count, load, digest, wall)
        self._own.sent[Beat] += 1
        return self.send(encode_message(beat), now)

    # Sessions.

    def _greeted(self, sealed: bytes, now: float) -> list[PairEvent]:
        frame = self._greeted_key.unseal(sealed)
        if frame is None:
            # Another cluster's, or a stranger's: it learns nothing.
            self.stray_count += 1
            return []
        try:
            _, messages = decode_frame(frame)
        except RemoteProtocolError as error:
            return [Refused(str(error))]
        hello = messages[0] if len(messages) == 1 else None
        if not isinstance(hello, Hello) or hello.replica != self.other or len(hello.nonce) != NONCE_BYTES:
            return [Refused("its Hello is malformed")]
        self.heard_at = now
        self._own.heard[Hello] += 1
        if not hello.lowest_version <= VERSION <= hello.highest_version:
            spoken = f"{hello.lowest_version} to {hello.highest_version}"
            return [Refused(f"{hello.name} speaks versions {spoken} of the replicas' protocol, and this one {VERSION}")]
        session = self._session
        if session is not None and hello.nonce == session.other_nonce:
            # It came twice, or our answer was lost: in that case its session begins with this one.
            if hello.echo != session.own_nonce:
                self._say_hello(session.own_nonce, hello.nonce, now)
            return []
        if not self._nonce or hello.echo != self._nonce:
            self._nonce = self._nonce or self._own.random_bytes(NONCE_BYTES)
            self._greet(hello.nonce, now)
            return []
        events = self._end(End.REPLACED, "the other began a new session", now) if session is not None else []
        self._open(hello, now)
        return [*events, Opened(self._acknowledged_at, hello)]

    def _open(self, hello: Hello, now: float) -> None:
        """The other answered our nonce just now, so it is who it says."""
        own, nonce, binding = self._own, hello.echo, self._binding or b""
        sent_key = own.key.session_key(own.replica, self.other, nonce, hello.nonce, binding)
        heard_key = own.key.session_key(self.other, own.replica, hello.nonce, nonce, binding)
        self._session = _Session(nonce, hello.nonce, sent_key, heard_key)
        self._say_hello(nonce, hello.nonce, now)
        self._nonce = b""
        self._greet_at = inf
        self.session_count += 1
        self.opened_at = now
        self._wall_offsets.clear()
        self.delay_seconds = None
        self.hello, self.status = hello, Status(hello.clock, hello.peer_count)
        self._silent_at = now + SILENCE_SECONDS
        self._beat_at = now + BEAT_SECONDS
        self._sync_at = now + self._between(*SYNC_SECONDS)

    def _end(self, end: End, reason: str, now: float) -> list[PairEvent]:
        if self._session is None:
            return []
        if self.is_leaving and end in (End.LINK, End.SILENCE):
            end, reason = End.LEFT, "it has left"
        self.ends[end] += 1
        self._session, self._beat_at, self._sync_at = None, inf, inf
        self._queue.clear()
        self.queued_bytes = 0
        if self._binding is not None:
            self._nonce = self._own.random_bytes(NONCE_BYTES)
            self._greet_at = now + self._between(*GREET_SECONDS)
        return [Ended(end, reason)]

    def _offer(self, now: float) -> None:
        self._nonce = self._own.random_bytes(NONCE_BYTES)
        self._greet(b"", now)

    def _greet(self, echo: bytes, now: float) -> None:
        self._greet_at = now + self._between(*GREET_SECONDS)
        self._say_hello(self._nonce, echo, now)

    def _say_hello(self, nonce: bytes, echo: bytes, now: float) -> None:
        own, status = self._own, self._own.status(now)
        hello = Hello(
            *(VERSION, VERSION, own.key.cluster, own.replica, own.name, status.clock, status.peer_count),
            *(own.capabilities, nonce, echo, own.program),
        )
        self._own.sent[Hello] += 1
        self._own.has_output = True
        # A frame that waited for room while greetings were repeated would be a queue without a bound.
        frame = encode_frame(0, [encode_message(hello)])
        self._greetings = [*self._greetings[-1:], own.greeting_key.seal(frame)]

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * int.from_bytes(self._own.random_bytes(2), "big") / 65536
