"""What happens to agents, from whoever notices it to the store."""

from datetime import timedelta
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.services import events as module
from tailnet.services.events import DEAD_AFTER, MAX_WAITING, Events
from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.outbox_queue import Loss
from tailnet.store.rows import AppHealth, AppHealths, EventType, LifecycleChange, LifecycleState, ServerRow, StatsReport
from tailnet.store.store import Store
from tests.support.seeds import NOW, came, defined_document, fill, make_id, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores

MAIN, GPU = peer_id("main"), peer_id("gpu")


class World:
    def __init__(self, store: Store, *, is_on: bool = True) -> None:
        fill(store, defined_document())
        self.store = store
        self.outbox = Outbox(store)
        self.events = Events(store, self.outbox, is_on=is_on, clock=lambda: NOW)
        self.reports = AgentReports(store, self.outbox, happened=self.events.note, clock=lambda: NOW)

    def told(self) -> list[tuple[str, dict[str, object]]]:
        """Type and details of all events."""
        return [
            (event.type, {name: value for name, value in event.data.items() if name not in NAMES})
            for event in self.store.events.page(0).events
        ]


NAMES = {"agent_id", "agent_name", "workspace_id", "workspace_name", "owner_id", "owner_name"}


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


async def test_a_start_that_ends_well_or_not(world: World) -> None:
    for state in LifecycleState:
        world.reports.note_lifecycle(LifecycleChange(MAIN, state, NOW))
    await world.outbox.flush()
    assert world.told() == [
        ("agent.start_failed", {"reason": "scripts take too long"}),
        ("agent.start_failed", {"reason": "a script failed"}),
        ("agent.ready", {}),
    ]


async def test_statistics(world: World) -> None:
    world.reports.note_stats(StatsReport(MAIN, 3, 1 << 40, 7, {"session_count_ssh": 1}, NOW))
    await world.outbox.flush()
    assert world.told() == [("agent.stats", {"connection_count": 3, "rx_bytes": 1 << 40, "tx_bytes": 7})]


async def test_only_a_health_that_changes(world: World) -> None:
    editor = make_id("editor of main")
    for health in (AppHealth.HEALTHY, AppHealth.HEALTHY, AppHealth.UNHEALTHY):
        world.reports.note_healths(AppHealths(MAIN, {editor: health}))
        await world.outbox.flush()
    world.reports.note_healths(AppHealths(MAIN, {UUID(int=7): AppHealth.HEALTHY}))  # nobody's
    await world.outbox.flush()
    app = {"app_id": str(editor), "app_slug": "editor"}
    assert world.told() == [
        ("agent.app_health", {**app, "health": "healthy", "health_before": "initializing"}),
        ("agent.app_health", {**app, "health": "unhealthy", "health_before": "healthy"}),
    ]


async def test_nothing_is_kept_for_nobody(store: Store) -> None:
    world = World(store, is_on=False)
    world.reports.note_stats(StatsReport(MAIN, 1, 1, 1, {}, NOW))
    await world.outbox.flush()
    assert world.told() == []
    world.events.is_on = True  # the settings were read again
    world.reports.note_stats(StatsReport(MAIN, 1, 1, 1, {}, NOW))
    await world.outbox.flush()
    assert len(world.told()) == 1


async def test_an_agent_that_flaps_while_the_store_is_away_loses_its_oldest_and_nobody_elses(world: World) -> None:
    world.events.note(GPU, EventType.READY)
    for number in range(MAX_WAITING + 3):
        world.events.note(MAIN, EventType.CONNECTED, {"n": number})
    assert world.outbox.readings()["event"].lost[Loss.AGENT] == 3
    await world.outbox.flush()
    told = []
    while page := world.store.events.page(told[-1].number if told else 0).events:
        told += page
    assert [event.data["n"] for event in told if "n" in event.data] == list(range(3, MAX_WAITING + 3))
    assert len(told) == MAX_WAITING + 1


async def test_a_page_waits_for_what_comes(world: World, nursery: trio.Nursery, mock_clock: MockClock) -> None:
    found: list[list[str]] = []

    async def read(wait_seconds: float) -> None:
        page = await world.events.page(0, wait_seconds=wait_seconds)
        found.append([event.type for event in page.events])

    await read(0.0)
    nursery.start_soon(read, 30.0)
    await wait_all_tasks_blocked()
    world.events.note(MAIN, EventType.READY)
    await world.outbox.flush()
    while len(found) < 2:
        await wait_all_tasks_blocked()
    assert found == [[], ["agent.ready"]]


async def test_what_another_server_wrote_is_seen_too(
    world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOREIGN_SECONDS", 0.01)
    found: list[str] = []

    async def read() -> None:
        found.extend(event.type for event in (await world.events.page(0, wait_seconds=1e9)).events)

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    other = Outbox(world.store)
    Events(world.store, other, is_on=True, clock=lambda: NOW).note(MAIN, EventType.READY)
    await other.flush()
    await wait_for(lambda: found)


async def test_agents_of_a_server_that_died(world: World) -> None:
    store = world.store
    dead, alive, ended = NOW - 2 * DEAD_AFTER, NOW - timedelta(seconds=5), NOW - DEAD_AFTER / 2
    for server, seen_at in (("dead", dead), ("alive", alive)):
        store.presence.beat(ServerRow(server, "host", 1, "1", dead, seen_at))
    came(store, MAIN, dead, "dead")
    came(store, GPU, dead, "alive")  # its server is there, its sign of life is late
    came(store, peer_id("web"), ended, "gone")  # lately: its server may come back
    await world.events.note_forsaken()
    await world.events.note_forsaken()
    await world.outbox.flush()
    [event] = store.events.page(0).events
    assert (event.type, event.data["agent_id"]) == ("agent.disconnected", str(MAIN))
    row = store.callers.get_agent(MAIN)
    assert row is not None
    assert row.disconnected_at == dead


async def test_it_looks_for_them_by_itself(
    store: Store, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    world = World(store)
    came(store, MAIN, NOW - 2 * DEAD_AFTER, "dead")
    nursery.start_soon(world.events.run)
    await wait_for(lambda: world.outbox.readings()["event"].waiting)
