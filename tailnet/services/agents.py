"""Agents as their owners and the person on call see them (layer L3).

`await agents.describe(id)` answers with one AgentView: what the store held at one moment, what follows from it by the
clock (status, health), and the latencies of the agent's last node.  Asked by api/agents.py and api/debug.py, which
only put a view into the shape of their answer.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

from google.protobuf.message import DecodeError

from derp.map import DERPMap
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.store.rows import (
    AgentRow,
    AgentStatus,
    App,
    AppHealth,
    AppState,
    ConnectionReport,
    LifecycleState,
    LogSource,
    RunStatus,
    Script,
    ScriptRun,
    UserIdentity,
    UserTimes,
    WorkspaceRow,
)
from tailnet.store.store import Store
from tailnet.types import PeerID

_LEAVING: Final = frozenset(
    {
        LifecycleState.SHUTTING_DOWN,
        LifecycleState.SHUTDOWN_TIMEOUT,
        LifecycleState.SHUTDOWN_ERROR,
        LifecycleState.OFF,
    }
)
_ABSENT: Final = {
    AgentStatus.CONNECTING: "agent has not yet connected",
    AgentStatus.TIMEOUT: "agent is taking too long to connect",
    AgentStatus.DISCONNECTED: "agent has lost connection",
}


@dataclass(frozen=True, slots=True)
class HealthcheckView:
    """How an agent checks that an app is well; with an empty `url` it does not."""

    url: str
    interval: int  # seconds
    threshold: int  # failures in a row


@dataclass(frozen=True, slots=True)
class AppStatusView:
    """What an app said it was doing."""

    id: UUID
    created_at: datetime
    workspace_id: UUID
    agent_id: PeerID
    app_id: UUID
    state: AppState
    message: str
    uri: str


@dataclass(frozen=True, slots=True)
class AppView:
    """An app as its template defines it, and what became of it.  `statuses`: the newest first."""

    id: UUID
    url: str
    external: bool
    slug: str
    display_name: str
    command: str
    icon: str
    subdomain: bool
    subdomain_name: str
    sharing_level: str  # owner, authenticated, organization, public
    healthcheck: HealthcheckView
    group: str
    hidden: bool
    open_in: str  # slim-window, tab
    tooltip: str
    health: AppHealth
    statuses: Sequence[AppStatusView]


@dataclass(frozen=True, slots=True)
class ScriptView:
    """A script as its template defines it, and its last runs, the newest first."""

    id: UUID
    log_source_id: UUID
    log_path: str
    script: str
    cron: str
    run_on_start: bool
    run_on_stop: bool
    start_blocks_login: bool
    timeout: int  # nanoseconds
    display_name: str
    runs: Sequence[ScriptRun]

    @property
    def exit_code(self) -> int | None:
        """Of its last run; None until it ran."""
        return self.runs[0].exit_code if self.runs else None

    @property
    def status(self) -> RunStatus | None:
        """Of its last run; None until it ran."""
        return self.runs[0].status if self.runs else None


@dataclass(frozen=True, slots=True)
class Latency:
    """How far a relay region is from an agent."""

    seconds: float
    preferred: bool  # whether it is the agent's home


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent at one moment."""

    agent: AgentRow
    status: AgentStatus
    disconnected_at: datetime | None  # the last sign of life, where only silence says that it is gone
    unhealthy: str  # why, in the words that pages show; empty when it is healthy
    apps: Sequence[AppView]
    scripts: Sequence[ScriptView]
    log_sources: Sequence[LogSource]
    latencies: Mapping[str, Latency]  # by the name of a region

    @property
    def start_blocks_login(self) -> bool:
        """Whether somebody who logs in has to wait for its start-up scripts."""
        return any(each.run_on_start and each.start_blocks_login for each in self.scripts)


@dataclass(frozen=True, slots=True)
class AgentHistory:
    """An agent, and the sessions that it reported, the newest first."""

    view: AgentView
    connections: Sequence[ConnectionReport]


@dataclass(frozen=True, slots=True)
class WorkspaceView:
    """A workspace with its agents, in the order of their names."""

    row: WorkspaceRow
    agents: Sequence[AgentView]


@dataclass(frozen=True, slots=True)
class AgentLine:
    """One agent among all of its owner's: what is known without asking for its definitions."""

    workspace_name: str
    agent: AgentRow
    status: AgentStatus
    unhealthy: str  # why; empty when it is healthy
    home: str  # the name of its relay region; empty while it has none
    home_seconds: float | None  # how far that is


