"""Token buckets: how much of something may pass per second.  Layer L1: `now` is an argument."""


class TokenBucket:
    """`per_second` tokens flow in, and the bucket keeps at most `burst` of them.  It starts full."""

    __slots__ = ("_at", "_burst", "_tokens", "per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take `tokens` if so many are there; if not, take nothing and return False."""
        self._refill(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def spend(self, now: float, tokens: float) -> float:
        """Take `tokens`, into debt if need be; return for how many seconds the caller should take nothing more."""
        self._refill(now)
        self._tokens -= tokens
        if self._tokens >= 0:
            return 0.0
        return -self._tokens / self.per_second

    def _refill(self, now: float) -> None:
        self._tokens = min(self._tokens + (now - self._at) * self.per_second, self._burst)
        self._at = now
