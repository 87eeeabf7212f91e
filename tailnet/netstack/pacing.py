"""What one peer may be sent at once, and whose turn it is: pacing below the queue that its relay holds.  Layer L1.

A relay keeps 32 packets per receiver and drops the oldest of more, so a burst has a quantum and its successor waits for
what the congestion windows allow in a second.  The queue is shared by all connections of a peer: so is the quantum, in
turns.  Dials are bounded for the same reason.  Called by stack.py.
"""

from typing import Final

from tailnet.netstack.connection import Connection
from tailnet.netstack.limits import Limits

# Segments of one connection before the next one's turn.
_TURN: Final = 4
# What a wake-up is worth: less than this many segments would make it most of the cost.
_LEAST_SEGMENTS: Final = 4


class Path:
    """All that goes to one peer."""

    __slots__ = (
        "_at",
        "_dialling",
        "_dials",
        "_limits",
        "_tokens",
        "address",
        "burst_segments",
        "connections",
        "half_open",
        "waiting",
    )

    def __init__(self, address: bytes, limits: Limits) -> None:
        self.address = address
        self._limits = limits
        self.burst_segments = limits.burst_segments
        self._tokens = float(limits.burst_segments)
        self._at = 0.0
        self.waiting: dict[Connection, None] = {}
        """Who has something to send, in the order of their turns."""
        self.connections = 0
        self.half_open = 0
        self._dialling: set[Connection] = set()
        self._dials: dict[Connection, None] = {}
        """Whose SYN waits for an answer to another's, the oldest first."""

    def _rate(self) -> float:
        """Segments a second that the connections which wait may send; infinite until a round trip is known."""
        total = 0.0
        for connection in self.waiting:
            sender = connection.sender
            srtt = sender.rtt.srtt
            if not srtt:
                return float("inf")
            total += sender.cubic.rate(srtt) / sender.mss
        return total

    def send(self, out: list[bytes], served: dict[Connection, None], now: float) -> float | None:
        """Let those who wait send in turns, and name who did.  When to come back, or None where nobody waits."""
        waiting = self.waiting
        rate = self._rate()
        if rate == float("inf") or not self._at:
            self._tokens = float(self.burst_segments)
        else:
            self._tokens = min(self._tokens + (now - self._at) * rate, float(self.burst_segments))
        self._at = now
        while waiting and self._tokens >= 1:
            connection = next(iter(waiting))
            del waiting[connection]
            budget = min(int(self._tokens), _TURN if waiting else self.burst_segments)
            count = connection.send_data(out, budget, now)
            self._tokens -= count
            served[connection] = None
            if count == budget and connection.sender.has_work():
                waiting[connection] = None
        if not waiting:
            return None
        needed = min(_LEAST_SEGMENTS, self.burst_segments) - self._tokens
        wait = needed / rate if rate < float("inf") else 0.0
        return now + max(wait, self._limits.min_pacing_seconds)

    def begin_dial(self, connection: Connection) -> None:
        """Send its SYN now, or when one of those that are under way has been answered."""
        if len(self._dialling) < self._limits.dials_in_flight:
            self._dialling.add(connection)
            connection.start()
        else:
            self._dials[connection] = None

    def end_dial(self, connection: Connection) -> None:
        """It was answered, or given up."""
        if connection in self._dialling:
            self._dialling.remove(connection)
            if self._dials:
                following = next(iter(self._dials))
                del self._dials[following]
                self.begin_dial(following)
        else:
            self._dials.pop(connection, None)
