"""Virtual time: one heap of (time, number, call).  Whoever is simulated schedules calls; nothing else moves time."""

from collections.abc import Callable
from heapq import heappop, heappush


class Heap:
    """What will happen, and when it is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.event_count = 0
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0  # equal times: in the order of scheduling

    def at(self, time: float, call: Callable[[], object]) -> None:
        self._number += 1
        heappush(self._heap, (time if time > self.now else self.now, self._number, call))

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        self._number += 1
        heappush(self._heap, (self.now + seconds, self._number, call))

    def run(self, until: float) -> None:
        """Everything that is due by then."""
        heap, count = self._heap, 0
        try:
            while heap and heap[0][0] <= until:
                self.now, _, call = heappop(heap)
                count += 1
                call()
        finally:
            self.event_count += count
        self.now = until
