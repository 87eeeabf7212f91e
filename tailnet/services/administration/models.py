"""What administrators send and get, as JSON (layer L3): the models behind the HTTP API, JSON lines and commands.

`...Given` is the whole of a thing, `...Change` a part of it, `...Shown` what an answer says.  They check shapes;
what holds in the light of the store is checked by store/administration/changes.py, what apps and scripts may hold by
store/definitions.py.  A token is shown once, when it is made.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, create_model

from tailnet.store.rows import AppHealth, LifecycleState, WorkspaceStatus
from tailnet.store.seed import MAX_NAME_CHARS
from tailnet.tokens import MAX_TOKEN_CHARS

MAX_PURPOSE_CHARS: Final = 256
MAX_PATH_CHARS: Final = 4096
# An environment goes to the agent in its manifest, a message of at most 4 MiB; genuine ones have some dozen variables.
MAX_VARIABLES: Final = 1_000
MAX_VARIABLE_CHARS: Final = 32_768
MAX_ENVIRONMENT_CHARS: Final = 512 * 1024
# A quarter: whoever needs longer never comes to replace the old one.
MAX_GRACE_SECONDS: Final = 90 * 86_400
MAX_SECONDS: Final = 2**31 - 1

T = TypeVar("T")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed: remove them")
    return text


def _no_nil(ident: UUID) -> UUID:
    if not ident.int:
        raise ValueError("is the nil UUID, which peers refuse: choose another one")
    return ident


def _storable(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not name or "=" in name or not name.isprintable():
            raise ValueError(f"has the name {name[:80]!r}, which no environment takes")
        if "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
            raise ValueError(f"has a value of {name[:80]!r} with characters that no environment takes")
    if sum(len(name) + len(value) for name, value in variables.items()) > MAX_ENVIRONMENT_CHARS:
        raise ValueError(f"has more than {MAX_ENVIRONMENT_CHARS:,} characters in all")
    return variables


Id = Annotated[UUID, AfterValidator(_no_nil)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(_printable)]
Line = Annotated[str, Field(max_length=MAX_PATH_CHARS), AfterValidator(_printable)]
Purpose = Annotated[str, Field(max_length=MAX_PURPOSE_CHARS), AfterValidator(_printable)]
Position = Annotated[int | None, Field(ge=0, le=MAX_SECONDS, description="its place; behind the others by default")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Environment = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_VARIABLE_CHARS)]],
    Field(max_length=MAX_VARIABLES),
    AfterValidator(_storable),
]
Status = Literal[
    "unknown", "pending", "starting", "running", "stopping", "stopped", "failed", "canceling", "canceled", "deleting",
    "deleted",
]  # fmt: skip
Lifecycle = Literal[
    "created", "starting", "start_timeout", "start_error", "ready", "shutting_down", "shutdown_timeout",
    "shutdown_error", "off",
]  # fmt: skip
RoleWord = Literal["user", "auditor", "admin"]
RightWord = Literal["read", "ssh", "application-connect", "update"]
Health = Literal["disabled", "initializing", "healthy", "unhealthy"]
_Absent = Annotated[T | None, Field(exclude_if=lambda value: value is None)]


class Given(BaseModel):
    """What a caller sends.  A key that is not known is a mistake: a misspelt one would set nothing without a word."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shown(BaseModel):
    """What a caller gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UserGiven(Given):
    """A user."""

    username: Name = Field(description="its name, which no other user has")
    active: bool = Field(default=True, description="an inactive one is signed out everywhere")
    role: RoleWord = Field(default="user", description="auditor: reads every workspace; admin: has every right on each")


class UserShown(Shown):
    """A user."""

    id: UUID
    username: str
    active: bool
    role: RoleWord
    created_at: datetime
    updated_at: datetime


class TokenGiven(Given):
    """A user's session token.  Without `token` and `secret_sha256` a new one gets a secret, which is shown once."""

    user_id: Id = Field(description="whose it is; stays as it was made")
    purpose: Purpose = Field(default="", description="what it is for, for people")
    expires_at: AwareDatetime | None = Field(default=None, description="when it ends; never, if it is left out")
    seeded: bool = Field(default=False, description="whether the next import of a seed may replace it")
    token: Annotated[str, Field(max_length=MAX_TOKEN_CHARS)] | None = Field(
        None, description="the whole token, if the caller made it: <10>-<22> letters and digits", repr=False
    )
    secret_sha256: Digest | None = Field(default=None, description="or the SHA-256 of its secret, in hex", repr=False)


