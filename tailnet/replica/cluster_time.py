"""The clock that all replicas stamp connections with (layer L1): the own monotonic one, and an offset.

Epochs decide who owns a peer, so a clock that is wrong would make a dead connection win.  Wall clocks and their steps
never reach this one: the offset is learned from Hello and Beat of others, and between replicas that have peers it only
grows.  A stamp is computed from the time of the connect, never added to.
"""

from typing import Final

# Epochs count 1/4,096 ms: a replica can stamp four million connections a second, each with a larger one.
UNITS_PER_SECOND: Final = 4096 * 1000
# What a message takes from one replica to the next makes the other's clock look behind by as much, never ahead: an
# offset that grows by more than this is a clock that is ahead, and stamps made without it are too old.
JUMP_SECONDS: Final = 0.050


class ClusterTime:
    """One replica's idea of the time.  `now` is its own monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.jump_count = 0
        self._offset = 0  # units, as everything below
        self._stamped_offset = 0  # the one that the stamps were made with
        self._last = 0
        self._settled = False

    def read(self, now: float) -> int:
        """The cluster's time, in units; never negative."""
        time = int(now * UNITS_PER_SECOND) + self._offset
        return time if time > 0 else 0

    def stamp(self, connected_at: float) -> int:
        """The epoch of a connection; each is larger than the one before."""
        self._settled = True
        self._last = max(self._last + 1, self.read(connected_at))
        return self._last

    def restamp(self) -> None:
        """All connections are stamped anew now, the oldest first."""
        self._last = 0
        self._stamped_offset = self._offset

    def hear(self, clock: int, peer_count: int, own_peer_count: int, now: float) -> bool:
        """What another replica says the time is.  True when all connections have to be stamped anew.

        A newcomer takes the time of the first that has peers, also when its own is ahead: the others would all have
        to follow it.  Between two that have peers the larger is right.  Who knows the cluster's time, be it without
        peers now, does not follow one that may not.
        """
        ahead = clock - self.read(now)
        is_newcomer = not self._settled and not own_peer_count
        if is_newcomer and peer_count:
            self._settled = True
            self._offset += ahead
            self._stamped_offset = self._offset
            return False
        if ahead <= 0 or (self._settled and not peer_count):
            return False
        self._offset += ahead
        if self._offset - self._stamped_offset <= JUMP_SECONDS * UNITS_PER_SECOND:
            return False
        if not own_peer_count:
            self._stamped_offset = self._offset
            return False
        self.jump_count += 1
        return True
