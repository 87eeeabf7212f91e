"""What agents' manifests were made of, kept for when the store is away.  Layer L3.

An agent that comes back asks for its manifest before anything else.  A store that does not answer would keep it from
its peers, although nothing changed: then it gets the manifest of before.  Here is also what an agent may name in its
reports, the apps of the manifest that it was given.  agent_rpc.py reads through this.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import trio

from tailnet.auth.callers import STALE_SECONDS
from tailnet.errors import StoreError
from tailnet.store.rows import AgentRow, Definitions
from tailnet.store.store import Store
from tailnet.types import PeerID

# Together: a manifest without scripts is a kilobyte, one of a large template some ten.
MAX_BYTES: Final = 64 * 1024 * 1024
# The row, and the objects around definitions.
_OVERHEAD_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """An agent as the store had it at some moment."""

    row: AgentRow
    definitions: Definitions
    read_at: float
    size: int

    def checked_apps(self) -> set[UUID]:
        """The apps whose health it looks after."""
        return {app.id for app in self.definitions.apps if app.is_checked}

    def slugs(self) -> set[str]:
        """What its apps are called."""
        return {app.definition["slug"] for app in self.definitions.apps}


class KnownAgents:
    """The agents of one server, those that asked last."""

    def __init__(
        self, store: Store, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = trio.current_time
    ) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._clock = clock
        self._known: OrderedDict[PeerID, KnownAgent] = OrderedDict()
        self.size = 0  # bytes, roughly

    async def read(self, agent_id: PeerID) -> KnownAgent | None:
        """An agent as it is now; where the store does not answer, as it was within the last ten minutes.

        None if there is no such agent.  Raises StoreError.
        """
        try:
            found = await self._store.run(self._read, agent_id)
        except StoreError:
            known = self._known.get(agent_id)
            if known is None or self._clock() - known.read_at > STALE_SECONDS:
                raise
            return known
        self._forget(agent_id)
        if found is None:
            return None
        row, definitions = found
        return self._keep(agent_id, KnownAgent(row, definitions, self._clock(), _size(definitions)))

    def last_known(self, agent_id: PeerID) -> KnownAgent | None:
        """What the agent's last manifest was made of; None if it is not known any more."""
        return self._known.get(agent_id)

    def _read(self, agent_id: PeerID) -> tuple[AgentRow, Definitions] | None:
        with self._store.reading():
            row = self._store.callers.get_agent(agent_id)
            return None if row is None else (row, self._store.apps.definitions(agent_id))

    def _keep(self, agent_id: PeerID, agent: KnownAgent) -> KnownAgent:
        self._known[agent_id] = agent
        self.size += agent.size
        while self.size > self._max_bytes:
            self._forget(next(iter(self._known)))
        return agent

    def _forget(self, agent_id: PeerID) -> None:
        known = self._known.pop(agent_id, None)
        if known is not None:
            self.size -= known.size


def _size(definitions: Definitions) -> int:
    parts = [app.definition for app in definitions.apps]
    parts += [script.definition for script in definitions.scripts]
    return _OVERHEAD_BYTES + sum(len(json.dumps(part)) for part in (*parts, *definitions.metadata))
