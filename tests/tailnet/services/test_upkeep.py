"""Old statistics go while a server runs, all of them at once and then hour by hour; a store that fails ends nothing."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock

from tailnet.server.server import CoordinatorServer
from tailnet.services.upkeep import PRUNE_SECONDS, prune_forever
from tailnet.store.reports import PRUNE_ROWS, STATS_KEPT
from tailnet.store.rows import StatsReport
from tailnet.store.schema import agent_stats
from tailnet.store.store import Store
from tests.support.seeds import fill, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores


def report(at: datetime) -> StatsReport:
    return StatsReport(peer_id("main"), 1, 2, 3, {}, at)


@pytest.fixture
def clock() -> MockClock:
    """Runs as clocks do, for the store works in threads, and jumps when told to."""
    return MockClock(rate=1.0)


def count(store: Store) -> int:
    with store.reading() as connection:
        return len(connection.execute(agent_stats.select()).all())


async def test_now_and_every_hour(store: Store, clock: MockClock) -> None:
    fill(store)
    old = datetime.now(UTC) - STATS_KEPT - timedelta(minutes=1)
    # More than one piece, and one that is young enough to stay.
    store.reports.insert_stats([report(old)] * (PRUNE_ROWS + 1))
    store.reports.insert_stats([report(datetime.now(UTC))])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prune_forever, store)
        await wait_for(lambda: count(store) == 1)
        # The last piece is the one that finds nothing; then it waits.
        await trio.testing.wait_all_tasks_blocked(0.1)
        store.reports.insert_stats([report(old)])
        clock.jump(PRUNE_SECONDS / 2)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert count(store) == 2
        clock.jump(PRUNE_SECONDS / 2)
        await wait_for(lambda: count(store) == 1)
        nursery.cancel_scope.cancel()


@pytest.mark.stores("sqlite")  # whose write lock is the whole file's
async def test_a_store_that_fails_is_asked_again(
    store: Store, store_url: str, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store)
    store.reports.insert_stats([report(datetime.now(UTC) - STATS_KEPT - timedelta(minutes=1))])
    impatient = Store.open(store_url, busy_timeout_seconds=0.01)
    async with trio.open_nursery() as nursery:
        with store.writing():
            nursery.start_soon(prune_forever, impatient)
            await wait_for(lambda: "old statistics are not deleted" in caplog.text)
            assert "locked" in caplog.text
        clock.jump(PRUNE_SECONDS)
        await wait_for(lambda: count(store) == 0)
        nursery.cancel_scope.cancel()
    impatient.close()


async def test_a_server_does_it(serve: Callable[..., Awaitable[CoordinatorServer]], filled_url: str) -> None:
    store = Store.open(filled_url)
    store.reports.insert_stats([report(datetime.now(UTC) - STATS_KEPT - timedelta(minutes=1))])
    store.close()
    server = await serve()
    await wait_for(lambda: count(server.store) == 0)
