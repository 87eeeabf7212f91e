"""Joins timed cores to a host's timers: what is due is handled, and nobody looks in between.  Layer L2.

A timed core (CONTRIBUTING) has `next_timeout` and `handle_timeout` and never calls anybody.  Its owner calls `by` when
it has set a deadline, or `look` when it does not know which.
"""

from collections.abc import Callable
from math import ceil, inf
from typing import Protocol

from derp.transport.host import Host
from derp.transport.timers import Timer


class Timed(Protocol):
    """Who has deadlines."""

    def next_timeout(self) -> float | None: ...


class Alarm:
    """Calls `handle(now)` when the earliest deadline of some timed cores has come.  A flush follows, as with any timer.

    It may ring too early, when a deadline was moved meanwhile: a core then finds that nothing is due.
    """

    __slots__ = ("_cores", "_grain", "_handle", "_host", "_timer", "_when")

    def __init__(self, host: Host, handle: Callable[[float], None], *cores: Timed, grain_seconds: float = 0.0) -> None:
        """With a grain it rings so much too late at most, and wakes the process once for all deadlines in it."""
        self._grain = grain_seconds
        self._host = host
        self._handle = handle
        self._cores = cores
        self._when = inf
        self._timer: Timer | None = None

    def by(self, when: float) -> None:
        """Ring at this time at the latest.  A comparison, if it would ring by then anyway."""
        if when < self._when:
            if self._grain:
                when = ceil(when / self._grain) * self._grain
                if when >= self._when:
                    return
            if self._timer is not None:
                self._timer.cancel()
            self._when = when
            self._timer = self._host.call_at(when, self._ring)

    def look(self) -> None:
        """Ring when the earliest deadline comes."""
        self.by(min((at for core in self._cores if (at := core.next_timeout()) is not None), default=inf))

    def _ring(self) -> None:
        self._timer = None
        self._when = inf
        try:
            self._handle(self._host.now)
        finally:
            self.look()
