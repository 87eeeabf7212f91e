"""Who is read next when a tenant, or the whole relay, is at its limit.  Layer L1, a timed core.

Tenants take turns by start-time fair queueing: whoever has had the least for its weight goes next, and so do the
clients of one tenant.  A turn is one receive, whose size nobody knows before: it is charged afterwards, so over time
each has its share however large its receives are.  server/limiter.py charges, pauses who has to wait, and reads on
whoever `handle_timeout` gives.  In a queue of packets the same is done by relay/queue.py.
"""

from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import Final, Generic, TypeVar

from derp.relay.limits import DEFAULT_TENANT, MAX_TENANTS, Limits, Meter, Rate, TenantLimits

Item = TypeVar("Item", bound=Hashable)
Whom = TypeVar("Whom", bound=Hashable)

# What somebody may make up for, of the time in which he had less than his share: a sender whose window closed for a
# round trip or two is not robbed of them, and who was silent for an hour does not shut others out for longer than this.
_CREDIT_SECONDS: Final = 0.25
# Between two looks while the limit has room: those who were read on have to be received from before it is known.
_STEP_SECONDS: Final = 0.001


class FairTurns(Generic[Item]):
    """Start-time fair queueing among those who wait.  Costs are in seconds of the limit that is shared."""

    def __init__(self) -> None:
        self._clock = 0.0  # virtual time: of the turn that was given last
        self._turns: dict[Item, float] = {}  # virtual time of each one's next turn
        self._waiting: dict[Item, None] = {}
        self._heap: list[tuple[float, int, Item]] = []
        self._order = 0  # equal turns: who waited first

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._waiting)

    def charge(self, item: Item, cost: float, weight: float = 1.0) -> None:
        """It had so much."""
        least = self._clock - _CREDIT_SECONDS / weight
        self._turns[item] = max(self._turns.get(item, self._clock), least) + cost / weight

    def wait(self, item: Item) -> None:
        """It waits for a turn."""
        if item not in self._waiting:
            self._waiting[item] = None
            self._push(item)

    def take(self) -> Item | None:
        """Whose turn it is; None: nobody waits."""
        if not self._find():
            return None
        turn, _, item = heappop(self._heap)
        del self._waiting[item]
        self._clock = max(self._clock, turn)
        return item

    def is_behind(self, item: Item) -> bool:
        """Whether it has had no more than anybody who waits."""
        return not self._find() or self._turns.get(item, self._clock) <= self._heap[0][0]

    def _find(self) -> bool:
        """Bring the next one to the top of the heap; False: nobody waits."""
        while self._heap:
            turn, _, item = self._heap[0]
            if item not in self._waiting:
                heappop(self._heap)
            elif self._turns.get(item, turn) > turn:  # it had more while it waited: a tenant, by its other clients
                heappop(self._heap)
                self._push(item)
            else:
                return True
        return False

    def forget(self, item: Item) -> None:
        """It left."""
        self._waiting.pop(item, None)
        self._turns.pop(item, None)

    def _push(self, item: Item) -> None:
        self._order += 1
        heappush(self._heap, (self._turns.get(item, self._clock), self._order, item))

    def forgive(self) -> None:
        """There is room for all: nobody had too much."""
        self._turns.clear()


class Tenant(Generic[Whom]):
    """The clients of one tenant."""

    __slots__ = ("client_count", "limits", "meter", "name", "turns")

    def __init__(self, name: str, limits: TenantLimits, now: float) -> None:
        self.name = name
        self.client_count = 0
        self.limits = limits
        self.meter = Meter(limits.rate, now) if limits.rate else None
        self.turns = FairTurns[Whom]()

    def balance(self, now: float) -> float:
        """What its own limit lets pass now, as seconds of it; below zero, for how long nothing may."""
        return self.meter.balance(now) if self.meter is not None else inf


