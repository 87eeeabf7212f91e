"""Metadata that is followed: what a snapshot holds, and when there is a new one."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.services.agent_metadata import NEVER_SECONDS, STORE_FAILED, AgentMetadata, Snapshot
from tailnet.services.feed import Event, Follower
from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.rows import MetadataValue
from tailnet.store.store import Store
from tests.support.clocks import going_on
from tests.support.seeds import NOW, defined_document, fill, peer_id

pytestmark = pytest.mark.stores

MAIN = peer_id("main")


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = NOW
        self.metadata = AgentMetadata(store, clock=self.clock)
        self.outbox = Outbox(store)
        self.reports = AgentReports(store, self.outbox, metadata_written=self.metadata.written)

    def clock(self) -> datetime:
        return self.now

    async def report(self, value: str) -> None:
        self.reports.note_metadata([MetadataValue(MAIN, "cpu", value, "", self.now)])
        await self.outbox.flush()


@pytest.fixture
async def world(store: Store, nursery: trio.Nursery) -> World:
    fill(store, defined_document())
    world = World(store)
    nursery.start_soon(world.metadata.run)
    await wait_all_tasks_blocked()
    return world


async def next_event(follower: Follower[Snapshot]) -> Event[Snapshot]:
    events: Sequence[Event[Snapshot]] = await anext(follower)
    return events[-1]


async def test_what_a_snapshot_holds(world: World) -> None:
    world.store.reports.put_metadata(
        [
            MetadataValue(MAIN, "disk", "", "exit status 1", NOW - timedelta(seconds=7.5)),
            MetadataValue(MAIN, "nobody described", "", "", NOW),
        ]
    )
    cpu, disk = (await world.metadata.read(MAIN)).items
    assert (cpu.key, cpu.display_name, cpu.script, cpu.interval, cpu.timeout) == ("cpu", "CPU", "uptime", 10, 1)
    assert (cpu.collected_at, cpu.age, cpu.value, cpu.error) == (None, NEVER_SECONDS, "", "")
    assert (disk.key, disk.age, disk.error) == ("disk", 7, "exit status 1")
    assert disk.collected_at == NOW - timedelta(seconds=7.5)
    world.now = NOW - timedelta(seconds=60)
    assert (await world.metadata.read(MAIN)).items[1].age == 0, "another server's clock is ahead"
    assert (await world.metadata.read(peer_id("web"))).items == []


async def test_at_once_on_change_and_in_any_case(world: World, mock_clock: MockClock) -> None:
    with world.metadata.follow(MAIN) as follower:
        first = await next_event(follower)
        assert (first.value.items[0].value, first.id) == ("", int(NOW.timestamp() * 1000))
        await world.report("1")
        await world.report("2")
        await wait_all_tasks_blocked()
        assert world.metadata._feeds._topics[MAIN].feed.last_id == first.id, "not twice in a second"
        with going_on(mock_clock):
            second = await next_event(follower)
        assert (second.value.items[0].value, second.id) == ("2", first.id + 1)
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        await wait_all_tasks_blocked()
        assert world.metadata._feeds._topics[MAIN].feed.last_id == second.id, "nothing changed"
        world.now += timedelta(seconds=5)
        with going_on(mock_clock):
            third = await next_event(follower)
        assert (third.value.items[0].age, third.id) == (5, first.id + 5000)


async def test_all_followers_share_and_one_that_comes_back_gets_what_is_new(
    world: World, mock_clock: MockClock
) -> None:
    with world.metadata.follow(MAIN) as one, world.metadata.follow(MAIN) as other:
        event = await next_event(one)
        assert await next_event(other) is event
        with world.metadata.follow(MAIN) as late:
            assert await next_event(late) is event
        with world.metadata.follow(MAIN, event.id) as again, world.metadata.follow(MAIN, 1 << 59) as ahead:
            for follower in (again, ahead):
                with trio.move_on_after(0) as patience:
                    await anext(follower)
                assert patience.cancelled_caught, "it has that one"
            world.now += timedelta(seconds=1)
            await world.report("1")
            with going_on(mock_clock):
                assert await next_event(again) is await next_event(ahead) is await next_event(one)
    assert world.metadata.counts.followers == 0
    with world.metadata.follow(MAIN, 1 << 59) as follower:
        assert (await next_event(follower)).value.items, "the feed is a new one, whatever the caller had"


async def test_a_store_that_fails_ends_it(world: World) -> None:
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE agent_metadata RENAME TO away")
    with world.metadata.follow(MAIN) as follower:
        with pytest.raises(StopAsyncIteration):
            await anext(follower)
        assert follower.ended_because == STORE_FAILED
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO agent_metadata")
    with world.metadata.follow(MAIN) as follower:
        assert (await next_event(follower)).value.items


async def test_a_server_that_leaves_ends_it(world: World) -> None:
    with world.metadata.follow(MAIN) as follower:
        await next_event(follower)
        world.metadata.close("the server leaves")
        with pytest.raises(StopAsyncIteration):
            await anext(follower)
        assert follower.ended_because == "the server leaves"
