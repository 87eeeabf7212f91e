"""CUBIC, HyStart++ and PRR by their formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack.cubic import Cubic, HyStart

MSS = 1000


def after_loss(segments: int) -> Cubic:
    """In congestion avoidance, after a loss at a window of so many segments."""
    cubic = Cubic(MSS)
    cubic.cwnd = segments * MSS
    cubic.enter_recovery(cubic.cwnd)
    cubic.leave_recovery()
    return cubic


def test_slow_start_doubles_each_round() -> None:
    cubic = Cubic(MSS)
    assert cubic.cwnd == 10 * MSS
    for _ in range(10):
        cubic.on_ack(MSS, 1.0, 0.1, 1, 2, 0.1)
    assert cubic.cwnd == 20 * MSS


def test_a_loss_takes_three_tenths() -> None:
    cubic = after_loss(100)
    assert cubic.cwnd == cubic.ssthresh == 70 * MSS
    assert not cubic.in_slow_start


def test_the_curve_is_back_at_the_old_window_after_k() -> None:
    """RFC 9438 section 4.2: K = cbrt((W_max - cwnd) / C) = 4.217 s for 100 segments."""
    cubic = after_loss(100)
    now, srtt = 10.0, 0.1
    start = now
    while now < start + math.cbrt(30 / 0.4):
        cubic.on_ack(cubic.cwnd, now, srtt, 0, 0, None)
        now += srtt
    assert cubic.cwnd == pytest.approx(100 * MSS, rel=0.03)


def test_a_small_window_grows_as_renos_does() -> None:
    """RFC 9438 section 4.3: at a short round trip alpha segments for each of them."""
    cubic = after_loss(20)
    before = cubic.cwnd
    for round_trip in range(10):
        for _ in range(14):
            cubic.on_ack(MSS, 10 + round_trip * 0.001, 0.001, 0, 0, None)
    assert cubic.cwnd - before == pytest.approx(10 * 0.529 * MSS, rel=0.15)


def test_fast_convergence() -> None:
    cubic = after_loss(100)
    cubic.enter_recovery(cubic.cwnd)
    cubic.leave_recovery()
    # 70 < 100: the curve aims at 85 % of 70, so that newcomers get room.
    cubic.on_ack(MSS, 5.0, 0.1, 0, 0, None)
    for _ in range(3):
        cubic.on_ack(cubic.cwnd, 5.0 + math.cbrt((59.5 - 49) / 0.4), 0.0, 0, 0, None)
    assert cubic.cwnd == pytest.approx(59.5 * MSS, rel=0.03)


def test_the_target_is_at_most_half_more_in_a_round() -> None:
    cubic = after_loss(10)
    cubic.on_ack(MSS, 1.0, 0.1, 0, 0, None)
    before = cubic.cwnd
    cubic.on_ack(before, 1000.0, 0.1, 0, 0, None)
    assert cubic.cwnd <= before * 1.5


def test_a_time_out_begins_again() -> None:
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.on_time_out(first=True)
    assert (cubic.cwnd, cubic.ssthresh) == (MSS, 70 * MSS)
    cubic.on_time_out(first=False)
    assert cubic.ssthresh == 70 * MSS, "a series is one congestion"
    for _ in range(100):
        cubic.on_ack(MSS, 1.0, 0.1, 0, 0, None)
    assert cubic.cwnd >= 70 * MSS


@pytest.mark.parametrize("lost", [1, 10, 40])
def test_prr_ends_near_ssthresh_and_sends_in_between(lost: int) -> None:
    """RFC 6937: 100 segments under way; an acknowledgement for each that was not lost."""
    cubic = Cubic(MSS)
    cubic.cwnd = flight = 100 * MSS
    pipe = flight - lost * MSS
    cubic.enter_recovery(flight)
    sent = 0
    for _ in range(100 - lost):
        pipe -= MSS
        cubic.on_recovery_ack(MSS, pipe, advanced=True)
        while pipe + MSS <= cubic.cwnd:
            pipe += MSS
            sent += 1
            cubic.on_recovery_sent(MSS)
    assert pipe <= cubic.ssthresh
    assert pipe >= min(cubic.ssthresh, (100 - lost) * MSS) * 0.9
    assert sent >= 1
    cubic.leave_recovery()
    assert cubic.cwnd == 70 * MSS


def test_idleness_halves_towards_the_initial_window() -> None:
    cubic = Cubic(MSS)
    cubic.cwnd = 100 * MSS
    cubic.after_idle(0.5, 0.3)
    assert cubic.cwnd == 50 * MSS
    cubic.after_idle(100, 0.3)
    assert cubic.cwnd == 10 * MSS


def test_hystart_leaves_when_round_trips_grow() -> None:
    """RFC 9406 section 4.2: eight samples in a round, then five rounds of a quarter's growth."""
    hystart = HyStart()
    una = 0
    over = False
    rounds = 0
    for rtt in [0.050, 0.050, 0.060, *[0.060] * 10]:
        nxt = una + 100
        over = hystart.on_ack(una, nxt, rtt)
        for _ in range(10):
            over = over or hystart.on_ack(una + 1, nxt, rtt)
        una = nxt
        rounds += 1
        if over:
            break
    assert over
    assert 8 <= rounds <= 10


def test_hystart_takes_back_what_was_jitter() -> None:
    hystart = HyStart()
    for una, rtt in [(0, 0.050), (100, 0.050), (200, 0.070), (300, 0.050), (400, 0.050)]:
        hystart.on_ack(una, una + 100, rtt)
        for _ in range(10):
            hystart.on_ack(una + 1, una + 100, rtt)
        if una == 200:
            assert hystart.is_conservative
    assert not hystart.is_conservative


def test_pacing_is_faster_than_the_window() -> None:
    cubic = Cubic(MSS)
    assert cubic.rate(0.1) == 2 * 10 * MSS / 0.1
    assert after_loss(100).rate(0.1) == 1.25 * 70 * MSS / 0.1


@given(st.lists(st.tuples(st.sampled_from("alto"), st.integers(1, 100_000), st.floats(0, 10)), max_size=60))
def test_the_window_is_never_less_than_a_segment(steps: list[tuple[str, int, float]]) -> None:
    cubic = Cubic(MSS)
    now = 1.0
    for kind, size, wait in steps:
        now += wait
        if kind == "a":
            cubic.on_ack(size, now, 0.05, size, 2 * size, 0.05)
        elif kind == "l":
            cubic.enter_recovery(size)
            cubic.leave_recovery()
        elif kind == "t":
            cubic.on_time_out(first=bool(size % 2))
        else:
            cubic.after_idle(wait, 0.2)
        assert MSS <= cubic.cwnd < 1 << 60
        assert cubic.ssthresh >= 2 * MSS
