"""The one thread that writes: group commit (layer L2).

A transaction costs more than the rows in it, and databases do one write at a time (SQLite) or gain little from more
(PostgreSQL).  So tasks hand their changes over, the thread carries out all that wait in one transaction, and each task
is answered when its change is committed.  database.py makes one for each store; part.py says what a change is.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
import trio

from tailnet.errors import StoreError, StoreTrouble

P = ParamSpec("P")
T = TypeVar("T")

# Changes in one transaction.  A thousand rows take some 20 ms; more would keep other processes from writing.
MAX_GROUP: Final = 256
# Changes that may wait: beyond it the store is too slow for what comes, and to be told so is the truth.
MAX_WAITING: Final = 20_000
# How long Python lets one thread run while others want to: 5 ms unless somebody says.  A read takes some eight turns,
# one after each call of the database, and so waits 40 ms beside a writer that makes up a batch; with this it waits 4.
# `tailnet serve` sets it, since it counts for the whole process.
SWITCH_SECONDS: Final = 0.0005
# Of a group that met another server's: the second one nearly always passes.
MAX_TRIES: Final = 3


class Transaction(Protocol):
    """How the writer begins one: Database.writing."""

    def __call__(self, *, durable: bool) -> AbstractContextManager[sa.Connection]: ...


class Change(Generic[P, T]):
    """A method of the store that writes, bound to its part.  Called plainly, it blocks and is a transaction by itself;
    given to Database.run, it goes to the writer's thread."""

    __slots__ = ("_begin", "_work", "durable")

    def __init__(self, begin: Transaction, work: Callable[Concatenate[sa.Connection, P], T], *, durable: bool) -> None:
        self._begin = begin
        self._work = work
        self.durable = durable

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._begin(durable=self.durable) as connection:
            return self._work(connection, *args, **kwargs)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Callable[[sa.Connection], T]:
        """The change with its arguments, for a transaction of somebody else."""
        return lambda connection: self._work(connection, *args, **kwargs)


class Writer:
    """Carries out changes in one thread, which starts with the first of them.  `close` ends it."""

    def __init__(self, begin: Transaction) -> None:
        self._begin = begin
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self.changes = 0  # carried out
        self.transactions = 0  # that carried them

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    async def run(self, work: Callable[[sa.Connection], T], *, durable: bool = True) -> T:
        """Have a change carried out, and wait until it is committed.

        A task that is cancelled before its change began takes it back; later ones wait for the end.  Raises what `work`
        raises, and StoreError.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

        def tell() -> None:
            with suppress(trio.RunFinishedError):  # then nobody waits any more
                token.run_sync_soon(trio.lowlevel.reschedule, task)

        job = _Job(work, durable, tell)
        self._submit(job)

        def give_up(_: object) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.SUCCEEDED if self._withdraw(job) else trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def close(self) -> None:
        """Carry out what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _submit(self, job: "_Job") -> None:
        with self._changed:
            if self._is_closed:
                raise StoreError("the store is closed")
            if len(self._waiting) >= MAX_WAITING:
                raise StoreError(f"the store is too slow: {MAX_WAITING:,} changes wait", StoreTrouble.SLOW)
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_until_closed, name="store writer", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _withdraw(self, job: "_Job") -> bool:
        with self._changed:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
        return True

    def _write_until_closed(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                group = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
            self._carry_out(group)

    def _carry_out(self, group: "list[_Job]", tries: int = MAX_TRIES) -> None:
        try:
            with self._begin(durable=any(job.durable for job in group)) as connection:
                for job in group:
                    job.result = job.work(connection)
            self.transactions += 1
            self.changes += len(group)
        except Exception as error:
            if isinstance(error, StoreError) and error.trouble is StoreTrouble.CONFLICT and tries > 1:
                self._carry_out(group, tries - 1)
                return
            if len(group) > 1 and _is_one_jobs_fault(error):
                # The one that is wrong took the others with it: each by itself, so that only that one is told.
                for job in group:
                    self._carry_out([job])
                return
            for job in group:
                job.error = _same(error)
        for job in group:
            job.tell()


class _Job:
    __slots__ = ("durable", "error", "result", "tell", "work")

    def __init__(self, work: Callable[[sa.Connection], Any], durable: bool, tell: Callable[[], None]) -> None:
        self.work = work
        self.durable = durable
        self.tell = tell  # that it is done, from the writer's thread
        self.result: Any = None
        self.error: Exception | None = None


def _is_one_jobs_fault(error: Exception) -> bool:
    """Whether the other changes can succeed: all would meet a store that is locked, and each would wait for it."""
    return not isinstance(error, StoreError) or error.trouble in (StoreTrouble.UNFIT, StoreTrouble.OTHER)


def _same(error: Exception) -> Exception:
    # Several tasks raise it, and each adds its own traceback.
    if isinstance(error, StoreError):
        copy = type(error)(str(error), error.trouble)
        copy.__cause__ = error.__cause__
        return copy
    return error
