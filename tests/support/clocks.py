"""Trio's mock clock beside threads, of which it knows nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from trio.testing import MockClock

# Real seconds in which nothing of trio's runs; a thread that takes longer is merely late.
IDLE_SECONDS = 0.01


@contextmanager
def going_on(clock: MockClock) -> Iterator[None]:
    """Within it the clock goes to the next deadline whenever all tasks wait.

    For what comes "a second later": a jump is lost while a thread is still at work and that second begins after it.
    """
    clock.autojump_threshold = IDLE_SECONDS
    try:
        yield
    finally:
        clock.autojump_threshold = float("inf")
