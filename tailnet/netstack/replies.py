"""How many packets a stranger's packets may cause: a token bucket for each peer.  Layer L1.  Called by stack.py."""

from derp.relay.limits import TokenBucket
from tailnet.netstack.limits import Limits


class Replies:
    """Echo replies, ICMP errors, and resets that belong to no connection (RFC 4443 section 2.4 f)."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buckets: dict[bytes, TokenBucket] = {}
        """The longest unused first."""

    def __len__(self) -> int:
        return len(self._buckets)

    def may_reply(self, address: bytes, now: float) -> bool:
        """Whether one more goes to this peer."""
        limits, buckets = self._limits, self._buckets
        bucket = buckets.pop(address, None)
        if bucket is None:
            bucket = TokenBucket(limits.replies_per_second, limits.replies_burst, now)
        buckets[address] = bucket
        if len(buckets) > limits.max_reply_buckets:
            del buckets[next(iter(buckets))]
        return bucket.take(now)
