"""Every kind of report: how much of it may wait, and what is told with the agent's next report."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from tailnet.services import reports as module
from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.outbox_queue import Loss
from tailnet.store.reports import (
    EXTERNAL_LOG_SOURCE,
    MAX_CONNECTION_REPORTS_PER_AGENT,
    MAX_LOG_BYTES_PER_AGENT,
    MAX_METADATA_KEYS_PER_AGENT,
)
from tailnet.store.rows import (
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    LifecycleChange,
    LifecycleState,
    LogBatch,
    MetadataValue,
    PresenceChange,
    RunStage,
    RunStatus,
    ScriptRun,
    Startup,
    StatsReport,
)
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, defined_document, fill, make_id, peer_id

MAIN, GPU = peer_id("main"), peer_id("gpu")
KINDS = {
    "presence": 1,
    "startup": 1,
    "metadata": MAX_METADATA_KEYS_PER_AGENT,
    "health": 1,
    "lifecycle": 64,
    "stats": 12,
    "logs": 2_000,
    "app_status": 50,
    "script": 100,
    "session": MAX_CONNECTION_REPORTS_PER_AGENT,
}


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.outbox = Outbox(store)
        self.reports = AgentReports(store, self.outbox, server_id="one", clock=lambda: NOW)

    def note(self, kind: str, number: int, agent_id: PeerID = MAIN) -> None:
        """The report with that number of a kind."""
        note, at = self.reports, NOW + timedelta(seconds=number)
        if kind == "presence":
            note.note_presence(PresenceChange(agent_id, came_at=at))
        elif kind == "startup":
            note.note_startup(Startup(agent_id, f"v{number}", "/home", [], "2.0"))
        elif kind == "metadata":
            note.note_metadata([MetadataValue(agent_id, f"key {number}", "value", "", at)])
        elif kind == "health":
            note.note_healths(AppHealths(agent_id, {make_id("editor of main"): AppHealth(number % 4 + 1)}))
        elif kind == "lifecycle":
            note.note_lifecycle(LifecycleChange(agent_id, LifecycleState(number % 9 + 1), at))
        elif kind == "stats":
            note.note_stats(StatsReport(agent_id, number, 0, 0, {}, at))
        elif kind == "logs":
            note.note_logs(LogBatch(agent_id, EXTERNAL_LOG_SOURCE, [(3, f"line {number}")], at))
        elif kind == "app_status":
            status = AppStatus(UUID(int=number), at, AppState.IDLE, f"status {number}", "")
            note.note_app_status(AppStatusReport(agent_id, "editor", status))
        elif kind == "script":
            run = ScriptRun(make_id("start of main"), at, at, number, RunStage.START, RunStatus.OK)
            note.note_script_run(agent_id, run)
        else:
            note.note_session(session(agent_id, number, at))


def session(agent_id: PeerID, number: int, at: datetime) -> ConnectionReport:
    kind = ConnectionType.SSH
    return ConnectionReport(agent_id, UUID(int=number), ConnectionAction.CONNECT, kind, at, "192.0.2.1", 0, "", "")


@pytest.fixture
def world(store: Store) -> World:
    fill(store, defined_document())
    return World(store)


async def test_the_kinds_are_named_here(world: World) -> None:
    assert world.outbox.readings().keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_has_its_share_and_no_more(world: World, kind: str) -> None:
    most = KINDS[kind]
    world.note(kind, 0, GPU)
    for number in range(most + 3):
        world.note(kind, number)
    reading = world.outbox.readings()[kind]
    given_up = 0 if most == 1 else 3
    assert (reading.waiting, reading.lost[Loss.AGENT]) == (most + 1, given_up)
    assert reading.merged == (3 if most == 1 else 0)
    await world.outbox.flush()
    reading = world.outbox.readings()[kind]
    assert (reading.waiting, reading.written, reading.lost[Loss.UNFIT]) == (0, most + 1, 0)


async def test_the_latest_of_what_describes_is_stored(world: World) -> None:
    for kind in ("startup", "health", "presence"):
        for number in range(3):
            world.note(kind, number)
    for value in ("old", "new"):
        world.reports.note_metadata([MetadataValue(MAIN, "key", value, "", NOW)])
    await world.outbox.flush()
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert (row.version, row.last_connected_at, row.seen_by) == ("v2", NOW + timedelta(seconds=2), "one")
    assert world.store.apps.definitions(MAIN).apps[0].health is AppHealth.HEALTHY
    assert [each.value for each in world.store.reports.list_metadata(MAIN)] == ["new"]


def logs(size: int, at: datetime = NOW) -> LogBatch:
    return LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, "x" * size)], at)


async def test_the_limit_of_logs_is_told_without_the_store(world: World) -> None:
    half = MAX_LOG_BYTES_PER_AGENT // 2
    told = [world.reports.note_logs(logs(size)) for size in (half, half, 1, 1)]
    assert told == [False, False, True, True]
    await world.outbox.flush()
    row = world.store.callers.get_agent(MAIN)
    assert row is not None
    assert (row.logs_bytes, row.logs_overflowed) == (2 * half, True)
    assert len(world.store.reports.list_logs(MAIN)) == 2


async def test_the_limit_of_logs_from_before_is_told_after_the_first_that_is_refused(world: World) -> None:
    world.store.reports.insert_logs([logs(MAX_LOG_BYTES_PER_AGENT)])
    assert not world.reports.note_logs(logs(1))
    await world.outbox.flush()
    assert world.reports.note_logs(logs(1))
    # A new start of the agent asks the store again.
    world.reports.note_startup(Startup(MAIN, "v1", "/", [], "2.0"))
    assert not world.reports.note_logs(logs(1))


async def test_the_time_of_a_report_is_when_it_came(world: World) -> None:
    earlier = NOW - timedelta(minutes=7)
    world.reports.note_logs(logs(1, earlier))
    world.reports.note_stats(StatsReport(MAIN, 1, 2, 3, {}, earlier))
    await world.outbox.flush()
    assert world.store.reports.list_logs(MAIN)[0].created_at == earlier
    latest = world.store.reports.latest_stats(MAIN)
    assert latest is not None
    assert latest.at == earlier


async def test_so_many_agents_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    remembered = module._Remembered[int]()
    for number, agent in enumerate(("a", "b", "c")):
        remembered.put(peer_id(agent), number)
    assert [remembered.get(peer_id(agent)) for agent in ("a", "b", "c")] == [None, 1, 2]
    assert (remembered.pop(peer_id("b")), remembered.pop(peer_id("b"))) == (1, None)


async def test_followers_are_told_when_the_store_has_it(store: Store) -> None:
    fill(store, defined_document())
    told: list[object] = []
    outbox = Outbox(store)
    reports = AgentReports(store, outbox, logs_written=told.append, metadata_written=told.append)
    reports.note_logs(LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, "a")], NOW))
    assert told == [], "nobody could read it yet"
    await outbox.flush()
    assert told == [{MAIN}]
    reports.note_metadata([MetadataValue(GPU, "cpu", "1", "", NOW), MetadataValue(GPU, "disk", "2", "", NOW)])
    await outbox.flush()
    assert told == [{MAIN}, {GPU}]