class TokenShown(Shown):
    """A user's session token, of which the store knows a digest."""

    id: str
    user_id: UUID
    purpose: str
    expires_at: datetime | None
    seeded: bool
    created_at: datetime
    token: _Absent[str] = Field(default=None, description="the token itself, once: when it is made", repr=False)


class WorkspaceGiven(Given):
    """A workspace."""

    owner_id: Id = Field(description="the user who has every right on it")
    name: Name = Field(description="its name")
    status: Status = Field(default="running", description="how its build stands")


class WorkspaceShown(Shown):
    """A workspace."""

    id: UUID
    owner_id: UUID
    name: str
    status: Status
    created_at: datetime
    updated_at: datetime


class GrantGiven(Given):
    """Rights of one user on a workspace of somebody else: all that he has."""

    workspace_id: Id
    user_id: Id
    rights: Annotated[list[RightWord], Field(min_length=1)] = Field(description="reading goes with each of them")


class GrantShown(Shown):
    """Rights of one user on a workspace of somebody else."""

    id: str = Field(description="WORKSPACE_ID:USER_ID")
    workspace_id: UUID
    user_id: UUID
    rights: list[RightWord]
    created_at: datetime
    updated_at: datetime


class Healthcheck(Given):
    """How an agent sees whether an app is well."""

    url: str = ""
    interval: int = Field(default=0, description="seconds")
    threshold: int = 0


class AppFields(Given):
    """What an app is."""

    slug: str = Field(description="how the agent names it; no other app of the agent has it")
    display_name: str = ""
    url: str = ""
    external: bool = False
    command: str = ""
    icon: str = ""
    subdomain: bool = False
    subdomain_name: str = ""
    sharing_level: Literal["owner", "authenticated", "organization", "public"] = "owner"
    healthcheck: Healthcheck = Healthcheck()
    group: str = ""
    hidden: bool = False
    open_in: Literal["slim-window", "tab"] = "slim-window"
    tooltip: str = ""


class ScriptFields(Given):
    """What a script is."""

    log_source_id: UUID | None = Field(default=None, description="where its lines go; the external source by default")
    log_path: str = ""
    script: str = ""
    cron: str = ""
    run_on_start: bool = False
    run_on_stop: bool = False
    start_blocks_login: bool = False
    timeout: int = Field(default=0, description="nanoseconds")
    display_name: str = ""


class MetadataGiven(Given):
    """One thing that an agent finds out again and again."""

    key: str
    display_name: str = ""
    script: str = ""
    interval: int = 0
    timeout: int = 0


class AppOfAgent(AppFields):
    """An app in the list of its agent."""

    id: Id


class ScriptOfAgent(ScriptFields):
    """A script in the list of its agent."""

    id: Id


class AgentGiven(Given):
    """An agent.  Without `token` and `token_sha256` a new one gets a token, which is shown once."""

    workspace_id: Id
    name: Name
    parent_id: Id | None = Field(default=None, description="of a sub-agent; stays as it was made")
    connection_timeout_seconds: int = Field(default=120, ge=0, le=MAX_SECONDS, description="0: it may take any time")
    directory: Line = ""
    motd_path: Line = ""
    architecture: Line = ""
    operating_system: Line = ""
    environment: Environment = Field(default_factory=dict, repr=False)
    instance_id: Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(_printable)] = Field(
        default="", description="the cloud's id of the machine that it runs on"
    )
    token: UUID | None = Field(default=None, description="its token, if the caller made it", repr=False)
    token_sha256: Digest | None = Field(default=None, description="or the SHA-256 of its token, in hex", repr=False)
    apps: Sequence[AppOfAgent] | None = Field(default=None, description="its whole list; without one it stays")
    scripts: Sequence[ScriptOfAgent] | None = Field(default=None, description="the same")
    metadata: Sequence[MetadataGiven] | None = Field(default=None, description="the same")


