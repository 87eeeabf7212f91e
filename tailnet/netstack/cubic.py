"""How much may be under way: CUBIC (RFC 9438), HyStart++ (RFC 9406), PRR (RFC 6937).  Layer L1.

Bytes and seconds.  `on_ack` for each acknowledgement, `enter_recovery` when a loss is found, `on_recovery_ack` until
`leave_recovery`, `on_time_out` when everything was lost.  Called by sending.py.
"""

import math
from typing import Final

INITIAL_SEGMENTS: Final = 10
"""RFC 6928."""
_C: Final = 0.4
_BETA: Final = 0.7
_ALPHA: Final = 3 * (1 - _BETA) / (1 + _BETA)
_FAST_CONVERGENCE: Final = (1 + _BETA) / 2
_MIN_SEGMENTS: Final = 2
_INFINITE: Final = 1 << 62

_SAMPLES: Final = 8
_MIN_RTT_THRESHOLD: Final = 0.004
_MAX_RTT_THRESHOLD: Final = 0.016
_RTT_DIVISOR: Final = 8
_CSS_GROWTH_DIVISOR: Final = 4
_CSS_ROUNDS: Final = 5

# Pacing above the rate of the window, so that the window and not the pacing is what limits.
_SLOW_START_GAIN: Final = 2.0
_AVOIDANCE_GAIN: Final = 1.25


class HyStart:
    """When slow start has filled the path: the round trip grows before anything is lost."""

    __slots__ = ("_base", "_current", "_last", "_rounds", "_samples", "_window_end", "is_conservative")

    def __init__(self) -> None:
        self._window_end = 0
        self._last = math.inf
        self._current = math.inf
        self._samples = 0
        self._base = math.inf
        self._rounds = 0
        self.is_conservative = False

    def on_ack(self, una: int, nxt: int, rtt: float | None) -> bool:
        """True where slow start is over.  Absolute sequence numbers; the newest round trip, if there is one."""
        if rtt is not None:
            self._samples += 1
            self._current = min(self._current, rtt)
        if self._samples >= _SAMPLES:
            if self.is_conservative:
                if self._current < self._base:  # it was a moment's jitter
                    self.is_conservative = False
                    self._base = math.inf
            elif self._last < math.inf:
                threshold = min(max(self._last / _RTT_DIVISOR, _MIN_RTT_THRESHOLD), _MAX_RTT_THRESHOLD)
                if self._current >= self._last + threshold:
                    self.is_conservative = True
                    self._base = self._current
                    self._rounds = 0
        if una >= self._window_end:
            self._window_end = nxt
            self._last = self._current
            self._current = math.inf
            self._samples = 0
            if self.is_conservative:
                self._rounds += 1
                return self._rounds > _CSS_ROUNDS
        return False


