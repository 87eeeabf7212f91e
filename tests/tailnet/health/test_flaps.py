"""Counts over windows of time."""

from tailnet.health.flaps import FLAPPING, WINDOW_SECONDS, Flaps, Growth, Lasting


def test_who_comes_often_enough_is_named() -> None:
    flaps: Flaps[str] = Flaps()
    for at in range(FLAPPING):
        flaps.note("a", float(at))
    for at in range(FLAPPING - 1):
        flaps.note("b", float(at))
    assert flaps.flapping(10.0) == [("a", FLAPPING)]
    flaps.note("b", WINDOW_SECONDS + 1)  # the window before counts too
    assert sorted(flaps.flapping(WINDOW_SECONDS + 1)) == [("a", FLAPPING), ("b", FLAPPING)]
    assert flaps.flapping(2 * WINDOW_SECONDS) == [], "that is over now"


def test_a_long_silence_forgets_all() -> None:
    flaps: Flaps[str] = Flaps()
    for _ in range(FLAPPING):
        flaps.note("a", 5.0)
    assert flaps.flapping(50 * WINDOW_SECONDS) == []
    flaps.note("a", 50 * WINDOW_SECONDS)
    assert flaps.flapping(50 * WINDOW_SECONDS) == []


def test_growth_within_the_span() -> None:
    growth = Growth(60.0)
    assert growth.look(5, 0.0) == 5, "since the start"
    assert growth.look(5, 30.0) == 5
    assert growth.look(7, 59.0) == 7
    assert growth.look(7, 61.0) == 2, "the first five are a minute old"
    assert growth.look(7, 120.0) == 0


def test_growth_of_somebody_who_looks_rarely() -> None:
    growth = Growth(60.0)
    growth.look(1, 0.0)
    assert growth.look(4, 1000.0) == 3, "when it grew nobody knows"
    assert growth.look(4, 2000.0) == 0


def test_looks_are_bounded() -> None:
    growth = Growth(1e9, max_looks=10)
    for at in range(100):
        grown = growth.look(at, float(at))
    assert grown == 9


def test_what_lasts_is_counted_from_its_first_sight() -> None:
    lasting: Lasting[str] = Lasting()
    assert lasting.look(["a"], 10.0) == {"a": 0.0}
    assert lasting.look(["a", "b"], 13.0) == {"a": 3.0, "b": 0.0}
    assert lasting.look(["b"], 14.0) == {"b": 1.0}
    assert lasting.look(["a"], 20.0) == {"a": 0.0}, "it was over meanwhile"
