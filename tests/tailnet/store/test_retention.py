"""What is kept no longer is found and removed in small steps: by age, by size, and nothing else with it."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tailnet.store import retention as module
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.retention import REVOCATIONS_KEPT, STEP_ROWS, TOKENS_KEPT, Retention
from tailnet.store.rows import (
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    EventType,
    Happening,
    LogBatch,
    StatsReport,
)
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, fill, make_id, peer_id

MAIN, GPU = peer_id("main"), peer_id("gpu")
HOUR = timedelta(hours=1)
KEPT = Retention(
    stats=24 * HOUR, logs=48 * HOUR, sessions=72 * HOUR, events=72 * HOUR, max_stats=1_000_000, max_log_bytes=1 << 30
)


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def remove(store: Store, limits: Retention = KEPT, now: datetime = NOW) -> dict[str, list[int]]:
    """The rows that each step removed."""
    removed: dict[str, list[int]] = {}
    for step in store.retention.steps(limits, now):
        while due := step.find():
            removed.setdefault(step.name, []).append(step.remove(due))
    return removed


def add_stats(store: Store, count: int, at: datetime) -> None:
    store.reports.insert_stats([StatsReport(MAIN, number, 0, 0, {}, at) for number in range(count)])


def add_logs(store: Store, agent_id: PeerID, at: datetime, *lines: str) -> None:
    store.reports.insert_logs([LogBatch(agent_id, EXTERNAL_LOG_SOURCE, [(3, line) for line in lines], at)])


def logs(store: Store, agent_id: PeerID) -> list[str]:
    return [line.output for line in store.reports.list_logs(agent_id)]


def log_bytes(store: Store, agent_id: PeerID) -> int:
    row = store.callers.get_agent(agent_id)
    assert row is not None
    return row.logs_bytes


def test_nothing_is_due_in_a_new_store(filled: Store) -> None:
    assert remove(filled) == {}


def test_old_statistics_go_in_steps(filled: Store) -> None:
    add_stats(filled, STEP_ROWS + 5, NOW - 25 * HOUR)
    add_stats(filled, 1, NOW - 23 * HOUR)
    assert remove(filled) == {"stats": [STEP_ROWS, 5]}
    latest = filled.reports.latest_stats(MAIN)
    assert latest is not None
    assert latest.at == NOW - 23 * HOUR
    assert remove(filled) == {}


def test_too_many_statistics_are_too_many_at_any_age(filled: Store) -> None:
    add_stats(filled, 30, NOW)
    assert remove(filled, Retention(max_stats=10)) == {"stats": [20]}
    latest = filled.reports.latest_stats(MAIN)
    assert latest is not None
    assert latest.connection_count == 29  # the newest stay
    assert remove(filled, Retention(max_stats=10)) == {}


def test_old_logs_go_and_their_agents_may_log_as_much_again(filled: Store) -> None:
    add_logs(filled, MAIN, NOW - 49 * HOUR, "old ü", "old")
    add_logs(filled, GPU, NOW - 49 * HOUR, "gpu")
    add_logs(filled, MAIN, NOW - 47 * HOUR, "new ü")
    assert log_bytes(filled, MAIN) == 6 + 3 + 6
    assert remove(filled) == {"logs": [3]}
    assert (logs(filled, MAIN), logs(filled, GPU)) == (["new ü"], [])
    assert (log_bytes(filled, MAIN), log_bytes(filled, GPU)) == (6, 0)


def test_logs_that_are_too_large_together_lose_the_oldest(filled: Store) -> None:
    for number in range(10):
        add_logs(filled, MAIN if number % 2 else GPU, NOW, f"{number}" * 100)
    limits = Retention(max_log_bytes=450)
    assert remove(filled, limits) == {"logs": [6]}
    assert [line[0] for line in sorted([*logs(filled, MAIN), *logs(filled, GPU)])] == ["6", "7", "8", "9"]
    assert log_bytes(filled, MAIN) + log_bytes(filled, GPU) == 400
    assert remove(filled, limits) == {}


def test_large_logs_go_in_steps(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_ROWS", 4)
    for number in range(10):
        add_logs(filled, MAIN, NOW, f"{number}")
    assert remove(filled, Retention(max_log_bytes=1)) == {"logs": [4, 4, 1]}
    assert logs(filled, MAIN) == ["9"]


def test_old_sessions(filled: Store) -> None:
    def session(number: int, at: datetime) -> ConnectionReport:
        kind = ConnectionType.SSH
        return ConnectionReport(MAIN, UUID(int=number), ConnectionAction.CONNECT, kind, at, "", 0, "", "")

    # What counts is when it was stored: an agent's clock may be years off, either way.
    filled.reports.insert_connections([session(1, NOW + 999 * HOUR)], NOW - 73 * HOUR)
    filled.reports.insert_connections([session(2, NOW - 999 * HOUR)], NOW - 71 * HOUR)
    assert remove(filled) == {"sessions": [1]}
    assert [each.connection_id.int for each in filled.reports.list_connections(MAIN)] == [2]


def test_old_events_and_too_many_go_and_the_newest_stays(filled: Store) -> None:
    def happened(count: int, at: datetime) -> None:
        filled.events.add([Happening(MAIN, EventType.CONNECTED, at) for _ in range(count)])

    happened(3, NOW - 73 * HOUR)
    happened(4, NOW)
    assert remove(filled) == {"events": [3]}
    assert remove(filled, Retention(max_events=2)) == {"events": [2]}
    assert remove(filled, now=NOW + 999 * HOUR)["events"] == [1]
    assert [event.number for event in filled.events.page(0).events] == [7]


def test_empty_lines_count_when_they_go_too(filled: Store) -> None:
    add_logs(filled, MAIN, NOW - 49 * HOUR, "", "", "a")
    add_logs(filled, MAIN, NOW, "", "b")
    assert log_bytes(filled, MAIN) == 5
    assert remove(filled) == {"logs": [3]}
    assert log_bytes(filled, MAIN) == 2


def test_tokens_that_expired_long_ago(filled: Store) -> None:
    before = filled.callers.callers_generation()
    for name, expires_at in (("old", NOW - TOKENS_KEPT - HOUR), ("young", NOW - HOUR), ("good", NOW + HOUR)):
        filled.callers.add_user_token(make_id("alice"), name, bytes(32), NOW, expires_at)
    added = filled.callers.callers_generation()
    assert remove(filled) == {"tokens": [1]}
    assert filled.callers.user_tokens(["old", "young", "good"]).keys() == {"young", "good"}
    # Nobody could use it any more, so nobody need forget anything.
    assert before < added == filled.callers.callers_generation()


def test_changes_of_callers_that_every_server_has_heard_of(filled: Store) -> None:
    filled.callers.update_user(make_id("alice"), NOW, active=False)
    now = datetime.now(UTC)
    assert "revocations" not in remove(filled, now=now)
    assert sum(remove(filled, now=now + REVOCATIONS_KEPT + HOUR)["revocations"]) >= 2


def test_the_log_of_a_clock_that_was_ahead_waits_its_time(filled: Store) -> None:
    add_logs(filled, MAIN, NOW + 1_000 * HOUR, "from the future")
    add_logs(filled, MAIN, NOW - 49 * HOUR, "old")
    assert remove(filled) == {"logs": [1]}
    assert logs(filled, MAIN) == ["from the future"]
    assert remove(filled, now=NOW + 1_049 * HOUR) == {"logs": [1]}
