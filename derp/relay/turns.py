"""Whose turn it is: a bounded queue that serves groups one after the other, however much each brings.  Layer L1.

Admission asks about clients in this order (server/verify.py); a group there is an address.
"""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Group = TypeVar("Group", bound=Hashable)
Item = TypeVar("Item")


class Turns(Generic[Group, Item]):
    """Items wait in groups; `take` goes round the groups.  When `most` wait, the largest group gives way.

    `at_once`: how many items of one group may have been taken and not be `done`.  All steps take constant time.
    """

    def __init__(self, most: int, *, at_once: int) -> None:
        self._most = most
        self._at_once = at_once
        self._count = 0
        self._waiting: dict[Group, deque[Item]] = {}
        # Groups that may have one taken, in turn, each once; the last item of some may have given way meanwhile.
        self._ring: dict[Group, None] = {}
        self._taken: dict[Group, int] = {}
        # Groups by how many of their items wait, so that the largest is found at once.
        self._by_size: dict[int, dict[Group, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    def start(self, group: Group) -> bool:
        """Take an item that never waits, if it is this group's turn anyway: none of its own waits, and it may have one
        more taken.  For a caller that has room for one."""
        if group in self._waiting or self._taken.get(group, 0) >= self._at_once:
            return False
        self._taken[group] = self._taken.get(group, 0) + 1
        return True

    def add(self, group: Group, item: Item) -> Item | None:
        """Let an item wait.  Returns the one that has to give way, if there is no room: this one when its own group is
        the largest, else the newest of the largest group."""
        loser: Item | None = None
        if self._count >= self._most:
            size = len(self._waiting.get(group, ()))
            if size >= self._largest:
                return item
            fattest = next(iter(self._by_size[self._largest]))
            loser = self._waiting[fattest].pop()
            self._resize(fattest, -1)
        waiting = self._waiting.get(group)
        if waiting is None:
            waiting = self._waiting[group] = deque()
            if self._taken.get(group, 0) < self._at_once:
                self._ring[group] = None
        waiting.append(item)
        self._resize(group, 1)
        return loser

    def take(self) -> Item | None:
        """The next one: of the group that has waited longest since its last turn.  None: nobody may go now."""
        while self._ring:
            group = next(iter(self._ring))
            del self._ring[group]
            waiting = self._waiting.get(group)
            if not waiting:
                continue  # its last one gave way
            item = waiting.popleft()
            self._taken[group] = self._taken.get(group, 0) + 1
            self._resize(group, -1)
            if group in self._waiting and self._taken[group] < self._at_once:
                self._ring[group] = None
            return item
        return None

    def done(self, group: Group) -> None:
        """An item that was taken is done with: its group may have another one taken."""
        left = self._taken[group] - 1
        if left:
            self._taken[group] = left
        else:
            del self._taken[group]
        if left == self._at_once - 1 and group in self._waiting:
            self._ring[group] = None

    def _resize(self, group: Group, change: int) -> None:
        waiting = self._waiting[group]
        size = len(waiting)
        self._count += change
        before = self._by_size.get(size - change)
        if before is not None:
            before.pop(group, None)
            if not before:
                del self._by_size[size - change]
        if size:
            self._by_size.setdefault(size, {})[group] = None
        else:
            del self._waiting[group]
        if size > self._largest:
            self._largest = size
        elif self._largest not in self._by_size:
            # A group shrinks by one, so the largest now is smaller by one, or there is none.
            self._largest = self._largest - 1 if self._largest - 1 in self._by_size else max(self._by_size, default=0)
