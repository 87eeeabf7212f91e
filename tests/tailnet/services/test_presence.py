"""Who is connected: by open channels here, and in the store through the outbox: moments, reconnects, signs of life."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode
from tailnet.coordinator.policy import AgentPolicy
from tailnet.services import reports
from tailnet.services.presence import TOUCH_SECONDS, AgentPresence
from tailnet.services.reports import AgentReports
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.outbox import Outbox
from tailnet.store.rows import AgentRow, AgentStatus, ServerRow
from tailnet.store.store import Store
from tests.support.seeds import NOW, came, fill, make_id, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores

MAIN = peer_id("main")


@dataclass(eq=False)
class Connection:
    """All that presence looks at."""

    caller: Caller

    def handle_timeout(self, now: float) -> None: ...

    def close(self, code: CloseCode, text: str, reason: CloseReason) -> None: ...


@dataclass
class World:
    """One server."""

    store: Store
    server_id: str = "one"
    sign_of_life_seconds: float = 1000.0
    now: datetime = NOW
    changed: list[UUID] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.store)
        self.reports = AgentReports(self.store, self.outbox, server_id=self.server_id, clock=lambda: self.now)
        self.has_older = False
        self.presence = AgentPresence(
            self.reports,
            self.sign_of_life_seconds,
            self.changed.append,
            clock=lambda: self.now,
            has_older=lambda: self.has_older,
        )

    def connect(self, name: str = "main") -> Connection:
        [agent] = self.store.callers.agent_identities([peer_id(name)]).values()
        connection = Connection(Caller(agent.id, AgentPolicy(agent.id), name, agent))
        self.presence.came(connection)
        return connection

    def row(self, name: str = "main") -> AgentRow:
        row = self.store.callers.get_agent(peer_id(name))
        assert row is not None
        return row

    def later(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@pytest.fixture
def world(store: Store) -> World:
    fill(store)
    return World(store)


async def test_came_and_left(world: World) -> None:
    connection = world.connect()
    assert (world.presence.connected_count, world.presence.is_here(MAIN)) == (1, True)
    await world.outbox.flush()
    row = world.row()
    assert (row.first_connected_at, row.last_connected_at, row.disconnected_at) == (NOW, NOW, None)
    left_at = world.later(5)
    world.presence.left(connection)
    world.presence.left(connection)  # a second word changes nothing
    assert (world.presence.connected_count, world.presence.is_here(MAIN)) == (0, False)
    await world.outbox.flush()
    row = world.row()
    assert (row.first_connected_at, row.last_connected_at, row.disconnected_at) == (NOW, left_at, left_at)
    assert world.changed == [make_id("alice")] * 2


async def test_here_for_less_than_a_write(world: World) -> None:
    connection = world.connect()
    left_at = world.later(0.1)
    world.presence.left(connection)
    await world.outbox.flush()
    row = world.row()
    assert (row.last_connected_at, row.disconnected_at) == (left_at, left_at)


async def test_who_reconnects_has_not_left(world: World) -> None:
    older, newer = world.connect(), world.connect()
    world.presence.left(older)
    await world.outbox.flush()
    assert world.row().disconnected_at is None
    world.presence.left(newer)
    came_at = world.later(1)
    world.connect()
    await world.outbox.flush()
    assert (world.row().disconnected_at, world.row().last_connected_at) == (None, came_at)


async def test_a_connection_that_drives_no_status_is_none_of_ours(world: World) -> None:
    [agent] = world.store.callers.agent_identities([MAIN]).values()
    world.presence.left(Connection(Caller(agent.id, AgentPolicy(agent.id), "main", agent)))
    await world.outbox.flush()
    assert world.row().disconnected_at is None
    assert world.changed == []


def waiting(world: World) -> int:
    return sum(reading.waiting for reading in world.outbox.readings().values())


@pytest.mark.parametrize("has_older", [False, True], ids=["beats", "older"])
async def test_signs_of_life(has_older: bool, store: Store, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    fill(store)
    world = World(store, sign_of_life_seconds=15.0)
    for name in ("main", "gpu", "web"):
        world.connect(name)
    await world.outbox.flush()
    # The rows are due: after ten minutes, or at once where somebody looks at nothing else.
    world.has_older = has_older
    seen_at = world.later(15 if has_older else 2 * TOUCH_SECONDS)
    nursery.start_soon(world.presence.run)
    with trio.fail_after(15):
        # Of three agents each has a second of its own within the fifteen.
        await wait_for(lambda: waiting(world) == 3)
    await world.outbox.flush()
    for name in ("main", "gpu", "web"):
        assert (world.row(name).last_connected_at, world.row(name).first_connected_at) == (seen_at, NOW)


async def test_a_beat_is_the_sign_of_life_of_all_whom_a_server_holds(world: World) -> None:
    world.connect()
    world.presence.left(world.connect("gpu"))
    await world.outbox.flush()
    at = world.later(280)  # no row is due yet
    assert world.presence.compare(await world.reports.list_held()) == []
    assert world.row().status(at, 30) is AgentStatus.DISCONNECTED
    beat_at = at - timedelta(seconds=4)
    world.store.presence.beat(ServerRow("one", "host", 1, "1", NOW, beat_at))
    assert (world.row().last_connected_at, world.row().status(at, 30)) == (beat_at, AgentStatus.CONNECTED)
    assert world.row("gpu").status(at, 30) is AgentStatus.DISCONNECTED
    # And when it dies they were here until its last one.
    died_at = world.later(100)
    assert world.row().status(died_at, 30) is AgentStatus.DISCONNECTED
    assert MAIN in world.store.presence.release_forsaken(died_at - timedelta(seconds=90))
    row = world.row()
    assert (row.seen_by, row.last_connected_at, row.disconnected_at) == (None, beat_at, beat_at)


async def test_what_the_store_has_wrong_is_put_right(world: World) -> None:
    here = world.connect()
    await world.outbox.flush()
    # The store was not told that one left, and told that another one is at a server which is not there.
    came(world.store, peer_id("gpu"), NOW, "one")
    came(world.store, MAIN, world.later(1), "dead")
    at = world.later(60)
    world.store.presence.beat(ServerRow("one", "host", 1, "1", NOW, at))
    due = world.presence.compare(await world.reports.list_held())
    assert due == [MAIN]
    world.presence.note_alive(due)
    await world.outbox.flush()
    assert (world.row().seen_by, world.row().status(at, 30)) == ("one", AgentStatus.CONNECTED)
    assert (world.row("gpu").seen_by, world.row("gpu").status(at, 30)) == (None, AgentStatus.DISCONNECTED)
    world.presence.left(here)


async def test_a_time_to_come_is_written_anew(world: World) -> None:
    world.now = NOW + timedelta(hours=3)
    world.connect()
    await world.outbox.flush()
    world.now = NOW  # corrected
    assert world.presence.compare(await world.reports.list_held()) == [MAIN]


async def test_more_are_held_than_are_read_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_HELD_ROWS", 1)
    names = ("main", "gpu", "web")
    for name in names:
        world.connect(name)
    await world.outbox.flush()
    assert await world.reports.list_held() == {peer_id(name): NOW for name in names}


async def test_our_end_is_theirs(world: World) -> None:
    world.connect()
    world.presence.left(world.connect("gpu"))
    left_at = world.later(3)
    world.presence.finish()
    await world.outbox.finish()
    assert world.row().disconnected_at == left_at
    assert world.row("gpu").disconnected_at == NOW


async def test_a_late_word_of_one_server_does_not_undo_what_another_saw(world: World) -> None:
    other = World(world.store, "two", now=world.later(10))
    old = world.connect()
    await world.outbox.flush()
    world.later(1)
    world.presence.left(old)  # written late
    other.later(2)
    new = other.connect()
    await other.outbox.flush()
    await world.outbox.flush()
    row = world.row()
    assert (row.seen_by, row.status(other.now, 30)) == ("two", AgentStatus.CONNECTED)
    other.presence.left(new)
    await other.outbox.flush()
    assert world.row().status(other.now, 30) is AgentStatus.DISCONNECTED


@pytest.mark.parametrize("ahead", [timedelta(hours=3), timedelta(days=400)])
async def test_a_clock_that_was_ahead_keeps_nobody_connected(world: World, ahead: timedelta) -> None:
    world.now = NOW + ahead
    here, gone = world.connect(), world.connect("gpu")
    await world.outbox.flush()
    world.presence.left(gone)
    world.connect("web")  # and then its server dies without a word
    await world.outbox.flush()
    world.now = NOW  # corrected
    for name, status in (("gpu", AgentStatus.DISCONNECTED), ("web", AgentStatus.DISCONNECTED)):
        assert world.row(name).status(world.now, 30) is status, name
    # Who is here says so with the right time, and leaves with it.
    assert world.row().status(world.now, 30, world.presence.is_here(MAIN)) is AgentStatus.CONNECTED
    world.presence.left(here)
    await world.outbox.flush()
    row = world.row()
    assert row.status(world.now, 30) is AgentStatus.DISCONNECTED
    assert (row.last_connected_at, row.disconnected_at) == (NOW, NOW)
    world.later(1)
    world.connect("gpu")
    await world.outbox.flush()
    row = world.row("gpu")
    assert row.status(world.now, 30) is AgentStatus.CONNECTED
    assert (row.first_connected_at, row.last_connected_at, row.disconnected_at) == (world.now, world.now, None)
