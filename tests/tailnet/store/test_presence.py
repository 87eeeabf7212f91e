"""Several servers write about the same agents, late and out of order; each row says who may say what."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa

from sim.store import DEAD, Row
from sim.store import Store as SimulatedStore
from tailnet.store.presence import CLOCKS_DIFFER, SERVERS_KEPT
from tailnet.store.rows import AgentRow, AgentStatus, PresenceChange, ServerRow
from tailnet.store.store import Store
from tests.support.seeds import NOW, came, fill, left, peer_id

MAIN, GPU, NOBODY = peer_id("main"), peer_id("gpu"), peer_id("nobody")
INACTIVE = timedelta(seconds=30)
SERVERS = ("one", "two", "three")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def row(store: Store) -> AgentRow:
    found = store.callers.get_agent(MAIN)
    assert found is not None
    return found


def seen(store: Store, at: datetime, server: str) -> None:
    store.presence.record([PresenceChange(MAIN, seen_at=at)], server, at, INACTIVE)


def test_times(filled: Store) -> None:
    changes = [PresenceChange(each, came_at=after(1)) for each in (MAIN, GPU, NOBODY)]
    filled.presence.record(changes, "one", after(1), INACTIVE)
    seen(filled, after(2), "one")
    left(filled, MAIN, after(3), "one")
    came(filled, MAIN, after(4), "one")
    found = row(filled)
    # A disconnection that is over stays to be shown.
    assert (found.first_connected_at, found.last_connected_at, found.disconnected_at) == (after(1), after(4), after(3))
    assert found.status(after(5), 30) is AgentStatus.CONNECTED
    filled.presence.record([], "one", after(5), INACTIVE)


def test_only_who_holds_the_connection_may_say_that_it_ended(filled: Store) -> None:
    came(filled, MAIN, after(1), "one")
    came(filled, MAIN, after(2), "two")
    left(filled, MAIN, after(3), "one")
    assert (row(filled).disconnected_at, row(filled).seen_by) == (None, "two")
    left(filled, MAIN, after(4), "two")
    assert (row(filled).disconnected_at, row(filled).seen_by) == (after(4), None)


def test_a_connection_that_is_told_late_is_not_the_newest(filled: Store) -> None:
    came(filled, MAIN, after(9), "two")
    came(filled, MAIN, after(5), "one")
    assert (row(filled).last_connected_at, row(filled).seen_by) == (after(9), "two")


def test_a_sign_of_life_takes_an_agent_from_nobody_who_is_alive(filled: Store) -> None:
    came(filled, MAIN, after(1), "one")
    came(filled, MAIN, after(2), "two")
    seen(filled, after(3), "one")  # the rest of its old connection
    assert (row(filled).last_connected_at, row(filled).seen_by) == (after(2), "two")
    # The other server died without a word: whoever still holds a connection has the agent.
    seen(filled, after(33), "one")
    assert (row(filled).last_connected_at, row(filled).seen_by) == (after(33), "one")


@pytest.mark.stores("sqlite")  # PostgreSQL plans by how large a table is
def test_a_page_of_whom_a_server_holds_is_found_by_an_index_and_not_sorted(filled: Store) -> None:
    asked: list[tuple[str, tuple[Any, ...]]] = []

    @sa.event.listens_for(sa.Engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: tuple[Any, ...], *more: Any) -> None:
        asked.append((statement, parameters))

    filled.presence.list_held("one", GPU, 1000)
    sa.event.remove(sa.Engine, "before_cursor_execute", note)
    statement, parameters = next(each for each in asked if "seen_by" in each[0])
    with filled.database.reading() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    assert [step[-1] for step in plan] == ["SEARCH agents USING INDEX ix_agents_seen_by (seen_by=? AND id>?)"]


def test_a_sign_of_life_takes_an_agent_that_is_nobodys(filled: Store) -> None:
    came(filled, MAIN, after(1), "one")
    came(filled, MAIN, after(2), "two")
    left(filled, MAIN, after(3), "two")
    assert row(filled).status(after(3), 30) is AgentStatus.DISCONNECTED
    seen(filled, after(4), "one")
    assert row(filled).status(after(4), 30) is AgentStatus.CONNECTED


def test_a_clock_that_is_ahead_wins_nothing(filled: Store) -> None:
    came(filled, MAIN, after(10_000), "fast")
    came(filled, MAIN, after(1), "right")
    assert (row(filled).last_connected_at, row(filled).seen_by) == (after(1), "right")
    # Within what clocks may differ, the later one counts.
    came(filled, MAIN, after(1) + CLOCKS_DIFFER / 2, "fast")
    came(filled, MAIN, after(2), "right")
    assert row(filled).seen_by == "fast"


@pytest.mark.parametrize(
    ("older", "newer", "both"),
    [
        ({"came_at": 1}, {"left_at": 2}, {"came_at": 1, "left_at": 2}),
        ({"came_at": 1, "left_at": 2}, {"came_at": 3}, {"came_at": 3}),
        ({"seen_at": 1}, {"left_at": 2}, {"seen_at": 1, "left_at": 2}),
        ({"came_at": 1}, {"seen_at": 2}, {"came_at": 1, "seen_at": 2}),
        ({"seen_at": 1}, {"seen_at": 2}, {"seen_at": 2}),
        ({"left_at": 1}, {"came_at": 2}, {"came_at": 2}),
    ],
)
def test_two_changes_are_one(older: dict[str, int], newer: dict[str, int], both: dict[str, int]) -> None:
    def change(moments: dict[str, int]) -> PresenceChange:
        return PresenceChange(MAIN, **{name: after(seconds) for name, seconds in moments.items()})

    assert change(older).then(change(newer)) == change(both)


def test_servers_say_that_they_are_there(store: Store) -> None:
    first = ServerRow("one", "host-a", 17, "1.0", NOW, NOW)
    second = ServerRow("two", "host-b", 17, "1.0", after(1), after(1))
    store.presence.beat(first)
    store.presence.beat(second)
    store.presence.beat(ServerRow("one", "host-a", 17, "1.0", NOW, after(10)))
    assert store.presence.list_servers() == [ServerRow("one", "host-a", 17, "1.0", NOW, after(10)), second]
    store.presence.end("two")
    assert [each.id for each in store.presence.list_servers()] == ["one"]
    # Who died without a word is forgotten after a day.
    third = ServerRow("three", "host-c", 1, "1.0", NOW, after(11) + SERVERS_KEPT)
    store.presence.beat(third)
    assert store.presence.list_servers() == [third]


def words(random: Random) -> Iterator[tuple[str, timedelta, PresenceChange | None]]:
    """What servers say, each by a clock that may be off, and late; without a change: that the server is there."""
    seconds = 0.0
    for _ in range(40):
        seconds += random.choice((0.0, 0.5, 4, 20))
        at = timedelta(seconds=seconds + random.choice((0, 0, -3, 2)) + random.choice((0, 0, -10)))
        if random.random() < 0.02:
            at += 2 * CLOCKS_DIFFER
        moment = NOW + at
        came, seen, left = random.choice(((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0), (0, 0, 0)))
        change = PresenceChange(
            MAIN,
            moment if came else None,
            moment + timedelta(seconds=1) if seen else None,
            moment + timedelta(seconds=2) if left else None,
        )
        yield random.choice(SERVERS), timedelta(seconds=seconds), change if came or seen or left else None


@pytest.mark.parametrize("seed", range(12))
def test_the_simulator_s_row_is_the_store_s(filled: Store, seed: int) -> None:
    simulated, row = SimulatedStore(), Row()
    simulated.rows[MAIN] = row
    for server, after, change in words(Random(seed)):
        now = NOW + after
        if change is not None:
            filled.presence.record([change], server, now, INACTIVE)
            row.apply(change, server, now, simulated.beats)
        else:
            filled.presence.beat(ServerRow(server, "host", 1, "1", NOW, now))
            swept = filled.presence.release_forsaken(now - DEAD)
            assert simulated.beat(server, now) == len(swept)
        found = filled.callers.get_agent(MAIN)
        assert found is not None
        shown = found.last_connected_at, found.disconnected_at, found.seen_by
        assert (row.seen_at(simulated.beats), row.left, row.holder) == shown
        for each in SERVERS:
            assert dict(filled.presence.list_held(each, None, 10)) == simulated.held_by(each)
        is_connected = found.status(now, INACTIVE.total_seconds()) is AgentStatus.CONNECTED
        assert row.is_connected(now, simulated.beats) == is_connected
