"""The ways between processes: links that hold what cannot pass and break, or a bus that loses it."""

from collections.abc import Callable
from math import inf
from random import Random
from typing import Final

# Between a peer and its replica, and between two replicas.
LATENCY_SECONDS: Final = (0.0005, 0.05)
_LEAST_SECONDS, _RANGE_SECONDS = LATENCY_SECONDS[0], LATENCY_SECONDS[1] - LATENCY_SECONDS[0]
# A bus that has not brought back a replica's own beat for so long says so; it beats each second.
DEAF_SECONDS: Final = 3.5
BUS_BEAT_SECONDS: Final = 1.0
# Where one direction passes nothing, the one that hears nothing ends the session after a silence, the other one after
# one more; what was sent before may come late.
ONE_WAY_SECONDS: Final = 18.0


class Way:
    """From one process to another: keeps the order, unless it is lossy."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.down_at = inf  # since when nothing passes
        self.up_at = -inf
        self.lossy_until = 0.0
        self.arrives_at = 0.0
        # By a link that passes nothing for now: it arrives later, or the link breaks.
        self.held: list[Callable[[], object]] = []

    @property
    def is_up(self) -> bool:
        return self.down_at == inf

    def arrivals(self, now: float, is_bus: bool) -> list[float]:
        """When what is sent now arrives: once, twice, late or never."""
        if self.down_at != inf:
            return []
        arrives_at = now + _LEAST_SECONDS + _RANGE_SECONDS * self.random.random()
        if is_bus and now < self.lossy_until:
            fault = self.random.random()
            if fault < 0.1:
                return []
            if fault < 0.2:
                return [arrives_at, arrives_at + self.random.uniform(0, 2)]
            if fault < 0.3:
                return [arrives_at + self.random.uniform(0, 2)]
        if arrives_at > self.arrives_at:
            self.arrives_at = arrives_at
        return [self.arrives_at]
