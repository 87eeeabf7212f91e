"""What the relay counts, as plain integers (layer L1).  metrics.py reads them when somebody scrapes.

Packets and bytes are those of the packets themselves, without keys and headers, as the genuine relay counts them.
"""

import enum
from typing import Final

from derp.relay.rtt import RTT_BUCKETS

# A disco packet (path discovery) starts with this and is never shorter than magic, sender key and nonce.
DISCO_MAGIC: Final = b"TS\xf0\x9f\x92\xac"
DISCO_MIN_BYTES: Final = 62


class PacketKind(enum.IntEnum):
    """The two kinds every packet counter tells apart."""

    OTHER = 0
    DISCO = 1


class DropReason(enum.IntEnum):
    """Why a packet was not delivered.  A closed list: it is the label set of the metrics.  New ones come last, for
    workers of two versions add theirs up by number."""

    UNKNOWN_DEST = 0  # the destination is neither here nor in the mesh
    UNKNOWN_DEST_ON_FWD = 1  # a mesh peer believed the destination to be here
    GONE_DISCONNECTED = 2  # the destination left with packets still queued for it
    QUEUE_HEAD = 3  # the destination's queue was full: its oldest packet made room for a fresh one
    QUEUE_TAIL = 4  # the fresh packet alone is larger than its destination's queue may be
    WRITE_ERROR = 5  # the destination's socket failed under the packet
    QUEUES_FULL = 6  # all queues together were full: packets of the fattest made room
    QUEUE_DELAY = 7  # it waited too long for its destination's socket


class Histogram:
    """How often small whole numbers were seen.  `bounds` are the upper ends of its buckets, the last one of `seen`."""

    __slots__ = ("beyond", "beyond_sum", "bounds", "seen")

    def __init__(self, *bounds: int) -> None:
        self.bounds = bounds
        # by value: counting is one addition, and buckets are made when somebody scrapes
        self.seen = [0] * (bounds[-1] + 1)
        self.beyond = self.beyond_sum = 0

    def observe(self, value: int, times: int = 1) -> None:
        """Count `value`, which is not negative, so many times."""
        try:
            self.seen[value] += times
        except IndexError:
            self.beyond += times
            self.beyond_sum += value * times

    @property
    def count(self) -> int:
        return sum(self.seen) + self.beyond

    @property
    def total(self) -> int:
        """The sum of all values."""
        return sum(value * times for value, times in enumerate(self.seen)) + self.beyond_sum

    def up_to(self) -> list[int]:
        """For each bound how many values were not above it."""
        return [sum(self.seen[: bound + 1]) for bound in self.bounds]


# What one packet weighs in the moving average of the time in queues; the genuine relay uses the same number.
_AVERAGE_WEIGHT: Final = 0.1


class Counters:
    """The relay's totals since it started.  One object per router; only the router and the drivers add to it."""

    __slots__ = (
        "bytes_dropped",
        "bytes_forwarded_in",
        "bytes_forwarded_out",
        "bytes_received",
        "disco_received",
        "dup_client_conns_total",
        "got_ping",
        "home_moves_in",
        "home_moves_out",
        "mesh_bytes_dropped",
        "mesh_packets_dropped",
        "mesh_update_batches",
        "mesh_update_loops",
        "multiforwarder_created",
        "multiforwarder_deleted",
        "notices_dropped",
        "packet_forwarder_delete_other_value",
        "packets_dropped",
        "packets_forwarded_in",
        "packets_forwarded_out",
        "packets_received",
        "peer_gone_disconnected_frames",
        "peer_gone_not_here_frames",
        "queue_average_at",
        "queue_average_ms",
        "queue_entered",
        "queue_seconds",
        "queued_packets",
        "rate_limited",
        "sent_pong",
        "tcp_rtt",
        "tcp_rtt_seconds",
        "unknown_frames",
        "write_timeouts",
        "written_frames",
        "wrong_mesh_keys",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)
        # indexed [reason * 2 + kind]; all pairs exist from the start, so that a dashboard sees zeros
        self.packets_dropped = [0] * (2 * len(DropReason))
        self.bytes_dropped = [0] * (2 * len(DropReason))
        self.queue_seconds = self.queue_average_ms = self.tcp_rtt_seconds = 0.0
        # by bucket of relay/rtt.py
        self.tcp_rtt = [0] * len(RTT_BUCKETS)
        self.written_frames = Histogram(*range(11), 15, 20, 25, 50, 100)
        self.mesh_update_batches = Histogram(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        self.mesh_update_loops = Histogram(0, 1, 2, 5, 10, 20, 50, 100)

    bytes_dropped: list[int]
    bytes_forwarded_in: int
    bytes_forwarded_out: int
    bytes_received: int
    disco_received: int
    dup_client_conns_total: int
    got_ping: int
    home_moves_in: int
    home_moves_out: int
    # of all drops, those on the way to another relay
    mesh_bytes_dropped: int
    mesh_packets_dropped: int
    # Announcements that one watcher got in one go, and how many goes that took: with us always one.
    mesh_update_batches: Histogram
    mesh_update_loops: Histogram
    multiforwarder_created: int
    multiforwarder_deleted: int
    notices_dropped: int
    packet_forwarder_delete_other_value: int
    packets_dropped: list[int]
    packets_forwarded_in: int
    packets_forwarded_out: int
    packets_received: int
    peer_gone_disconnected_frames: int
    peer_gone_not_here_frames: int
    # the average as of so many packets that did not queue, and packets that entered queues
    queue_average_at: int
    queue_average_ms: float
    queue_entered: int
    queue_seconds: float
    queued_packets: int
    rate_limited: int
    sent_pong: int
    tcp_rtt: list[int]
    # the sum of all round-trip times in those buckets
    tcp_rtt_seconds: float
    unknown_frames: int
    write_timeouts: int
    wrong_mesh_keys: int
    # Frames that one client got in one write, of a sample of flushes: counting all flushes would cost the hot path 3 %.
    written_frames: Histogram

    def drop(self, reason: DropReason, kind: int, packets: int, packet_bytes: int) -> None:
        """Count `packets` dropped packets of together `packet_bytes` bytes."""
        self.packets_dropped[reason * 2 + kind] += packets
        self.bytes_dropped[reason * 2 + kind] += packet_bytes

    def dropped(self, reason: DropReason) -> int:
        """Packets dropped for `reason`, of both kinds."""
        return self.packets_dropped[reason * 2] + self.packets_dropped[reason * 2 + 1]

    def note_queued(self, seconds: float, packets: int = 1) -> None:
        """Count packets that leave a queue after so long."""
        self.queue_seconds += packets * seconds
        self.queued_packets += packets
        average = self.average_queue_ms()
        self.queue_average_ms = seconds * 1000 + (average - seconds * 1000) * (1 - _AVERAGE_WEIGHT) ** packets
        self.queue_average_at = self._unqueued()

    def average_queue_ms(self) -> float:
        """The moving average over all packets, as the genuine relay shows it.  There every packet goes through a queue;
        here a packet that found the kernel ready counts as one that waited 0 ms, so some fifty of them wipe the trace
        of a slow reader out."""
        since = max(self._unqueued() - self.queue_average_at, 0)
        return self.queue_average_ms * (1 - _AVERAGE_WEIGHT) ** since

    def _unqueued(self) -> int:
        return self.packets_received + self.packets_forwarded_in - self.queue_entered
