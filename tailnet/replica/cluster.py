"""One replica among others: its coordinator, the cluster's time, and a Pair for each other replica (layer L1, timed).

Own connections: call the coordinator, and give what it says to `carry_out`, which sends what is for others and returns
what is for own connections.  Frames: `receive_frame` in, and `frames_to_send` out at the end of the step: everything
that one step made for one replica is one frame.  Whoever has the links and knows who the members are
(discovery, direct links, a bus) calls the rest.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Generic

from derp.relay.deadlines import Deadlines
from tailnet.coordinator.messages import C, Effect, Outward
from tailnet.coordinator.nodes import Limits
from tailnet.replica.cluster_time import UNITS_PER_SECOND, ClusterTime
from tailnet.replica.codec import encode_message
from tailnet.replica.core import MAX_CLAIMS, MAX_IDS, SharedCoordinator
from tailnet.replica.messages import (
    Announce,
    Ask,
    Beat,
    Bye,
    Came,
    Claim,
    Gone,
    Hello,
    Message,
    NodeIs,
    Publish,
    ReplicaID,
    Synced,
    Tell,
    Who,
    Withdraw,
    portions,
)
from tailnet.replica.pair import (
    SILENCE_SECONDS,
    End,
    Ended,
    Heard,
    Opened,
    Own,
    Pair,
    PairEvent,
    Refused,
    Silent,
    Status,
    SyncDue,
)
from tailnet.replica.proof import ClusterKey
from tailnet.types import PeerID

# CAME, GONE and WHO to all: at most 50 such frames a second and pair, each of which wakes a process (400 us at both
# ends).
HOLD_SECONDS: Final = 0.020
# Of how long beats are on their way: from a link within a machine to a replica that is about to be called silent.
DELAY_LIMITS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, inf)
# A beat that was on its way when the clock jumped seems to have taken as long as the jump, days perhaps: in the average
# of the hundreds that come in ten minutes it counts as this.
MAX_DELAY_SECONDS: Final = 60.0
# Its deadlines are a second apart at the most, so one that comes this late says that we were stopped, not the others.
SLEPT_SECONDS: Final = 1.5


@dataclass(slots=True)
class Hint(Outward):
    """A replica told us something that is no peer's matter."""

    replica: ReplicaID
    message: Tell | Bye


@dataclass(slots=True)
class SessionOpened(Outward):
    """A session with a replica began: what it is stands in `pair(replica).hello`."""

    replica: ReplicaID


@dataclass(slots=True)
class SessionEnded(Outward):
    """A session is over.  A link is to be closed and dialled anew, if it is not what ended; a carrier stays."""

    replica: ReplicaID
    end: End
    reason: str  # for people


@dataclass(slots=True)
class Silenced(Outward):
    """Nothing was heard of a replica for SILENCE_SECONDS; whether it is dead, discovery knows."""

    replica: ReplicaID


