"""How much QUIC may have on its way: the congestion window of relayed packets.  Layer L2; no I/O and no library.

Single losses on radio links are no congestion, and what is inside the packets has a window of its own.  So the window
shrinks when the queue on the way grows (round trips get longer), or when a tenth of a round's packets is lost; Reno
would halve it for each loss, which at 1 % is 9 packets a round trip.  transport/quic.py registers it.
"""

from collections.abc import Callable, Iterable
from math import inf
from typing import Final, Protocol

# As RFC 9002 has them: ten packets at the start, two at the least.
FIRST_PACKETS: Final = 10
LEAST_PACKETS: Final = 2
# BBR's first version bears 20 % of loss, the second 2 %.  Radio links lose up to 5 % without any congestion, and a tail
# drop that costs a tenth of all packets is one that others on the link feel.
BORNE_LOSS: Final = 0.1
# Three losses at least: a share of fewer packets says nothing.
_LEAST_LOST: Final = 3
# A queue on the way is seen when even the fastest packet of a round took a quarter more than the fastest of all, and
# 5 ms: so much do radio links and busy machines vary by themselves.
_QUEUE_FACTOR: Final = 1.25
_QUEUE_SECONDS: Final = 0.005
# CUBIC's: gives way, and does not leave a link half empty.
_SHRINK: Final = 0.7
# After a slow start so much of what is acknowledged is added: the window doubles in 11 round trips.  BBR's probes, a
# quarter every eighth round trip, come to half of that.
_GROWTH: Final = 16
# After a slow start a queue has to stand for so long, which is CoDel's interval: a busy machine or a radio link holds
# all packets of one round trip up, and that is none.
_ROUND_SECONDS: Final = 0.1
# The fastest round trip and the best rate are forgotten after so long: a path changes, and beside somebody whose queue
# never empties we have to count it in, or we would get nothing.
_FORGET_SECONDS: Final = 10.0
# 20 ms of 800 Mbit/s: more than this process can encrypt.
_MOST_BYTES: Final = 2 * 1024 * 1024


class SentPacket(Protocol):
    """What we need to know of a packet."""

    sent_bytes: int
    sent_time: float


class PacketWindow:
    """The congestion control of one connection, as aioquic calls it.  All times are of the connection's clock."""

    ssthresh: int | None = None

    def __init__(self, *, max_datagram_size: int) -> None:
        self._packet_bytes = max_datagram_size
        self.bytes_in_flight = 0
        self.congestion_window = FIRST_PACKETS * max_datagram_size
        self._round_ends_at = 0.0
        self._acked_bytes = self._lost_bytes = 0
        self._is_full = self._was_full = False  # in this round, in the one before
        self._round_rtt = inf
        self._least_rtt = self._next_least_rtt = inf
        self._least_until = 0.0
        self._best_rate = self._next_best_rate = 0.0  # bytes a second, forgotten as the least round trip is
        self._round_began_at = inf
        self._rtt = 0.1
        self.path_rtt: Callable[[], float] | None = None
        """Given, it tells the last round trip without what the peer waited before it acknowledged, which aioquic leaves
        in: on busy machines that is longer than the queues which we look for."""

    def on_packet_sent(self, *, packet: SentPacket) -> None:
        self.bytes_in_flight += packet.sent_bytes
        # A window of which only a part was used tells nothing about what the path could carry.  Half is enough: the
        # pacer sends one part while the other is being acknowledged.
        if 2 * self.bytes_in_flight >= self.congestion_window:
            self._is_full = True

    def on_packet_acked(self, *, now: float, packet: SentPacket) -> None:
        self.bytes_in_flight -= packet.sent_bytes
        self._acked_bytes += packet.sent_bytes
        if self._is_full or self._was_full:
            self._grow(packet.sent_bytes)
        if now >= self._round_ends_at:
            self._end_round(now)

    def on_packets_lost(self, *, now: float, packets: Iterable[SentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self._lost_bytes += packet.sent_bytes
        if now >= self._round_ends_at:
            self._end_round(now)

    def on_packets_expired(self, *, packets: Iterable[SentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_persistent_congestion(self) -> None:
        self.congestion_window = LEAST_PACKETS * self._packet_bytes

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        if self.path_rtt is not None:
            rtt = self.path_rtt()
        if now >= self._least_until:
            self._least_rtt, self._next_least_rtt = min(self._next_least_rtt, rtt), rtt
            self._best_rate, self._next_best_rate = self._next_best_rate, 0.0
            self._least_until = now + _FORGET_SECONDS / 2
        self._least_rtt = min(self._least_rtt, rtt)
        self._next_least_rtt = min(self._next_least_rtt, rtt)
        self._round_rtt = min(self._round_rtt, rtt)
        self._rtt += (rtt - self._rtt) / 8

    def get_log_data(self) -> dict[str, int]:
        """For aioquic's own log, which is off."""
        return {"cwnd": self.congestion_window, "bytes_in_flight": self.bytes_in_flight}

    def _grow(self, acked_bytes: int) -> None:
        added = acked_bytes if self.ssthresh is None else acked_bytes // _GROWTH
        self.congestion_window = min(self.congestion_window + added, _MOST_BYTES)

    def _end_round(self, now: float) -> None:
        """Once a round trip, or a tenth of a second: what the packets of the last round say."""
        sent = self._acked_bytes + self._lost_bytes
        if self._round_began_at < now:
            rate = self._acked_bytes / max(now - self._round_began_at, self._rtt)
            self._best_rate, self._next_best_rate = max(self._best_rate, rate), max(self._next_best_rate, rate)
        self._round_began_at = now
        is_lossy = self._lost_bytes > BORNE_LOSS * sent and self._lost_bytes >= _LEAST_LOST * self._packet_bytes
        is_queued = self._round_rtt < inf and self._round_rtt > self._least_rtt * _QUEUE_FACTOR + _QUEUE_SECONDS
        if is_lossy or is_queued:
            # Of a queue so much as would empty it.  It may be that of others, or on the way of acknowledgements alone:
            # whoever makes room for it keeps what a newcomer begins with, and what fills the path at its best rate.
            kept = _SHRINK if is_lossy else max(_SHRINK, self._least_rtt / self._round_rtt)
            least = LEAST_PACKETS * self._packet_bytes
            if not is_lossy:
                least = max(FIRST_PACKETS * self._packet_bytes, int(self._best_rate * self._least_rtt))
            self.congestion_window = max(int(self.congestion_window * kept), min(least, self.congestion_window))
            self.ssthresh = self.congestion_window
        self._acked_bytes = self._lost_bytes = 0
        self._round_ends_at = now + (self._rtt if self.ssthresh is None else max(self._rtt, _ROUND_SECONDS))
        self._was_full, self._is_full = self._is_full, False
        self._round_rtt = inf