@dataclass(frozen=True, slots=True)
class AgentLines:
    """Some of an owner's agents, by workspace and name, and how many there are."""

    lines: Sequence[AgentLine]
    count: int


class Nodes(Protocol):
    """Where an agent's last node is: services/inspection.py."""

    def node(self, peer_id: PeerID) -> bytes | None:
        """The last Node message of a peer, serialized; None without one."""
        ...


class Agents:
    """All agents of the store.  Every method raises StoreError; None is the answer for an agent that is not there.

    `inactive_seconds`: how long after its last sign of life an agent still counts as connected.  `is_here`: whether one
    has an open connection to this server, which counts whatever was written last.
    """

    def __init__(
        self,
        store: Store,
        nodes: Nodes,
        derp_map: Callable[[], DERPMap],
        inactive_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        is_here: Callable[[PeerID], bool] = lambda _: False,
    ) -> None:
        self._store = store
        self._is_here = is_here
        self._nodes = nodes
        self._derp_map = derp_map
        self._inactive_seconds = inactive_seconds
        self._clock = clock

    async def describe(self, agent_id: PeerID) -> AgentView | None:
        """Everything that is known of one agent."""
        # The coordinator belongs to trio's thread, the store's methods run in one of their own.
        latencies = measured_latencies(self._nodes.node(agent_id), self._derp_map())
        return await self._store.run(self._read, agent_id, latencies, self._is_here(agent_id))

    async def describe_history(self, agent_id: PeerID) -> AgentHistory | None:
        """The same, with the sessions that it reported."""
        latencies = measured_latencies(self._nodes.node(agent_id), self._derp_map())
        return await self._store.run(self._read_history, agent_id, latencies, self._is_here(agent_id))

    async def status(self, agent_id: PeerID) -> AgentStatus | None:
        """Whether an agent is connected."""
        row = await self._store.run(self._store.callers.get_agent, agent_id)
        if row is None:
            return None
        return row.status(self._clock(), self._inactive_seconds, self._is_here(agent_id))

    async def list_agents(self, owner_id: UUID, first: int, most: int) -> AgentLines:
        """An owner's agents from the one numbered `first` on, at most so many."""
        named = [
            (workspace.name, row) for workspace in await self.list_workspaces(owner_id) for row in workspace.agents
        ]
        derp_map = self._derp_map()
        return AgentLines([self._line(derp_map, *each) for each in named[first : first + most]], len(named))

    async def has_users(self) -> bool:
        """Whether anybody is in the store."""
        return await self._store.run(self._store.callers.has_users)

    async def user_times(self, user_id: UUID) -> UserTimes | None:
        """When a user was made, and changed last."""
        return await self._store.run(self._store.callers.user_times, user_id)

    async def is_active(self, user_id: UUID) -> bool:
        """Whether there is such a user, and nobody signed him out everywhere."""
        user = await self._store.run(self._store.callers.get_user, user_id)
        return user is not None and user.active

    async def find_user(self, name_or_id: str) -> UserIdentity | None:
        """A user by his name, else by his id."""
        return await self._store.run(self._find_user, name_or_id)

    def _find_user(self, name_or_id: str) -> UserIdentity | None:
        with self._store.reading():
            found = self._store.callers.find_user(name_or_id)
            if found is not None:
                return found
            try:
                return self._store.callers.get_user(UUID(name_or_id))
            except ValueError:
                return None

    async def list_workspaces(self, owner_id: UUID | None, shared: Collection[UUID] = ()) -> Sequence[WorkspaceRow]:
        """All workspaces of an owner (None: of everybody), and these of others, by name."""
        return await self._store.run(self._store.callers.list_workspaces, owner_id, shared)

    async def describe_workspaces(self, rows: Sequence[WorkspaceRow]) -> Sequence[WorkspaceView]:
        """Everything that is known of these, in one look at the store.  Agents that are gone meanwhile are left out."""
        derp_map = self._derp_map()
        live = {
            agent.id: (measured_latencies(self._nodes.node(agent.id), derp_map), self._is_here(agent.id))
            for row in rows
            for agent in row.agents
        }
        return await self._store.run(self._read_workspaces, rows, live)

    def _line(self, derp_map: DERPMap, workspace_name: str, row: AgentRow) -> AgentLine:
        status = row.status(self._clock(), self._inactive_seconds, self._is_here(row.id))
        homes = measured_latencies(self._nodes.node(row.id), derp_map).items()
        home, latency = next(((name, each) for name, each in homes if each.preferred), ("", None))
        seconds = latency.seconds if latency is not None else None
        return AgentLine(workspace_name, row, status, _unhealthy(row, status), home, seconds)

    def _read_workspaces(
        self, rows: Sequence[WorkspaceRow], live: Mapping[PeerID, tuple[Mapping[str, Latency], bool]]
    ) -> Sequence[WorkspaceView]:
        with self._store.reading():
            found = {agent_id: self._read(agent_id, *of_agent) for agent_id, of_agent in live.items()}
        return [
            WorkspaceView(row, [view for each in row.agents if (view := found[each.id]) is not None]) for row in rows
        ]

    def _read_history(self, agent_id: PeerID, latencies: Mapping[str, Latency], is_here: bool) -> AgentHistory | None:
        with self._store.reading():
            view = self._read(agent_id, latencies, is_here)
            return None if view is None else AgentHistory(view, self._store.reports.list_connections(agent_id))

    def _read(self, agent_id: PeerID, latencies: Mapping[str, Latency], is_here: bool) -> AgentView | None:
        store = self._store
        with store.reading():
            row = store.callers.get_agent(agent_id)
            if row is None:
                return None
            definitions = store.apps.definitions(agent_id)
            sources = store.reports.list_log_sources(agent_id)
        status = row.status(self._clock(), self._inactive_seconds, is_here)
        return AgentView(
            agent=row,
            status=status,
            disconnected_at=_disconnected_at(row, status),
            unhealthy=_unhealthy(row, status),
            apps=[_app(row, each) for each in definitions.apps],
            scripts=[_script(each) for each in definitions.scripts],
            log_sources=sources,
            latencies=latencies,
        )


