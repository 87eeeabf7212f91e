"""How fast peers come in: who waits for the answer to his upgrade (layer L1, timed).

Stock clients dial again after 100 ms to 10 s, and begin anew with that when a dial succeeds: only an answer that is
held slows them down.  `Line` holds everybody to what a server can take in; `Fights` holds those of one id that two
processes take from each other.  Called by server/entrance.py.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from derp.relay.deadlines import Deadlines
from derp.relay.limits import TokenBucket
from tailnet.types import PeerID

V = TypeVar("V")

# Clients give an answer some seconds; whoever waited so long is told to try again.
PATIENCE_SECONDS: Final = 5.0
# A request and a socket each, some 10 KiB: 100 MiB.  At 1,000 a second half of them are told to try again.
MAX_WAITING: Final = 10_000
# At 1,000 a second five come in each time.
_STEP_SECONDS: Final = 0.005

# The first time it may have been one process, whose old connection had died.
HOLD_SECONDS: Final = 0.5
MAX_HOLD_SECONDS: Final = 30.0
# Stock peers dial within 10 s.  Whoever did not for so long behind the hold fights no more.
PEACE_SECONDS: Final = 60.0
# Of one id, two processes dial once each.  More of them are a loop without a pause.
MAX_WAITING_OF_ONE: Final = 8
# Ids that are remembered, 300 bytes each.
MAX_FIGHTS: Final = 10_000


class Turn(NamedTuple, Generic[V]):
    """Somebody's wait is over: he comes in, or is told to try again."""

    visitor: V
    comes_in: bool


class Line(Generic[V]):
    """Everybody, oldest first: a place is lost only by hanging up."""

    def __init__(self, per_second: float, now: float) -> None:
        # A second's worth may come at once: nobody waits where no storm is.
        self._bucket = TokenBucket(per_second, per_second, now)
        self._waiting: OrderedDict[V, float] = OrderedDict()  # since when
        self._next_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def admits(self, now: float) -> bool:
        """Whether one more may come in at once."""
        return not self._waiting and self._bucket.take(now)

    def join(self, visitor: V, now: float) -> bool:
        """Whether there was a place at the end."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        if not self._waiting:
            self._next_at = now + _STEP_SECONDS
        self._waiting[visitor] = now
        return True

    def leave(self, visitor: V) -> None:
        """It hung up, if it waited."""
        self._waiting.pop(visitor, None)

    def next_timeout(self) -> float | None:
        return self._next_at if self._waiting else None

    def handle_timeout(self, now: float) -> list[Turn[V]]:
        """Who comes in, and behind them those who waited too long."""
        if now < self._next_at:
            return []
        turns: list[Turn[V]] = []
        while self._waiting and self._bucket.take(now):
            turns.append(Turn(self._waiting.popitem(last=False)[0], True))
        while self._waiting and now >= next(iter(self._waiting.values())) + PATIENCE_SECONDS:
            turns.append(Turn(self._waiting.popitem(last=False)[0], False))
        self._next_at = now + _STEP_SECONDS
        return turns


@dataclass(slots=True)
class Fight:
    """Two processes with one id: each dials as soon as the other took it over."""

    peer_id: PeerID
    count: int = 0  # of overtakings
    addresses: tuple[str, ...] = ()  # the last two
    until: float = 0.0  # before which nobody of this id comes in

    @property
    def hold_seconds(self) -> float:
        """How long the next one has to wait."""
        # A fight goes on for days: 2.0 ** 1024 is no number any more.
        return min(HOLD_SECONDS * 2.0 ** min(self.count - 1, 16), MAX_HOLD_SECONDS)


class Fights(Generic[V]):
    """Ids that were overtaken lately, and who of theirs waits."""

    def __init__(self) -> None:
        self._fights: OrderedDict[PeerID, Fight] = OrderedDict()  # the one that was quiet the longest first
        self._waiting: Deadlines[V] = Deadlines()
        self._ids: dict[V, PeerID] = {}
        self._waiting_of: Counter[PeerID] = Counter()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._ids)

    def note(self, peer_id: PeerID, addresses: Iterable[str], now: float) -> Fight:
        """A connection of this id was ended by another one: where the two come from, so far as it is known."""
        fight = self._fights.pop(peer_id, None)
        if fight is None or now > fight.until + PEACE_SECONDS:
            fight = Fight(peer_id)
        fight.count += 1
        fight.addresses = tuple(dict.fromkeys((*fight.addresses, *addresses)))[-2:]
        fight.until = now + fight.hold_seconds
        self._forget(now)
        self._fights[peer_id] = fight
        return fight

    def hold_until(self, peer_id: PeerID) -> float:
        """When somebody of this id may come in."""
        fight = self._fights.get(peer_id)
        return 0.0 if fight is None else fight.until

    def current(self, now: float) -> list[Fight]:
        """Those that go on: once may have been one process, whose old connection had died."""
        self._forget(now)
        return [fight for fight in self._fights.values() if fight.count > 1 and now <= fight.until + PEACE_SECONDS]

    def join(self, visitor: V, peer_id: PeerID) -> bool:
        """Whether it may wait until its id is held no more."""
        if len(self._ids) >= MAX_WAITING or self._waiting_of[peer_id] >= MAX_WAITING_OF_ONE:
            return False
        self._ids[visitor] = peer_id
        self._waiting_of[peer_id] += 1
        self._waiting.set(visitor, self.hold_until(peer_id))
        return True

    def leave(self, visitor: V) -> None:
        """It hung up, if it waited."""
        self._waiting.clear(visitor)
        self._let_go(visitor)

    def next_timeout(self) -> float | None:
        return self._waiting.next_timeout()

    def handle_timeout(self, now: float) -> list[V]:
        """Whose wait is over; whether its id is held again by now, it has to ask."""
        due = self._waiting.handle_timeout(now)
        for visitor in due:
            self._let_go(visitor)
        return due

    def _let_go(self, visitor: V) -> None:
        peer_id = self._ids.pop(visitor, None)
        if peer_id is not None:
            self._waiting_of[peer_id] -= 1
            if not self._waiting_of[peer_id]:
                del self._waiting_of[peer_id]

    def _forget(self, now: float) -> None:
        """Whoever is quiet, and the quietest when there are too many."""
        while self._fights:
            quietest = next(iter(self._fights.values()))
            if now <= quietest.until + PEACE_SECONDS and len(self._fights) < MAX_FIGHTS:
                break
            self._fights.popitem(last=False)
