"""The retransmission time-out, with RFC 6298's own numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack.rtt import RttEstimator


def test_the_first_samples() -> None:
    rtt = RttEstimator(1.0, 0.2, 60.0)
    assert rtt.rto == 1.0
    rtt.add(0.1)
    assert (rtt.srtt, rtt.variance) == (0.1, 0.05)
    assert rtt.rto == pytest.approx(0.3)
    rtt.add(0.2)
    assert rtt.srtt == pytest.approx(0.1125)
    assert rtt.variance == pytest.approx(0.0625)


def test_backing_off_and_forgiving() -> None:
    rtt = RttEstimator(1.0, 0.2, 60.0)
    rtt.add(0.1)
    for expected in (0.6, 1.2, 2.4, 4.8):
        rtt.back_off()
        assert rtt.rto == pytest.approx(expected)
    rtt.forgive()
    assert rtt.rto == 2.0, "what an outage made of it goes"
    rtt.back_off()
    rtt.add(0.1)
    assert rtt.backoff == 0
    assert rtt.rto < 0.6
    rtt.back_off()
    doubled = rtt.rto
    rtt.forgive()
    assert (rtt.rto, rtt.backoff) == (doubled, 0), "until a sample says that the network is as fast as before"
    for _ in range(20):
        rtt.back_off()
    assert rtt.rto == 60.0


@given(st.lists(st.floats(0, 1000), max_size=50))
def test_it_stays_within_its_bounds(samples: list[float]) -> None:
    rtt = RttEstimator(1.0, 0.2, 60.0)
    for sample in samples:
        rtt.add(sample)
        assert 0.2 <= rtt.rto <= 60.0