class Cluster(Generic[C]):
    """One replica of a cluster.

    Every method that returns effects returns those for own connections (Deliver, SendError, EndConnection), and Hint,
    SessionOpened, SessionEnded and Silenced for whoever has the links.
    """

    def __init__(
        self,
        replica: ReplicaID,
        name: str,
        key: ClusterKey,
        random_bytes: Callable[[int], bytes],
        limits: Limits | None = None,
        capabilities: int = 0,
        wall_clock: Callable[[], float] = lambda: 0.0,
        program: str = "",
    ) -> None:
        """`random_bytes` makes nonces, so it has to be `os.urandom` but in simulations; `wall_clock`: Unix seconds, and
        `program`: our release, are what others are told and nobody goes by."""
        self.replica = replica
        self.time = ClusterTime()
        self.coordinator: SharedCoordinator[C] = SharedCoordinator(
            replica, self.time, lambda: int.from_bytes(random_bytes(2), "big") / 65536, limits
        )
        self.pairs: dict[ReplicaID, Pair] = {}
        # Replicas that greet us and cannot be talked to, each with the reason.
        self.refused: dict[ReplicaID, str] = {}
        # Replicas that said goodbye.
        self.leaving: set[ReplicaID] = set()
        self._is_leaving = False
        # The carrier does not bring back our own beats: who is silent may be well, so nobody is judged.
        self.is_deaf = False
        # What beats say of us beside the clock and the peers; the owner sets them when they change.
        self.load = 0  # thousandths of a core
        self.map_digest = b""
        self.sleep_count = 0
        # How long updates are on their way, as beats find it, which wait in the same queues: counts by those limits.
        self.delays = [0] * len(DELAY_LIMITS_SECONDS)
        self.delay_seconds = 0.0
        # Comparisons of what two replicas know: how many were answered, and how long that took, all together.
        self.sync_count = 0
        self.sync_seconds = 0.0
        self.wall_clock = wall_clock
        self._own = Own(replica, name, key, self._status, random_bytes, capabilities, program)
        # Messages to and from all others, by kind.
        self.heard, self.sent = self._own.heard, self._own.sent
        self._syncing: dict[ReplicaID, float] = {}
        # Of the pairs: each step asks for the first of them, and moves the one of the pair that it was about.
        self._deadlines: Deadlines[Pair] = Deadlines()
        self._claims: dict[PeerID, Claim] = {}
        self._withdrawn: list[Gone] = []
        self._questions: dict[PeerID, None] = {}
        self._told_at = float("-inf")
        self._tell_at: float | None = None
        self._missed: float | None = None  # the deadline that told of the last sleep
        self._awake_until = -inf  # until then nobody need ask whether we slept

    # Members and links.

    def pair(self, other: ReplicaID) -> Pair:
        """The pair with another replica, made when it is first heard of."""
        pair = self.pairs.get(other)
        if pair is None:
            pair = self.pairs[other] = Pair(self._own, other)
        return pair

    def forget(self, other: ReplicaID, now: float) -> list[Effect[C]]:
        """The replica has left the cluster, and does not come back under this id."""
        pair = self.pairs.pop(other, None)
        self.refused.pop(other, None)
        self.leaving.discard(other)
        self._syncing.pop(other, None)
        if pair is None:
            return []
        self._deadlines.clear(pair)
        return self.carry_out(self.coordinator.handle_replica_down(other, now), now)

    def link_opened(self, other: ReplicaID, now: float, binding: bytes = b"") -> None:
        """There is a way to a replica; `binding` as for Pair.link_opened."""
        pair = self.pair(other)
        pair.link_opened(now, binding)
        self._schedule(pair)

    def link_closed(self, other: ReplicaID, now: float) -> list[Effect[C]]:
        """The way to a replica is gone."""
        self._notice_sleep(now)
        return self._take(other, self.pair(other).link_closed(now), now)

    def receive_frame(self, other: ReplicaID, frame: bytes, now: float) -> list[Effect[C]]:
        """A frame from a replica, over its link."""
        if now > self._awake_until:
            self._notice_sleep(now)
        pair = self.pairs.get(other) or self.pair(other)
        return self._take(other, pair.receive_frame(frame, now), now)

    def tell(self, message: Tell | Bye, now: float, to: Iterable[ReplicaID] | None = None) -> list[Effect[C]]:
        """A hint to some, or to all.  A Bye is for all: we leave."""
        self._is_leaving = self._is_leaving or type(message) is Bye
        return self._publish(self.pairs if to is None else to, [message], now)

    def frames_to_send(self) -> list[tuple[ReplicaID, list[bytes]]]:
        """What waits for each replica: to be asked for at the end of each step, whatever it was.

        Whoever has a link with little room asks the pair itself, which takes a limit.
        """
        if not self._own.has_output:  # after most frames of others
            return []
        self._own.has_output = False
        return [(other, pair.frames_to_send()) for other, pair in self.pairs.items() if pair.has_output]

    # Effects.

    def carry_out(self, effects: Sequence[Effect[C]], now: float) -> list[Effect[C]]:
        """Queue what is for other replicas; the rest comes back, and sessions that ended because nobody reads."""
        own: list[Effect[C]] = []
        for effect in effects:
            if not isinstance(effect, Outward):
                own.append(effect)
            elif isinstance(effect, Publish):
                own += self._publish(effect.replicas, effect.messages, now)
            elif isinstance(effect, Announce):
                if self.coordinator.connected_count == 1:
                    # Until now our clock was nobody's matter, and may be ahead of all others'.
                    own += self._beat_all(now)
                self._claims.update((claim.peer_id, claim) for claim in effect.claims)
                own += self._tell_all(now)
            elif isinstance(effect, Withdraw):
                self._withdrawn.append(effect.gone)
                own += self._tell_all(now)
            elif isinstance(effect, Ask):
                self._questions.update(dict.fromkeys(effect.peer_ids))
                own += self._tell_all(now)
            else:
                own.append(effect)
        return own

    # Time.

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        due, of_core, tell_at = self._deadlines.next_timeout(), self.coordinator.next_timeout(), self._tell_at
        if of_core is not None and (due is None or of_core < due):
            due = of_core
        return tell_at if tell_at is not None and (due is None or tell_at < due) else due

    def handle_timeout(self, now: float) -> list[Effect[C]]:
        """Whatever is due.  A replica judges others only while it is awake, and hears."""
        if now > self._awake_until:
            self._notice_sleep(now)
        if self.is_deaf:
            self._excuse_all(now)
        of_core = self.coordinator.next_timeout()
        effects: list[Effect[C]] = []
        for pair in self._deadlines.handle_timeout(now):
            effects += self._take(pair.other, pair.handle_timeout(now), now)
        if of_core is not None and of_core <= now:
            effects += self.carry_out(self.coordinator.handle_timeout(now), now)
        if self._tell_at is not None and self._tell_at <= now:
            effects += self._tell_all(now)
        return effects

    def _notice_sleep(self, now: float) -> None:
        """Before anything else: what waited while we were stopped, as that others closed their links, moves the
        deadlines that tell of it."""
        due = self.next_timeout()
        # No deadline is set for a time that has passed, so until then none can be late by so much.
        self._awake_until = (now if due is None else min(now, due)) + SLEPT_SECONDS
        if due is not None and now - due > SLEPT_SECONDS and due != self._missed:
            self._missed = due
            self.sleep_count += 1
            self._excuse_all(now)

    def _excuse_all(self, now: float) -> None:
        for pair in self.pairs.values():
            pair.excuse(now)
            self._schedule(pair)

    def _schedule(self, pair: Pair) -> None:
        due = pair.due()
        if due == inf:
            self._deadlines.clear(pair)
        else:
            self._deadlines.set(pair, due)

    def _status(self, now: float) -> Status:
        wall = round(self.wall_clock() * 1000)
        return Status(self.time.read(now), self.coordinator.connected_count, self.load, self.map_digest, wall)

    # What pairs say.

    def _take(self, other: ReplicaID, events: Sequence[PairEvent], now: float) -> list[Effect[C]]:
        effects: list[Effect[C]] = []
        for event in events:
            if type(event) is Heard:  # nearly all
                for message in event.messages:
                    self.heard[type(message)] += 1
                    said = self._handle(other, message, now)
                    if said:
                        effects += self.carry_out(said, now)
                continue
            match event:
                case Opened(since, hello):
                    self.refused.pop(other, None)
                    effects.append(SessionOpened(other))
                    effects += self.carry_out(self._hear_clock(hello.clock, hello.peer_count, now), now)
                    # Before our claims, as our Hello may be older than what another replica said of the time meanwhile.
                    effects += self._take(other, self.pairs[other].beat(now), now)
                    # What was announced up to HOLD_SECONDS before a frame may not be in it.
                    since = None if since is None else since - HOLD_SECONDS
                    self._syncing[other] = now
                    effects += self.carry_out(self.coordinator.handle_replica_up(other, since, now), now)
                case Ended(end, reason):
                    effects.append(SessionEnded(other, end, reason))
                case Silent():
                    effects.append(Silenced(other))
                    effects += self.carry_out(self.coordinator.handle_replica_down(other, now), now)
                case SyncDue() if self._is_leaving or other in self.leaving:
                    pass  # whom the one that leaves sent away would seem lost; where he comes, he is claimed
                case SyncDue():
                    self._syncing[other] = now
                    effects += self.carry_out(self.coordinator.handle_sync_due(other), now)
                case Refused(reason):
                    self.refused[other] = reason
        self._schedule(self.pairs[other])
        return effects

    def _handle(self, other: ReplicaID, message: Message, now: float) -> list[Effect[C]]:
        match message:
            case Beat():
                effects = self._hear_clock(message.clock, message.peer_count, now)
                self._note_delay(self.pairs[other], (self.time.read(now) - message.clock) / UNITS_PER_SECOND)
                return effects
            case Tell() | Bye():
                if type(message) is Bye:
                    self.leaving.add(other)
                return [Hint(other, message)]
            case Hello():  # begins sessions; inside one it is an error that the pair has seen
                return []
            case Synced() if (began := self._syncing.pop(other, None)) is not None:
                self.sync_count += 1
                self.sync_seconds += now - began
                return self.coordinator.handle_message(other, message, now)
            case _:
                return self.coordinator.handle_message(other, message, now)

    def _note_delay(self, pair: Pair, seconds: float) -> None:
        # The other may never have had peers, and a clock of its own, which is ahead.  Ours may be: nobody follows it
        # while we have none.
        if seconds > SILENCE_SECONDS and not self.coordinator.connected_count:
            pair.delay_seconds = None
            return
        pair.delay_seconds = seconds = min(max(0.0, seconds), MAX_DELAY_SECONDS)
        self.delays[bisect_left(DELAY_LIMITS_SECONDS, seconds)] += 1
        self.delay_seconds += seconds

    def _hear_clock(self, clock: int, peer_count: int, now: float) -> list[Effect[C]]:
        if not self.time.hear(clock, peer_count, self.coordinator.connected_count, now):
            return []
        # The new time goes before claims that are stamped by it: whoever compared them with stamps of the time before
        # would give a peer to its older connection.
        return self._beat_all(now) + self.coordinator.handle_clock_jump(now)

    def _beat_all(self, now: float) -> list[Effect[C]]:
        return [effect for other, pair in self.pairs.items() for effect in self._take(other, pair.beat(now), now)]

    # What others are told.

    def _tell_all(self, now: float) -> list[Effect[C]]:
        """Claims and questions to all: at once, or when the last ones are HOLD_SECONDS old."""
        if now < self._told_at + HOLD_SECONDS:
            self._tell_at = self._told_at + HOLD_SECONDS
            return []
        self._told_at, self._tell_at = now, None
        claims, self._claims = list(self._claims.values()), {}
        questions, self._questions = list(self._questions), {}
        told: list[Message] = [Came(part) for part in portions(claims, MAX_CLAIMS)]
        told += self._withdrawn  # behind the claims: what goes may have come a moment ago
        self._withdrawn = []
        told += [Who(part) for part in portions(questions, MAX_IDS)]
        return self._publish(self.pairs, told, now)

    def _publish(self, replicas: Iterable[ReplicaID], messages: Sequence[Message], now: float) -> list[Effect[C]]:
        """Each message is encoded once, however many replicas are told; not at all when there is none."""
        pairs = [pair for replica in replicas if (pair := self.pairs.get(replica)) is not None and pair.is_open]
        effects: list[Effect[C]] = []
        if not pairs:
            return effects
        for message in messages:
            encoded = encode_message(message)
            self.sent[type(message)] += len(pairs)
            replaces = message.peer_id if isinstance(message, NodeIs) else None
            for pair in pairs:
                # Whose session ends by this hears everything in the next one.
                for event in pair.send(encoded, now, replaces):
                    effects += self._take(pair.other, [event], now)
        return effects
