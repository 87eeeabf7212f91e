"""Bounds that depend on each other, and the counts."""

from dataclasses import fields

from tailnet.netstack.limits import Counters, Drop, Limits
from tailnet.netstack.receiving import WINDOW_SCALE


def test_bounds_fit_together() -> None:
    limits = Limits()
    assert limits.max_receive_bytes <= 65535 << WINDOW_SCALE
    assert limits.min_receive_bytes <= limits.first_receive_bytes <= limits.max_receive_bytes
    assert limits.max_pieces * (limits.mtu - 60) >= limits.max_receive_bytes, "a full window of segments fits"
    assert limits.max_half_open_per_peer < limits.max_half_open < limits.max_connections
    assert limits.max_connections_per_peer < limits.max_connections
    assert 2 * limits.burst_segments <= 32, "the queue of a relay"
    assert limits.min_rto < limits.first_rto < limits.max_rto < limits.give_up_seconds
    # Every connection at its least, and all that may be granted beyond.
    assert limits.max_connections * limits.min_receive_bytes + limits.total_receive_bytes < 2 << 30
    assert all(getattr(limits, field.name) is not None for field in fields(limits))


def test_labels_are_unique() -> None:
    assert len({drop.value for drop in Drop}) == len(Drop)


def test_counts_begin_at_zero() -> None:
    counters = Counters()
    assert all(not getattr(counters, name) for name in Counters.__slots__)
