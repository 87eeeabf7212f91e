"""What the queues of all slow readers may hold together; when that is too much, the fattest pays.  Layer L1.

One queue is bounded by itself (relay/queue.py), but hundreds of slow readers are a way to fill a machine.  The router
makes one pool for all its queues; each queue tells it what it takes and gives back.
"""

from typing import Final, Protocol

# What Python adds to a run of frames that waits: the bytes object, its record with the time, and a place in a deque.
RUN_OVERHEAD_BYTES: Final = 160

# What a connection takes, with TLS and a session: a measure for what is worth a word.
_CONNECTION_BYTES: Final = 16 * 1024


class Pooled(Protocol):
    """A queue, as the pool sees it."""

    def drop_some(self) -> None:
        """Drop the packets that this queue can spare best.  It holds at least one."""
        ...


class QueuePool:
    """The total.  Packets make room for packets and for notices; notices, which nobody may drop, make room for
    nothing, so their queue refuses one that does not fit."""

    __slots__ = ("_by_size", "_classes", "_size_classes", "held_bytes", "max_bytes", "most_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        """Bytes of everything that waits, with what Python adds to them."""
        self.most_bytes = 0
        # Queues by the bit length of what they hold, and the set of those lengths as bits: the fattest is found without
        # looking at all of them.
        self._by_size: dict[int, dict[Pooled, None]] = {}
        self._classes: dict[Pooled, int] = {}
        self._size_classes = 0

    def read_load(self) -> tuple[float, float]:
        """What is held, in connections of some 16 KiB: now, and the most since the last call."""
        held, most = self.held_bytes, self.most_bytes
        self.most_bytes = held
        return held / _CONNECTION_BYTES, most / _CONNECTION_BYTES

    def move(self, queue: Pooled, size_class: int) -> None:
        """A queue has become larger or smaller: `size_class` is the bit length of the packets it holds, measured by
        its own bound; 0 when it holds none."""
        before = self._classes.pop(queue, 0)
        if before:
            queues = self._by_size[before]
            del queues[queue]
            if not queues:
                self._size_classes &= ~(1 << before)
        if size_class:
            self._classes[queue] = size_class
            self._by_size.setdefault(size_class, {})[queue] = None
            self._size_classes |= 1 << size_class

    def has_room(self, size: int) -> bool:
        """Whether so many bytes fit, once the fattest queues have dropped packets for them; of several about equally
        fat ones, the one that has been so for longest."""
        while self.held_bytes + size > self.max_bytes and self._size_classes:
            fattest = self._by_size[self._size_classes.bit_length() - 1]
            next(iter(fattest)).drop_some()
        return self.held_bytes + size <= self.max_bytes
