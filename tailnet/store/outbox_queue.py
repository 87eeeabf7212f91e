"""What waits to be written of one kind of report: bounded for each agent, fair between agents (layer L2).

No I/O and no clock of its own; outbox.py fills it and empties it.  A kind either merges what has the same key (the
latest value of a metadata script), or queues everything (lines of a log) and gives up the oldest where there is no
room.  What is given up is counted, never silent.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from tailnet.types import PeerID

Item = TypeVar("Item")

# What an item takes beside its own bytes: entry, key, and its share of three dictionaries.
ITEM_OVERHEAD_BYTES: Final = 400


class Loss(Enum):
    """Why a report was given up: also the label set of the metric."""

    AGENT = "agent"  # this agent's share was full
    TOTAL = "total"  # the outbox was full
    UNFIT = "unfit"  # the store cannot hold it


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Item]):
    """A kind of report: how it is written, and how much of it may wait."""

    name: str  # in metrics
    write: Callable[..., Any]  # a method of the store that takes a batch
    agent_of: Callable[[Item], PeerID]
    size_of: Callable[[Item], int]  # its bytes, roughly
    max_items: int  # of one agent
    max_bytes: int  # of one agent
    # Reports of one key become one: the merged one.  Without a key each is kept.
    key_of: Callable[[Item], Hashable] | None = None
    merge: Callable[[Item, Item], Item] = lambda _older, newer: newer
    # What `write` is given beside the batch.
    arguments: Callable[[], tuple[Any, ...]] = tuple
    # What follows once a batch is written, with what the store answered.
    written: Callable[[Sequence[Item], Any], None] | None = None


class Entry(Generic[Item]):
    """A report that waits."""

    __slots__ = ("item", "key", "since", "size")

    def __init__(self, key: Hashable, item: Item, size: int, since: float) -> None:
        self.key = key
        self.item = item
        self.size = size
        self.since = since  # when its oldest part came


class _Share(Generic[Item]):
    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries: OrderedDict[Hashable, Entry[Item]] = OrderedDict()  # the oldest first
        self.size = 0


class Queue(Generic[Item]):
    """All that waits of one kind."""

    def __init__(self, kind: Kind[Item]) -> None:
        self.kind = kind
        self.size = 0  # bytes
        self.count = 0
        self.merged = 0
        self.lost: Counter[Loss] = Counter()
        self._shares: OrderedDict[PeerID, _Share[Item]] = OrderedDict()  # whose turn it is first
        self._next_key = 0

    def put(self, item: Item, now: float) -> None:
        """Add a report; older ones of its agent may have to go."""
        size = self.kind.size_of(item) + ITEM_OVERHEAD_BYTES
        self._add(Entry(self._key(item), item, size, now), newest=True)

    def take(self, count: int, size: int) -> list[Entry[Item]]:
        """The reports that are due, at most so many with about so many bytes in all.  They are the caller's now, who
        gives them back when they could not be written."""
        taken: list[Entry[Item]] = []
        while self._shares and len(taken) < count and size > 0:
            agent_id, share = next(iter(self._shares.items()))
            while share.entries and len(taken) < count and size > 0:
                entry = self._pop_oldest(share)
                size -= entry.size
                taken.append(entry)
            if share.entries:
                self._shares.move_to_end(agent_id)
            else:
                del self._shares[agent_id]
        return taken

    def give_back(self, entries: Sequence[Entry[Item]]) -> None:
        """What was taken and not written: it waits again, before what came meanwhile."""
        for entry in reversed(entries):
            self._add(entry, newest=False)

    def lose_oldest(self) -> int:
        """Give up the oldest report of whose turn it is.  Returns how many bytes that freed."""
        agent_id, share = next(iter(self._shares.items()))
        entry = self._pop_oldest(share)
        self.lost[Loss.TOTAL] += 1
        if not share.entries:
            del self._shares[agent_id]
        else:
            self._shares.move_to_end(agent_id)
        return entry.size

    def waiting_of(self, agent_id: PeerID) -> list[Item]:
        """What waits of one agent, the oldest first."""
        share = self._shares.get(agent_id)
        return [] if share is None else [entry.item for entry in share.entries.values()]

    def oldest_since(self) -> float | None:
        """When the oldest of all came; None if nothing waits.  Looks at every agent."""
        firsts = (next(iter(share.entries.values())).since for share in self._shares.values())
        return min(firsts, default=None)

    def _key(self, item: Item) -> Hashable:
        if self.kind.key_of is not None:
            return self.kind.key_of(item)
        self._next_key += 1
        return self._next_key

    def _add(self, entry: Entry[Item], *, newest: bool) -> None:
        agent_id = self.kind.agent_of(entry.item)
        share = self._shares.setdefault(agent_id, _Share())
        other = share.entries.get(entry.key)
        if other is not None:
            # It keeps its place, so that nothing waits for ever by being renewed.
            self._forget(share, other)
            self.merged += 1
            older, newer = (other, entry) if newest else (entry, other)
            item = self.kind.merge(older.item, newer.item)
            entry = Entry(entry.key, item, self.kind.size_of(item) + ITEM_OVERHEAD_BYTES, older.since)
        share.entries[entry.key] = entry
        if other is None and not newest:
            share.entries.move_to_end(entry.key, last=False)
        share.size += entry.size
        self.size += entry.size
        self.count += 1
        while len(share.entries) > self.kind.max_items or share.size > self.kind.max_bytes:
            self._pop_oldest(share)
            self.lost[Loss.AGENT] += 1
        if not share.entries:
            del self._shares[agent_id]

    def _pop_oldest(self, share: _Share[Item]) -> Entry[Item]:
        _, entry = share.entries.popitem(last=False)
        self._forget(share, entry)
        return entry

    def _forget(self, share: _Share[Item], entry: Entry[Item]) -> None:
        share.size -= entry.size
        self.size -= entry.size
        self.count -= 1
