"""Token buckets grant no more than burst and rate together, and no less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.relay.limits import TokenBucket

STEPS = st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 30)), max_size=50)


def test_it_starts_full_and_fills_at_its_rate() -> None:
    bucket = TokenBucket(2.0, 3.0, 100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert not bucket.take(100.9)
    assert bucket.take(101.0)


def test_it_holds_no_more_than_its_burst() -> None:
    bucket = TokenBucket(2.0, 3.0, 100.0)
    assert [bucket.take(1_000_000.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_costs_nothing() -> None:
    bucket = TokenBucket(1.0, 10.0, 0.0)
    assert not bucket.take(0.0, 11.0)
    assert bucket.take(0.0, 10.0)


@given(steps=STEPS, per_second=st.floats(0.5, 20), burst=st.floats(1, 50))
def test_never_more_than_burst_and_rate_allow(
    steps: list[tuple[float, float]], per_second: float, burst: float
) -> None:
    bucket = TokenBucket(per_second, burst, 0.0)
    now = granted = 0.0
    for wait, wanted in steps:
        now += wait
        if bucket.take(now, wanted):
            granted += wanted
        assert granted <= (burst + now * per_second) * (1 + 1e-9)


@given(steps=STEPS, per_second=st.floats(0.5, 20), burst=st.floats(1, 50))
def test_who_waits_as_told_gets_exactly_the_rate(
    steps: list[tuple[float, float]], per_second: float, burst: float
) -> None:
    """Spending goes into debt once and the wait pays it back: no time is lost beyond what was asked for."""
    bucket = TokenBucket(per_second, burst, 0.0)
    now = spent = 0.0
    for _, tokens in steps:
        wait = bucket.spend(now, tokens)
        spent += tokens
        assert wait == pytest.approx(max(0.0, (spent - burst) / per_second - now), abs=1e-6)
        now += wait


def test_debt_is_paid_before_anything_else() -> None:
    bucket = TokenBucket(10.0, 5.0, 0.0)
    assert bucket.spend(0.0, 25.0) == 2.0
    assert bucket.spend(1.0, 0.0) == 1.0
    assert not bucket.take(2.0)
    assert bucket.take(2.1)
