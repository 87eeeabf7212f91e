"""What one client's queue dropped, of whom and why: for whoever asks afterwards.  Layer L1.

A queue is gone when it is empty, so the client keeps this; most clients never have any.  relay/queue.py notes each
drop, server/explain.py makes sentences of them.
"""

from collections import OrderedDict
from typing import Final

from derp.relay.counters import DropReason

# Senders of which it is known apart, with 350 bytes each: a third of a TLS session.  Beyond them the one that lost
# nothing for longest is forgotten, and counts among the others.
MAX_SENDERS: Final = 16


class Loss:
    """Packets that were dropped for one reason."""

    __slots__ = ("at", "packets", "seconds")

    def __init__(self) -> None:
        self.packets = 0
        self.at = 0.0  # when the last of them was
        self.seconds = 0.0  # how long one of them had waited at most

    def add(self, packets: int, now: float, seconds: float) -> None:
        self.packets += packets
        self.at = now
        if seconds > self.seconds:
            self.seconds = seconds


class Losses:
    """All that was dropped, by reason; and of the latest senders each one's."""

    __slots__ = ("_by_sender", "by_reason")

    def __init__(self) -> None:
        self.by_reason: dict[DropReason, Loss] = {}
        self._by_sender: OrderedDict[tuple[bytes, DropReason], Loss] = OrderedDict()

    def note(self, sender: bytes, reason: DropReason, packets: int, now: float, seconds: float) -> None:
        """So many packets of a sender were dropped; the oldest of them had waited for so long."""
        total = self.by_reason.get(reason)
        if total is None:
            total = self.by_reason[reason] = Loss()
        total.add(packets, now, seconds)
        own = self._by_sender.get((sender, reason))
        if own is None:
            own = self._by_sender[sender, reason] = Loss()
            if len(self._by_sender) > MAX_SENDERS:
                self._by_sender.popitem(last=False)
        else:
            self._by_sender.move_to_end((sender, reason))
        own.add(packets, now, seconds)

    def of(self, sender: bytes) -> dict[DropReason, Loss]:
        """What is remembered of one sender."""
        return {reason: loss for (key, reason), loss in self._by_sender.items() if key == sender}