class Cubic:
    """The congestion window of one connection."""

    __slots__ = (
        "_cwnd_prior",
        "_epoch",
        "_estimate",
        "_hystart",
        "_k",
        "_mss",
        "_recovery_delivered",
        "_recovery_flight",
        "_recovery_sent",
        "_undo",
        "_w_max",
        "cwnd",
        "ssthresh",
    )

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.cwnd = INITIAL_SEGMENTS * mss
        self.ssthresh = _INFINITE
        self._hystart: HyStart | None = HyStart()
        self._epoch = 0.0
        self._k = 0.0
        self._w_max = 0.0  # in segments
        self._estimate = 0.0
        self._cwnd_prior = 0
        self._recovery_flight = 0
        self._recovery_delivered = 0
        self._recovery_sent = 0
        self._undo: tuple[int, int, float] | None = None

    def set_mss(self, mss: int) -> None:
        """Segments have another size from now on."""
        self._mss = mss
        self._epoch = 0.0

    @property
    def in_slow_start(self) -> bool:
        return self.cwnd < self.ssthresh

    def rate(self, srtt: float) -> float:
        """Bytes a second to pace at."""
        return (_SLOW_START_GAIN if self.cwnd < self.ssthresh else _AVOIDANCE_GAIN) * self.cwnd / srtt

    def on_ack(self, acked: int, now: float, srtt: float, una: int, nxt: int, rtt: float | None) -> None:
        """`acked` bytes arrived while the window was what limited.  Outside of recovery."""
        if self.cwnd < self.ssthresh:
            hystart = self._hystart
            if hystart is not None and hystart.on_ack(una, nxt, rtt):
                self.ssthresh = self.cwnd
                self._hystart = None
                return
            slow = hystart is not None and hystart.is_conservative
            self.cwnd += acked // _CSS_GROWTH_DIVISOR if slow else acked
            if self.cwnd > self.ssthresh:
                self.cwnd = self.ssthresh
            return
        mss, cwnd = self._mss, self.cwnd
        window = cwnd / mss
        if not self._epoch:
            self._begin_epoch(now, window)
        age = now - self._epoch
        # What Reno would have: alpha until it is back where the loss was, 1 from there (section 4.3).
        self._estimate += (_ALPHA if self._estimate * mss < self._cwnd_prior else 1.0) * acked / cwnd
        if _C * (age - self._k) ** 3 + self._w_max < self._estimate:
            if self._estimate > window:
                self.cwnd = int(self._estimate * mss)
            return
        target = _C * (age + srtt - self._k) ** 3 + self._w_max
        target = min(max(target, window), 1.5 * window)
        self.cwnd = cwnd + int((target - window) / window * acked)

    def _begin_epoch(self, now: float, window: float) -> None:
        self._epoch = now
        if self._w_max < window:
            self._w_max = window
            self._k = 0.0
        else:
            self._k = math.cbrt((self._w_max - window) / _C)
        self._estimate = window

    def after_idle(self, seconds: float, rto: float) -> None:
        """Nothing was under way for a while: half for each time-out (RFC 2861), and time stood still for the curve."""
        if self._epoch:
            self._epoch += seconds
        least = INITIAL_SEGMENTS * self._mss
        while seconds > rto and self.cwnd > least:
            self.ssthresh = max(self.ssthresh, self.cwnd * 3 // 4) if self.ssthresh != _INFINITE else self.ssthresh
            self.cwnd = max(self.cwnd // 2, least)
            seconds -= rto

    def _reduce(self) -> None:
        self._undo = (self.cwnd, self.ssthresh, self._w_max)
        window = self.cwnd / self._mss
        self._w_max = window * _FAST_CONVERGENCE if window < self._w_max else window
        self._cwnd_prior = self.cwnd
        self.ssthresh = max(int(self.cwnd * _BETA), _MIN_SEGMENTS * self._mss)
        self._epoch = 0.0
        self._hystart = None

    def enter_recovery(self, flight: int) -> None:
        """A loss was found; `flight`: what was sent and is not acknowledged."""
        self._reduce()
        self._recovery_flight = max(flight, self._mss)
        self._recovery_delivered = 0
        self._recovery_sent = 0

    def on_recovery_ack(self, delivered: int, pipe: int, *, advanced: bool) -> None:
        """Spread the reduction over the recovery.  `advanced`: the acknowledgement moved on and found no new loss."""
        self._recovery_delivered += delivered
        if pipe > self.ssthresh:
            share = -(-self._recovery_delivered * self.ssthresh // self._recovery_flight)
            count = share - self._recovery_sent
        else:
            behind = self._recovery_delivered - self._recovery_sent
            limit = max(behind, delivered) + self._mss if advanced else behind
            count = min(self.ssthresh - pipe, limit)
        if not self._recovery_sent:
            count = max(count, self._mss)  # the first retransmission goes out at once
        # One segment is always allowed: with nothing under way nobody would ask for the next.
        self.cwnd = max(pipe + max(count, 0), self._mss)

    def on_recovery_sent(self, size: int) -> None:
        self._recovery_sent += size

    def leave_recovery(self) -> None:
        self.cwnd = max(self.ssthresh, _MIN_SEGMENTS * self._mss)

    def on_time_out(self, *, first: bool) -> None:
        """Everything that was under way counts as lost.  Only the first time-out of a series is a new congestion."""
        if first:
            self._reduce()
        self.cwnd = self._mss
        self._epoch = 0.0

    def undo(self) -> None:
        """The last reduction was for nothing: what was sent twice had arrived twice."""
        if self._undo is not None:
            cwnd, ssthresh, self._w_max = self._undo
            self.cwnd = max(self.cwnd, cwnd)
            # Slow start that was not over goes on to where it was, and not beyond: HyStart++ is gone.
            self.ssthresh = max(self.ssthresh, min(ssthresh, cwnd))
            self._undo = None
            self._epoch = 0.0
