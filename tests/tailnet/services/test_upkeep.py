"""What is kept no longer goes while a server runs, at once and then hour by hour; a store that fails ends nothing."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.errors import StoreError, StoreTrouble
from tailnet.server.server import CoordinatorServer
from tailnet.services.upkeep import PRUNE_SECONDS, Upkeep
from tailnet.store.administration.audit import Account
from tailnet.store.administration.values import Actor
from tailnet.store.issued import keep_for_grace
from tailnet.store.retention import STEP_ROWS, Retention
from tailnet.store.rows import StatsReport
from tailnet.store.schema import agent_stats
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores

OLD = NOW - timedelta(hours=25)


def report(at: datetime) -> StatsReport:
    return StatsReport(peer_id("main"), 1, 2, 3, {}, at)


def count(store: Store) -> int:
    with store.reading() as connection:
        return len(connection.execute(agent_stats.select()).all())


@pytest.fixture
def upkeep(store: Store) -> Upkeep:
    fill(store)
    return Upkeep(store, Retention(), clock=lambda: NOW)


@pytest.fixture
def clock() -> MockClock:
    """Stands still and jumps when told to: the store works in threads."""
    return MockClock()


async def test_all_that_is_due_goes_step_by_step(store: Store, upkeep: Upkeep, autojump_clock: MockClock) -> None:
    store.reports.insert_stats([report(OLD)] * (STEP_ROWS + 1))
    store.reports.insert_stats([report(NOW)])
    await upkeep.remove_due()
    assert count(store) == 1
    assert upkeep.removed == {"stats": STEP_ROWS + 1}
    assert trio.current_time() > 0, "others write between two steps"


async def test_now_and_every_hour_and_again_after_a_failure(
    store: Store,
    upkeep: Upkeep,
    clock: MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def until(what: Callable[[], object], step: float = 1.0) -> None:
        for _ in range(3_000):
            await wait_all_tasks_blocked(0.01)
            if what():
                return
            clock.jump(step)
        raise AssertionError("it did not happen")

    def away() -> None:
        raise StoreError("gone", StoreTrouble.UNREACHABLE)

    store.reports.insert_stats([report(OLD)])
    nursery.start_soon(upkeep.run)
    await until(lambda: count(store) == 0)
    store.reports.insert_stats([report(OLD)])
    await until(lambda: count(store) == 0, PRUNE_SECONDS)
    store.reports.insert_stats([report(OLD)])
    monkeypatch.setattr(store.database.dialect, "look", away)
    await until(lambda: "is not removed: gone" in caplog.text, PRUNE_SECONDS)
    monkeypatch.undo()
    await until(lambda: count(store) == 0, PRUNE_SECONDS)


async def test_a_server_does_it(serve: Callable[..., Awaitable[CoordinatorServer]], filled_url: str) -> None:
    store = Store.open(filled_url)
    store.reports.insert_stats([report(datetime.now(UTC) - timedelta(hours=3))])
    store.close()
    server = await serve(keep_stats_seconds=7_200.0)
    await wait_for(lambda: count(server.store) == 0)


async def test_the_grace_of_replaced_tokens_ends(
    store: Store, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    main = peer_id("main")
    with store.writing() as connection:
        keep_for_grace(connection, main, bytes(32), OLD, NOW + timedelta(seconds=1))
        keep_for_grace(connection, main, bytes([1]) * 32, OLD, NOW)
    before = store.callers.callers_generation()
    await upkeep.end_grace()
    assert store.issued.count_issued(main) == 1
    assert store.callers.callers_generation() > before
    upkeep._clock = lambda: NOW + timedelta(seconds=1)
    with monkeypatch.context() as away:
        away.setattr(store.database.dialect, "look", _fail)
        await upkeep.end_grace()
    assert "good for longer than they should" in caplog.text
    await upkeep.end_grace()
    assert store.issued.count_issued(main) == 0


def _fail() -> None:
    raise StoreError("gone", StoreTrouble.UNREACHABLE)


async def test_the_account_is_kept_for_its_time(store: Store, upkeep: Upkeep, autojump_clock: MockClock) -> None:
    now = datetime.now(UTC)
    with store.writing() as connection:
        for days in (100, 10):
            account = Account(Actor("local", "x"), now - timedelta(days=days))
            account.note("create", "user", days)
            account.write(connection)
    upkeep._clock = lambda: now
    upkeep.limits = Retention(audit=timedelta(days=50))
    await upkeep.remove_due()
    assert [each["target"] for each in store.audit.page({}, None, 9)] == ["10"]
    assert upkeep.removed["audit"] == 1
