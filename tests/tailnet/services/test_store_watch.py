"""How the store is, told once and in words; who else is on it; islands on one SQLite file."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.errors import StoreError, StoreTrouble
from tailnet.services.store_watch import BEAT_SECONDS, RETRY_SECONDS, SILENT_SECONDS, StoreWatch
from tailnet.store.rows import ServerRow
from tailnet.store.store import Store
from tests.support.seeds import NOW

pytestmark = pytest.mark.stores


class Wall:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def watch(store: Store, wall: Wall) -> StoreWatch:
    return StoreWatch(store, "one", wall)


@pytest.fixture
def other(store: Store, store_url: str, wall: Wall) -> Iterator[StoreWatch]:
    """Another server's, on the same store."""
    opened = Store.open(store_url)
    yield StoreWatch(opened, "two", wall)
    opened.close()


def take_away(store: Store, monkeypatch: pytest.MonkeyPatch, trouble: StoreTrouble = StoreTrouble.FULL) -> None:
    def away() -> None:
        raise StoreError("store x.db: the disk is full: free some space", trouble)

    monkeypatch.setattr(store.database.dialect, "look", away)


async def test_a_server_of_a_release_before_is_noticed(watch: StoreWatch, store: Store, wall: Wall) -> None:
    await watch.beat()
    assert not watch.has_older
    store.presence.beat(ServerRow("older", "host", 1, "1", NOW, NOW, reads_beats=False))
    await watch.beat()
    assert watch.has_older
    wall.now += timedelta(seconds=SILENT_SECONDS + 1)
    await watch.beat()
    assert not watch.has_older


async def test_a_store_that_is_away_is_a_problem_in_words(
    watch: StoreWatch, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.beat()
    assert watch.problem() is None
    assert set(watch.troubles()) == {trouble.value for trouble in StoreTrouble}
    assert not any(watch.troubles().values())
    take_away(store, monkeypatch)
    for _ in range(3):
        await watch.beat()
    assert watch.problem() == "store x.db: the disk is full: free some space; sessions that stand go on"
    assert [name for name, is_there in watch.troubles().items() if is_there] == ["full"]
    monkeypatch.undo()
    await watch.beat()
    assert watch.problem() is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "can be read and written again" in caplog.text


async def test_what_others_find_out_counts_too(
    watch: StoreWatch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(store, monkeypatch, StoreTrouble.REPLACED)
    with pytest.raises(StoreError):
        store.database.check()
    assert watch.problem() is not None
    monkeypatch.undo()
    store.database.check()
    assert watch.problem() is None


@pytest.mark.parametrize("trouble", [StoreTrouble.UNFIT, StoreTrouble.CONFLICT])
async def test_one_bad_row_is_no_problem_of_the_store(
    watch: StoreWatch, store: Store, monkeypatch: pytest.MonkeyPatch, trouble: StoreTrouble
) -> None:
    take_away(store, monkeypatch, trouble)
    with pytest.raises(StoreError):
        store.database.check()
    assert watch.problem() is None


async def test_servers_hear_of_each_other(watch: StoreWatch, other: StoreWatch, wall: Wall) -> None:
    await watch.beat()
    await other.beat()
    await watch.beat()
    assert (watch.servers, other.servers) == (2, 2)
    wall.now += timedelta(seconds=SILENT_SECONDS + 1)
    await watch.beat()
    assert watch.servers == 1  # it died without a word
    await other.beat()
    await watch.beat()
    await other.finish()
    await watch.beat()
    assert watch.servers == 1


async def test_the_end_of_a_server_is_told_if_it_can_be(
    watch: StoreWatch, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.beat()
    take_away(store, monkeypatch)
    await watch.finish()
    assert "the disk is full" in caplog.text
    monkeypatch.undo()
    await watch.finish()
    assert store.presence.list_servers() == []


@pytest.mark.stores("sqlite")
async def test_two_servers_on_one_file_say_that_they_are_islands(
    watch: StoreWatch, other: StoreWatch, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.start()
    await watch.beat()
    assert caplog.records == []
    await other.start()
    [record] = caplog.records
    said = record.getMessage()
    assert "islands" in said
    assert store_url.removeprefix("sqlite:///") in said
    assert f"since {NOW:%F %T} UTC" in said
    # The one that takes over from a server that ends has it beside itself for a moment.
    caplog.clear()
    await other.start(replaces_another=True)
    assert caplog.records == []


@pytest.mark.stores("postgresql")
async def test_two_servers_on_one_database_are_no_surprise(
    watch: StoreWatch, other: StoreWatch, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.start()
    await other.start()
    assert caplog.records == []


@pytest.fixture
def clock() -> MockClock:
    """Stands still and jumps when told to: the store works in threads."""
    return MockClock()


async def test_its_rhythm_and_who_is_left_has_the_store(
    store: Store, other: StoreWatch, clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = 0
    beat = store.presence.beat
    watch = StoreWatch(store, "one")

    def counted(*arguments: ServerRow) -> None:
        nonlocal beats
        beats += 1
        beat(*arguments)

    monkeypatch.setattr(store.presence, "beat", counted)
    await other.start()
    await watch.start(replaces_another=True)
    other_dialect = other._store.database.dialect
    other_dialect.leave()
    nursery.start_soon(watch.run)
    await until(lambda: beats == 1, clock)
    await until(lambda: beats == 2, clock, BEAT_SECONDS)
    assert other_dialect.claim() is (other_dialect.name == "PostgreSQL")  # the other ended, so this one has it
    take_away(store, monkeypatch)
    await until(lambda: watch.problem(), clock, BEAT_SECONDS)
    monkeypatch.undo()
    await until(lambda: watch.problem() is None, clock, RETRY_SECONDS)


async def until(what: Callable[[], object], clock: MockClock, step: float = 0.0) -> None:
    """For what another thread does, while the clock moves only by steps."""
    for _ in range(3_000):
        await wait_all_tasks_blocked(0.01)
        if what():
            return
        clock.jump(step)
    raise AssertionError("it did not happen")
