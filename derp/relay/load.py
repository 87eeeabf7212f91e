"""How near a relay is to each of its limits.  Layer L1: what was counted and `now` in, shares of the limits out.

server/relay.py notes once a second what its process used and relayed; server/statistics.py puts the reading beside the
limits.  Whoever steers clients by it reads /debug/load: client/load.py, netcheck/load.py.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

LOAD_PATH: Final = "/debug/load"
"""Where a relay tells it, to whoever may see its pages."""
# Over so many seconds rates are taken: a relay that restarts its clients' keep-alives for one is not busy.
WINDOW_SECONDS: Final = 10.0
# As long as this a packet of the relay to itself may take, the other limits set aside.  It takes under 5 ms in a relay
# that is well; what stands in the queues of slow clients says something of them, and nothing of the relay.
DELAY_LIMIT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReading:
    """Shares of limits, where 1 is all of it and 0 also says that there is no limit; and what was relayed a second."""

    connections_share: float = 0.0  # of --max-connections
    bytes_share: float = 0.0  # of what --limits lets the whole relay carry
    packets_share: float = 0.0
    memory_share: float = 0.0  # of what may wait behind slow readers, of all clients
    loop_share: float = 0.0  # of one core, by the thread that relays
    delay_share: float = 0.0  # of DELAY_LIMIT_SECONDS, by a packet to itself
    bytes_per_second: float = 0.0
    packets_per_second: float = 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Each share by the name of its limit."""
        return {
            "connections": self.connections_share,
            "bytes": self.bytes_share,
            "packets": self.packets_share,
            "memory": self.memory_share,
            "loop": self.loop_share,
            "delay": self.delay_share,
        }

    @property
    def highest(self) -> tuple[str, float]:
        """The limit that is nearest, and the share of it."""
        return max(self.shares.items(), key=lambda one: one[1])


class LoadMeter:
    """Rates of the last seconds.  `note` about once a second, what was counted since the start; read at any time."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, float, int, int]] = deque()

    def note(self, cpu_seconds: float, byte_count: int, packets: int, now: float) -> None:
        """What the relaying thread has used, and what came from clients."""
        noted = self._noted
        noted.append((now, cpu_seconds, byte_count, packets))
        while now - noted[0][0] > WINDOW_SECONDS:
            noted.popleft()

    def rates(self) -> tuple[float, float, float]:
        """Share of a core, bytes a second, packets a second; zeros until there are two notes."""
        if len(self._noted) < 2:
            return 0.0, 0.0, 0.0
        (began, *first), (ended, *last) = self._noted[0], self._noted[-1]
        seconds = ended - began
        cpu, byte_count, packets = ((after - before) / seconds for before, after in zip(first, last, strict=True))
        return cpu, byte_count, packets
