"""What the store takes and gives: frozen values, no connections behind them (layer L2).

Times are aware UTC datetimes, agent ids PeerID, every other id uuid.UUID.  Numbers of enums are those of the wire.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from tailnet.types import PeerID

# The three ways to find a caller: the SHA-256 digest of an agent's token, an agent's id, the id of a user's token.
# They cannot be mistaken for each other (32 bytes, a PeerID of 16, text), so one dictionary can hold them all.
CallerKey = bytes | str


class Role(Enum):
    """What a user is to the whole server, beside what he owns and was granted: auth/policy.py says what follows."""

    USER = "user"
    AUDITOR = "auditor"
    ADMIN = "admin"


class Right(Enum):
    """What can be done with a workspace, in the words of the API."""

    READ = "read"  # see its agents, their maps, logs and metadata
    SSH = "ssh"  # open tunnels to them
    APPLICATION_CONNECT = "application-connect"  # open their apps and terminals in a browser
    UPDATE = "update"  # change it: delete and recreate containers


Grants = Mapping[UUID, frozenset[Right]]  # by workspace
NO_GRANTS: Final[Grants] = MappingProxyType({})
# All of a user's come into memory with him, 100 bytes each.  Who needs more has a role.
MAX_GRANTS_PER_USER: Final = 4_096


def as_granted(rights: Iterable[Right]) -> frozenset[Right]:
    """Rights as they are kept: whoever has any of them may read too, for what he cannot find he could not use."""
    given = frozenset(rights)
    return given | {Right.READ} if given else given


class WorkspaceStatus(IntEnum):
    """Workspace.Status on the wire.  A seeded workspace is RUNNING: somebody else builds and stops it."""

    UNKNOWN = 0
    PENDING = 1
    STARTING = 2
    RUNNING = 3
    STOPPING = 4
    STOPPED = 5
    FAILED = 6
    CANCELING = 7
    CANCELED = 8
    DELETING = 9
    DELETED = 10


class LifecycleState(IntEnum):
    """Lifecycle.State on the wire: what the agent says about its start-up scripts."""

    CREATED = 1
    STARTING = 2
    START_TIMEOUT = 3
    START_ERROR = 4
    READY = 5
    SHUTTING_DOWN = 6
    SHUTDOWN_TIMEOUT = 7
    SHUTDOWN_ERROR = 8
    OFF = 9


class AgentStatus(Enum):
    """Whether an agent is there, in the words of the API."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """Everything that a right or a manifest's head depends on: small, and kept in memory by auth/."""

    id: PeerID
    name: str
    parent_id: PeerID | None
    workspace_id: UUID
    workspace_name: str
    owner_id: UUID
    owner_name: str


@dataclass(frozen=True, slots=True)
class InstanceAgent:
    """An agent that runs on a cloud's instance."""

    id: PeerID
    name: str
    workspace_id: UUID


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """The same of a user: a right on a workspace follows from this and an AgentIdentity, without any question."""

    id: UUID
    username: str
    active: bool
    role: Role = Role.USER
    grants: Grants = field(default_factory=lambda: NO_GRANTS, hash=False)  # on workspaces of others

    @property
    def admin(self) -> bool:
        return self.role is Role.ADMIN


@dataclass(frozen=True, slots=True)
class UserTimes:
    """When a user was made, and changed last."""

    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class UserToken:
    """A stored session token: its secret only as a digest."""

    id: str
    secret_digest: bytes = field(repr=False)
    expires_at: datetime | None
    user: UserIdentity


