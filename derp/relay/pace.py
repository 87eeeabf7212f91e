"""How fast a destination takes bytes while it cannot take all, and what its kernel should hold for it.  Layer L1.

A wire keeps this between its queues, which come and go within a millisecond where destination and senders are fast.
server/session.py tells it when a queue begins, each time the kernel has room again, and when the queue is empty.
"""

from typing import Final

# What the kernel should hold unsent is 8 ms of the rate: it wakes us at half of that, and a busy round of ours takes 4.
# Below a TLS record it would be idle between our steps; the most is what it held at most on fast ways.
UNSENT_SECONDS: Final = 0.008
LEAST_UNSENT_BYTES: Final = 16 * 1024
MOST_UNSENT_BYTES: Final = 128 * 1024
# Before anything is known: two dozen full packets, enough to keep a link of 250 Mbit/s busy for the millisecond until
# we are woken.
FIRST_UNSENT_BYTES: Final = 32 * 1024
# Rates are of so long, or of so many bytes: at the least rate that makes a difference, 16 Mbit/s, 0.1 s are a dozen
# steps; at 1 GB/s, where queues live for a millisecond, 1 MiB is sixteen.
_RATE_SECONDS: Final = 0.1
_RATE_BYTES: Final = 1024 * 1024
# Of one round: what came of a measurement that is shorter is no rate.
_LEAST_SECONDS: Final = 0.001


class Pace:
    """One per wire that was full."""

    __slots__ = ("_bytes", "_seconds", "_since", "unsent_bytes")

    def __init__(self) -> None:
        self.unsent_bytes = FIRST_UNSENT_BYTES
        """What the kernel should hold unsent: a power of two."""
        self._bytes = 0
        self._seconds = 0.0
        self._since: float | None = None  # when the kernel was last seen full

    def begin(self, now: float) -> None:
        """The kernel is full."""
        self._since = now

    def note_taken(self, size_bytes: int, now: float) -> bool:
        """The kernel had room again, and was given so much.  Whether `unsent_bytes` has another value now."""
        since, self._since = self._since, now
        if since is None:
            return False
        # It had sent half of what it holds, also where less waited here.
        self._bytes += max(size_bytes, self.unsent_bytes // 2)
        self._seconds += now - since
        if self._seconds < _RATE_SECONDS and self._bytes < _RATE_BYTES:
            return False
        wanted = int(self._bytes / max(self._seconds, _LEAST_SECONDS) * UNSENT_SECONDS)
        self._bytes, self._seconds = 0, 0.0
        before = self.unsent_bytes
        self.unsent_bytes = max(LEAST_UNSENT_BYTES, min(1 << wanted.bit_length(), MOST_UNSENT_BYTES))
        return self.unsent_bytes != before

    def end(self) -> None:
        """Nothing waits any more: from here on it shows no rate."""
        self._since = None
