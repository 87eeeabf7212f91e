"""When the relay is full, each tenant has its share, however many its clients and however large their receives are."""

import random

import pytest

from derp.relay.limits import MAX_TENANTS, Limits, Rate, TenantLimits
from derp.relay.shares import FairTurns, Shares

NODE = Rate(10_000_000, 1_000_000)
SECONDS = 20.0
# What a receive of one sender has, and whether it has anything when it is read on.
Sender = tuple[str, int]


class Crowd:
    """Senders that always have more, each with receives of its own size, under one Shares in virtual time."""

    def __init__(self, limits: Limits, senders: dict[Sender, int], *, idle: float = 0.0) -> None:
        """`idle`: how often a sender that is read on has nothing yet, as its window is closed."""
        self.now = 1000.0
        self.shares = Shares[Sender](limits, self.now)
        self.by_sender = dict.fromkeys(senders, 0)
        self._random = random.Random(7)
        self._sizes = senders
        self._idle = idle
        self._unpaused = list(senders)

    @property
    def total(self) -> int:
        return sum(self.by_sender.values())

    @property
    def had(self) -> dict[str, int]:
        """Bytes by tenant."""
        had: dict[str, int] = {}
        for (name, _), count in self.by_sender.items():
            had[name] = had.get(name, 0) + count
        return had

    def run(self, seconds: float) -> float:
        """Returns how many bytes there were a second."""
        end, before = self.now + seconds, self.total
        while self.now < end:
            self._receive()
            at = self.shares.next_timeout()
            # A reactor's pass takes a moment, in which those who are read on are received from.
            step = 0.0003 if self._unpaused or at is None else max(at - self.now, 0.0005)
            self.now += step
            self._unpaused += self.shares.handle_timeout(self.now)
        return (self.total - before) / seconds

    def _receive(self) -> None:
        unpaused, self._unpaused = self._unpaused, []
        for sender in unpaused:
            if self._random.random() < self._idle:
                self._unpaused.append(sender)
                continue
            size = self._sizes[sender]
            name = sender[0]
            self.by_sender[sender] += size
            tenant = self.shares.tenant(name, self.now)
            assert tenant is not None
            wait, _ = self.shares.charge(sender, tenant, size, size // 1000 + 1, self.now)
            if wait > 0:
                self.shares.wait(sender, tenant, size, size // 1000 + 1, self.now)
            else:
                self._unpaused.append(sender)


def crowd_of(*tenants: tuple[str, float, int, int], node: Rate = NODE, idle: float = 0.0) -> Crowd:
    """Tenants as (name, weight, how many clients, bytes of a receive)."""
    limits = Limits(node, tenants={name: TenantLimits(weight=weight) for name, weight, _, _ in tenants})
    return Crowd(limits, {(name, n): size for name, _, count, size in tenants for n in range(count)}, idle=idle)


CROWDS = {
    "one client beside a hundred": (("one", 1.0, 1, 65_536), ("many", 1.0, 100, 65_536)),
    "small receives beside large ones": (("small", 1.0, 3, 4_000), ("large", 1.0, 3, 262_144)),
    "weights": (("a", 1.0, 5, 30_000), ("b", 2.0, 50, 100_000), ("c", 7.0, 2, 262_144)),
    "the heavy one has small receives": (("light", 1.0, 40, 262_144), ("heavy", 4.0, 10, 10_000)),
}


@pytest.mark.parametrize("idle", [0.0, 0.5])
@pytest.mark.parametrize("name", CROWDS)
def test_nobody_is_pushed_under_95_percent_of_its_share(name: str, idle: float) -> None:
    tenants = CROWDS[name]
    crowd = crowd_of(*tenants, idle=idle)
    crowd.run(SECONDS)
    weights = {tenant: weight for tenant, weight, _, _ in tenants}
    total, all_weights = crowd.total, sum(weights.values())
    for tenant, weight in weights.items():
        assert crowd.had[tenant] >= 0.95 * total * weight / all_weights, (tenant, crowd.had)


@pytest.mark.parametrize("name", CROWDS)
def test_the_whole_of_the_limit_is_used_and_no_more(name: str) -> None:
    crowd = crowd_of(*CROWDS[name])
    crowd.run(5.0)
    assert crowd.run(SECONDS) == pytest.approx(NODE.bytes_per_second, rel=0.03)


def test_packets_are_shared_as_bytes_are() -> None:
    """Where the limit is one of packets, small ones are dear."""
    crowd = crowd_of(
        ("a", 1.0, 2, 20_000), ("b", 1.0, 30, 200_000), node=Rate(packets_per_second=10_000, burst_packets=1_000)
    )
    crowd.run(SECONDS)
    packets = {"a": crowd.had["a"] / 20_000 * 21, "b": crowd.had["b"] / 200_000 * 201}
    assert min(packets.values()) >= 0.95 * sum(packets.values()) / 2
    assert sum(packets.values()) == pytest.approx(10_000 * SECONDS, rel=0.03)


def test_clients_of_one_tenant_share_alike() -> None:
    sizes = {("default", 1): 4_000, ("default", 2): 262_144, ("default", 3): 50_000}
    crowd = Crowd(Limits(NODE), sizes)
    crowd.run(SECONDS)
    assert min(crowd.by_sender.values()) >= 0.95 * crowd.total / 3


def test_who_needs_less_than_its_share_waits_for_nobody_long_and_others_have_the_rest() -> None:
    limits = Limits(NODE, tenants={"calm": TenantLimits(rate=Rate(1_000_000, 100_000)), "bulk": TenantLimits()})
    crowd = Crowd(limits, {("calm", 1): 10_000, **{("bulk", n): 262_144 for n in range(10)}})
    crowd.run(5.0)
    before = dict(crowd.had)
    crowd.run(SECONDS)
    assert (crowd.had["calm"] - before["calm"]) / SECONDS == pytest.approx(1_000_000, rel=0.03)
    assert (crowd.had["bulk"] - before["bulk"]) / SECONDS == pytest.approx(9_000_000, rel=0.03)


def test_a_tenant_without_a_full_relay_has_its_own_limit_alone() -> None:
    limits = Limits(tenants={"slow": TenantLimits(rate=Rate(500_000, 100_000))})
    crowd = Crowd(limits, {("slow", n): 60_000 for n in range(8)})
    crowd.run(2.0)
    assert crowd.run(SECONDS) == pytest.approx(500_000, rel=0.03)
    assert crowd.shares.tenant("anybody else", 0.0) is None, "nothing limits it, so nothing counts it"


def test_tenants_that_the_limits_do_not_name_have_a_share_each_and_those_of_the_default_one() -> None:
    limits = Limits(
        NODE, tenants={"default": TenantLimits(Rate(4_000_000, 400_000), weight=2.0), "big": TenantLimits()}
    )
    crowd = Crowd(limits, {("one", 1): 60_000, **{("two", n): 60_000 for n in range(9)}, ("big", 1): 60_000})
    crowd.run(5.0)
    before = dict(crowd.had)
    crowd.run(SECONDS)
    for name, rate in (("one", 4_000_000), ("two", 4_000_000), ("big", 2_000_000)):
        assert (crowd.had[name] - before[name]) / SECONDS == pytest.approx(rate, rel=0.05), name


def test_tenants_for_whom_there_is_no_room_share_with_the_default_one_until_others_leave() -> None:
    shares = Shares[Sender](Limits(NODE), 0.0)
    tenants = [shares.tenant(f"t{number}", 0.0) for number in range(MAX_TENANTS)]
    for each in tenants:
        assert each is not None
        each.client_count += 1
    late = shares.tenant("late", 0.0)
    assert late is not None
    assert late.name == "default"
    assert shares.tenant("t5", 0.0) is tenants[5]
    assert tenants[5] is not None
    tenants[5].client_count -= 1
    came = shares.tenant("late", 0.0)
    assert came is not None
    assert came.name == "late"


def test_who_was_silent_is_not_owed_an_hour() -> None:
    crowd = crowd_of(("a", 1.0, 4, 60_000), ("b", 1.0, 4, 60_000))
    sleeping = [sender for sender in crowd._unpaused if sender[0] == "b"]
    crowd._unpaused = [sender for sender in crowd._unpaused if sender[0] == "a"]
    crowd.run(60.0)
    crowd._unpaused += sleeping
    before = dict(crowd.had)
    crowd.run(2.0)
    # A quarter of a second of the whole, and then half of it.
    assert crowd.had["a"] - before["a"] >= 0.8 * 2.0 * NODE.bytes_per_second / 2


def test_who_leaves_is_forgotten_and_the_others_go_on() -> None:
    crowd = crowd_of(("a", 1.0, 3, 60_000), ("b", 1.0, 3, 60_000))
    crowd.run(1.0)
    for sender in crowd._sizes:
        if sender[1] != 0:
            tenant = crowd.shares.tenant(sender[0], crowd.now)
            assert tenant is not None
            crowd.shares.forget(sender, tenant)
    crowd._unpaused = [sender for sender in crowd._unpaused if sender[1] == 0]
    assert crowd.run(5.0) == pytest.approx(NODE.bytes_per_second, rel=0.05)
    assert len(crowd.shares) <= 2


def test_an_empty_one_is_silent() -> None:
    shares = Shares[Sender](Limits(NODE), 0.0)
    tenant = shares.tenant("x", 0.0)
    assert tenant is not None
    shares.charge(("x", 1), tenant, 10_000_000, 1, 0.0)
    shares.wait(("x", 1), tenant, 10_000_000, 1, 0.0)
    assert shares.next_timeout() == pytest.approx(0.9)
    shares.forget(("x", 1), tenant)
    assert shares.handle_timeout(5.0) == []
    assert shares.next_timeout() is None
    shares.wait(("x", 1), tenant, 10_000_000, 1, 5.0)
    assert shares.release() == [("x", 1)]
    assert shares.next_timeout() is None


def test_turns_go_to_whoever_had_least_for_its_weight() -> None:
    turns = FairTurns[str]()
    for item in "ab":
        turns.wait(item)
    served = []
    for _ in range(30):
        item = turns.take()
        assert item is not None
        served.append(item)
        turns.charge(item, 1.0, 2.0 if item == "b" else 1.0)
        turns.wait(item)
    assert served.count("b") == 2 * served.count("a")


def test_who_had_more_while_it_waited_waits_on() -> None:
    turns = FairTurns[str]()
    for item in "abc":
        turns.charge(item, 0.1)
        turns.wait(item)
    turns.charge("a", 5.0)
    assert [turns.take() for _ in range(4)] == ["b", "c", "a", None]
