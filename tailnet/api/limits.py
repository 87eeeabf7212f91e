"""How many requests a caller may make in a minute (layer L3).

Counted per identity, whatever address or token it comes from: one caller over its limit holds nobody else back.
guards.py takes one for each request of a user, when it knows who that is.  Strangers, who have no identity yet, are
counted by their address, and all together.
"""

import math
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

WINDOW_SECONDS: Final = 60.0
# Two hundred bytes each, so 13 MB at the most.  Only identities that the store knows and addresses get here, and those
# of the last minute alone are kept; of more, the ones whose minute ends first are forgotten: they begin anew.
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


class StrangerLimits:
    """Counts what strangers may make us work for: per address, and together, since a flood has many addresses.

    `address_limit`, `total_limit`: requests in a minute.
    """

    def __init__(self, address_limit: int, total_limit: int) -> None:
        self._address_limit = address_limit
        self._total_limit = total_limit
        self._addresses = CallerLimits()
        self._total = CallerLimits()

    @property
    def refused_count(self) -> int:
        """How many were told to come again later."""
        return self._addresses.refused_count + self._total.refused_count

    def take(self, address: str, now: float) -> tuple[int, int]:
        """Count one request.  Returns (limit, seconds): which limit is passed, and when to come again; 0 s: it may."""
        # The address first: whoever is over its own limit takes nothing from the others.
        for limits, key, limit in (
            (self._addresses, _network(address), self._address_limit),
            (self._total, "", self._total_limit),
        ):
            wait_seconds = limits.take(key, limit, now)
            if wait_seconds:
                return limit, wait_seconds
        return 0, 0


def _network(address: str) -> str:
    """Whoever has one address of IPv6 has the 2**64 beside it."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> 64 << 64))
    return address