class Shares(Generic[Whom]):
    """The tenants of one relay.  Made anew when the limits change; nobody waits in it then."""

    def __init__(self, limits: Limits, now: float) -> None:
        named = {DEFAULT_TENANT: TenantLimits(), **limits.tenants}
        self._tenants = {name: Tenant[Whom](name, each, now) for name, each in named.items()}
        self._others: dict[str, Tenant[Whom]] = {}  # that the limits do not name
        self.node = Meter(limits.node, now) if limits.node else None
        self._turns = FairTurns[Tenant[Whom]]()
        # Who waits: whose client it is, and what its last turn was.
        self._waiting: dict[Whom, tuple[Tenant[Whom], int, int]] = {}
        self._next: float | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def tenant(self, name: str, now: float) -> Tenant[Whom] | None:
        """The tenant of this name; None: nothing limits it, and nobody need charge it.

        One that the limits do not name has those of the default one, and its own share.  Those for whom there is no
        room share with the default one.
        """
        tenant = self._tenants.get(name) or self._others.get(name)
        if tenant is None:
            tenant = self._tenants[DEFAULT_TENANT]
            if (self.node is not None or tenant.meter is not None) and self._has_room():
                tenant = self._others[name] = Tenant(name, tenant.limits, now)
        return tenant if self.node is not None or tenant.meter is not None else None

    def _has_room(self) -> bool:
        """Whether there may be one more of whom the limits say nothing; those that have no clients make room."""
        if len(self._others) >= MAX_TENANTS:
            for left in [each for each in self._others.values() if not each.client_count]:
                self._turns.forget(left)
                del self._others[left.name]
        return len(self._others) < MAX_TENANTS

    def charge(self, whom: Whom, tenant: Tenant[Whom], count: int, packets: int, now: float) -> tuple[float, Rate]:
        """`whom` was received from.  Returns for how long it should be paused, and for which limit: above zero, it
        should `wait`.

        Who has had less than those who wait is never paused: they wait for its sake.
        """
        node, own = self.node, tenant.meter
        shared = own or node
        assert shared is not None, "of a tenant without a limit nobody is charged"
        if not tenant.turns and shared.is_full(now):
            tenant.turns.forgive()
        tenant.turns.charge(whom, shared.rate.seconds_of(count, packets))
        others_wait = bool(tenant.turns)
        is_behind = tenant.turns.is_behind(whom)
        own_wait = own.spend(now, count, packets) if own is not None else 0.0
        if others_wait and is_behind:
            own_wait = 0.0
        if node is None:
            return own_wait, shared.rate
        if not self._waiting and node.is_full(now):
            self._turns.forgive()
        self._turns.charge(tenant, node.rate.seconds_of(count, packets), tenant.limits.weight)
        node_wait = node.spend(now, count, packets)
        if self._waiting and is_behind and self._turns.is_behind(tenant):
            node_wait = 0.0
        return (own_wait, shared.rate) if own_wait > node_wait else (node_wait, node.rate)

    def is_open(self, tenant: Tenant[Whom], now: float) -> bool:
        """Whether a client of this tenant may be read now."""
        return tenant.balance(now) >= 0 and (self.node is None or self.node.balance(now) >= 0)

    def wait(self, whom: Whom, tenant: Tenant[Whom], count: int, packets: int, now: float) -> None:
        """`whom` is not read until `handle_timeout` gives it; its last receive was of so much."""
        self._waiting[whom] = (tenant, count, packets)
        tenant.turns.wait(whom)
        self._turns.wait(tenant)
        room = tenant.balance(now)
        if self.node is not None:
            room = min(room, self.node.balance(now))
        at = now + max(-room, _STEP_SECONDS)
        if self._next is None or at < self._next:
            self._next = at

    def forget(self, whom: Whom, tenant: Tenant[Whom]) -> None:
        """A client left."""
        self._waiting.pop(whom, None)
        tenant.turns.forget(whom)

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None while nobody waits."""
        return self._next

    def handle_timeout(self, now: float) -> list[Whom]:
        """Whom to read on.  As many as there is room for, by what each had in its last turn."""
        if self._next is None or now < self._next:
            return []
        given: list[Whom] = []
        full: list[Tenant[Whom]] = []
        rooms: dict[Tenant[Whom], float] = {}
        node = self.node
        room = node.balance(now) if node is not None else inf
        while room >= 0 and (tenant := self._turns.take()) is not None:
            own_room = rooms.get(tenant)
            if own_room is None:
                own_room = tenant.balance(now)
            if own_room < 0:
                full.append(tenant)
                continue
            whom = tenant.turns.take()
            if whom is None:
                continue  # its last one left
            _, count, packets = self._waiting.pop(whom)
            given.append(whom)
            if node is not None:
                room -= node.rate.seconds_of(count, packets)
            if tenant.meter is not None:
                rooms[tenant] = own_room - tenant.meter.rate.seconds_of(count, packets)
            if tenant.turns:
                self._turns.wait(tenant)
        for tenant in full:
            self._turns.wait(tenant)
        self._look_again(now)
        return given

    def release(self) -> list[Whom]:
        """Everybody who waits, because the limits change."""
        waiting, self._waiting, self._next = list(self._waiting), {}, None
        return waiting

    def _look_again(self, now: float) -> None:
        """When the node is out of debt, and one of the tenants that wait is."""
        if not self._waiting:
            self._next = None
            return
        soonest = max((tenant.balance(now) for tenant in self._turns), default=inf)
        if self.node is not None:
            soonest = min(soonest, self.node.balance(now))
        self._next = now + max(-soonest, _STEP_SECONDS)
