"""Which agents are connected: here, by their open channels, and in the store, for everybody else.  Layer L3.

Here an agent counts as connected while it has an open channel, whatever was written last.  reports.py tells the store,
so that the store is never between an agent and its peers.  server/server.py says who came and who left.  Elsewhere the
beat of this server (store_watch.py) is the sign of life of all agents whose rows name it.  These are compared
with the channels here again and again: what was lost, or overtaken by a clock that was wrong, is put right.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import trio

from tailnet.errors import StoreError
from tailnet.health.flaps import Flaps
from tailnet.services.reports import AgentReports
from tailnet.store.presence import CLOCKS_DIFFER
from tailnet.store.rows import AgentIdentity, EventType, PresenceChange
from tailnet.transport.channel import Connected
from tailnet.types import PeerID

# 10,000 signs of life at once would hold up the reactor for 30 ms; a fifteenth of them each second holds up nobody.
STEP_SECONDS: Final = 1.0
# A row is written once in ten minutes, give or take a third, so that those who came at once part.  500,000 agents are
# 833 writes a second; with one each 15 s they were 33,000.
TOUCH_SECONDS: Final = 400.0


class AgentPresence:
    """`came` and `left` from the reactor; `run` as one task.  `changed(owner_id)` tells watchers of workspaces,
    `happened(agent_id, ...)` the control plane.  `has_older`: whether a server is here that does not take our beat for
    a sign of life of our agents, as the release before this one does not."""

    def __init__(
        self,
        reports: AgentReports,
        sign_of_life_seconds: float,
        changed: Callable[[UUID], None],
        happened: Callable[[PeerID, EventType, Mapping[str, object]], None] = lambda agent_id, kind, details: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        has_older: Callable[[], bool] = lambda: False,
    ) -> None:
        self._reports = reports
        self._has_older = has_older
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
        """Compare with the store once in an interval, until cancelled; signs of life are spread over the next one."""
        steps = max(1, int(self._sign_of_life_seconds / STEP_SECONDS))
        while True:
            try:
                due = self.compare(await self._reports.list_held())
            except StoreError:  # its watch says so
                due = []
            for step in range(steps):
                await trio.sleep(self._sign_of_life_seconds / steps)
                self.note_alive(due[step::steps])

    def compare(self, held: Mapping[PeerID, datetime]) -> list[PeerID]:
        """Of whom a sign of life is due.  `held`: whom the store has here, and when each was seen by its row.

        Whom the store alone has here has left: else our beat would keep it connected for ever.
        """
        now, has_older = self._clock(), self._has_older()
        for agent_id in held.keys() - self._channels.keys():
            self._reports.note_presence(PresenceChange(agent_id, left_at=now))
        return [
            agent_id
            for agent_id in self._channels
            if has_older or agent_id not in held or not _is_fresh(agent_id, now - held[agent_id])
        ]

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


def _is_fresh(agent_id: PeerID, age: timedelta) -> bool:
    """Whether a row need not be written now; a time to come was a clock's fault."""
    return -CLOCKS_DIFFER < age < timedelta(seconds=TOUCH_SECONDS * (1 + agent_id[0] / 256))
