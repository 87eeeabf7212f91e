"""How much QUIC may have on its way, and how fast it leaves: the congestion control of relayed packets.  Layer
L2: no I/O and no library.

A single loss on a radio link is no congestion, and what is inside the packets has a window of its own.  A longer round
trip need not be congestion either: acknowledgements wait behind packets of others, and a window that gave way to those
stayed at a third of what the path carries.  So it goes by what comes through, as BBR does: packets leave at the best
rate that was seen lately.  Every eighth round trip goes a quarter faster to see a better one, and the next one makes
good for it.  transport/quic.py registers it.
"""

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Final, Protocol

# As RFC 9002 has them: ten packets at the start, two at the least.
FIRST_PACKETS: Final = 10
LEAST_PACKETS: Final = 2
# More than that of what was sent lost is congestion.  BBR's first version bears 20 %, the second 2 %.  Radio links lose
# up to 5 % without any congestion, and a tail drop that costs a tenth of all packets is one that others feel.
BORNE_LOSS: Final = 0.1
# Three losses at least: a share of fewer packets says nothing.
_LEAST_LOST: Final = 3
# Losses are counted over so long, if a round trip is shorter: else whoever has few packets on the way gives way by
# chance to whoever has many.
_LOSS_SECONDS: Final = 0.1
# CUBIC's: gives way, and does not leave a link half empty.
_SHRINK: Final = 0.7
# After congestion the window's bound grows by so much of what is acknowledged.
_GROWTH: Final = 16
# At first: the least gain with which the rate doubles each round trip (2 / ln 2); then its reverse, for three round
# trips or until the queue that it made is empty.
_FIRST_GAIN: Final = 2.89
_DRAIN_GAIN: Final = 1 / _FIRST_GAIN
# The path's rate is known when three round trips brought less than a quarter more.
_FULL_GAIN: Final = 1.25
_FULL_ROUNDS: Final = 3
# Then, one round trip each, or 10 ms, as short paths of busy machines take that long.
_LEAST_PHASE_SECONDS: Final = 0.01
_CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
# In place of 1 while a queue stands, wherever it is: the best rate is a little too high where packets come in bursts.
# It is not forgotten by this, so whoever makes room for a queue of others still takes a better rate when there is one.
_QUEUED_GAIN: Final = 0.85
# A queue stands when even the fastest packet of a round trip took a quarter more than the fastest of all, and 5 ms: so
# much do radio links and busy machines vary by themselves.
_QUEUE_FACTOR: Final = 1.25
_QUEUE_SECONDS: Final = 0.005
# The window, of what fills the path: the rate is what keeps queues short, and acknowledgements may wait for two round
# trips behind packets of others.
_WINDOW_GAIN: Final = 3
# And beyond that, for what leaves and is acknowledged together, and for machines so busy that they take long to do it:
# on short paths that is much more than what fills them.
_SPARE_PACKETS: Final = 4
_SPARE_SECONDS: Final = 0.02
# The best rate is forgotten after ten to twenty round trips: one cycle and more.
_RATE_ROUNDS: Final = 10
# The fastest round trip is forgotten after five to ten seconds: a path changes.
_LEAST_RTT_SECONDS: Final = 5.0
# Whoever has not paused for so long may not know the path without a queue, for example because it came to one.  So for
# 0.1 s it has four packets on its way, as BBR does.  That costs 2 % of what it could send.
_LOOK_SECONDS: Final = 0.1
_LOOK_PACKETS: Final = 4
# 20 ms of 800 Mbit/s: more than this process can encrypt.
_MOST_BYTES: Final = 2 * 1024 * 1024


class SentPacket(Protocol):
    """What we need to know of a packet, and what we note in it: bytes delivered when it was sent, when these were, when
    the packet was sent that showed it, and whether there was less to send than could be."""

    sent_bytes: int
    sent_time: Any
    sent_at: tuple[int, float, float, bool]


