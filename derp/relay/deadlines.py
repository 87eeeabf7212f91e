"""Deadlines as a table: who is due when.  Layer L1: `now` is an argument.

There is one table per kind of deadline (the login, what a reader may take for a write, a pause by a rate limit ...).
Whoever sets one asks `next_timeout` and calls `handle_timeout` then: server/relay.py does it for a relay.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Generic, TypeVar

Subject = TypeVar("Subject")

# Entries of subjects that need no deadline any more stay in the heap until their time comes.  When they are this many,
# and more than the others, they are swept out: a connection that comes and goes at once would fill the memory else.
_SWEEP_COUNT: Final = 64


class _Entry(Generic[Subject]):
    """One place in the heap.  `at` may be later than that place: a deadline that moves later leaves its entry there."""

    __slots__ = ("at", "subject")

    def __init__(self, subject: Subject, at: float) -> None:
        self.subject: Subject | None = subject
        self.at = at


class Deadlines(Generic[Subject]):
    """At most one deadline for each subject."""

    def __init__(self) -> None:
        self._entries: dict[Subject, _Entry[Subject]] = {}
        self._heap: list[tuple[float, int, _Entry[Subject]]] = []
        self._number = 0  # equal times: in the order of setting

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
        return entry.at if entry is not None else None

    def set(self, subject: Subject, at: float) -> None:
        """Make a subject due at `at`, instead of when it was.  To move a deadline later is one store."""
        entry = self._entries.get(subject)
        if entry is not None:
            if at >= entry.at:
                entry.at = at
                return
            entry.subject = None  # its place in the heap would come too late
        entry = self._entries[subject] = _Entry(subject, at)
        self._number += 1
        heappush(self._heap, (at, self._number, entry))
        self._sweep()

    def clear(self, subject: Subject) -> None:
        """A subject needs no deadline any more; it need not have one.  Nothing here refers to it afterwards."""
        entry = self._entries.pop(subject, None)
        if entry is not None:
            entry.subject = None

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None while nobody has a deadline."""
        heap = self._heap
        while heap:
            place, number, entry = heap[0]
            if entry.subject is None:
                heappop(heap)
            elif entry.at > place:
                heapreplace(heap, (entry.at, number, entry))
            else:
                return place
        return None

    def handle_timeout(self, now: float) -> list[Subject]:
        """Everybody who is due by `now`, in the order of their times.  They have no deadline any more."""
        due: list[Subject] = []
        while (at := self.next_timeout()) is not None and at <= now:
            subject = heappop(self._heap)[2].subject
            assert subject is not None
            del self._entries[subject]
            due.append(subject)
        return due

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._entries) + _SWEEP_COUNT:
            self._heap = [place for place in self._heap if place[2].subject is not None]
            heapify(self._heap)
