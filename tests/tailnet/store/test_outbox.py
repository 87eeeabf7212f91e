"""Reports are written behind: together, in small batches, again when the store was away; a bad row sinks no other."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store import outbox as module
from tailnet.store.outbox import BATCH_ITEMS, PROBE_ITEMS, RETRY_SECONDS, WRITE_SECONDS, Outbox
from tailnet.store.outbox_queue import Kind, Loss
from tailnet.store.part import Part, notes
from tailnet.store.schema import counters
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import OWN_COUNTERS, peer_id


@dataclass(frozen=True)
class Count:
    agent_id: PeerID
    name: str
    value: int = 0


class Counters(Part):
    @notes
    def add(self, connection: sa.Connection, counts: Sequence[Count], prefix: str = "") -> list[str]:
        """Names that exist already are refused, by the store."""
        rows = [{"name": prefix + count.name, "value": count.value} for count in counts]
        connection.execute(counters.insert(), rows)
        return [prefix + count.name for count in counts]


class World:
    def __init__(self, store: Store, **options: Any) -> None:
        self.store = store
        self.outbox = Outbox(store, **options)
        self.answers: list[str] = []
        self.batches: list[int] = []
        part = Counters(store.database)
        self.kind = self._kind("counts", part.add)
        self.other = self._kind("others", part.add, arguments=lambda: ("other ",))

    def _kind(self, name: str, write: Any, **options: Any) -> Kind[Count]:
        def written(items: Sequence[Count], answers: Any) -> None:
            self.batches.append(len(items))
            self.answers.extend(answers)

        kind = Kind[Count](
            name=name,
            write=write,
            agent_of=lambda count: count.agent_id,
            size_of=lambda _: 100,
            max_items=10_000,
            max_bytes=100_000_000,
            written=written,
            **options,
        )
        self.outbox.add_kind(kind)
        return kind

    def put(self, *names: str, agent: str = "main") -> None:
        for name in names:
            self.outbox.put(self.kind, Count(peer_id(agent), name))

    def names(self) -> set[str]:
        with self.store.reading() as connection:
            return set(connection.execute(sa.select(counters.c.name)).scalars()) - OWN_COUNTERS


async def until(what: Callable[[], object]) -> None:
    """For what another thread does, while the clock stands still."""
    for _ in range(3_000):
        if what():
            return
        await wait_all_tasks_blocked(0.01)
    raise AssertionError("it did not happen")


@pytest.fixture
def clock() -> MockClock:
    """Stands still and jumps when told to: writes take their time in a thread."""
    return MockClock()


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


class Away:
    """Makes a store fail while `is_away`, and counts how often it is asked."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away = True
        self.tries = 0
        self._begin = store.database.dialect.begin_write
        monkeypatch.setattr(store.database.dialect, "begin_write", self)

    def __call__(self, connection: sa.Connection, *, durable: bool) -> None:
        self.tries += 1
        if self.is_away:
            raise StoreError("the disk is full", StoreTrouble.FULL)
        self._begin(connection, durable=durable)


@pytest.fixture
def away(store: Store, monkeypatch: pytest.MonkeyPatch) -> Away:
    return Away(store, monkeypatch)


async def test_all_kinds_are_one_transaction(world: World) -> None:
    world.put("first")
    await world.outbox.write_round()  # starts the writer's thread, which takes what is there while it starts
    world.answers.clear()
    world.put("a", "b")
    world.outbox.put(world.other, Count(peer_id("gpu"), "c"))
    assert world.names() == {"first"}
    assert world.outbox.readings()["counts"].waiting == 2
    before = world.store.database.writer.transactions
    await world.outbox.write_round()
    assert world.names() - {"first"} == {"a", "b", "other c"} == set(world.answers)
    assert world.store.database.writer.transactions == before + 1
    reading = world.outbox.readings()["counts"]
    assert (reading.waiting, reading.waiting_bytes, reading.written, reading.oldest_seconds) == (0, 0, 3, 0.0)


async def test_about_once_a_second(world: World, nursery: trio.Nursery, clock: MockClock) -> None:
    nursery.start_soon(world.outbox.run)
    world.put("a")
    await wait_all_tasks_blocked()
    clock.jump(WRITE_SECONDS * 0.9)
    await wait_all_tasks_blocked(0.05)
    assert world.outbox.readings()["counts"].oldest_seconds == pytest.approx(WRITE_SECONDS * 0.9)
    clock.jump(WRITE_SECONDS * 0.2)
    await until(lambda: world.answers == ["a"])
    assert world.outbox.readings()["counts"].oldest_seconds == 0.0


async def test_a_backlog_goes_in_bounded_batches(world: World) -> None:
    world.put(*(str(number) for number in range(2 * BATCH_ITEMS + 7)))
    await world.outbox.flush()
    assert world.batches == [BATCH_ITEMS, BATCH_ITEMS, 7]
    assert len(world.names()) == 2 * BATCH_ITEMS + 7


