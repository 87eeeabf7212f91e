"""What the connections of an agent carry, told to the coordinator at the interval that it wants.  Layer L3.

Numbers are since the last report, as the coordinator adds them up; sessions are those that are open.
Next hop: counters.py, control.py.
"""

import statistics
from contextlib import suppress
from typing import Final

import trio

from tailnet.agent.context import Context
from tailnet.agent.control import Control
from tailnet.agent.counters import UDP, Kind
from tailnet.errors import LocalProtocolError
from tailnet.node.engine import Engine
from tailnet.proto.convert import NANOS
from tailnet.proto.generated import agent_pb2 as agent

# What a coordinator without an interval gets; and a bound for one that wants to hear of nothing else.
DEFAULT_SECONDS: Final = 300.0
MIN_SECONDS: Final = 1.0
# Since this minor sessions are counted in a map, and the four old fields are empty.
_MAP_MINOR: Final = 11
# Users whose way is measured for the median, and how long all of them have to answer.
_MAX_PINGS: Final = 16
_PING_SECONDS: Final = 3.0
# There is no user, or none answered.
_UNKNOWN: Final = -1.0


class Stats:
    """Made for each connection to the coordinator, over the same engine and counters."""

    def __init__(self, context: Context, engine: Engine, control: Control) -> None:
        self._context = context
        self._engine = engine
        self._control = control
        self._last = self._totals()

    async def run(self) -> None:
        """Until cancelled, or until the coordinator knows no such report."""
        request = agent.UpdateStatsRequest()  # the first asks for the interval alone
        while True:
            answer = await self._control.report("UpdateStats", request, agent.UpdateStatsResponse)
            if "UpdateStats" in self._control.unknown:
                return
            seconds = answer.report_interval.ToNanoseconds() / NANOS if answer is not None else 0.0
            await trio.sleep(max(seconds, MIN_SECONDS) if seconds > 0 else DEFAULT_SECONDS)
            request = agent.UpdateStatsRequest(stats=await self.read())

    async def read(self) -> agent.Stats:
        """Since the last time."""
        latency = await self._median_latency_ms()
        counters, now = self._context.counters, self._totals()
        rx_packets, rx_bytes, tx_packets, tx_bytes = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        open_count = sum(counters.connections.values())
        flow_count = counters.connections[UDP]
        by_protocol = {"TCP": open_count - flow_count} | ({"UDP": flow_count} if flow_count else {})
        stats = agent.Stats(
            connections_by_proto=by_protocol,
            connection_count=open_count,
            connection_median_latency_ms=latency,
            rx_packets=rx_packets,
            rx_bytes=rx_bytes,
            tx_packets=tx_packets,
            tx_bytes=tx_bytes,
        )
        sessions = {kind.value: counters.sessions[kind] for kind in Kind}
        if self._control.minor >= _MAP_MINOR:
            stats.session_counts.update(sessions)
        else:
            for name, count in sessions.items():
                setattr(stats, f"session_count_{name}", count)
        return stats

    def _totals(self) -> tuple[int, int, int, int]:
        packets = self._engine.core.stack.counters
        received, sent = self._context.counters.carried()
        return packets.packets_received, received, packets.packets_sent, sent

    async def _median_latency_ms(self) -> float:
        """Of those who have a connection now."""
        found: list[float] = []

        async def ping(node_key: bytes) -> None:
            with suppress(trio.TooSlowError, LocalProtocolError):  # it has gone
                found.append((await self._engine.disco_ping(node_key, timeout_seconds=_PING_SECONDS)).seconds)

        owners = {self._engine.core.device.owner_of(address) for address in self._context.counters.peers()}
        keys = [owner.public for owner in owners if owner is not None][:_MAX_PINGS]
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(ping, key)
        return statistics.median(found) * 1_000 if found else _UNKNOWN
