"""Writes from many agents gathered into few transactions.  Layer L3.

The store is never between two live peers, and a start-up storm of agents is a thousand small writes a second: whoever
waits here is answered when the transaction with its row is done.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import trio

from tailnet.errors import RpcError, StoreError
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

Item = TypeVar("Item")

# One transaction: larger ones keep other writers waiting, and SQLite has one writer at a time.
MAX_BATCH: Final = 500
# Waiting at most; beyond it the store is too slow for what comes, and telling the agent to come back is the truth.
MAX_WAITING: Final = 20_000


class WriteBatch(Generic[Item]):
    """Gathers items for `write(items)`, a blocking method of the store that may return one answer per item.

    `await add(item)` returns that answer (None if `write` returns nothing) once the item is stored.
    """

    def __init__(self, store: Store, write: Callable[[Sequence[Item]], Any]) -> None:
        self._store = store
        self._write = write
        self._waiting: list[tuple[Item, _Place]] = []
        self._turn = trio.Lock()

    async def add(self, item: Item) -> Any:
        """Store one item.  RpcError when it could not be stored."""
        if len(self._waiting) >= MAX_WAITING:
            raise RpcError("the server's store is busy; try again")
        place = _Place()
        self._waiting.append((item, place))
        # Whoever gets the turn writes for all who wait; the others find their place filled.
        async with self._turn:
            while not place.done:
                await self._write_some()
        if place.error is not None:
            raise RpcError("the server's store failed; its log says more") from place.error
        return place.answer

    async def _write_some(self) -> None:
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        answers: Sequence[Any] | None = None
        error: Exception | None = None
        try:
            # A caller that gives up must not take the rows of the others with it.
            with trio.CancelScope(shield=True):
                answers = await self._store.run(self._write, [item for item, _ in batch])
        except StoreError as failure:
            error = failure
            _log.error("! %d reports of agents are not stored: %s", len(batch), failure)
        except Exception as failure:
            # A row that we should not have let in.  All who wait need an answer, or they would wait for ever.
            error = failure
            _log.exception("! %d reports of agents are not stored", len(batch))
        for at, (_, place) in enumerate(batch):
            place.done = True
            place.error = error
            if answers is not None:
                place.answer = answers[at]


class _Place:
    __slots__ = ("answer", "done", "error")

    def __init__(self) -> None:
        self.answer: Any = None
        self.done = False
        self.error: Exception | None = None
