"""Rates of the last seconds, and which limit is nearest."""

from derp.relay.load import WINDOW_SECONDS, LoadMeter, LoadReading


def test_rates_are_those_of_the_window_and_not_of_all_time() -> None:
    meter = LoadMeter()
    assert meter.rates() == (0.0, 0.0, 0.0)
    meter.note(100.0, 5_000, 50, 1000.0)
    assert meter.rates() == (0.0, 0.0, 0.0)
    for second in range(1, 31):
        meter.note(100.0 + second * 0.25, 5_000, 50, 1000.0 + second)
    assert meter.rates() == (0.25, 0.0, 0.0)
    at = 1030.0
    for second in range(1, int(WINDOW_SECONDS) + 1):
        meter.note(107.5, 5_000 + 300 * second, 50 + 2 * second, at + second)
    assert meter.rates() == (0.0, 300.0, 2.0)


def test_a_pause_longer_than_the_window_leaves_no_rate_of_before() -> None:
    meter = LoadMeter()
    meter.note(1.0, 0, 0, 1000.0)
    meter.note(2.0, 10, 1, 1000.0 + 2 * WINDOW_SECONDS)
    assert meter.rates() == (0.0, 0.0, 0.0)


def test_the_nearest_limit_is_named() -> None:
    assert LoadReading(loop_share=0.4, memory_share=0.7).highest == ("memory", 0.7)
    assert LoadReading(bytes_share=1.2, connections_share=0.9).highest == ("bytes", 1.2)
