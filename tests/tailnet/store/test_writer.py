"""Group commit: many changes in one transaction, each task its own answer, and nobody takes another's along."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store import writer as module
from tailnet.store.database import Database
from tailnet.store.schema import counters
from tailnet.store.store import Store
from tailnet.store.writer import MAX_GROUP, MAX_TRIES
from tests.support.seeds import OWN_COUNTERS


class Gate:
    """A change that holds the writer until it is let go, so that others gather behind it."""

    def __init__(self, database: Database, nursery: trio.Nursery) -> None:
        self._database = database
        self._nursery = nursery
        self._begun = threading.Event()
        self._open = threading.Event()

    async def close(self) -> None:
        self._nursery.start_soon(self._database.writer.run, self._wait)
        await trio.to_thread.run_sync(self._begun.wait)

    def open(self) -> None:
        self._open.set()

    def _wait(self, _: sa.Connection) -> None:
        self._begun.set()
        assert self._open.wait(60)


@pytest.fixture
def database(store: Store) -> Iterator[Database]:
    return store.database


@pytest.fixture
async def gate(database: Database, nursery: trio.Nursery) -> Gate:
    made = Gate(database, nursery)
    await made.close()
    return made


def insert(name: str) -> Any:
    def work(connection: sa.Connection) -> str:
        connection.execute(counters.insert().values(name=name, value=1))
        return name

    return work


def names(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(connection.execute(sa.select(counters.c.name)).scalars()) - OWN_COUNTERS


async def start(database: Database, nursery: trio.Nursery, work: Any, answers: list[Any]) -> None:
    async def ask() -> None:
        try:
            answers.append(await database.writer.run(work))
        except Exception as error:
            answers.append(error)

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()


async def test_who_waits_together_is_committed_together(database: Database, gate: Gate) -> None:
    answers: list[Any] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(MAX_GROUP + 3):
                await start(database, nursery, insert(str(number)), answers)
            gate.open()
    assert sorted(answers) == sorted(map(str, range(MAX_GROUP + 3)))
    assert names(database) == set(answers)
    # The gate, a whole group, and the three that did not fit.
    assert (database.writer.transactions, database.writer.changes) == (3, MAX_GROUP + 4)


async def test_the_one_that_is_wrong_is_told_and_no_other(database: Database, gate: Gate) -> None:
    answers: list[Any] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in ("a", "callers", "b"):
                await start(database, nursery, insert(name), answers)
            await start(database, nursery, lambda _: 1 // 0, answers)
            gate.open()
    taken = [answer for answer in answers if isinstance(answer, StoreError)]
    assert [error.trouble for error in taken] == [StoreTrouble.UNFIT]
    assert [type(answer) for answer in answers if not isinstance(answer, str | StoreError)] == [ZeroDivisionError]
    assert names(database) == {"a", "b"}


async def test_a_store_that_is_away_is_told_to_all_at_once(
    database: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = []
    tries: list[object] = []

    def locked(*_: object, **__: object) -> None:
        tries.append(None)
        raise StoreError("locked", StoreTrouble.LOCKED)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                await start(database, nursery, insert(name), answers)
            monkeypatch.setattr(database.dialect, "begin_write", locked)
            gate.open()
    assert [type(answer) for answer in answers] == [StoreError] * 3
    assert len({id(answer) for answer in answers}) == 3  # each task raises its own
    assert len(tries) == 1
    monkeypatch.undo()
    assert await database.writer.run(insert("a")) == "a"


async def test_what_met_another_server_s_write_is_done_again(database: Database) -> None:
    """As after a deadlock, which PostgreSQL ends by failing one of the two."""
    tries = 0

    def work(connection: sa.Connection) -> str:
        nonlocal tries
        tries += 1
        if tries < MAX_TRIES:
            raise StoreError("deadlock detected", StoreTrouble.CONFLICT)
        return str(insert("a")(connection))

    assert await database.writer.run(work) == "a"
    assert (tries, names(database)) == (MAX_TRIES, {"a"})

    def never(_: sa.Connection) -> None:
        raise StoreError("deadlock detected", StoreTrouble.CONFLICT)

    with pytest.raises(StoreError, match="deadlock"):
        await database.writer.run(never)


async def test_who_gives_up_before_its_turn_takes_its_change_back(database: Database, gate: Gate) -> None:
    answers: list[Any] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as impatient:
                await start(database, impatient, insert("gone"), answers)
                impatient.cancel_scope.cancel()
            await start(database, nursery, insert("kept"), answers)
            gate.open()
    assert names(database) == {"kept"}
    assert answers == ["kept"]


async def test_who_gives_up_afterwards_waits_for_the_end(database: Database) -> None:
    begun, finish = threading.Event(), threading.Event()

    def work(connection: sa.Connection) -> None:
        begun.set()
        assert finish.wait(60)
        insert("done")(connection)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.writer.run, work)
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()
            finish.set()
    assert names(database) == {"done"}


async def test_too_many_that_wait_are_told(database: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    answers: list[Any] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                await start(database, nursery, insert(name), answers)
            assert [error.trouble for error in answers] == [StoreTrouble.SLOW]
            gate.open()
    assert names(database) == {"a", "b"}


async def test_closing_carries_out_what_waits(database: Database, gate: Gate) -> None:
    answers: list[Any] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await start(database, nursery, insert("last"), answers)
            nursery.start_soon(trio.to_thread.run_sync, database.writer.close)
            gate.open()
    assert answers == ["last"]
    with pytest.raises(StoreError, match="closed"):
        await database.writer.run(insert("late"))
