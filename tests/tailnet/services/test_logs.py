"""Logs that are followed: every line once and in order, from whatever point, whoever wrote it."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.errors import StoreError
from tailnet.services.feed import DropReason, FollowerDropped
from tailnet.services.logs import AWAY_SECONDS, LogFollower, Logs
from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import LogBatch, LogLine
from tailnet.store.store import Store
from tests.support.clocks import going_on
from tests.support.seeds import NOW, fill, peer_id

pytestmark = pytest.mark.stores

MAIN, GPU = peer_id("main"), peer_id("gpu")
PAGE = 5


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.logs = Logs(store, page_lines=PAGE)
        self.outbox = Outbox(store)
        self.reports = AgentReports(store, self.outbox, logs_written=self.logs.written)
        self.count = 0

    def put(self, count: int, agent: str = "main") -> None:
        """Lines with numbers that rise, on their way into the store."""
        lines = [(3, str(number)) for number in range(self.count, self.count + count)]
        self.count += count
        assert not self.reports.note_logs(LogBatch(peer_id(agent), EXTERNAL_LOG_SOURCE, lines, NOW))

    async def write(self, count: int, agent: str = "main") -> None:
        self.put(count, agent)
        await self.outbox.flush()


@pytest.fixture
async def world(store: Store, nursery: trio.Nursery) -> World:
    fill(store)
    world = World(store)
    nursery.start_soon(world.logs.run)
    await wait_all_tasks_blocked()
    return world


def numbers(lines: Sequence[LogLine]) -> list[int]:
    return [int(line.output) for line in lines]


async def take(follower: LogFollower, count: int) -> list[int]:
    """The next so many lines, in whatever batches they come."""
    taken: list[int] = []
    with trio.fail_after(20):
        while len(taken) < count:
            taken += numbers(await anext(follower))
    assert len(taken) == count
    return taken


async def test_the_first_answer_comes_at_once_also_when_there_is_nothing(world: World) -> None:
    with world.logs.follow(MAIN, 0, await world.logs.read(MAIN)) as follower:
        assert await anext(follower) == []
        await world.write(2)
        assert await take(follower, 2) == [0, 1]


async def test_from_the_store_to_the_feed_without_a_gap(world: World) -> None:
    await world.write(PAGE + 2)
    await world.write(3, "gpu")
    with world.logs.follow(MAIN, 0, await world.logs.read(MAIN)) as follower:
        assert numbers(await anext(follower)) == [0, 1, 2, 3, 4]
        # Between the read of the store and the first look at the feed.
        await world.write(2)
        assert await take(follower, 4) == [5, 6, 10, 11]
        await world.write(PAGE * 3)
        assert await take(follower, PAGE * 3) == list(range(12, 12 + PAGE * 3))


async def test_who_comes_later_and_who_names_where_he_was(world: World) -> None:
    await world.write(3)
    first = await world.logs.read(MAIN)
    with world.logs.follow(MAIN, 0, first) as one:
        assert await take(one, 3) == [0, 1, 2]
        after = first[1].id
        with world.logs.follow(MAIN, after, await world.logs.read(MAIN, after)) as other:
            assert await take(other, 1) == [2]
            await world.write(2)
            assert await take(other, 2) == await take(one, 2) == [3, 4]
            assert world.logs.counts.followers == 2
    assert world.logs.counts.followers == 0


async def test_who_fell_behind_the_feed_reads_the_store_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.services.logs.KEPT_LINES", 4)
    with (
        world.logs.follow(MAIN, 0, []) as slow,
        world.logs.follow(MAIN, 0, []) as quick,
    ):
        await anext(slow)
        await anext(quick)
        await world.write(1)
        assert await take(slow, 1) == await take(quick, 1) == [0]
        for _ in range(4):
            await world.write(PAGE)
            await take(quick, PAGE)
        assert await take(slow, 4 * PAGE) == list(range(1, 1 + 4 * PAGE))
        await world.write(1)
        assert await take(slow, 1) == await take(quick, 1) == [4 * PAGE + 1]
        assert not world.logs.counts.dropped


async def test_a_hundred_who_begin_while_lines_are_written(world: World) -> None:
    """Wherever each begins and however slowly it takes, each gets every line once and in order."""
    seen: list[list[int]] = [[] for _ in range(100)]

    async def follow(mine: list[int]) -> None:
        with world.logs.follow(MAIN, 0, await world.logs.read(MAIN)) as follower:
            async for lines in follower:
                mine += numbers(lines)
                for _ in range(id(mine) // 16 % 7):
                    await trio.lowlevel.checkpoint()
                if len(mine) >= 200:
                    return

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for index, mine in enumerate(seen):
                nursery.start_soon(follow, mine)
                if index % 5 == 0:
                    await world.write(10)
    assert seen == [list(range(200))] * 100


async def test_lines_that_another_server_wrote(world: World, mock_clock: MockClock) -> None:
    with world.logs.follow(MAIN, 0, []) as follower:
        await anext(follower)
        await world.store.run(world.store.reports.insert_logs, [LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, "7")], NOW)])
        with going_on(mock_clock):
            assert numbers(await anext(follower)) == [7]


async def test_one_that_takes_nothing_is_dropped_alone(store: Store, nursery: trio.Nursery) -> None:
    fill(store)
    logs = Logs(store, patience_seconds=0.0)
    nursery.start_soon(logs.run)
    await wait_all_tasks_blocked()
    with logs.follow(MAIN, 0, []) as other:
        with pytest.raises(FollowerDropped), logs.follow(MAIN, 0, []) as follower, follower.sending():
            await trio.sleep_forever()
        assert (logs.counts.dropped, logs.counts.followers) == ({DropReason.SLOW: 1}, 1)
        assert await anext(other) == []


async def test_a_server_that_leaves_ends_them(world: World) -> None:
    await world.write(1)
    with world.logs.follow(MAIN, 0, await world.logs.read(MAIN)) as follower:
        assert await take(follower, 1) == [0]
        world.logs.close("the server leaves")
        with pytest.raises(StopAsyncIteration):
            await anext(follower)
        assert follower.ended_because == "the server leaves"


def rename(store: Store, table: str, name: str) -> None:
    with store.writing() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


async def test_while_the_store_is_away_and_when_it_is_back(
    world: World, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    await world.write(2 * PAGE)
    behind: list[int] = []
    at_end: list[int] = []

    async def follow(found: list[int], first: Sequence[LogLine], after: int) -> None:
        with world.logs.follow(MAIN, after, first) as follower:
            async for lines in follower:
                found += numbers(lines)

    page = await world.logs.read(MAIN)
    last = (await world.logs.read(MAIN, page[-1].id))[-1].id
    nursery.start_soon(follow, at_end, [], last)
    rename(world.store, "agent_logs", "away")
    nursery.start_soon(follow, behind, page, 0)
    world.put(3)
    with pytest.raises(StoreError):
        await world.outbox.flush()
    for _ in range(3):
        mock_clock.jump(AWAY_SECONDS)
        await wait_all_tasks_blocked()
    assert (behind, at_end) == ([0, 1, 2, 3, 4], [])
    rename(world.store, "away", "agent_logs")
    await world.outbox.flush()
    await world.write(2)
    with trio.fail_after(10_000):
        while len(behind) < 2 * PAGE + 5 or len(at_end) < 5:
            mock_clock.jump(AWAY_SECONDS)
            await wait_all_tasks_blocked(0.001)
    assert behind == list(range(2 * PAGE + 5))
    assert at_end == [10, 11, 12, 13, 14]


async def test_a_server_that_leaves_while_the_store_is_away(world: World, mock_clock: MockClock) -> None:
    await world.write(PAGE + 1)
    page = await world.logs.read(MAIN)
    rename(world.store, "agent_logs", "away")
    with world.logs.follow(MAIN, 0, page) as follower:
        assert await take(follower, PAGE) == list(range(PAGE))
        world.logs.close("the server leaves")
        with pytest.raises(StopAsyncIteration):
            await anext(follower)
        assert follower.ended_because == "the server leaves"