class PacketWindow:
    """The congestion control of one connection, as aioquic calls it.  All times are of the connection's clock."""

    ssthresh: int | None = None

    def __init__(self, *, max_datagram_size: int) -> None:
        self._packet_bytes = max_datagram_size
        self.bytes_in_flight = 0
        self.congestion_window = FIRST_PACKETS * max_datagram_size
        self.pacing_rate = inf
        """Bytes a second; unbounded until a round trip is known."""
        self.path_rtt: Callable[[], float] | None = None
        """Given, it tells the last round trip without what the peer waited before it acknowledged, which aioquic leaves
        in: on busy machines that is longer than what we look for."""
        self._delivered_bytes = 0
        self._delivered_at = self._first_sent_at = 0.0
        self._newest: SentPacket | None = None  # of those that were just acknowledged
        self._idle_until_bytes = -1  # until more are delivered, rates are of a sender that had no more to send
        self._round_ends_bytes = 0
        self._round_rtt = inf
        self._is_queued = False
        self._judged_bytes = self._lost_bytes = 0  # delivered when losses were judged, lost since
        self._losses_until = 0.0
        self._best_rate = self._next_best_rate = 0.0
        self._rate_rounds = 0
        self._least_rtt = self._next_least_rtt = inf
        self._least_until = inf
        self._look_until: float | None = None
        self._has_looked = False
        self._is_known = False  # the path's rate; before that it is looked for
        self._full_rate = 0.0
        self._full_rounds = 0
        self._phase = 0  # of _CYCLE; below 0 the queue of the search is being emptied
        self._phase_until = 0.0
        self._most_bytes = _MOST_BYTES  # what congestion left

    # --- as aioquic calls it

    def on_packet_sent(self, *, packet: SentPacket) -> None:
        if not self.bytes_in_flight:
            self._delivered_at = self._first_sent_at = packet.sent_time
        is_idle = self._delivered_bytes <= self._idle_until_bytes
        packet.sent_at = self._delivered_bytes, self._delivered_at, self._first_sent_at, is_idle
        self.bytes_in_flight += packet.sent_bytes

    def on_packet_acked(self, *, now: float, packet: SentPacket) -> None:
        size = packet.sent_bytes
        self.bytes_in_flight -= size
        self._delivered_bytes += size
        self._delivered_at = now
        self._newest = packet

    def on_packets_lost(self, *, now: float, packets: Iterable[SentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self._lost_bytes += packet.sent_bytes

    def on_packets_expired(self, *, packets: Iterable[SentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_persistent_congestion(self) -> None:
        """Nothing came through for long: whatever is known of the path holds no more."""
        self.congestion_window = LEAST_PACKETS * self._packet_bytes
        if self._least_rtt < inf:
            self.pacing_rate = self.congestion_window / self._least_rtt
        self._best_rate = self._next_best_rate = self._full_rate = 0.0
        self._is_known = False
        self._full_rounds = 0
        self._most_bytes = _MOST_BYTES

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Behind all that one acknowledgement acknowledges."""
        if self.path_rtt is not None:
            rtt = self.path_rtt()
        self._note_rtt(now, rtt)
        packet, self._newest = self._newest, None
        if packet is not None:
            self._note_rate(now, packet)
            self._set(now)

    def get_log_data(self) -> dict[str, int]:
        """For aioquic's own log, which is off."""
        return {"cwnd": self.congestion_window, "bytes_in_flight": self.bytes_in_flight}

    # --- as quic.py does

    def note_idle(self) -> None:
        """All there was has been sent, and more might have been."""
        if self.bytes_in_flight < self.congestion_window:
            self._idle_until_bytes = self._delivered_bytes + self.bytes_in_flight

    # --- below

    def _note_rtt(self, now: float, rtt: float) -> None:
        self._round_rtt = min(self._round_rtt, rtt)
        if self._least_rtt == inf:
            self._least_until = now + _LEAST_RTT_SECONDS
        self._least_rtt = min(self._least_rtt, rtt)
        self._next_least_rtt = min(self._next_least_rtt, rtt)
        self._has_looked |= self.bytes_in_flight <= self._filling_bytes // 2
        if now < (self._look_until or self._least_until):
            return
        if self._look_until is None and not self._has_looked:
            self._look_until = now + _LOOK_SECONDS + rtt
            return
        self._look_until = None
        self._has_looked = False
        self._least_until = now + _LEAST_RTT_SECONDS
        self._least_rtt, self._next_least_rtt = self._next_least_rtt, inf

    def _note_rate(self, now: float, packet: SentPacket) -> None:
        """How fast bytes were delivered from when a packet was sent until it came; the slower of sending and of
        acknowledging them, since either may have been held up and gone on at once."""
        delivered, delivered_at, first_sent_at, is_idle = packet.sent_at
        self._first_sent_at = packet.sent_time
        seconds = max(packet.sent_time - first_sent_at, now - delivered_at)
        rate = (self._delivered_bytes - delivered) / max(seconds, self._least_rtt)
        self._best_rate = max(self._best_rate, rate)
        self._next_best_rate = max(self._next_best_rate, rate)
        if delivered >= self._round_ends_bytes:
            self._end_round(now, is_idle=is_idle)

    def _end_round(self, now: float, *, is_idle: bool) -> None:
        self._round_ends_bytes = self._delivered_bytes + self.bytes_in_flight
        self._is_queued = self._round_rtt > self._least_rtt * _QUEUE_FACTOR + _QUEUE_SECONDS
        self._round_rtt = inf
        if now >= self._losses_until:
            self._judge_losses(now)
        if not is_idle and self._look_until is None:
            self._rate_rounds += 1
            if self._rate_rounds >= _RATE_ROUNDS:
                self._rate_rounds = 0
                self._best_rate, self._next_best_rate = self._next_best_rate, 0.0
            if not self._is_known:
                self._look_for_end()

    def _judge_losses(self, now: float) -> None:
        acked, lost = self._delivered_bytes - self._judged_bytes, self._lost_bytes
        self._judged_bytes, self._lost_bytes = self._delivered_bytes, 0
        self._losses_until = now + _LOSS_SECONDS
        if lost > BORNE_LOSS * (acked + lost) and lost >= _LEAST_LOST * self._packet_bytes:
            least = FIRST_PACKETS * self._packet_bytes
            self._most_bytes = max(int(min(self._most_bytes, self.congestion_window) * _SHRINK), least)
            if not self._is_known:
                self._drain()
        elif self._most_bytes < _MOST_BYTES:
            self._most_bytes += acked // _GROWTH

    def _look_for_end(self) -> None:
        if self._best_rate >= _FULL_GAIN * self._full_rate:
            self._full_rate, self._full_rounds = self._best_rate, 0
            return
        self._full_rounds += 1
        if self._full_rounds >= _FULL_ROUNDS:
            self._drain()

    def _drain(self) -> None:
        self._is_known = True
        self._phase = -_FULL_ROUNDS  # behind packets of others it never gets empty

    @property
    def _filling_bytes(self) -> int:
        """What fills the path."""
        least = LEAST_PACKETS * self._packet_bytes
        return max(int(self._best_rate * self._least_rtt), least) if self._best_rate else least  # 0 x inf

    def _set(self, now: float) -> None:
        """Window and rate, after an acknowledgement."""
        filling = self._filling_bytes
        spare = _SPARE_PACKETS * self._packet_bytes + int(_SPARE_SECONDS * self._best_rate)
        if not self._is_known:
            # It only grows: whoever has sent little so far knows nothing of the path.
            wanted = max(self.congestion_window, int(_FIRST_GAIN * filling) + spare)
            self.congestion_window = min(wanted, self._most_bytes)
            rate = _FIRST_GAIN * max(self._best_rate, FIRST_PACKETS * self._packet_bytes / self._least_rtt)
            self.pacing_rate = rate if self.pacing_rate == inf else max(self.pacing_rate, rate)
            return
        is_looking = self._look_until is not None
        window = _LOOK_PACKETS * self._packet_bytes if is_looking else _WINDOW_GAIN * filling + spare
        self.congestion_window = min(window, self._most_bytes)
        self.pacing_rate = max(self._gain(now, filling) * self._best_rate, self._packet_bytes)

    def _gain(self, now: float, filling: int) -> float:
        if now >= self._phase_until:
            self._phase_until = now + max(self._least_rtt, _LEAST_PHASE_SECONDS)
            self._phase = (self._phase + 1) % len(_CYCLE) if self._phase >= 0 else self._phase + 1
        gain = _CYCLE[self._phase] if self._phase >= 0 else _DRAIN_GAIN
        if gain < 1 and self.bytes_in_flight <= filling:  # nothing stands any more
            self._phase, gain = 2, 1.0
        return _QUEUED_GAIN if gain == 1.0 and self._is_queued else gain
