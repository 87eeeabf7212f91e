"""Deadlines as a table: who is due when.  Layer L1: `now` is an argument.

There is one table per kind of deadline (the login, what a reader may take for a write, a pause by a rate limit ...).
Whoever sets one asks `next_timeout` and calls `handle_timeout` then: server/relay.py does it for a relay.
"""

import sys
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final, Generic, TypeVar

Subject = TypeVar("Subject")

# Places of subjects that need no deadline any more stay in the heap until their time comes.  When they are this many,
# and more than the others, they are swept out: connections that come and go at once would fill the memory else.
_SWEEP_COUNT: Final = 64

# [when it is due, the subject]: a list and no object, as each login makes one.  Its place in the heap may be earlier,
# since a deadline that moves later leaves it there; a subject that was cleared is None.
_Entry = list[Any]


class Deadlines(Generic[Subject]):
    """At most one deadline for each subject."""

    def __init__(self) -> None:
        self._entries: dict[Subject, _Entry] = {}
        self._heap: list[tuple[float, int, _Entry]] = []
        self._number = 0  # equal times: in the order of setting
        self._sweep_at = _SWEEP_COUNT

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, subject: object) -> bool:
        return subject in self._entries

    def __iter__(self) -> Iterator[Subject]:
        """Everybody who has a deadline, in the order in which they got their first."""
        return iter(self._entries)

    def at(self, subject: Subject) -> float | None:
        """When a subject is due."""
        entry = self._entries.get(subject)
        return entry[0] if entry is not None else None

    def set(self, subject: Subject, at: float) -> None:
        """Make a subject due at `at`, instead of when it was.  To move a deadline later is one store."""
        entry = self._entries.get(subject)
        if entry is not None:
            if at >= entry[0]:
                entry[0] = at
                return
            entry[1] = None  # its place in the heap would come too late
        entry = self._entries[subject] = [at, subject]
        self._number += 1
        heappush(self._heap, (at, self._number, entry))
        if len(self._heap) > self._sweep_at:
            self._sweep()

    def clear(self, subject: Subject) -> None:
        """A subject needs no deadline any more; it need not have one.  Nothing here refers to it afterwards."""
        entry = self._entries.pop(subject, None)
        if entry is not None:
            entry[1] = None

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None while nobody has a deadline."""
        heap = self._heap
        while heap:
            place, number, (at, subject) = heap[0]
            if subject is None:
                heappop(heap)
            elif at > place:
                heapreplace(heap, (at, number, heap[0][2]))
            else:
                return place
        return None

    def handle_timeout(self, now: float, most: int = sys.maxsize) -> list[Subject]:
        """Everybody who is due by `now`, in the order of their times; `most` of them, and the others stay due.  They
        have no deadline any more."""
        due: list[Subject] = []
        while len(due) < most and (at := self.next_timeout()) is not None and at <= now:
            subject = heappop(self._heap)[2][1]
            del self._entries[subject]
            due.append(subject)
        return due

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._entries):
            self._heap = [place for place in self._heap if place[2][1] is not None]
            heapify(self._heap)
        self._sweep_at = 2 * len(self._heap) + _SWEEP_COUNT
