"""What agents report and ask over plain HTTP: older ones, and scripts of their workspaces.  Layer L3.

The same reports as those of services/agent_rpc.py, without protobuf and without a connection that an error could end.
Called by api/agent_reports.py and api/agent_manifest.py, which know the wire.  Raises StoreError.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

import trio

from derp.text import printable
from tailnet.services.feed import Feed
from tailnet.services.known_agents import KnownAgent, KnownAgents
from tailnet.services.reports import AgentReports
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import (
    AgentIdentity,
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    LogBatch,
    LogSource,
    StatsReport,
)
from tailnet.store.store import Store
from tailnet.transport.accounts import DEFAULT_ACCOUNT_LIMITS, Accounts
from tailnet.types import PeerID

# Longer than this no program waits for an answer that it thinks lost: it is told to come again.
MAX_WAIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Connections:
    """What an agent counted since its last report; `report` is all it said, for whoever looks at it later."""

    count: int
    rx_bytes: int
    tx_bytes: int
    report: Mapping[str, object]


class AgentRequests:
    """Answers agents of one server."""

    def __init__(
        self,
        store: Store,
        reports: AgentReports,
        *,
        changed: Callable[[UUID], None] = lambda owner_id: None,
        accounts: Accounts | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._reports = reports
        self._known = KnownAgents(store)
        self._changed = changed
        self._accounts = accounts if accounts is not None else Accounts(DEFAULT_ACCOUNT_LIMITS)
        self._clock = clock
        # What agents that wait for their workspace to be claimed are told.  Those of this server belong to somebody
        # from the start, so nothing comes but the end.
        self.claims = Feed[bytes]()
        self.delayed = self.refused = 0  # reports of agents that sent more than they may

    async def pay(self, caller: AgentIdentity, size: int) -> float:
        """Charge a report of `size` bytes to the account that the agent's RPC reports are charged to.

        One that is over its share is answered later, after the wait in here.  Returns 0.0, or after how many seconds a
        report that is not taken may come again.
        """
        wait = self._accounts.pay(caller.id, size, trio.current_time(), MAX_WAIT_SECONDS)
        if wait > MAX_WAIT_SECONDS:
            self.refused += 1
            return wait - MAX_WAIT_SECONDS
        if wait:
            self.delayed += 1
            await trio.sleep(wait)
        return 0.0

    async def read(self, agent_id: PeerID) -> KnownAgent | None:
        """An agent with its apps, scripts and metadata; None if it was deleted."""
        return await self._known.read(agent_id)

    async def set_healths(self, caller: AgentIdentity, healths: Mapping[UUID, AppHealth]) -> str:
        """Note how apps are.  Returns what is wrong, "" if nothing: then all were taken, else none was."""
        known = await self._known.read(caller.id)
        checked = known.checked_apps() if known is not None else set()
        wrong = next((each for each in healths if each not in checked), None)
        if wrong is not None:
            return f"app {wrong} is none of this agent's that has a health check"
        problem = self._reports.note_healths(AppHealths(caller.id, healths))
        if not problem:
            self._changed(caller.owner_id)
        return problem

    async def add_status(self, caller: AgentIdentity, slug: str, state: AppState, message: str, uri: str) -> bool:
        """Add to what an app says it does; False if the agent has no app of that name."""
        known = await self._known.read(caller.id)
        if known is None or slug not in known.slugs():
            return False
        status = AppStatus(uuid4(), self._clock(), state, printable(message, len(message)), printable(uri, len(uri)))
        self._reports.note_app_status(AppStatusReport(caller.id, slug, status))
        self._changed(caller.owner_id)
        return True

    async def add_log_source(self, caller: AgentIdentity, source_id: UUID, name: str, icon: str) -> LogSource:
        """A source of log lines; one that is there already stays as it is."""
        source = LogSource(caller.id, source_id, name, icon, self._clock())
        await self._store.run(self._store.reports.add_log_source, source)
        return source

    def note_logs(self, caller: AgentIdentity, source_id: UUID, lines: Sequence[tuple[int, str]]) -> bool:
        """Note lines (level number, text).  Returns whether the agent's limit is passed: then none was taken."""
        source = source_id if source_id.int else EXTERNAL_LOG_SOURCE
        return self._reports.note_logs(LogBatch(caller.id, source, lines, self._clock()))

    def note_connections(self, caller: AgentIdentity, connections: Connections) -> None:
        """Note one report of its connections."""
        self._reports.note_stats(
            StatsReport(
                caller.id,
                connections.count,
                connections.rx_bytes,
                connections.tx_bytes,
                connections.report,
                self._clock(),
            )
        )