@dataclass(frozen=True, slots=True)
class Scope:
    """Whom changes of callers were about: users with their tokens, and workspaces with their agents and grants."""

    users: frozenset[UUID] = frozenset()
    workspaces: frozenset[UUID] = frozenset()

    def concerns(self, caller: AgentIdentity | UserIdentity | None) -> bool:
        """Whether this caller may be another one now.

        Nobody knows that of strangers, nor of a sub-agent: it goes with its parent, wherever that is.
        """
        if isinstance(caller, AgentIdentity):
            is_in = caller.workspace_id in self.workspaces or caller.owner_id in self.users
            return is_in or caller.parent_id is not None
        return caller is None or caller.id in self.users or not self.workspaces.isdisjoint(caller.grants)

    def __or__(self, other: "Scope") -> "Scope":
        return Scope(self.users | other.users, self.workspaces | other.workspaces)


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent with all that is known of it."""

    id: PeerID
    workspace_id: UUID
    parent_id: PeerID | None
    name: str
    created_at: datetime
    updated_at: datetime
    connection_timeout_seconds: int
    directory: str
    motd_path: str
    architecture: str
    operating_system: str
    environment: Mapping[str, str]
    instance_id: str  # the cloud's, "" without one
    first_connected_at: datetime | None
    last_connected_at: datetime | None  # by the beat of the server that holds it, or its own row
    disconnected_at: datetime | None
    seen_by: str | None  # the server that holds its connection
    lifecycle_state: LifecycleState
    started_at: datetime | None
    ready_at: datetime | None
    version: str
    api_version: str
    expanded_directory: str
    subsystems: Sequence[str]
    logs_bytes: int
    logs_overflowed: bool

    def status(self, now: datetime, inactive_seconds: float, is_here: bool = False) -> AgentStatus:
        """`inactive_seconds`: how long after its last sign of life an agent still counts as connected.  `is_here`: the
        server that asks holds its connection, whatever was written last."""
        if is_here:
            return AgentStatus.CONNECTED
        if self.first_connected_at is None or self.last_connected_at is None:
            waited = (now - self.created_at).total_seconds()
            late = 0 < self.connection_timeout_seconds < waited
            return AgentStatus.TIMEOUT if late else AgentStatus.CONNECTING
        if self.disconnected_at is not None and self.disconnected_at >= self.last_connected_at:
            return AgentStatus.DISCONNECTED
        # A server that died wrote no disconnection: silence has to say it.  So has a time to come, which a clock wrote
        # that was ahead: who is really there gives a sign of life with the right time soon.
        if abs((now - self.last_connected_at).total_seconds()) > inactive_seconds:
            return AgentStatus.DISCONNECTED
        return AgentStatus.CONNECTED


@dataclass(frozen=True, slots=True)
class WorkspaceRow:
    """A workspace with its agents, in the order of their names."""

    id: UUID
    owner_id: UUID
    owner_name: str
    name: str
    status: WorkspaceStatus
    agents: Sequence[AgentRow]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """What a server saw of an agent's connection, by the server's clock.  What is None did not happen."""

    agent_id: PeerID
    came_at: datetime | None = None
    seen_at: datetime | None = None  # a sign of life
    left_at: datetime | None = None

    def then(self, later: "PresenceChange") -> "PresenceChange":
        """Both as one.  Who came again has not left; who left and was here for a moment has been here."""
        if later.came_at is not None:
            return later
        return PresenceChange(
            self.agent_id,
            self.came_at,
            later.seen_at or self.seen_at,
            later.left_at or self.left_at,
        )


@dataclass(frozen=True, slots=True)
class ServerRow:
    """A server that shares the store.  `id` is another one at each start."""

    id: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    reads_beats: bool = True  # for it, as for us, the beat of a server is a sign of life of all agents that it holds


@dataclass(frozen=True, slots=True)
class Startup:
    """What an agent says of itself after it got its manifest."""

    agent_id: PeerID
    version: str
    expanded_directory: str
    subsystems: Sequence[str]
    api_version: str


@dataclass(frozen=True, slots=True)
class LifecycleChange:
    agent_id: PeerID
    state: LifecycleState
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class StatsReport:
    """One report of an agent's connections; `report` is anything JSON can carry, `at` when we got it."""

    agent_id: PeerID
    connection_count: int
    rx_bytes: int
    tx_bytes: int
    report: Mapping[str, object]
    at: datetime


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """The latest result of one metadata script."""

    agent_id: PeerID
    key: str
    value: str
    error: str
    collected_at: datetime


@dataclass(frozen=True, slots=True)
class LogSource:
    agent_id: PeerID
    id: UUID
    display_name: str
    icon: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Lines of one source: (level number, output).  `at` is when we got them: an agent's clock may be wrong."""

    agent_id: PeerID
    source_id: UUID
    lines: Sequence[tuple[int, str]]
    at: datetime
    refused: bool = False  # the agent was told already that these were too many
    # What they count against their agent's limit: bytes, and one for a line of none, which is a row too.
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        sizes = (len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for _, text in self.lines)
        object.__setattr__(self, "size", sum(size or 1 for size in sizes))


@dataclass(frozen=True, slots=True)
class LogLine:
    id: int
    source_id: UUID
    level: int
    created_at: datetime
    output: str


class AppHealth(IntEnum):
    """AppHealth on the wire, and WorkspaceApp.Health too."""

    DISABLED = 1
    INITIALIZING = 2
    HEALTHY = 3
    UNHEALTHY = 4


