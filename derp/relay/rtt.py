"""Round-trip times of clients' connections, counted in the buckets of the genuine relay.  Layer L1."""

from bisect import bisect_left
from typing import Final

_LIMITS_MS: Final = (10, 20, 50, 100, 150, 250, 500)
RTT_BUCKETS: Final = (*(f"{limit}ms" for limit in _LIMITS_MS), "inf", "non-tcp", "error")
# A client that came by websocket counts here once.  Genuine relays cannot see its round-trip times; ours can, and count
# them among the others as well.
NON_TCP_BUCKET: Final = len(RTT_BUCKETS) - 2
# Upper limits in seconds of the buckets before those two.
RTT_LIMITS_SECONDS: Final = (*(limit / 1000 for limit in _LIMITS_MS), float("inf"))
ERROR_BUCKET: Final = len(RTT_BUCKETS) - 1


def rtt_bucket(microseconds: int) -> int:
    """The index in RTT_BUCKETS of a round-trip time."""
    return bisect_left(_LIMITS_MS, microseconds / 1000)
