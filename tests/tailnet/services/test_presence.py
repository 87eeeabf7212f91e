"""Who is connected, written behind: batches, moments, reconnects, signs of life, and a store that fails."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import trio

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode
from tailnet.coordinator.policy import AgentPolicy
from tailnet.errors import StoreError
from tailnet.services import presence
from tailnet.services.presence import AgentPresence
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.rows import AgentRow
from tailnet.store.store import Store
from tests.support.seeds import fill, make_id, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores


@dataclass(eq=False)
class Connection:
    """All that presence looks at."""

    caller: Caller
    next_timeout: float = 0.0

    def handle_timeout(self, now: float) -> None: ...

    def close(self, code: CloseCode, text: str, reason: CloseReason) -> None: ...


@dataclass
class World:
    store: Store
    presence: AgentPresence
    changed: list[UUID]

    def connect(self, name: str = "main") -> Connection:
        [agent] = self.store.callers.agent_identities([peer_id(name)]).values()
        return Connection(Caller(agent.id, AgentPolicy(agent.id), name, agent))

    def row(self, name: str = "main") -> AgentRow:
        row = self.store.callers.get_agent(peer_id(name))
        assert row is not None
        return row

    async def written(self) -> None:
        """Run until everything so far is in the store: bob's agent, which comes last, tells."""
        before = self.row("web").last_connected_at
        self.presence.came(self.connect("web"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.presence.run)
            await wait_for(lambda: self.row("web").last_connected_at != before)
            nursery.cancel_scope.cancel()
        while make_id("bob") in self.changed:
            self.changed.remove(make_id("bob"))


@pytest.fixture
def world(store: Store, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(presence, "WRITE_SECONDS", 0.01)
    fill(store)
    changed: list[UUID] = []
    return World(store, AgentPresence(store, 1000.0, changed.append), changed)


async def test_came_and_left(world: World) -> None:
    connection = world.connect()
    world.presence.came(connection)
    assert world.presence.connected_count == 1
    await world.written()
    first = world.row()
    assert first.first_connected_at == first.last_connected_at is not None
    assert first.disconnected_at is None
    assert world.changed == [make_id("alice")]
    world.presence.left(connection)
    world.presence.left(connection)  # a second word changes nothing
    await world.written()
    assert world.presence.connected_count == 1  # bob's
    row = world.row()
    assert (row.first_connected_at, row.last_connected_at) == (first.first_connected_at, first.last_connected_at)
    assert row.disconnected_at is not None
    assert world.changed == [make_id("alice")] * 2


async def test_here_for_less_than_a_write(world: World) -> None:
    connection = world.connect()
    world.presence.came(connection)
    world.presence.left(connection)
    await world.written()
    row = world.row()
    assert row.last_connected_at is not None
    assert row.disconnected_at is not None
    assert row.disconnected_at > row.last_connected_at


async def test_who_reconnects_has_not_left(world: World) -> None:
    older, newer = world.connect(), world.connect()
    world.presence.came(older)
    world.presence.came(newer)
    world.presence.left(older)
    await world.written()
    assert world.row().disconnected_at is None
    world.presence.left(newer)
    world.presence.came(world.connect())
    await world.written()
    assert world.row().disconnected_at is None


async def test_a_connection_that_drives_no_status_is_none_of_ours(world: World) -> None:
    world.presence.left(world.connect())
    await world.written()
    assert world.row().disconnected_at is None
    assert world.changed == []


async def test_signs_of_life(world: World, nursery: trio.Nursery) -> None:
    lively = AgentPresence(world.store, 0.02, world.changed.append)
    lively.came(world.connect())
    nursery.start_soon(lively.run)
    first = await wait_for(lambda: world.row().last_connected_at)
    assert await wait_for(lambda: world.row().last_connected_at != first)
    assert world.row().first_connected_at == first


async def test_our_end_is_theirs(world: World) -> None:
    gone = world.connect("gpu")
    world.presence.came(world.connect())
    world.presence.came(gone)
    world.presence.left(gone)
    await world.presence.finish()
    assert world.row().disconnected_at is not None
    assert world.row("gpu").disconnected_at is not None


async def test_nothing_is_lost_when_the_server_ends_in_the_middle_of_a_write(world: World) -> None:
    here, gone = world.connect(), world.connect("gpu")
    world.presence.came(here)
    world.presence.came(gone)
    await world.written()
    world.presence.left(gone)
    with trio.CancelScope() as scope:
        real = world.store.reports.record_connected

        def cancelled_meanwhile(*arguments: Any) -> None:
            trio.from_thread.run_sync(scope.cancel)
            real(*arguments)

        world.store.reports.record_connected = cancelled_meanwhile  # type: ignore[method-assign]  # the moment matters
        world.presence.came(world.connect("web"))
        await world.presence.run()
    assert world.row("gpu").disconnected_at is not None


async def test_a_store_that_fails_hears_it_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    real: Callable[..., None] = world.store.reports.record_connected

    def failing(*arguments: Any) -> None:
        world.store.reports.record_connected = real  # type: ignore[method-assign]
        raise StoreError("the disk is full")

    here, gone = world.connect(), world.connect("gpu")
    world.presence.came(here)
    world.presence.came(gone)
    world.presence.left(gone)
    world.store.reports.record_connected = failing  # type: ignore[method-assign]  # a disk that is full once
    with caplog.at_level(logging.ERROR):
        await world.written()
    assert "the disk is full" in caplog.text
    assert world.row().last_connected_at is not None
    assert world.row("gpu").first_connected_at is not None
    assert world.row("gpu").disconnected_at is not None
