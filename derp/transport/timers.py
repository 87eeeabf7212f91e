"""Calls at a time, for whoever drives timed cores: a heap that knows its next moment.  Layer L2; has no clock itself.

A host looks at `next_at` before it waits and calls `run_due` after.
"""

import heapq
from collections.abc import Callable
from math import inf
from typing import Final

# Cancelled timers stay in the heap until their time comes; when they are this many, and most of it, they are swept out.
# A connection that moves its deadline with every packet would else fill the memory.
_SWEEP_COUNT: Final = 64


class Timer:
    """One call to come."""

    __slots__ = ("_call", "_timers", "when")

    def __init__(self, timers: "Timers", when: float, call: Callable[[], None]) -> None:
        self.when = when
        self._timers = timers
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call.  Nothing happens when it was called already."""
        if self._call is not None:
            self._call = None
            self._timers.note_cancelled()

    def _take(self) -> Callable[[], None] | None:
        call, self._call = self._call, None
        return call


class Timers:
    """All timers of one host."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0  # equal times: in the order of asking
        self._cancelled_count = 0
        # Whoever asks, within a round, for a time that the round is about: its turn is the next round's.
        self._later: list[tuple[float, int, Timer]] = []
        self._round_until = -inf
        self.next_at = inf
        """When `run_due` has something to do, at the earliest; inf when nothing waits.

        Each packet that comes alone asks twice, so it is no method."""

    def __len__(self) -> int:
        return len(self._heap) + len(self._later) - self._cancelled_count

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Have `run_due` call at `when` or soon after."""
        timer = Timer(self, when, call)
        self._number += 1
        if when <= self._round_until:
            self._later.append((when, self._number, timer))
            return timer
        heapq.heappush(self._heap, (when, self._number, timer))
        if when < self.next_at:
            self.next_at = when
        return timer

    def run_due(self, now: float) -> bool:
        """Call what is due, each once; return whether there was anything.

        One that asks again for a time that has come has its turn in the next round, behind all who are due in this one:
        a core that is due for ever costs CPU and stops nobody else.  What a call raises comes out; those behind it stay
        due.
        """
        heap = self._heap
        was_called = False
        self._round_until = now
        try:
            while heap and heap[0][0] <= now:
                call = heapq.heappop(heap)[2]._take()
                if call is None:
                    self._cancelled_count -= 1
                else:
                    was_called = True
                    call()
        finally:
            self._round_until = -inf
            for each in self._later:
                heapq.heappush(heap, each)
            self._later.clear()
            self.next_at = heap[0][0] if heap else inf
        return was_called

    def note_cancelled(self) -> None:
        """A timer's word that it will not call."""
        self._cancelled_count += 1
        if self._cancelled_count >= max(_SWEEP_COUNT, len(self._heap) // 2):
            for waiting in (self._heap, self._later):
                waiting[:] = [entry for entry in waiting if entry[2]._call is not None]
            heapq.heapify(self._heap)
            self._cancelled_count = 0
            self.next_at = self._heap[0][0] if self._heap else inf
