"""The outbox: what agents report is answered at once and written behind, in batches (layer L2).

`put` from trio's thread never waits; `run` is one task.  While the store is away reports wait, within bounds; when it
is back they go in steady small batches, tried with a few rows first, so that its return is no storm.  What is lost and
how old the oldest is are metrics.  services/reports.py says which kinds there are and how much of each may wait.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio

from derp.text import error_text
from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.outbox_queue import Entry, Kind, Loss, Queue
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.store")

Item = TypeVar("Item")

# How old a report gets while all is well: what a crash of the program may lose.
WRITE_SECONDS: Final = 1.0
# One transaction of one kind: some ten milliseconds, in which other writers wait.
BATCH_ITEMS: Final = 500
BATCH_BYTES: Final = 1024 * 1024
# Between the batches of a backlog, so that changes which somebody waits for come in between: 5,000 rows a second.
PAUSE_SECONDS: Final = 0.05
# What is tried first when the store failed, and when again.
PROBE_ITEMS: Final = 20
RETRY_SECONDS: Final = (1.0, 2.0, 5.0)
# All that waits, together: minutes of 5,000 agents' reports.
MAX_BYTES: Final = 64 * 1024 * 1024
# Once for all reports of a server that ends; then the store had its chance.
FINISH_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class KindReading:
    """What is counted of one kind.  Counts since the start, unless said otherwise."""

    waiting: int  # reports, now
    waiting_bytes: int  # now
    oldest_seconds: float  # how long the oldest waits, now
    written: int
    merged: int  # replaced by a newer one before they were written
    lost: dict[Loss, int]


class Outbox:
    """All kinds of one server.  `close` it by `finish`, when nobody reports any more."""

    def __init__(self, store: Store, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = trio.current_time):
        self._store = store
        self.max_bytes = max_bytes
        self._clock = clock
        self._queues: dict[str, Queue[Any]] = {}
        self._written: dict[str, int] = {}
        self._wake = trio.Event()
        self._rounds = trio.Lock()
        self._failures = 0  # in a row
        self.trouble: StoreError | None = None  # why what waits is not written

    def add_kind(self, kind: Kind[Any]) -> None:
        """Before the first report of that kind."""
        assert kind.name not in self._queues
        self._queues[kind.name] = Queue(kind)
        self._written[kind.name] = 0

    def put(self, kind: Kind[Item], item: Item) -> None:
        """A report, to be written within about a second.  Where there is no room, the oldest goes."""
        self._queues[kind.name].put(item, self._clock())
        while self.waiting_bytes > self.max_bytes:
            # The fattest pays: a flood of one kind does not cost another its last word.
            max(self._queues.values(), key=lambda queue: queue.size).lose_oldest()

    @property
    def waiting_bytes(self) -> int:
        return sum(queue.size for queue in self._queues.values())

    def waiting_of(self, kind: Kind[Item], agent_id: Any) -> list[Item]:
        """What waits of one agent, the oldest first."""
        return self._queues[kind.name].waiting_of(agent_id)

    def readings(self) -> dict[str, KindReading]:
        """By the name of a kind."""
        now = self._clock()
        found: dict[str, KindReading] = {}
        for name, queue in self._queues.items():
            since = queue.oldest_since()
            found[name] = KindReading(
                waiting=queue.count,
                waiting_bytes=queue.size,
                oldest_seconds=0.0 if since is None else max(0.0, now - since),
                written=self._written[name],
                merged=queue.merged,
                lost={loss: queue.lost[loss] for loss in Loss},
            )
        return found

    async def run(self) -> None:
        """Write behind, until cancelled."""
        while True:
            await trio.sleep(self._seconds_to_wait())
            await self.write_round()

    async def flush(self) -> None:
        """Write all that waits now, and what is on its way.  Raises StoreError when the store does not take it."""
        while True:
            # Also when nothing waits: what `run` has in its hands waits nowhere, and is written when the turn is ours.
            await self.write_round()
            if self.trouble is not None:
                raise self.trouble
            if not any(queue.count for queue in self._queues.values()):
                return

    async def finish(self) -> None:
        """Write what is left, within a deadline; what the store does not take by then is lost, and told."""
        with trio.CancelScope(shield=True), trio.move_on_after(FINISH_SECONDS), suppress(StoreError):
            await self.flush()
        left = {name: queue.count for name, queue in self._queues.items() if queue.count}
        if left:
            text = ", ".join(f"{count} of {name}" for name, count in left.items())
            _log.error("! reports of agents are lost, for the store did not take them: %s", text)

    async def write_round(self) -> None:
        """One batch of each kind, together; after a failure a few reports of one kind."""
        async with self._rounds:
            queues = [queue for queue in self._queues.values() if queue.count]
            if self.trouble is not None:
                await self._write(queues[0], PROBE_ITEMS) if queues else None
                return
            # Handed over together, they are one transaction of the store's writer.
            async with trio.open_nursery() as nursery:
                for queue in queues:
                    nursery.start_soon(self._write, queue, BATCH_ITEMS)

    def _seconds_to_wait(self) -> float:
        if self.trouble is not None:
            return RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]
        full = any(queue.count >= BATCH_ITEMS or queue.size >= BATCH_BYTES for queue in self._queues.values())
        return PAUSE_SECONDS if full else WRITE_SECONDS

    async def _write(self, queue: Queue[Any], count: int) -> None:
        # What is taken out is in nobody's hands but ours: a server that is about to end waits for it.
        with trio.CancelScope(shield=True):
            left = await self._write_entries(queue, queue.take(count, BATCH_BYTES))
        queue.give_back(left)
        if not left:
            self._note_success()

    async def _write_entries(self, queue: Queue[Any], entries: Sequence[Entry[Any]]) -> Sequence[Entry[Any]]:
        """Write them, but for those that the store cannot hold.  Returns what has to wait, for the store is away."""
        items = [entry.item for entry in entries]
        try:
            answers = await self._store.run(queue.kind.write, items, *queue.kind.arguments())
        except Exception as error:
            if isinstance(error, StoreError) and error.trouble is not StoreTrouble.UNFIT:
                self._note_failure(error)
                return entries
            if len(entries) == 1:
                queue.lost[Loss.UNFIT] += 1
                _log.error("! a report of %s cannot be stored: %s", queue.kind.name, error_text(error))
                return ()
            # One row spoils the batch: by halves, until it is alone.
            middle = len(entries) // 2
            left = await self._write_entries(queue, entries[:middle])
            return [*left, *entries[middle:]] if left else await self._write_entries(queue, entries[middle:])
        self._written[queue.kind.name] += len(items)
        if queue.kind.written is not None:
            queue.kind.written(items, answers)
        return ()

    def _note_failure(self, error: StoreError) -> None:
        if self.trouble is None:
            _log.error("! reports of agents wait, for the store does not take them: %s", error)
        self.trouble = error
        self._failures += 1

    def _note_success(self) -> None:
        if self.trouble is not None:
            _log.warning("= the store takes reports of agents again; %d bytes waited", self.waiting_bytes)
        self.trouble, self._failures = None, 0