def measured_latencies(raw_node: bytes | None, derp_map: DERPMap) -> dict[str, Latency]:
    """How far each region is, by its name, as an agent's last node says."""
    home, measured = home_and_seconds(raw_node)
    found: dict[str, Latency] = {}
    for region_id, seconds in measured:
        region = derp_map.regions.get(region_id)
        name = region.region_name if region is not None else f"Unnamed {region_id}"
        found[name] = Latency(seconds, home == region_id)
    return found


def home_and_seconds(raw_node: bytes | None) -> tuple[int, list[tuple[int, float]]]:
    """The home region in a node, 0 for none, and its latencies; of a region it may have two, over IPv4 and IPv6."""
    try:
        node = tailnet.Node.FromString(raw_node or b"")
    except DecodeError:
        return 0, []
    found: list[tuple[int, float]] = []
    for key, seconds in sorted(node.derp_latency.items()):
        # Keys are `<region>-v4` and `-v6`.  One that is not would cost the whole answer elsewhere; here it costs
        # itself, and so does a number that JSON does not have.
        digits = key.partition("-")[0]
        if digits.isascii() and digits.isdecimal() and len(digits) <= 19 and math.isfinite(seconds):
            found.append((int(digits), seconds))
    return node.preferred_derp, found


def _app(row: AgentRow, app: App) -> AppView:
    given: dict[str, Any] = {**app.definition, "healthcheck": HealthcheckView(**app.definition["healthcheck"])}
    statuses = [
        AppStatusView(each.id, each.created_at, row.workspace_id, row.id, app.id, each.state, each.message, each.uri)
        for each in app.statuses
    ]
    return AppView(id=app.id, health=app.health, statuses=statuses, **given)


def _script(script: Script) -> ScriptView:
    given: dict[str, Any] = {**script.definition, "log_source_id": UUID(script.definition["log_source_id"])}
    return ScriptView(id=script.id, runs=script.runs, **given)


def _disconnected_at(row: AgentRow, status: AgentStatus) -> datetime | None:
    if status is AgentStatus.DISCONNECTED:
        assert row.last_connected_at is not None, "who was never connected is not disconnected"
        if row.disconnected_at is None or row.disconnected_at < row.last_connected_at:
            # Only its silence says so, and nothing is known of when but its last sign of life.
            return row.last_connected_at
    return row.disconnected_at


def _unhealthy(row: AgentRow, status: AgentStatus) -> str:
    if status is not AgentStatus.CONNECTED and row.lifecycle_state is LifecycleState.OFF:
        return "agent is not running"
    if status in _ABSENT:
        return _ABSENT[status]
    if row.lifecycle_state is LifecycleState.START_ERROR:
        return "agent startup script exited with an error"
    return "agent is shutting down" if row.lifecycle_state in _LEAVING else ""
