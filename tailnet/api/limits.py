"""How many requests a caller may make in a minute (layer L3).

Counted per identity, whatever address or token it comes from: one caller over its limit holds nobody else back.
guards.py takes one for each request of a user, when it knows who that is.
"""

import math
from collections import OrderedDict
from typing import Final

WINDOW_SECONDS: Final = 60.0
# Two hundred bytes each, so 13 MB at the most.  Only identities that the store knows get here, and those of the last
# minute alone are kept; of more, the ones whose minute ends first are forgotten, which lets them begin anew.
MAX_CALLERS: Final = 65_536


class CallerLimits:
    """Counts each caller's requests in a minute that begins with the first of them.  `now` is in seconds."""

    def __init__(self) -> None:
        self.refused_count = 0
        self._windows: OrderedDict[str, list[float]] = OrderedDict()  # when it began, how many: the oldest first

    def take(self, caller: str, limit: int, now: float) -> int:
        """Count one request.  Returns 0 if it may be answered, else after how many whole seconds one may again."""
        if not limit:
            return 0
        while self._windows:
            oldest, (began, _) = next(iter(self._windows.items()))
            if now - began < WINDOW_SECONDS and len(self._windows) <= MAX_CALLERS:
                break
            del self._windows[oldest]
        window = self._windows.setdefault(caller, [now, 0])
        if window[1] >= limit:
            self.refused_count += 1
            return max(1, math.ceil(window[0] + WINDOW_SECONDS - now))
        window[1] += 1
        return 0

    def __len__(self) -> int:
        return len(self._windows)
