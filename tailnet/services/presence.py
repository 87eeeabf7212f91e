"""Which agents are connected, as the store shows it: written behind, in batches.  Layer L3.

The store is never between an agent and its peers: connects, signs of life and disconnects are gathered here and
written once a second.  server/server.py tells who came and who left.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import trio

from tailnet.errors import StoreError
from tailnet.store.rows import AgentIdentity
from tailnet.store.store import Store
from tailnet.transport.channel import Connected
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

WRITE_SECONDS: Final = 1.0


class AgentPresence:
    """`came` and `left` from the reactor; `run` as one task.  `changed(owner_id)` tells watchers of workspaces."""

    def __init__(self, store: Store, sign_of_life_seconds: float, changed: Callable[[UUID], None]) -> None:
        self._store = store
        self._sign_of_life_seconds = sign_of_life_seconds
        self._changed = changed
        self._channels: dict[PeerID, set[Connected]] = {}
        self._came: set[PeerID] = set()
        self._left: set[PeerID] = set()
        self._owners: dict[PeerID, UUID] = {}

    def came(self, channel: Connected) -> None:
        """An agent's connection that drives its status opened."""
        agent = channel.caller.identity
        assert isinstance(agent, AgentIdentity)
        self._channels.setdefault(agent.id, set()).add(channel)
        self._owners[agent.id] = agent.owner_id
        self._left.discard(agent.id)
        self._came.add(agent.id)

    def left(self, channel: Connected) -> None:
        """A channel ended; does nothing if it drove no status.  An agent that reconnected already has not left."""
        agent_id = channel.caller.peer_id
        mine = self._channels.get(agent_id)
        if mine is None or channel not in mine:
            return
        mine.discard(channel)
        if not mine:
            del self._channels[agent_id]
            # It may still be among those that came: an agent that was here for a moment has been here.
            self._left.add(agent_id)

    @property
    def connected_count(self) -> int:
        """Agents with a connection that drives their status."""
        return len(self._channels)

    async def run(self) -> None:
        """Write behind, until cancelled."""
        signs_at = trio.current_time() + self._sign_of_life_seconds
        while True:
            await trio.sleep(WRITE_SECONDS)
            if trio.current_time() >= signs_at:
                signs_at = trio.current_time() + self._sign_of_life_seconds
                self._came.update(self._channels)
            await self._write()

    async def finish(self) -> None:
        """Write what is left: agents that are cut off by our end are disconnected."""
        self._left.update(self._channels)
        self._channels.clear()
        await self._write()

    async def _write(self) -> None:
        came, self._came = self._came, set()
        left, self._left = self._left, set()
        if not came and not left:
            return
        try:
            # What was taken out is in nobody's hands but ours: a server that is about to end waits for it.
            with trio.CancelScope(shield=True):
                if came:
                    await self._store.run(self._store.reports.record_connected, list(came), datetime.now(UTC))
                if left:
                    # A time of its own: who left at the very moment of its last sign of life would count as here.
                    await self._store.run(self._store.reports.record_disconnected, list(left), datetime.now(UTC))
        except StoreError as error:
            _log.error("! the store does not take who is connected: %s", error)
            # Again in a second; who left and came back meanwhile is here.
            self._left.update(left - self._channels.keys())
            self._came.update(came)
            return
        for owner in {self._owners[agent_id] for agent_id in came | left if agent_id in self._owners}:
            self._changed(owner)
        for agent_id in left:
            if agent_id not in self._channels:
                self._owners.pop(agent_id, None)