class AgentShown(Shown):
    """An agent: what administrators set, and what is known of it."""

    id: UUID
    workspace_id: UUID
    name: str
    parent_id: UUID | None
    connection_timeout_seconds: int
    directory: str
    motd_path: str
    architecture: str
    operating_system: str
    environment: Mapping[str, str]
    instance_id: str
    created_at: datetime
    updated_at: datetime
    first_connected_at: datetime | None
    last_connected_at: datetime | None
    disconnected_at: datetime | None
    lifecycle_state: Lifecycle
    version: str
    api_version: str
    token: _Absent[str] = Field(default=None, description="its token, once: when it is made", repr=False)


class AppGiven(AppFields):
    """An app of an agent."""

    agent_id: Id = Field(description="stays as it was made")
    position: Position = None


class AppShown(AppFields, Shown):
    """An app of an agent, with what the agent says of it."""

    model_config = ConfigDict(strict=False)

    id: UUID
    agent_id: UUID
    position: int
    health: Health


class ScriptGiven(ScriptFields):
    """A script of an agent."""

    agent_id: Id = Field(description="stays as it was made")
    position: Position = None


class ScriptShown(ScriptFields, Shown):
    """A script of an agent."""

    model_config = ConfigDict(strict=False)

    id: UUID
    agent_id: UUID
    position: int


class Rotation(Given):
    """How a token or a key is replaced."""

    grace_seconds: int = Field(default=0, ge=0, le=MAX_GRACE_SECONDS, description="how long the old one is good too")


class KeyRotation(Given):
    """Which key is replaced."""

    purpose: Name = Field(description="what its keys are for, such as `resume token`")


class KeyShown(Shown):
    """A key of this installation; its secret is never shown."""

    id: str
    purpose: str
    created_at: datetime
    state: Literal["next", "signs", "verifies", "lasting"]


class AuditShown(Shown):
    """One change: who, when, what, and what differs."""

    id: int
    at: datetime
    actor_kind: Literal["token", "local"]
    actor: str
    action: str
    kind: str
    target: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    request_id: str


def change_of(model: type[Given], name: str) -> type[Given]:
    """The model of a part of a thing: the same fields, of which any may be left out."""
    fields: dict[str, Any] = {}
    for key, each in model.model_fields.items():
        annotation = Annotated[each.annotation, *each.metadata] if each.metadata else each.annotation
        fields[key] = (annotation, Field(default_factory=lambda: None, description=each.description, repr=each.repr))
    made = create_model(name, __base__=Given, __doc__=f"A part: {model.__doc__}", **fields)
    assert issubclass(made, Given)
    return made


UserChange: Final = change_of(UserGiven, "UserChange")
TokenChange: Final = change_of(TokenGiven, "TokenChange")
WorkspaceChange: Final = change_of(WorkspaceGiven, "WorkspaceChange")
GrantChange: Final = change_of(GrantGiven, "GrantChange")
AgentChange: Final = change_of(AgentGiven, "AgentChange")
AppChange: Final = change_of(AppGiven, "AppChange")
ScriptChange: Final = change_of(ScriptGiven, "ScriptChange")

# What stands in the store as a number.
STATUS_NUMBERS: Final = {each.name.lower(): int(each) for each in WorkspaceStatus}
STATUS_WORDS: Final = {number: word for word, number in STATUS_NUMBERS.items()}
LIFECYCLE_WORDS: Final = {int(each): each.name.lower() for each in LifecycleState}
HEALTH_WORDS: Final = {int(each): each.name.lower() for each in AppHealth}
