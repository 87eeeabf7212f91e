"""The sending half of a connection: what waits, which segment goes next, and the timers of loss.  Layer L1.

RFC 9293 section 3.8 (windows, persist), RFC 6298 (time-out), RFC 8985 section 7 (tail loss probe), RFC 6675 and 6937
(recovery).  Nagle is off: what is written is sent.  Absolute numbers, seconds, bytes.  Next hop: scoreboard.py and
cubic.py; called by connection.py.
"""

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final

from tailnet.netstack.cubic import Cubic
from tailnet.netstack.limits import Counters, Limits
from tailnet.netstack.rtt import RttEstimator
from tailnet.netstack.scoreboard import DUPLICATE_THRESHOLD, Scoreboard, Sent

# A probe sooner than this would mostly repeat what a busy peer has not come to answering yet.
_MIN_PROBE_SECONDS: Final = 0.010
_MAX_ACK_DELAY: Final = 0.2
_FIRST_PROBE_SECONDS: Final = 1.0
# Small writes are put together: a write of one byte would cost 34 of overhead.
_SMALL_BYTES: Final = 1024
_GATHERED_BYTES: Final = 65536


class Mode(Enum):
    OPEN = "nothing is lost"
    RECOVERY = "losses are repaired at a falling window"
    LOSS = "a time-out passed; begins again with one segment"


