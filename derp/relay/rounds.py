"""Everybody once in a while, a part of them at a time.  Layer L1: `now` is an argument.

server/relay.py asks the kernel this way about the round-trip times of its clients, and counts by relay/rtt.py.
"""

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

Member = TypeVar("Member")

# Into how many parts a round is cut: of 100,000 clients, at 1.5 us each, a part is 8 ms of everybody's time.
_PARTS: Final = 20


class Round(Generic[Member]):
    """Every member of a table once in `round_seconds`; nothing at all while the table is empty."""

    def __init__(self, members: Mapping[int, Member], round_seconds: float) -> None:
        """`members` is read at the beginning of each round; whoever comes later waits for the next one."""
        self._members = members
        self._round_seconds = round_seconds
        self._turn: list[Member] = []
        self._part_size = 1
        self._wait_seconds = round_seconds
        self._next: float | None = None

    def begin(self, now: float) -> float | None:
        """A member came.  The first one begins a round; return when its first turn is then."""
        if self._next is not None:
            return None
        self._next = now + self._round_seconds / _PARTS
        return self._next

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        return self._next

    def handle_timeout(self, now: float) -> list[Member]:
        """Whose turn it is; some may have left since the round began."""
        if self._next is None or now < self._next:
            return []
        if not self._turn:
            self._turn = list(self._members.values())
            if not self._turn:
                self._next = None
                return []
            self._part_size = -(-len(self._turn) // _PARTS)
            self._wait_seconds = self._round_seconds * self._part_size / len(self._turn)
        part = self._turn[-self._part_size :]
        del self._turn[-self._part_size :]
        self._next = now + self._wait_seconds
        return part
