"""What is due is handled at its time, once, and an owner that fails is asked again."""

from derp.relay.deadlines import Deadlines
from derp.transport.alarm import Alarm
from derp.transport.reactor import Reactor


class Owner:
    """Somebody with two tables on a host in virtual time."""

    def __init__(self) -> None:
        self.time = 0.0
        self.host = Reactor(clock=lambda: self.time)
        self.flushes = 0
        self.host.flushers.append(self._count)
        self.tables = Deadlines[str](), Deadlines[str]()
        self.alarm = Alarm(self.host, self.handle, *self.tables)
        self.handled: list[tuple[float, list[str]]] = []
        self.failures = 0

    def _count(self) -> None:
        self.flushes += 1

    def handle(self, now: float) -> None:
        due = [name for table in self.tables for name in table.handle_timeout(now)]
        self.handled.append((now, due))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a defect")

    def run_until(self, time: float) -> None:
        """As the reactor does: wait for the next timer, and serve."""
        while (at := self.host.timers.next_at) <= time:
            self.time = at
            self.host.serve_ready()
        self.time = time


def test_the_earliest_of_all_cores_counts() -> None:
    owner = Owner()
    owner.tables[0].set("a", 5.0)
    owner.tables[1].set("b", 3.0)
    owner.alarm.look()
    owner.run_until(10.0)
    assert owner.handled == [(3.0, ["b"]), (5.0, ["a"])]
    assert owner.flushes == 2
    assert len(owner.host.timers) == 0, "nobody is due, so nobody wakes"


def test_it_may_be_told_the_time_and_rings_by_then() -> None:
    owner = Owner()
    for name, at in (("late", 9.0), ("early", 2.0), ("between", 4.0)):
        owner.tables[0].set(name, at)
        owner.alarm.by(at)
        assert len(owner.host.timers) == 1
    owner.run_until(10.0)
    assert owner.handled == [(2.0, ["early"]), (4.0, ["between"]), (9.0, ["late"])]


def test_a_deadline_that_moved_later_costs_one_ring_that_finds_nothing() -> None:
    owner = Owner()
    owner.tables[0].set("a", 2.0)
    owner.alarm.look()
    owner.tables[0].set("a", 8.0)
    owner.run_until(10.0)
    assert owner.handled == [(2.0, []), (8.0, ["a"])]


def test_a_grain_makes_one_ring_of_many() -> None:
    owner = Owner()
    alarm = Alarm(owner.host, owner.handle, owner.tables[0], grain_seconds=0.25)
    for number in range(100):
        owner.tables[0].set(str(number), 10.0 + number / 100)
        alarm.by(10.0 + number / 100)
    owner.run_until(20.0)
    assert [now for now, _ in owner.handled] == [10.0, 10.25, 10.5, 10.75, 11.0]
    assert sum(len(due) for _, due in owner.handled) == 100


def test_an_owner_that_fails_is_asked_again() -> None:
    owner = Owner()
    owner.failures = 1
    owner.tables[0].set("a", 1.0)
    owner.tables[0].set("b", 2.0)
    owner.alarm.look()
    owner.run_until(3.0)
    assert owner.handled == [(1.0, ["a"]), (2.0, ["b"])]