class AppState(IntEnum):
    """UpdateAppStatusRequest.AppStatusState on the wire."""

    WORKING = 0
    IDLE = 1
    COMPLETE = 2
    FAILURE = 3


class RunStage(IntEnum):
    """Timing.Stage on the wire: why a script ran."""

    START = 0
    STOP = 1
    CRON = 2


class RunStatus(IntEnum):
    """Timing.Status on the wire."""

    OK = 0
    EXIT_FAILURE = 1
    TIMED_OUT = 2
    PIPES_LEFT_OPEN = 3


class ConnectionAction(IntEnum):
    """Connection.Action on the wire."""

    CONNECT = 1
    DISCONNECT = 2


class ConnectionType(IntEnum):
    """Connection.Type on the wire."""

    UNSPECIFIED = 0
    SSH = 1
    VSCODE = 2
    JETBRAINS = 3
    RECONNECTING_PTY = 4


@dataclass(frozen=True, slots=True)
class AppStatus:
    """What an app said it was doing."""

    id: UUID
    created_at: datetime
    state: AppState
    message: str
    uri: str


@dataclass(frozen=True, slots=True)
class AppStatusReport:
    """What an app of an agent says, by the slug that the agent knows it by."""

    agent_id: PeerID
    slug: str
    status: AppStatus


@dataclass(frozen=True, slots=True)
class App:
    """An app of an agent.  `definition`: what store/definitions.py makes of a seed; `statuses`: the newest first."""

    id: UUID
    definition: Mapping[str, Any]
    health: AppHealth
    statuses: Sequence[AppStatus] = ()

    @property
    def is_checked(self) -> bool:
        """Whether the agent looks after its health."""
        return bool(self.definition["healthcheck"]["url"])


def first_health(definition: Mapping[str, Any]) -> AppHealth:
    """The health of an app of which nothing was reported."""
    return AppHealth.INITIALIZING if definition["healthcheck"]["url"] else AppHealth.DISABLED


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """One run of a script, by the agent's clock."""

    script_id: UUID
    started_at: datetime
    ended_at: datetime
    exit_code: int
    stage: RunStage
    status: RunStatus


@dataclass(frozen=True, slots=True)
class Script:
    """A script of an agent.  `runs`: the last ones, the newest first."""

    id: UUID
    definition: Mapping[str, Any]
    runs: Sequence[ScriptRun] = ()


@dataclass(frozen=True, slots=True)
class Definitions:
    """What an agent should run and show, each in the order of the seed."""

    apps: Sequence[App] = ()
    scripts: Sequence[Script] = ()
    metadata: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class AppHealths:
    """What an agent says of its apps, by their id."""

    agent_id: PeerID
    healths: Mapping[UUID, AppHealth]


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """A session that somebody opened or closed on an agent, by the agent's clock."""

    agent_id: PeerID
    connection_id: UUID
    action: ConnectionAction
    type: ConnectionType
    at: datetime
    ip: str
    status_code: int
    reason: str
    app_name: str


@dataclass(frozen=True, slots=True)
class HealthChange:
    """An app whose health is another one than before."""

    agent_id: PeerID
    app_id: UUID
    slug: str
    before: AppHealth
    health: AppHealth


@dataclass(frozen=True, slots=True)
class HealthsTaken:
    """What became of batches of healths: for each why it was refused, or "", and what they changed."""

    problems: Sequence[str]
    changed: Sequence[HealthChange]


class EventType(StrEnum):
    """What happens to an agent, as the control plane is told."""

    CONNECTED = "agent.connected"
    DISCONNECTED = "agent.disconnected"
    READY = "agent.ready"
    START_FAILED = "agent.start_failed"
    STATS = "agent.stats"
    APP_HEALTH = "agent.app_health"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to an agent; `details` is what JSON can carry, by the clock of the server."""

    agent_id: PeerID
    type: EventType
    at: datetime
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """The same in the store.  `number` rises from event to event; `id` is the one name of it everywhere."""

    number: int
    id: UUID
    type: str
    at: datetime
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, and the numbers of the oldest and of the newest that are kept; 0 if none is."""

    events: Sequence[StoredEvent]
    oldest: int
    newest: int


@dataclass(frozen=True, slots=True)
class RelayKeyChanges:
    """Keys for relays that are different since a version, raw.  `is_whole`: these are all, others are gone.

    `known`: with whose each is.
    """

    version: int
    is_whole: bool
    known: Mapping[bytes, str]
    revoked: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that outlives restarts.  `id` travels in the open, `secret` never leaves this process."""

    id: str
    secret: bytes = field(repr=False)
    created_at: datetime
