"""What was sent and is not acknowledged, and what of it is lost: SACK (RFC 2018, 6675) and RACK (RFC 8985).  Layer L1.

Segments lie in the order of their numbers; `_by_time` has those under way in the order of sending, so a loss is found
at its head.  Without SACK duplicate acknowledgements are counted (RFC 6582).  Absolute numbers, seconds, bytes.
Called by sending.py.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final

from tailnet.netstack.segment import unwrap

UNDER_WAY: Final = 0
LOST: Final = 1
DELIVERED: Final = 2

DUPLICATE_THRESHOLD: Final = 3
# Round trips on loopback are shorter than one turn of the driver, within which order means nothing.
_MIN_REORDERING: Final = 0.001
_REORDERING_ROUNDS: Final = 16
# Acknowledged segments stay in front of the list until they are this many: to cut them off moves the others.
_COMPACT_AT: Final = 128
_UNKNOWN: Final = float("inf")
_BELIEVED_BYTES: Final = 1 << 20  # of duplicates in one report, beyond what is under way
_PROBED: Final = 64  # segments at the tail among which a probe looks for one that has not arrived
_START: Final = attrgetter("start")
_END: Final = attrgetter("end")


class Sent:
    """A segment under way, with the bytes that a retransmission needs."""

    __slots__ = ("end", "fin", "payload", "sent_at", "start", "state", "transmissions")

    def __init__(self, start: int, end: int, payload: bytes, fin: bool, now: float) -> None:
        self.start = start
        self.end = end
        self.payload = payload
        self.fin = fin
        self.sent_at = now
        self.state = UNDER_WAY
        self.transmissions = 1


class Scoreboard:
    """`pipe` counts the bytes that are believed to be under way.

    After each acknowledgement: `delivered` bytes arrived, `sample` and `newest` are round trips (None without one),
    `advanced` tells whether it moved on.
    """

    __slots__ = (
        "_by_time",
        "_fack",
        "_head",
        "_lost",
        "_multiplier",
        "_rack_end",
        "_rack_rtt",
        "_rack_sent_at",
        "_reordering_rounds",
        "_sacked_ends",
        "_sacked_starts",
        "_segments",
        "_widened_at",
        "advanced",
        "bad_blocks",
        "delivered",
        "duplicate_bytes",
        "duplicate_reports",
        "min_rtt",
        "newest",
        "nxt",
        "pipe",
        "reordering_seen",
        "sacked_count",
        "sample",
        "una",
    )

    def __init__(self, una: int) -> None:
        self.una = self.nxt = una
        self.pipe = 0
        self._segments: list[Sent] = []
        self._head = 0
        self._by_time: deque[Sent] = deque()
        self._lost: list[tuple[int, int, Sent]] = []
        self._sacked_starts: list[int] = []
        self._sacked_ends: list[int] = []
        self._fack = una
        self._rack_sent_at = -1.0
        self._rack_end = 0
        self._rack_rtt = 0.0
        self._multiplier = 1
        self._widened_at = una
        self._reordering_rounds = 0
        self.reordering_seen = False
        self.sacked_count = 0
        self.min_rtt = _UNKNOWN
        self.delivered = 0
        self.sample: float | None = None
        self.newest: float | None = None
        self.advanced = False
        self.duplicate_reports = 0
        self.duplicate_bytes = 0
        self.bad_blocks = 0

    # --- what is sent ---

    def add(self, payload: bytes, fin: bool, now: float) -> Sent:
        """A new segment at `nxt`."""
        start = self.nxt
        end = self.nxt = start + len(payload) + fin
        sent = Sent(start, end, payload, fin, now)
        self._segments.append(sent)
        self._by_time.append(sent)
        self.pipe += end - start
        return sent

    def first_lost(self) -> Sent | None:
        """The lost segment with the lowest number, which is to be sent next."""
        lost = self._lost
        while lost:
            sent = lost[0][2]
            if sent.state == LOST:
                return sent
            heappop(lost)
        return None

    def resend(self, sent: Sent, now: float) -> None:
        """A segment goes out once more."""
        if sent.state == UNDER_WAY:  # a probe: it is not known to be lost
            self._by_time.remove(sent)
            self.pipe -= sent.end - sent.start
        elif self._lost and self._lost[0][2] is sent:
            heappop(self._lost)
        sent.state = UNDER_WAY
        sent.sent_at = now
        sent.transmissions += 1
        self._by_time.append(sent)
        self.pipe += sent.end - sent.start

    def last(self) -> Sent | None:
        """The segment with the highest number that has not arrived: what a tail loss probe repeats."""
        segments = self._segments
        for at in range(len(segments) - 1, max(self._head, len(segments) - _PROBED) - 1, -1):
            if segments[at].state != DELIVERED:
                return segments[at]
        return None

    @property
    def is_empty(self) -> bool:
        return self._head == len(self._segments)

    @property
    def count(self) -> int:
        """Segments that are not acknowledged."""
        return len(self._segments) - self._head

    @property
    def flight(self) -> int:
        return self.nxt - self.una

    # --- what arrived ---

    def on_ack(self, ack: int, blocks: Sequence[tuple[int, int]], now: float) -> None:
        """An acknowledgement in (una - window, nxt], and its SACK blocks as they stood on the wire."""
        self.delivered = 0
        self.sample = self.newest = None
        self.advanced = ack > self.una
        if self.advanced:
            self._acknowledge(ack, now)
        if blocks:
            self._sack(ack, blocks, now)

    def _acknowledge(self, ack: int, now: float) -> None:
        segments, head = self._segments, self._head
        count = len(segments)
        while head < count:
            sent = segments[head]
            if sent.end > ack:
                break
            head += 1
            if sent.state == DELIVERED:
                self.sacked_count -= 1
            else:
                self._arrived(sent, now)
        self._head = head
        if head == count or head >= _COMPACT_AT:  # a silent connection holds nothing of what was said
            del segments[:head]
            self._head = 0
        self.una = ack
        ends = self._sacked_ends
        if ends and ends[0] <= ack:
            gone = bisect_right(ends, ack)
            del ends[:gone], self._sacked_starts[:gone]
        if ack > self._fack:
            self._fack = ack

    def _arrived(self, sent: Sent, now: float) -> None:
        """RACK_update and RACK_detect_reordering (RFC 8985 section 6.2, steps 1 to 3)."""
        size = sent.end - sent.start
        if sent.state == UNDER_WAY:
            self.pipe -= size
        sent.state = DELIVERED
        self.delivered += size
        sent_at, end = sent.sent_at, sent.end
        rtt = now - sent_at
        if sent.transmissions == 1:
            if self.sample is None:
                self.sample = rtt
            self.newest = rtt
            if rtt < self.min_rtt:
                self.min_rtt = rtt
            if end > self._fack:
                self._fack = end
            elif end < self._fack:
                self.reordering_seen = True
        elif rtt < self.min_rtt < _UNKNOWN:
            return  # more likely the earlier transmission's
        if sent_at > self._rack_sent_at or (sent_at == self._rack_sent_at and end > self._rack_end):
            self._rack_sent_at = sent_at
            self._rack_end = end
            self._rack_rtt = rtt

    def _sack(self, ack: int, blocks: Sequence[tuple[int, int]], now: float) -> None:
        segments = self._segments
        for place, (first, last) in enumerate(blocks):
            start = unwrap(first, ack)
            end = unwrap(last, start)
            if place == 0 and end > start and (end <= ack or self._is_inside(start, end, blocks, ack)):
                self.duplicate_reports += 1  # RFC 2883
                self.duplicate_bytes += min(end - start, self.nxt - ack + _BELIEVED_BYTES)
                continue
            if end == self.nxt - 1 and segments and segments[-1].fin and segments[-1].payload:
                end += 1  # a receiver that has the last bytes has the FIN that came with them
            if end <= start or end > self.nxt or start < ack:
                self.bad_blocks += end <= start or end > self.nxt
                continue
            self._take_block(start, end, now)

    def _take_block(self, start: int, end: int, now: float) -> None:
        """Mark the segments of a block that are news.  A block repeats what earlier ones said: only gaps are walked."""
        starts, ends, segments = self._sacked_starts, self._sacked_ends, self._segments
        place = bisect_right(starts, start) - 1
        if place >= 0 and ends[place] >= end:
            return
        # Whole segments only: what a receiver has a part of is sent again as a whole.
        at = bisect_left(segments, start, self._head, key=_START)
        after = bisect_right(segments, end, self._head, key=_END)
        if at >= after:
            return
        start, end = segments[at].start, segments[after - 1].end
        low = high = bisect_left(ends, start)
        while high < len(starts) and starts[high] <= end:
            while segments[at].start < starts[high]:
                self._sacked(segments[at], now)
                at += 1
            at = bisect_left(segments, ends[high], at, key=_START)
            high += 1
        while at < after:
            self._sacked(segments[at], now)
            at += 1
        if low < high:
            start, end = min(start, starts[low]), max(end, ends[high - 1])
        starts[low:high] = [start]
        ends[low:high] = [end]

    def _sacked(self, sent: Sent, now: float) -> None:
        if sent.state != DELIVERED:
            self._arrived(sent, now)
            self.sacked_count += 1

    @staticmethod
    def _is_inside(start: int, end: int, blocks: Sequence[tuple[int, int]], ack: int) -> bool:
        if len(blocks) < 2:
            return False
        outer = unwrap(blocks[1][0], ack)
        return outer <= start and end <= unwrap(blocks[1][1], outer)

    # --- what is lost ---

    def reordering_window(self, srtt: float, *, in_recovery: bool) -> float:
        """RACK_update_reo_wnd (RFC 8985 section 6.2, step 4)."""
        if not self.reordering_seen and (in_recovery or self.sacked_count >= DUPLICATE_THRESHOLD):
            return 0.0
        if self.min_rtt == _UNKNOWN:
            return _MIN_REORDERING
        # The smallest round trip says nothing of a way that shuffles more than it delays: once duplicates have told of
        # needless retransmissions the mean one is the measure, up to the same bound.
        base = self.min_rtt if self._multiplier == 1 else srtt
        return max(min(self._multiplier * base / 4, srtt), _MIN_REORDERING)

    def detect_losses(self, now: float, window: float) -> float | None:
        """RACK_detect_loss: mark what was sent well before something that arrived.  When to look again, or None."""
        by_time = self._by_time
        limit, last_end = self._rack_sent_at, self._rack_end
        patience = self._rack_rtt + window
        while by_time:
            sent = by_time[0]
            if sent.state != UNDER_WAY:
                by_time.popleft()
                continue
            if sent.sent_at > limit or (sent.sent_at == limit and sent.end > last_end):
                return None
            due = sent.sent_at + patience
            if due > now:
                return due
            by_time.popleft()
            self._mark_lost(sent)
        return None

    def _mark_lost(self, sent: Sent) -> None:
        sent.state = LOST
        self.pipe -= sent.end - sent.start
        heappush(self._lost, (sent.start, sent.transmissions, sent))

    def lose_first(self) -> bool:
        """Without SACK: the first segment is lost.  False where it is known to be already."""
        if self.is_empty:
            return False
        sent = self._segments[self._head]
        if sent.state != UNDER_WAY:
            return False
        self._by_time.remove(sent)
        self._mark_lost(sent)
        return True

    def lose_all(self) -> None:
        """The retransmission time-out: nothing counts as under way.  A peer that took back what it had told (RFC 2018
        section 8) is believed nothing of it."""
        segments = self._segments[self._head :]
        if segments and segments[0].state == DELIVERED:
            for sent in segments:
                sent.state = LOST
            self.sacked_count = 0
            self._sacked_starts.clear()
            self._sacked_ends.clear()
        lost = [sent for sent in segments if sent.state != DELIVERED]
        for sent in lost:
            sent.state = LOST
        self._lost = [(sent.start, sent.transmissions, sent) for sent in lost]
        self.pipe = 0
        self._by_time.clear()

    def recut(self, mss: int) -> None:
        """Cut what is longer than `mss` anew; what has not arrived is lost."""
        pieces: list[Sent] = []
        for sent in self._segments[self._head :]:
            at, end = sent.start, sent.end
            while end - at > mss + sent.fin:
                offset = at - sent.start
                piece = Sent(at, at + mss, sent.payload[offset : offset + mss], False, sent.sent_at)
                piece.state, piece.transmissions = sent.state, sent.transmissions
                pieces.append(piece)
                at += mss
            sent.payload = sent.payload[at - sent.start :]
            sent.start = at
            pieces.append(sent)
        self._segments, self._head = pieces, 0
        self.sacked_count = sum(piece.state == DELIVERED for piece in pieces)
        self.lose_all()

    def widen_reordering(self) -> None:
        """A retransmission was for nothing: be more patient for a while.  One step in a round trip."""
        if self.una < self._widened_at:
            return
        self._widened_at = self.nxt
        self._multiplier = min(self._multiplier + 1, _REORDERING_ROUNDS)
        self._reordering_rounds = _REORDERING_ROUNDS
        self.reordering_seen = True

    def end_recovery(self) -> None:
        """One recovery is over; after 16 without a needless retransmission patience is forgotten."""
        if self._reordering_rounds:
            self._reordering_rounds -= 1
            if not self._reordering_rounds:
                self._multiplier = 1
