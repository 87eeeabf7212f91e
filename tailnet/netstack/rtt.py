"""The retransmission time-out from round trips (RFC 6298).  Layer L1.  Samples come from scoreboard.py, never from a
segment that was sent twice (Karn)."""

from typing import Final

_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4
_K: Final = 4.0
_GRANULARITY: Final = 0.001
# What a relay's queue of 32 takes on a way of 20 KB/s; more, and users would wait for it when a cut path was left.
_KEPT_SECONDS: Final = 2.0


class RttEstimator:
    """Times in seconds.  `srtt` is 0 until the first sample."""

    __slots__ = ("_base", "_max", "_min", "backoff", "rto", "srtt", "variance")

    def __init__(self, first_rto: float, min_rto: float, max_rto: float) -> None:
        self._min = min_rto
        self._max = max_rto
        self.srtt = 0.0
        self.variance = 0.0
        self.backoff = 0
        self._base = first_rto
        self.rto = first_rto

    def add(self, sample: float) -> None:
        """A round trip.  It ends the backing off too, since something came through."""
        if self.srtt:
            self.variance += _BETA * (abs(self.srtt - sample) - self.variance)
            self.srtt += _ALPHA * (sample - self.srtt)
        else:
            self.srtt = max(sample, 1e-6)
            self.variance = sample / 2
        self.backoff = 0
        spread = _K * self.variance
        base = self.srtt + (spread if spread > _GRANULARITY else _GRANULARITY)
        self.rto = self._base = min(max(base, self._min), self._max)

    def back_off(self) -> None:
        """The time-out passed: the next is twice as long."""
        self.backoff += 1
        self.rto = min(self.rto * 2, self._max)

    def forgive(self) -> None:
        """New data was acknowledged.  RFC 6298 keeps the doubled time until a sample (Karn): where acknowledgements
        wait behind data of the other direction, each time-out would otherwise be for nothing again.  After an outage
        of minutes it would be too long, and whatever is above two seconds goes."""
        if self.backoff:
            self.backoff = 0
            self.rto = max(self._base, min(self.rto, _KEPT_SECONDS))
