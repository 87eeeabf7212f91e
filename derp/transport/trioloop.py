"""Trio's own loop, as far as the reactor must know it to wait in its place.  Layer L2; the only file that looks inside.

Trio has no public names for these (its public statistics count every waiting task, too dear per packet).  They are
looked up and tried out once, when the reactor starts; whatever is missing or works otherwise means the plain way,
beside trio, which costs a third more CPU at 1,000 packets/s, and the log says so.
"""

import select
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from derp.text import error_text
from derp.transport.poller import READ

# Trio without any deadline says "forever", which no set can wait; waking once a minute costs nothing.
_MAX_WAIT_SECONDS: Final = 60.0


class NotPossible(Exception):
    """The reactor waits beside trio.  `is_expected`: because it was asked to (a clock of tests, another loop), not
    because this trio is another than we know."""

    def __init__(self, text: str, *, is_expected: bool) -> None:
        super().__init__(text)
        self.is_expected = is_expected


# Each wake-up that is tried is a pass of trio's loop; more than this, and it is not chance that none shows.
_WAKE_UPS: Final = 50


class _RunQueue(deque[Any]):
    """Trio's queue of runnable tasks.  It also tells how many tasks the current pass has: trio copies and clears it
    when a pass begins, so that tasks later in the same pass are in no queue at all."""

    in_pass = 0

    def clear(self) -> None:
        self.in_pass = len(self)
        super().clear()


class TrioLoop:
    """The loop that runs the calling task.  `enter` makes one; `leave` gives trio back what was taken."""

    def __init__(self, runner: Any) -> None:
        io_manager = runner.io_manager
        inner = io_manager._epoll if hasattr(io_manager, "_epoll") else io_manager._kqueue
        self.descriptor: int = inner.fileno()
        """Ready to be read when one of trio's own descriptors is."""
        self._next_deadline: Callable[[], float] = runner.deadlines.next_deadline
        self._clock: Callable[[], float] = runner.clock.current_time
        self._runner = runner
        self._runnable = _RunQueue(runner.runq)
        runner.runq = self._runnable

    @classmethod
    async def enter(cls) -> "TrioLoop":
        """Raises NotPossible."""
        try:
            from trio._core._run import GLOBAL_RUN_CONTEXT

            runner: Any = GLOBAL_RUN_CONTEXT.runner
            if type(runner.clock).__name__ != "SystemClock" or runner.is_guest:
                raise NotPossible("a clock of tests, or a loop that runs inside another one", is_expected=True)
            if isinstance(runner.runq, _RunQueue):
                raise NotPossible("another reactor waits in trio's place", is_expected=True)
            loop = cls(runner)
        except (ImportError, AttributeError, TypeError) as error:
            raise NotPossible(error_text(error), is_expected=False) from error
        try:
            await loop._prove()
        except BaseException:
            loop.leave()
            raise
        return loop

    async def _prove(self) -> None:
        """Try what the names promise."""
        with trio.CancelScope(deadline=self._clock() + 1.0) as scope:
            await trio.lowlevel.checkpoint()
            if self._runnable.in_pass < 1:
                raise NotPossible("a pass of its loop does not take its tasks from `runq`", is_expected=False)
            if self._next_deadline() > scope.deadline:
                raise NotPossible("`deadlines` does not know every deadline", is_expected=False)
        ready = select.poll()
        ready.register(self.descriptor, READ)
        # Trio's own task for wake-ups arms the descriptor when it waits.  A signal or a thread that ended in this very
        # moment keeps that task busy for a pass or two, and then a wake-up shows nowhere.
        for _ in range(_WAKE_UPS):
            trio.lowlevel.current_trio_token().run_sync_soon(_nothing)
            if ready.poll(0):
                return
            await trio.lowlevel.checkpoint()
        raise NotPossible("its descriptor is not ready when somebody wakes it", is_expected=False)

    def leave(self) -> None:
        """Another reactor may wait in trio's place from now on."""
        self._runner.runq = deque(self._runnable)

    def is_ours_alone(self) -> bool:
        """Whether the pass of trio's loop that runs now has no task but the one that asks."""
        return self._runnable.in_pass <= 1

    def seconds_to_spare(self) -> float:
        """How long trio has nothing to do but wait; 0 when it has."""
        if self._runnable:
            return 0.0
        return min(self._next_deadline() - self._clock(), _MAX_WAIT_SECONDS)


def _nothing() -> None:
    """For a wake-up that is meant for nobody."""
