"""What there is to administer, one row per kind (layer L2).

A kind names its table, the columns that administrators set, those that others write and answers show, what each refers
to, and what no two may share.  changes.py writes by it, reading.py lists by it; what a field may hold is said by
services/administration/models.py.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import sqlalchemy as sa

from tailnet.store.schema import (
    AGENT_COLUMNS,
    agent_apps,
    agent_scripts,
    agents,
    user_tokens,
    users,
    workspace_grants,
    workspaces,
)

NONE: Final[Mapping[str, Any]] = MappingProxyType({})

Clause = Callable[[Any], sa.ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing.  `columns`, `reported` and `digest` are columns of `table`."""

    name: str
    table: sa.Table
    columns: tuple[str, ...]  # what administrators set; the ETag is made of them
    reported: tuple[str, ...]  # what is shown beside
    filters: Mapping[str, Clause]
    references: Mapping[str, sa.Table] = field(default_factory=dict)  # column -> whose id it holds
    unique: tuple[str, ...] = ()
    digest: str = ""  # the column of its token's digest
    fixed: frozenset[str] = frozenset()  # what stays as it was made
    of_callers: bool = True  # whether a change of it is one of who may do what
    key: tuple[str, ...] = ("id",)  # the columns of its id; of several its id is a tuple
    shown: Sequence[sa.ColumnElement[Any]] = ()  # all columns, where some are computed

    @property
    def query(self) -> sa.Select[Any]:
        """All rows, as they are shown."""
        return sa.select(*(self.shown or self.table.c))

    @property
    def times(self) -> tuple[str, ...]:
        """Its columns that say when it was made and changed."""
        return tuple(name for name in ("created_at", "updated_at") if name in self.table.c)

    @property
    def key_columns(self) -> list[sa.Column[Any]]:
        return [self.table.c[name] for name in self.key]

    def is_one(self, ident: Any) -> sa.ColumnElement[bool]:
        """The condition of one."""
        return sa.and_(*[column == part for column, part in zip(self.key_columns, self.parts(ident), strict=True)])

    def is_among(self, idents: Collection[Any]) -> sa.ColumnElement[bool]:
        """That of several."""
        if len(self.key) == 1:
            return self.key_columns[0].in_(idents)
        return sa.or_(*[self.is_one(ident) for ident in idents])

    def is_behind(self, ident: Any) -> sa.ColumnElement[bool]:
        """That of those that stand behind one in the order of ids."""
        before: list[sa.ColumnElement[bool]] = []
        found: list[sa.ColumnElement[bool]] = []
        for column, part in zip(self.key_columns, self.parts(ident), strict=True):
            found.append(sa.and_(*before, column > part))
            before.append(column == part)
        return sa.or_(*found)

    def parts(self, ident: Any) -> tuple[Any, ...]:
        return ident if len(self.key) > 1 else (ident,)

    def ident(self, row: Mapping[str, Any]) -> Any:
        """The id of a row."""
        return tuple(row[name] for name in self.key) if len(self.key) > 1 else row[self.key[0]]


def _equals(column: sa.Column[Any]) -> Clause:
    return lambda value: column == value


def _contains(column: sa.Column[Any]) -> Clause:
    return lambda value: sa.func.lower(column).contains(str(value).lower(), autoescape=True)


def _of_owner(value: Any) -> sa.ColumnElement[bool]:
    return agents.c.workspace_id.in_(sa.select(workspaces.c.id).where(workspaces.c.owner_id == value))


def _of_agents(column: sa.Column[Any]) -> Clause:
    return lambda value: column.in_(sa.select(agents.c.id).where(agents.c.workspace_id == value))


USER: Final = Kind(
    "user",
    users,
    ("username", "active", "role"),
    ("created_at", "updated_at"),
    {
        "username": _equals(users.c.username),
        "q": _contains(users.c.username),
        "active": _equals(users.c.active),
        "role": _equals(users.c.role),
    },
    unique=("username",),
)
TOKEN: Final = Kind(
    "token",
    user_tokens,
    ("user_id", "purpose", "expires_at", "seeded"),
    ("created_at",),
    {
        "user_id": _equals(user_tokens.c.user_id),
        "q": _contains(user_tokens.c.purpose),
        "expires_before": lambda value: user_tokens.c.expires_at < value,
    },
    references={"user_id": users},
    digest="secret_digest",
    fixed=frozenset({"user_id"}),
)
WORKSPACE: Final = Kind(
    "workspace",
    workspaces,
    ("owner_id", "name", "status"),
    ("created_at", "updated_at"),
    {
        "owner_id": _equals(workspaces.c.owner_id),
        "name": _equals(workspaces.c.name),
        "q": _contains(workspaces.c.name),
        "status": _equals(workspaces.c.status),
    },
    references={"owner_id": users},
)
GRANT: Final = Kind(
    "grant",
    workspace_grants,
    ("rights",),
    ("created_at", "updated_at"),
    {
        "workspace_id": _equals(workspace_grants.c.workspace_id),
        "user_id": _equals(workspace_grants.c.user_id),
    },
    references={"workspace_id": workspaces, "user_id": users},
    key=("workspace_id", "user_id"),
)
AGENT: Final = Kind(
    "agent",
    agents,
    (
        "workspace_id",
        "parent_id",
        "name",
        "connection_timeout_seconds",
        "directory",
        "motd_path",
        "architecture",
        "operating_system",
        "environment",
        "instance_id",
    ),
    (
        "created_at",
        "updated_at",
        "first_connected_at",
        "last_connected_at",
        "disconnected_at",
        "lifecycle_state",
        "version",
        "api_version",
    ),
    {
        "workspace_id": _equals(agents.c.workspace_id),
        "parent_id": _equals(agents.c.parent_id),
        "instance_id": _equals(agents.c.instance_id),
        "owner_id": _of_owner,
        "name": _equals(agents.c.name),
        "q": _contains(agents.c.name),
    },
    references={"workspace_id": workspaces, "parent_id": agents},
    unique=("token_digest",),
    digest="token_digest",
    fixed=frozenset({"parent_id"}),
    shown=AGENT_COLUMNS,
)
APP: Final = Kind(
    "app",
    agent_apps,
    ("agent_id", "position", "definition"),
    ("health",),
    {"agent_id": _equals(agent_apps.c.agent_id), "workspace_id": _of_agents(agent_apps.c.agent_id)},
    references={"agent_id": agents},
    fixed=frozenset({"agent_id"}),
    of_callers=False,
)
SCRIPT: Final = Kind(
    "script",
    agent_scripts,
    ("agent_id", "position", "definition"),
    (),
    {"agent_id": _equals(agent_scripts.c.agent_id), "workspace_id": _of_agents(agent_scripts.c.agent_id)},
    references={"agent_id": agents},
    fixed=frozenset({"agent_id"}),
    of_callers=False,
)
# In the order in which one may refer to another.
KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in (USER, TOKEN, WORKSPACE, GRANT, AGENT, APP, SCRIPT)}