class Sender:
    """`queue` what the user writes, `take` what may go, `on_ack` what came; `on_timeout` at `timeout_at`."""

    __slots__ = (
        "_blocked",
        "_counters",
        "_dsacks",
        "_duplicates",
        "_limits",
        "_persist_at",
        "_persists",
        "_probe_at",
        "_probe_due",
        "_probe_end",
        "_probe_repeats",
        "_recovery_point",
        "_reorder_at",
        "_rto_at",
        "_undo_left",
        "_unsent",
        "_wl1",
        "_wl2",
        "board",
        "cubic",
        "cwnd_limited",
        "fin_queued",
        "fin_sent",
        "force",
        "heard_at",
        "last_sent_at",
        "max_window",
        "mode",
        "mss",
        "probe_window",
        "progress_at",
        "rtt",
        "sack",
        "unsent_bytes",
        "window",
    )

    def __init__(self, iss: int, mss: int, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self.mss = mss
        self.board = Scoreboard(iss + 1)
        self.cubic = Cubic(mss)
        self.rtt = RttEstimator(limits.first_rto, limits.min_rto, limits.max_rto)
        self.sack = False
        self.window = 0
        self.max_window = 0
        self._wl1 = self._wl2 = 0
        self._unsent: deque[bytes | bytearray | memoryview] = deque()
        self.unsent_bytes = 0
        self.fin_queued = self.fin_sent = False
        self.mode = Mode.OPEN
        self._recovery_point = iss + 1
        self._duplicates = 0
        self._dsacks = 0
        self._undo_left = 0
        self.cwnd_limited = False
        self.progress_at = self.heard_at = self.last_sent_at = 0.0
        self._rto_at: float | None = None
        self._probe_at: float | None = None
        self._reorder_at: float | None = None
        self._persist_at: float | None = None
        self._persists = 0
        self._probe_due = False
        self._probe_end = 0
        self._probe_repeats = False
        self.probe_window = False
        """A window probe is to be sent: connection.py does, as it is no segment of ours."""
        self.force = False
        """The window is smaller than a segment, and has been for a while: fill it."""
        self._blocked = False

    def begin(self, mss: int, *, sack: bool, window: int, seq: int, now: float) -> None:
        """The handshake is over: our SYN was acknowledged, and the peer's said what it can take."""
        self.mss = mss
        self.cubic = Cubic(mss)
        self.sack = sack
        self.window = self.max_window = window
        self._wl1, self._wl2 = seq, self.board.una
        self.progress_at = self.heard_at = self.last_sent_at = now

    # --- the user ---

    @property
    def room(self) -> int:
        """How many bytes `queue` takes: two windows, so that the network never waits for the writer."""
        limits = self._limits
        limit = min(max(2 * self.cubic.cwnd, limits.min_send_bytes), limits.max_send_bytes)
        return max(limit - self.unsent_bytes - self.board.flight, 0)

    def queue(self, data: bytes | bytearray | memoryview) -> int:
        """How many of the bytes were accepted."""
        size = min(len(data), self.room)
        if size < len(data):
            self._blocked = True
        if not size:
            return 0
        self.unsent_bytes += size
        unsent = self._unsent
        if size < _SMALL_BYTES:
            last = unsent[-1] if unsent else None
            if isinstance(last, bytearray) and len(last) < _GATHERED_BYTES:
                last += data[:size]
            else:
                unsent.append(bytearray(data[:size]))
        elif size == len(data) and isinstance(data, bytes):
            unsent.append(data)
        else:
            unsent.append(bytes(data[:size]))
        return size

    @property
    def held_bytes(self) -> int:
        """What the user has sent and the peer has not acknowledged."""
        return self.unsent_bytes + self.board.flight

    def block(self) -> None:
        """The node has no room for more: `unblocked` tells when to try again."""
        self._blocked = True

    def unblocked(self) -> bool:
        """Once after `queue` took less than it was given, and a quarter of the buffer is free again."""
        if self._blocked and 4 * self.room >= self._limits.min_send_bytes:
            self._blocked = False
            return True
        return False

    def drop_unsent(self) -> None:
        self._unsent.clear()
        self.unsent_bytes = 0

    def recut(self, mss: int) -> None:
        """Segments are too long for the path: cut them anew, and send them again."""
        self.mss = mss
        self.cubic.set_mss(mss)
        self.board.recut(mss)

    # --- what goes out ---

    def has_work(self) -> bool:
        """Whether `take` may have something, were there no congestion window."""
        return bool(
            self.unsent_bytes
            or (self.fin_queued and not self.fin_sent)
            or self._probe_due
            or self.board.first_lost() is not None
        )

    def take(self, budget: int, now: float) -> list[Sent]:
        """Up to `budget` segments that may go now.  They count as sent."""
        taken: list[Sent] = []
        board, cubic = self.board, self.cubic
        if self._probe_due:
            self._probe_due = False
            self._take_probe(taken, now)
        pipe_at_start = board.pipe
        while len(taken) < budget and (lost := board.first_lost()) is not None:
            size = lost.end - lost.start
            if board.pipe and board.pipe + size > cubic.cwnd:
                break
            board.resend(lost, now)
            self._counters.retransmissions += 1
            self._undo_left += 1
            if self.mode is Mode.RECOVERY:
                cubic.on_recovery_sent(size)
            taken.append(lost)
        else:
            if self.unsent_bytes or (self.fin_queued and not self.fin_sent):
                if not pipe_at_start and board.is_empty and now - self.last_sent_at > self.rtt.rto:
                    cubic.after_idle(now - self.last_sent_at, self.rtt.rto)
                self._take_new(taken, budget, now)
        if taken:
            self.last_sent_at = now
            if self._rto_at is None:
                self._rto_at = now + self.rtt.rto
            self._arm_probe(now)
        return taken

    def _take_new(self, taken: list[Sent], budget: int, now: float) -> None:
        board, mss = self.board, self.mss
        was_empty, before = board.is_empty, len(taken)
        edge = board.una + self.window
        cwnd = self.cubic.cwnd
        recovering = self.mode is Mode.RECOVERY
        unsent = self.unsent_bytes
        while len(taken) < budget:
            size = mss if unsent > mss else unsent
            if not size:
                if self.fin_queued and not self.fin_sent:
                    self.fin_sent = True
                    taken.append(board.add(b"", True, now))
                self.cwnd_limited = False
                break
            if board.nxt + size > edge:
                room = edge - board.nxt
                self.cwnd_limited = False
                # Half of the largest window is the receiver's own step (RFC 9293 section 3.8.6.2.1).
                if room <= 0 or not (self.force or 2 * room >= self.max_window) or board.pipe + room > cwnd:
                    if board.is_empty and self._persist_at is None:
                        self._persist_at = now + self.rtt.rto
                    break
                size = room
                self.force = False
            elif board.pipe + size > cwnd:
                self.cwnd_limited = True
                break
            unsent -= size
            fin = self.fin_queued and not unsent
            if fin:
                self.fin_sent = True
            taken.append(board.add(self._cut(size), fin, now))
            if recovering:
                self.cubic.on_recovery_sent(size)
        self.unsent_bytes = unsent
        if was_empty and len(taken) > before:
            self.progress_at = now  # what is timed begins here

    def _cut(self, size: int) -> bytes:
        """The first bytes that wait."""
        unsent = self._unsent
        chunk = unsent[0]
        if len(chunk) > size:
            # A view is moved on, the chunk under it is freed with its last one; a bytearray stays one and is short.
            if isinstance(chunk, bytes):
                chunk = memoryview(chunk)
            piece = bytes(chunk[:size])
            if isinstance(chunk, bytearray):
                del chunk[:size]
            else:
                unsent[0] = chunk[size:]
            return piece
        unsent.popleft()
        if len(chunk) == size:
            return bytes(chunk)
        return bytes(chunk) + self._cut(size - len(chunk))

    def _take_probe(self, taken: list[Sent], now: float) -> None:
        """RFC 8985 section 7.3: a new segment where there is one and room for it, else the last one again."""
        board = self.board
        size = min(self.mss, self.unsent_bytes)
        if size and board.nxt + size <= board.una + self.window:
            self.unsent_bytes -= size
            fin = self.fin_queued and not self.unsent_bytes
            self.fin_sent = self.fin_sent or fin
            taken.append(board.add(self._cut(size), fin, now))
            self._probe_repeats = False
        elif (last := board.last()) is not None:
            board.resend(last, now)
            self._counters.retransmissions += 1
            taken.append(last)
            self._probe_repeats = True
        self._probe_end = board.nxt
        self._counters.tail_probes += 1
        self._rto_at = now + self.rtt.rto

    # --- what came ---

    def on_window(self, ack: int, seq: int, window: int) -> None:
        """SND.WND, SND.WL1, SND.WL2 (RFC 9293 section 3.10.7.4)."""
        if self._wl1 < seq or (self._wl1 == seq and self._wl2 <= ack):
            self._wl1, self._wl2 = seq, ack
            self.window = window
            if window > self.max_window:
                self.max_window = window

    def on_ack(self, ack: int, seq: int, window: int, blocks: Sequence[tuple[int, int]], size: int, now: float) -> None:
        """An acceptable acknowledgement, and the window and the `size` of the payload beside it."""
        board, rtt = self.board, self.rtt
        same_window = window == self.window
        self.on_window(ack, seq, window)
        self.heard_at = now
        if self._persist_at is not None and (self.window >= self.mss or not board.is_empty):
            self._persist_at = None
            self._persists = 0
        if ack == board.una and not blocks and board.is_empty:
            return
        board.on_ack(ack, blocks, now)
        advanced = board.advanced
        if board.sample is not None:
            rtt.add(board.sample)
        if advanced:
            self.progress_at = now
            rtt.forgive()
        if not self.sack:
            self._count_duplicates(same_window and not size and not advanced)
        self._reorder_at = board.detect_losses(
            now, board.reordering_window(rtt.srtt, in_recovery=self.mode is not Mode.OPEN)
        )
        self._on_congestion(ack, now)
        if self._probe_end:
            self._judge_probe(ack, repeated=not advanced and not blocks and not size)
        if board.duplicate_reports > self._dsacks:
            reports, board.duplicate_bytes = board.duplicate_bytes // self.mss, 0
            self._on_duplicate_reports(max(board.duplicate_reports - self._dsacks, reports))
        if board.is_empty:
            self._rto_at = self._probe_at = self._reorder_at = None
        elif advanced or board.delivered:
            self._rto_at = now + rtt.rto
            self._arm_probe(now)

    def _on_congestion(self, ack: int, now: float) -> None:
        board, cubic = self.board, self.cubic
        if self.mode is not Mode.OPEN and ack >= self._recovery_point:
            if self.mode is Mode.RECOVERY:
                cubic.leave_recovery()
            board.end_recovery()
            self.mode = Mode.OPEN
        lost = board.first_lost()
        if lost is not None and self.mode is Mode.OPEN:
            self.mode = Mode.RECOVERY
            self._recovery_point = board.nxt
            self._probe_at = None
            self._undo_left = 0
            cubic.enter_recovery(board.flight)
        if self.mode is Mode.RECOVERY:
            cubic.on_recovery_ack(board.delivered, board.pipe, advanced=board.advanced and lost is None)
        elif board.delivered and (self.cwnd_limited or (cubic.in_slow_start and cubic.cwnd < 2 * board.flight)):
            cubic.on_ack(board.delivered, now, self.rtt.srtt, board.una, board.nxt, board.newest)

    def _on_duplicate_reports(self, count: int) -> None:
        """Retransmissions were for nothing; when all of a reduction's were, so was the reduction (RFC 3708)."""
        self._dsacks = self.board.duplicate_reports
        self.board.widen_reordering()
        if self._undo_left:
            self._undo_left = max(self._undo_left - count, 0)
            if not self._undo_left:
                self.cubic.undo()
                self._counters.spurious_recoveries += 1
                if self.mode is Mode.RECOVERY:
                    self.mode = Mode.OPEN

    def _count_duplicates(self, is_duplicate: bool) -> None:
        """RFC 6582, for a peer that refused SACK."""
        board = self.board
        if is_duplicate and not board.is_empty:
            self._duplicates += 1
            if self._duplicates == DUPLICATE_THRESHOLD and self.mode is Mode.OPEN:
                board.lose_first()
        elif board.advanced:
            self._duplicates = 0
            if self.mode is Mode.RECOVERY and board.una < self._recovery_point:
                board.lose_first()

    def _judge_probe(self, ack: int, *, repeated: bool) -> None:
        """RFC 8985 section 7.4: whether the probe repaired a loss, which the congestion window has to hear of."""
        if ack < self._probe_end:
            return
        if not self._probe_repeats or repeated or self.board.duplicate_reports > self._dsacks:
            self._probe_end = 0
        elif ack > self._probe_end:
            self._probe_end = 0
            if self.mode is Mode.OPEN:
                self.cubic.enter_recovery(self.board.flight)
                self.cubic.leave_recovery()

    # --- time ---

    def _arm_probe(self, now: float) -> None:
        board = self.board
        if not self.sack or self.mode is not Mode.OPEN or board.sacked_count or board.is_empty or self._probe_end:
            self._probe_at = None
            return
        srtt = self.rtt.srtt
        wait = 2 * srtt if srtt else _FIRST_PROBE_SECONDS
        if board.count == 1:
            wait += _MAX_ACK_DELAY
        at = now + (wait if wait > _MIN_PROBE_SECONDS else _MIN_PROBE_SECONDS)
        self._probe_at = at if self._rto_at is None or at < self._rto_at else None

    def timeout_at(self) -> float | None:
        """The earliest of the timers."""
        earliest = self._rto_at
        for at in (self._probe_at, self._reorder_at, self._persist_at):
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        return earliest

    def on_timeout(self, now: float) -> bool:
        """Whatever is due.  False where the peer is given up."""
        if self._reorder_at is not None and self._reorder_at <= now:
            board = self.board
            self._reorder_at = board.detect_losses(
                now, board.reordering_window(self.rtt.srtt, in_recovery=self.mode is not Mode.OPEN)
            )
            if self._reorder_at is not None and self._reorder_at <= now:
                self._reorder_at = None
            board.delivered = 0
            board.advanced = False
            self._on_congestion(board.una, now)
        if self._probe_at is not None and self._probe_at <= now:
            self._probe_at = None
            self._probe_due = True
        if self._rto_at is not None and self._rto_at <= now:
            return self._on_retransmission_timeout()
        if self._persist_at is not None and self._persist_at <= now:
            return self._on_persist(now)
        return True

    def _on_retransmission_timeout(self) -> bool:
        due, self._rto_at = self._rto_at, None
        assert due is not None
        if due - self.progress_at >= self._limits.give_up_seconds:
            return False
        self._counters.rtos += 1
        if self.mode is not Mode.LOSS:
            self._undo_left = 0
        self.board.lose_all()
        self.cubic.on_time_out(first=self.mode is not Mode.LOSS)
        self.rtt.back_off()
        self.mode = Mode.LOSS
        self._recovery_point = self.board.nxt
        self._probe_at = self._reorder_at = None
        self._probe_due = False
        self._probe_end = 0
        return True

    def _on_persist(self, now: float) -> bool:
        """RFC 9293 section 3.8.6.1: a peer that answers may keep its window shut for as long as it likes."""
        due, self._persist_at = self._persist_at, None
        assert due is not None
        if not self.unsent_bytes or not self.board.is_empty:
            return True
        if due - self.heard_at >= self._limits.give_up_seconds:
            return False
        self._persists += 1
        if self.window:
            self.force = True
        else:
            self.probe_window = True
            self._counters.probes += 1
        wait = min(self.rtt.rto * 2 ** min(self._persists, 10), self._limits.max_rto)
        self._persist_at = now + wait
        return True
