"""What a destination's kernel should hold follows its rate, also where queues live for a moment only."""

import pytest

from derp.relay.pace import FIRST_UNSENT_BYTES, Pace

KIB = 1024


@pytest.mark.parametrize(
    ("rate", "unsent"),
    [(10_000, 16), (1_250_000, 16), (2_000_000, 16), (2_500_000, 32), (12_500_000, 128), (1_250_000_000, 128)],
)
def test_it_is_eight_milliseconds_of_the_rate(rate: int, unsent: int) -> None:
    pace, now = Pace(), 50.0
    pace.begin(now)
    changes = []
    for _ in range(100):  # the kernel has room again when it has sent half of what it holds
        step = pace.unsent_bytes // 2
        now += step / rate
        changes.append(pace.note_taken(step, now))
    assert pace.unsent_bytes == unsent * KIB
    assert changes.count(True) == (unsent * KIB != FIRST_UNSENT_BYTES), "and it is told once"
    for _ in range(30):
        now += 1.0
        pace.note_taken(0, now)
    assert pace.unsent_bytes == 16 * KIB, "until it is another one"


@pytest.mark.parametrize(("milliseconds", "unsent"), [(1, 128), (50, 16)])
def test_queues_that_are_soon_empty_tell_it_too(milliseconds: int, unsent: int) -> None:
    """Little waits each time; but the kernel was full, and had room again after so long."""
    pace = Pace()
    for number in range(1000):
        pace.begin(float(number))
        pace.note_taken(1300, number + milliseconds / 1000)
        pace.end()
    assert pace.unsent_bytes == unsent * KIB


def test_the_time_between_two_queues_is_none_of_its_slowness() -> None:
    pace = Pace()
    for number in range(100):
        assert not pace.note_taken(100_000, float(number)), "nobody said since when it was full"
        pace.end()
    assert pace.unsent_bytes == FIRST_UNSENT_BYTES
