"""Who comes again and again, what grew lately, and what lasts (layer L1): counts over windows of time, bounded.

services/presence.py notes each agent that comes; services/health_probes.py and services/replicas_view.py ask.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key")

# Counted in the window of this moment and in the one before: five to ten minutes.  A restart of the server or of an
# agent is one time; a reconnect each minute is what users notice.
WINDOW_SECONDS: Final = 300.0
FLAPPING: Final = 5


class Flaps(Generic[Key]):
    """How often each came.  Bounded by who may come: one number for each agent of the store in each window."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._now: Counter[Key] = Counter()
        self._before: Counter[Key] = Counter()

    def note(self, key: Key, now: float) -> None:
        """Somebody came."""
        self._turn(now)
        self._now[key] += 1

    def flapping(self, now: float) -> list[tuple[Key, int]]:
        """Who came at least FLAPPING times, the worst first."""
        self._turn(now)
        both = self._now + self._before
        return [(key, count) for key, count in both.most_common() if count >= FLAPPING]

    def _turn(self, now: float) -> None:
        if self._began is None:
            self._began = now
        passed = int((now - self._began) // WINDOW_SECONDS)
        if passed > 0:
            self._before = self._now if passed == 1 else Counter()
            self._now = Counter()
            self._began += passed * WINDOW_SECONDS


class Growth:
    """How much a count since the start grew within `seconds`, for whoever looks now and then."""

    def __init__(self, seconds: float, max_looks: int = 1_000) -> None:
        self._seconds = seconds
        # What is forgotten early makes the span shorter, and never the count wrong.
        self._looks: deque[tuple[float, int]] = deque([(float("-inf"), 0)], maxlen=max_looks)

    def look(self, total: int, now: float) -> int:
        """The growth until now, where the count stands at `total`."""
        self._looks.append((now, total))
        # The last look before the span began says what the count was then.
        while len(self._looks) > 1 and self._looks[1][0] <= now - self._seconds:
            self._looks.popleft()
        return total - self._looks[0][1]


class Lasting(Generic[Key]):
    """Since when something is so, of several things, for whoever looks often enough."""

    def __init__(self) -> None:
        self._since: dict[Key, float] = {}

    def look(self, so_now: Iterable[Key], now: float) -> dict[Key, float]:
        """For how many seconds each of these has been so; the others are forgotten."""
        self._since = {key: self._since.get(key, now) for key in so_now}
        return {key: now - since for key, since in self._since.items()}
