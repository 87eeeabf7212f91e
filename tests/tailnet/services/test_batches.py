"""Writes gathered: many who wait are one transaction, each gets its own answer, and nobody takes another's along."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tailnet.errors import RpcError, StoreError
from tailnet.services import batches
from tailnet.services.batches import MAX_BATCH, WriteBatch
from tailnet.store.store import Store


class Writer:
    """Blocks in a worker thread until it is let go, and notes what it was given."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.error: Exception | None = None
        self._gate = trio.Event()
        if not held:
            self._gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        trio.from_thread.run(self._gate.wait)
        self.batches.append(list(items))
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]

    def let_go(self) -> None:
        self._gate.set()


async def add(batch: WriteBatch[int], item: int, answers: dict[int, Any]) -> None:
    try:
        answers[item] = await batch.add(item)
    except RpcError as error:
        answers[item] = error


async def test_who_waits_together_is_written_together(store: Store) -> None:
    writer, answers = Writer(held=True), dict[int, Any]()
    batch = WriteBatch(store, writer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, batch, 0, answers)
        await trio.testing.wait_all_tasks_blocked()
        for item in range(1, 100):
            nursery.start_soon(add, batch, item, answers)
        await trio.testing.wait_all_tasks_blocked()
        writer.let_go()
    assert answers == {item: item * 10 for item in range(100)}
    assert [len(each) for each in writer.batches] == [1, 99]


async def test_a_transaction_has_a_bound(store: Store) -> None:
    writer, answers = Writer(held=True), dict[int, Any]()
    batch = WriteBatch(store, writer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, batch, 0, answers)
        await trio.testing.wait_all_tasks_blocked()
        for item in range(1, MAX_BATCH + 11):
            nursery.start_soon(add, batch, item, answers)
        await trio.testing.wait_all_tasks_blocked()
        writer.let_go()
    assert [len(each) for each in writer.batches] == [1, MAX_BATCH, 10]
    assert len(answers) == MAX_BATCH + 11
    assert sorted(item for each in writer.batches for item in each) == list(range(MAX_BATCH + 11))


@pytest.mark.parametrize("error", [StoreError("the disk is full"), OverflowError("a row of ours")])
async def test_a_failure_answers_all_who_wait_and_is_logged(
    store: Store, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    writer, answers = Writer(held=True), dict[int, Any]()
    batch = WriteBatch(store, writer)
    writer.error = error
    with trio.fail_after(10), caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, batch, 0, answers)
            await trio.testing.wait_all_tasks_blocked()
            for item in (1, 2):
                nursery.start_soon(add, batch, item, answers)
            await trio.testing.wait_all_tasks_blocked()
            writer.let_go()
    assert {item: type(answer) for item, answer in answers.items()} == {0: RpcError, 1: RpcError, 2: RpcError}
    assert "reports of agents are not stored" in caplog.text
    writer.error = None
    assert await batch.add(7) == 70


async def test_one_who_gives_up_loses_nothing_of_the_others(store: Store) -> None:
    writer, answers = Writer(held=True), dict[int, Any]()
    batch = WriteBatch(store, writer)
    async with trio.open_nursery() as nursery:
        impatient = trio.CancelScope()

        async def first() -> None:
            with impatient:
                await batch.add(0)

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(add, batch, 1, answers)
        await trio.testing.wait_all_tasks_blocked()
        impatient.cancel()
        await trio.testing.wait_all_tasks_blocked()
        writer.let_go()
    assert answers == {1: 10}
    assert writer.batches == [[0], [1]]  # what it gave up waiting for is stored as well


async def test_too_many_who_wait_are_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_WAITING", 3)
    writer, answers = Writer(held=True), dict[int, Any]()
    batch = WriteBatch(store, writer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, batch, 0, answers)
        await trio.testing.wait_all_tasks_blocked()
        for item in range(1, 5):
            nursery.start_soon(add, batch, item, answers)
        await trio.testing.wait_all_tasks_blocked()
        writer.let_go()
    assert "busy" in str(next(answer for answer in answers.values() if isinstance(answer, RpcError)))
    assert sorted(item for item, answer in answers.items() if answer == item * 10)[0] == 0
    assert len([answer for answer in answers.values() if isinstance(answer, int)]) == 4
