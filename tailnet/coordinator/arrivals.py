"""How fast peers come in: who waits for the answer to his upgrade (layer L1, timed).

Stock clients dial again after 100 ms to 10 s, and begin anew with that when a dial succeeds: only an answer that is
held slows them down.  `Line` holds known callers to what a server can take in; `Strangers` have what those leave of it;
`Fights` holds those of one id that two processes take from each other.  Called by server/entrance.py.
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
# At 1,000 a second half of them are told to try again.
MAX_WAITING: Final = 10_000
# What somebody who waits takes beside his request: a socket, what serves it, and his places in our tables.
WAITER_BYTES: Final = 4 * 1024
# A signed token has up to 16 KiB; cookies, a resume token and first bytes of the websocket have the rest.
MAX_REQUEST_BYTES: Final = 24 * 1024
# Of those who wait and are known; 10,000 whose requests have 2 KiB, as those of stock peers.
KNOWN_BYTES: Final = 64 << 20
# Of those who wait and are not, for their turn or for the store: 6,000 of them, more than come in within
# PATIENCE_SECONDS.
STRANGERS_BYTES: Final = 32 << 20
# Of the pace, in a storm of known callers: who is new has to come in too.  At 1,000 a second these are 100 look-ups,
# which the store answers in a few queries.
STRANGERS_SHARE: Final = 0.1
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


class Room:
    """Bytes that many hold together, up to a bound."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, size: int) -> bool:
        """Whether there was room for so many bytes more, which are held now."""
        if self.held + size > self.most:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        """So many are held no more."""
        self.held -= size


class Line(Generic[V]):
    """Known callers, oldest first: a place is lost only by hanging up."""

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


class Strangers(Generic[V]):
    """Those whom memory does not know, be it that they are new or that they made a token up.

    They come in at STRANGERS_SHARE of the pace, and at all that known callers leave of it; those never wait for them.
    Each address has a turn after the other.  No address holds more bytes than are free: one that floods has half of
    the room, a hundred leave a place for the next one.
    """

    def __init__(self, per_second: float, now: float) -> None:
        sure = per_second * STRANGERS_SHARE
        # No more than that at once: look-ups are no reason to keep a second's worth.  One has to fit in each.
        burst = max(sure, 1.0)
        self._sure = TokenBucket(sure, burst, now)
        self._spare = TokenBucket(per_second - sure, burst, now)
        self.room = Room(STRANGERS_BYTES)
        """Also for those whose turn has come, while the store is asked about them."""
        self._waiting: OrderedDict[V, tuple[float, str, int]] = OrderedDict()  # since when, whence, bytes
        self._queues: OrderedDict[str, OrderedDict[V, None]] = OrderedDict()  # of addresses, in the order of turns
        self._held: Counter[str] = Counter()  # bytes, by address
        self._next_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def admits(self, now: float) -> bool:
        """Whether one more may come in at once."""
        return not self._waiting and self._take(now)

    def make_way(self, now: float) -> None:
        """A known caller comes in: that is taken off what is left, of a second at the most."""
        if self._spare.balance(now) > -1.0:
            self._spare.spend(now, 1.0)

    def join(self, visitor: V, address: str, size: int, now: float) -> bool:
        """Whether there was room for it, and for the bytes of its request."""
        size += WAITER_BYTES
        if self._held[address] + size > self.room.most - self.room.held:
            self._forget(address)
            return False
        self.room.take(size)
        self._held[address] += size
        if not self._waiting:
            self._next_at = now + _STEP_SECONDS
        self._waiting[visitor] = now, address, size
        self._queues.setdefault(address, OrderedDict())[visitor] = None
        return True

    def leave(self, visitor: V) -> None:
        """It waits no more, if it did."""
        found = self._waiting.pop(visitor, None)
        if found is not None:
            _, address, size = found
            del self._queues[address][visitor]
            self.room.give(size)
            self._held[address] -= size
            self._forget(address)

    def next_timeout(self) -> float | None:
        return self._next_at if self._waiting else None

    def handle_timeout(self, now: float) -> list[Turn[V]]:
        """Who comes in, and behind them those who waited too long."""
        if now < self._next_at:
            return []
        turns: list[Turn[V]] = []
        while self._waiting and self._take(now):
            address, queue = self._queues.popitem(last=False)
            self._queues[address] = queue
            turns.append(self._end(next(iter(queue)), True))
        while self._waiting:
            oldest, (since, _, _) = next(iter(self._waiting.items()))
            if now < since + PATIENCE_SECONDS:
                break
            turns.append(self._end(oldest, False))
        self._next_at = now + _STEP_SECONDS
        return turns

    def _end(self, visitor: V, comes_in: bool) -> Turn[V]:
        self.leave(visitor)
        return Turn(visitor, comes_in)

    def _take(self, now: float) -> bool:
        return self._spare.take(now) or self._sure.take(now)

    def _forget(self, address: str) -> None:
        if not self._held[address]:
            del self._held[address]
            self._queues.pop(address, None)


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