async def test_a_store_that_is_away_gets_it_later_and_no_storm(
    world: World, away: Away, caplog: pytest.LogCaptureFixture
) -> None:
    world.put(*(str(number) for number in range(PROBE_ITEMS + 5)))
    world.outbox.put(world.other, Count(peer_id("main"), "x"))
    for _ in range(3):
        await world.outbox.write_round()
    assert world.outbox.trouble is not None
    assert world.names() == set()
    assert world.outbox.readings()["counts"].waiting == PROBE_ITEMS + 5
    assert [record.levelno for record in caplog.records] == [logging.ERROR]  # once, not at each try
    away.is_away = False
    await world.outbox.write_round()
    assert world.batches == [PROBE_ITEMS]  # a few first
    assert "takes reports of agents again" in caplog.text
    await world.outbox.flush()
    assert len(world.names()) == PROBE_ITEMS + 6
    assert world.outbox.readings()["counts"].lost == dict.fromkeys(Loss, 0)


async def test_tries_grow_rare(world: World, away: Away, nursery: trio.Nursery, clock: MockClock) -> None:
    world.put("a")
    nursery.start_soon(world.outbox.run)
    await wait_all_tasks_blocked()
    for tries, seconds in enumerate((WRITE_SECONDS, *RETRY_SECONDS, RETRY_SECONDS[-1])):
        clock.jump(seconds * 0.9)
        await wait_all_tasks_blocked(0.05)
        assert away.tries == tries, "too early"
        clock.jump(seconds * 0.2)
        await until(lambda: world.outbox.trouble is not None)
        await wait_all_tasks_blocked(0.05)
        assert away.tries == tries + 1
    away.is_away = False
    clock.jump(RETRY_SECONDS[-1])
    await until(lambda: world.answers == ["a"])


async def test_one_bad_row_sinks_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.put(*"abcdefg", "callers", *"hij")
    world.outbox.put(world.other, Count(peer_id("main"), "x"))
    await world.outbox.flush()
    assert world.names() == {*"abcdefghij", "other x"}
    assert world.outbox.readings()["counts"].lost[Loss.UNFIT] == 1
    assert "a report of counts cannot be stored" in caplog.text


async def test_a_mistake_of_ours_is_a_bad_row_too(world: World) -> None:
    world.put("a")
    world.outbox.put(world.kind, Count(peer_id("main"), "b", value=1 << 80))
    await world.outbox.flush()
    assert world.names() == {"a"}
    assert world.outbox.readings()["counts"].lost[Loss.UNFIT] == 1


async def test_what_was_written_before_the_store_went_away_is_not_written_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad row in the batch has it written in halves; then the store goes away between them."""
    part = Counters(world.store.database)
    tries = 0

    def add(counts: Sequence[Count]) -> list[str]:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise StoreError("gone", StoreTrouble.UNREACHABLE)
        return part.add(counts)

    kind = world._kind("halves", add)
    for name in ("a", "b", "c", "callers"):
        world.outbox.put(kind, Count(peer_id("main"), name))
    await world.outbox.write_round()
    assert world.names() == {"a", "b"}
    assert world.outbox.readings()["halves"].waiting == 2
    await world.outbox.flush()
    assert world.names() == {"a", "b", "c"}


async def test_the_total_has_a_bound_and_the_fattest_kind_pays(store: Store) -> None:
    world = World(store, max_bytes=20 * 500)
    world.outbox.put(world.other, Count(peer_id("gpu"), "x"))
    world.put(*(str(number) for number in range(100)))
    readings = world.outbox.readings()
    assert world.outbox.waiting_bytes <= 20 * 500
    assert (readings["counts"].waiting, readings["counts"].lost[Loss.TOTAL]) == (19, 81)
    assert (readings["others"].waiting, readings["others"].lost[Loss.TOTAL]) == (1, 0)
    await world.outbox.flush()
    assert world.names() == {"other x", *(str(number) for number in range(81, 100))}


async def test_the_end_writes_what_waits(world: World) -> None:
    world.put("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.outbox.finish()
    assert world.names() == {"a"}


async def test_the_end_says_what_is_lost(
    world: World,
    away: Away,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.5)
    world.put("a", "b")
    await world.outbox.finish()
    assert "are lost, for the store did not take them: 2 of counts" in caplog.text


async def test_a_flush_waits_for_what_is_on_its_way(world: World, nursery: trio.Nursery) -> None:
    part, begun, go_on = Counters(world.store.database), trio.Event(), threading.Event()

    def add(counts: Sequence[Count]) -> list[str]:
        trio.from_thread.run_sync(begun.set)
        assert go_on.wait(60)
        return part.add(counts)

    kind = world._kind("slow", add)
    world.outbox.put(kind, Count(peer_id("main"), "a"))
    nursery.start_soon(world.outbox.write_round)
    await begun.wait()
    assert world.outbox.waiting_bytes == 0
    flushed = trio.Event()

    async def flush() -> None:
        await world.outbox.flush()
        flushed.set()

    nursery.start_soon(flush)
    await wait_all_tasks_blocked(0.05)
    assert not flushed.is_set()
    go_on.set()
    await flushed.wait()
    assert world.names() == {"a"}


async def test_who_ends_in_the_middle_of_a_write_loses_nothing(world: World) -> None:
    with trio.CancelScope() as scope:
        part = Counters(world.store.database)

        def add(counts: Sequence[Count]) -> list[str]:
            trio.from_thread.run_sync(scope.cancel)
            return part.add(counts)

        kind = world._kind("cancelled", add)
        world.outbox.put(kind, Count(peer_id("main"), "a"))
        await world.outbox.run()
    assert world.names() == {"a"}
    assert world.outbox.waiting_bytes == 0
