"""Which agents are connected: here, by their open channels, and in the store, for everybody else.  Layer L3.

Here an agent counts as connected while it has an open channel, whatever was written last.  reports.py tells the store,
so that the store is never between an agent and its peers.  server/server.py says who came and who left.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import trio

from tailnet.health.flaps import Flaps
from tailnet.services.reports import AgentReports
from tailnet.store.rows import AgentIdentity, EventType, PresenceChange
from tailnet.transport.channel import Connected
from tailnet.types import PeerID

# 10,000 signs of life at once would hold up the reactor for 30 ms; a fifteenth of them each second holds up nobody.
STEP_SECONDS: Final = 1.0


class AgentPresence:
    """`came` and `left` from the reactor; `run` as one task.  `changed(owner_id)` tells watchers of workspaces,
    `happened(agent_id, ...)` the control plane."""

    def __init__(
        self,
        reports: AgentReports,
        sign_of_life_seconds: float,
        changed: Callable[[UUID], None],
        happened: Callable[[PeerID, EventType, Mapping[str, object]], None] = lambda agent_id, kind, details: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._reports = reports
        self._sign_of_life_seconds = sign_of_life_seconds
        self._changed = changed
        self._happened = happened
        self._clock = clock
        self._channels: dict[PeerID, set[Connected]] = {}
        self.flaps: Flaps[PeerID] = Flaps()

    def came(self, channel: Connected) -> None:
        """An agent's connection that drives its status opened."""
        agent = channel.caller.identity
        assert isinstance(agent, AgentIdentity)
        mine = self._channels.setdefault(agent.id, set())
        if not mine:
            self._happened(agent.id, EventType.CONNECTED, {})
        mine.add(channel)
        now = self._clock()
        self.flaps.note(agent.id, now.timestamp())
        self._reports.note_presence(PresenceChange(agent.id, came_at=now))
        self._changed(agent.owner_id)

    def left(self, channel: Connected) -> None:
        """A channel ended; does nothing if it drove no status.  An agent that reconnected already has not left."""
        agent_id = channel.caller.peer_id
        mine = self._channels.get(agent_id)
        if mine is None or channel not in mine:
            return
        mine.discard(channel)
        if not mine:
            del self._channels[agent_id]
            self._reports.note_presence(PresenceChange(agent_id, left_at=self._clock()))
            self._happened(agent_id, EventType.DISCONNECTED, {"reason": "its connection ended"})
            self._changed(channel.caller.identity.owner_id)

    def is_here(self, agent_id: PeerID) -> bool:
        """Whether an agent has a connection to this server that drives its status."""
        return agent_id in self._channels

    @property
    def connected_count(self) -> int:
        """Agents with a connection that drives their status."""
        return len(self._channels)

    async def run(self) -> None:
        """Give signs of life, until cancelled: of each agent one in an interval, and not of all at once."""
        steps = max(1, int(self._sign_of_life_seconds / STEP_SECONDS))
        while True:
            agents = list(self._channels)
            for step in range(steps):
                await trio.sleep(self._sign_of_life_seconds / steps)
                self.note_alive(agents[step::steps])

    def note_alive(self, agent_ids: Iterable[PeerID]) -> None:
        """A sign of life of each of these that is still here."""
        now = self._clock()
        for agent_id in agent_ids:
            if agent_id in self._channels:
                self._reports.note_presence(PresenceChange(agent_id, seen_at=now))

    def finish(self) -> None:
        """Our end cuts all agents off: tell the store that they are disconnected."""
        now = self._clock()
        for agent_id in self._channels:
            self._reports.note_presence(PresenceChange(agent_id, left_at=now))
            self._happened(agent_id, EventType.DISCONNECTED, {"reason": "its server ended"})
        self._channels.clear()
