"""Keep-alives come in each client's own period, whatever the ticks are like; nobody is forgotten, nobody is flooded."""

from collections import defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from derp.relay.clients import Client
from derp.relay.keepalive import KeepAliveWheel
from tests.derp.relay.world import World

PERIOD, JITTER = 60.0, 5.0


def test_a_client_is_due_after_its_period_and_then_every_period() -> None:
    world = World()
    wheel = KeepAliveWheel(PERIOD, JITTER, 1000.0)
    client = world.connect("a")
    wheel.add(client, 1000.0, 0.0)
    due = [second for second in range(1000, 1400) if wheel.handle_timeout(float(second)) == [client]]
    assert due == [1060, 1120, 1180, 1240, 1300, 1360]


@given(
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    ticks=st.lists(st.sampled_from((0.25, 0.3, 1.0, 2.5, 20.0)), min_size=50, max_size=200),
)
def test_gaps_lie_between_the_period_and_what_clients_endure(fractions: list[float], ticks: list[float]) -> None:
    world = World()
    now = 1000.5
    wheel = KeepAliveWheel(PERIOD, JITTER, now)
    seen: dict[Client, list[float]] = defaultdict(list)
    for number, fraction in enumerate(fractions):
        client = world.connect(f"client {number}")
        wheel.add(client, now, fraction)
        seen[client].append(now)
    for tick in ticks:
        now += tick
        for client in wheel.handle_timeout(now):
            seen[client].append(now)
    for times in seen.values():
        gaps = [later - earlier for earlier, later in pairwise([*times, now])]
        assert max(gaps) <= PERIOD + JITTER + 20.0 + 1.0
        # A late tick is not carried on: the next one comes when it was planned.
        assert min(gaps[:-1], default=PERIOD) >= PERIOD - 20.0 - 1.0


def test_clients_that_came_together_drift_apart() -> None:
    world = World()
    wheel = KeepAliveWheel(PERIOD, JITTER, 0.0)
    for number in range(100):
        wheel.add(world.connect(f"client {number}"), 0.0, number / 100)
    due = [len(wheel.handle_timeout(float(second))) for second in range(200)]
    assert due[60:65] == [20] * 5
    assert [max(due[turn * 60 : turn * 66]) for turn in (1, 2, 3)] == [20, 10, 7]


def test_those_that_left_are_forgotten() -> None:
    world = World()
    wheel = KeepAliveWheel(PERIOD, JITTER, 0.0)
    client = world.connect("a")
    wheel.add(client, 0.0, 0.5)
    world.leave(client)
    assert [wheel.handle_timeout(float(second)) for second in range(300)] == [[]] * 300
    assert not any(wheel._slots)


def test_one_that_left_does_not_keep_its_connection_in_memory() -> None:
    # It stays in the wheel for a minute: thousands may come and go in that time, each with a TLS state of its own.
    world = World()
    wheel = KeepAliveWheel(PERIOD, JITTER, 0.0)
    client = world.connect("a")
    client.wire = object()
    wheel.add(client, 0.0, 0.5)
    world.leave(client)
    assert client.wire is None


def test_a_clock_that_jumped_brings_one_keep_alive_each() -> None:
    world = World()
    wheel = KeepAliveWheel(PERIOD, JITTER, 0.0)
    clients = [world.connect(f"client {number}") for number in range(50)]
    for number, client in enumerate(clients):
        wheel.add(client, number / 2, number / 50)
    wheel.handle_timeout(30.0)
    due = wheel.handle_timeout(100_000.0)
    assert sorted(due, key=clients.index) == clients
    assert [wheel.handle_timeout(float(second)) for second in range(100_001, 100_060)] == [[]] * 59
    due = [client for second in range(100_060, 100_066) for client in wheel.handle_timeout(float(second))]
    assert set(due) == set(clients)


def test_one_that_joins_between_ticks_is_not_due_at_once() -> None:
    world = World()
    wheel = KeepAliveWheel(0.2, 0.0, 10.0)
    wheel.handle_timeout(12.0)
    client = world.connect("a")
    wheel.add(client, 12.1, 0.0)
    assert wheel.handle_timeout(12.9) == []
    assert wheel.handle_timeout(13.0) == [client]


def test_it_is_asked_once_a_second_at_most_and_not_at_all_when_empty() -> None:
    world = World()
    wheel = KeepAliveWheel(PERIOD, 0.0, 1000.0)
    assert wheel.next_timeout() is None
    clients = [world.connect(name) for name in "abc"]
    for client, now in zip(clients, (1000.0, 1000.5, 1010.0), strict=True):
        wheel.add(client, now, 0.0)
    assert wheel.next_timeout() == 1060.0
    assert wheel.handle_timeout(1060.0) == clients[:2]
    assert wheel.next_timeout() == 1070.0
    for client in clients:
        world.leave(client)
    times = []
    while (at := wheel.next_timeout()) is not None:
        times.append(at)
        assert wheel.handle_timeout(at) == []
    assert times == [1070.0, 1120.0]
