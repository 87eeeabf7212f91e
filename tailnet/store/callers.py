"""Who may call and what exists: users, tokens, workspaces, agents (layer L2).

Look-ups take lists, because a storm of reconnects arrives as one (auth/store_callers.py gathers it).  Every change of
who may do what raises the `callers` counter in the same transaction, so that caches anywhere know when to forget, and
says in `revocations` whom.
"""

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.database import IDS_PER_STATEMENT
from tailnet.store.part import Part, reads, writes
from tailnet.store.rows import (
    NO_GRANTS,
    AgentIdentity,
    AgentRow,
    CallerKey,
    Grants,
    LifecycleState,
    Right,
    Role,
    Scope,
    UserIdentity,
    UserTimes,
    UserToken,
    WorkspaceRow,
    WorkspaceStatus,
    first_health,
)
from tailnet.store.schema import (
    AGENT_COLUMNS,
    agent_apps,
    agent_tokens,
    agents,
    counters,
    revocations,
    user_tokens,
    users,
    workspace_grants,
    workspaces,
)
from tailnet.types import PeerID

T = TypeVar("T")

_IDENTITIES: Final = (
    sa.select(
        agents.c.token_digest,
        agents.c.id,
        agents.c.name,
        agents.c.parent_id,
        workspaces.c.id,
        workspaces.c.name,
        users.c.id,
        users.c.username,
    )
    .join(workspaces, agents.c.workspace_id == workspaces.c.id)
    .join(users, workspaces.c.owner_id == users.c.id)
)
# The same by the digests of issued tokens (issued.py).
_ISSUED: Final = _IDENTITIES.with_only_columns(agent_tokens.c.digest, *list(_IDENTITIES.selected_columns)[1:]).join(
    agent_tokens, agent_tokens.c.agent_id == agents.c.id
)
_TOKENS: Final = sa.select(
    user_tokens.c.id,
    user_tokens.c.secret_digest,
    user_tokens.c.expires_at,
    users.c.id,
    users.c.username,
    users.c.active,
    users.c.role,
).join(users, user_tokens.c.user_id == users.c.id)
_GRANTS: Final = sa.select(workspace_grants.c.user_id, workspace_grants.c.workspace_id, workspace_grants.c.rights)
# The names of AgentRow are those of the columns, in the same order; only the digest of the token is left out.
_AGENT_ROWS: Final = sa.select(*[column for column in AGENT_COLUMNS if column.name != "token_digest"])
_WORKSPACES: Final = sa.select(
    workspaces.c.id,
    workspaces.c.owner_id,
    users.c.username,
    workspaces.c.name,
    workspaces.c.status,
    workspaces.c.created_at,
    workspaces.c.updated_at,
).join(users, workspaces.c.owner_id == users.c.id)
# Two histories meet by chance once in a thousand million times, and the counter lasts for 2**33 changes.
MAX_STEP: Final = 1 << 30
NO_APPS: Final[Mapping[UUID, Mapping[str, Any]]] = MappingProxyType({})
# A change about more than these is about anybody: asked for one by one, so many cost what all at hand do.
MAX_IN_SCOPE: Final = 100
_ANYBODY: Final = "anybody"
# Of changes since a cache last looked; who looks each second never meets more.
_MAX_ROWS: Final = 10 * MAX_IN_SCOPE
_GENERATION: Final = sa.select(counters.c.value).where(counters.c.name == "callers")


class CallerTables(Part):
    """The part of the store that says who is who.  Every method raises StoreError."""

    @reads
    def callers_generation(self, connection: sa.Connection) -> int:
        """A number that rises whenever a token, an owner, a name or a right may have changed."""
        return int(connection.execute(_GENERATION).scalar_one())

    @reads
    def read_callers(
        self,
        connection: sa.Connection,
        known: int,
        missing: Iterable[CallerKey],
        remembered: Mapping[CallerKey, AgentIdentity | UserToken | None],
    ) -> tuple[int, Scope | None, dict[CallerKey, AgentIdentity | UserToken]]:
        """Look up many callers in one snapshot, for a cache.

        Looks for `missing`, and for those `remembered` whom changes since the generation `known` may have been about;
        it is negative for a cache that has none.
        Returns the generation, whom they were about (None: anybody), and what exists of what was looked for.
        """
        generation = int(connection.execute(_GENERATION).scalar_one())
        scope: Scope | None = Scope()
        if generation != known:
            scope = _scope(connection, known, generation) if known >= 0 else None
        asked = list(missing)
        if generation != known:
            asked += [key for key, answer in remembered.items() if scope is None or scope.concerns(identity_of(answer))]
        digests, agent_ids, token_ids = _sort(asked)
        found: dict[CallerKey, AgentIdentity | UserToken] = {}
        found.update(_agents_by_digest(connection, digests).items())
        found.update(_agents_by_id(connection, agent_ids).items())
        found.update(_tokens_by_id(connection, token_ids).items())
        return generation, scope, found

    @reads
    def read_all_callers(
        self, connection: sa.Connection, most: int
    ) -> tuple[int, dict[CallerKey, AgentIdentity | UserToken]]:
        """Everybody, for a cache: the generation, and agents by the digests of all their tokens and by id, tokens by
        id.  Nobody if all of these and the grants together are more than `most`."""
        generation = int(connection.execute(_GENERATION).scalar_one())
        found: dict[CallerKey, AgentIdentity | UserToken] = {}
        agent_rows = connection.execute(_IDENTITIES.limit(most + 1)).all()
        issued_rows = connection.execute(_ISSUED.limit(most + 1)).all()
        token_rows = connection.execute(_TOKENS.limit(most + 1)).all()
        grant_rows = connection.execute(_GRANTS.limit(most + 1)).all()
        if len(agent_rows) + len(issued_rows) + len(token_rows) + len(grant_rows) > most:
            return generation, found
        grants = _by_user(grant_rows)
        for digest, *identity in (*agent_rows, *issued_rows):
            agent = AgentIdentity(*identity)
            found[digest] = found[agent.id] = agent
        found.update({row[0]: _token(row, grants) for row in token_rows})
        return generation, found

    @reads
    def agents_by_token_digests(
        self, connection: sa.Connection, digests: Collection[bytes]
    ) -> dict[bytes, AgentIdentity]:
        """The agents whose token has these SHA-256 digests; unknown ones are absent."""
        return _agents_by_digest(connection, digests)

    @reads
    def agent_identities(self, connection: sa.Connection, ids: Collection[PeerID]) -> dict[PeerID, AgentIdentity]:
        """The agents with these ids; unknown ones are absent."""
        return _agents_by_id(connection, ids)

    @reads
    def user_tokens(self, connection: sa.Connection, token_ids: Collection[str]) -> dict[str, UserToken]:
        """The session tokens with these ids, whatever their state; unknown ones are absent."""
        return _tokens_by_id(connection, token_ids)

    @reads
    def get_user(self, connection: sa.Connection, user_id: UUID) -> UserIdentity | None:
        return _user(connection, users.c.id == user_id)

    @reads
    def user_times(self, connection: sa.Connection, user_id: UUID) -> UserTimes | None:
        query = sa.select(users.c.created_at, users.c.updated_at).where(users.c.id == user_id)
        row = connection.execute(query).first()
        return None if row is None else UserTimes(*row)

    @reads
    def has_users(self, connection: sa.Connection) -> bool:
        """Whether there is anybody."""
        return connection.execute(sa.select(users.c.id).limit(1)).first() is not None

    @reads
    def find_user(self, connection: sa.Connection, username: str) -> UserIdentity | None:
        return _user(connection, users.c.username == username)

    @reads
    def get_agent(self, connection: sa.Connection, agent_id: PeerID) -> AgentRow | None:
        row = connection.execute(_AGENT_ROWS.where(agents.c.id == agent_id)).first()
        return None if row is None else _agent(row)

    @reads
    def list_sub_agents(self, connection: sa.Connection, parent_id: PeerID) -> list[AgentRow]:
        query = _AGENT_ROWS.where(agents.c.parent_id == parent_id).order_by(agents.c.name, agents.c.id)
        return [_agent(row) for row in connection.execute(query)]

    @reads
    def list_workspaces(
        self, connection: sa.Connection, owner_id: UUID | None, shared: Collection[UUID] = ()
    ) -> list[WorkspaceRow]:
        """All workspaces of an owner (None: of everybody), and these of others, with their agents, by name: one
        snapshot."""
        table = workspaces.c
        found = _workspaces_where(connection, sa.true() if owner_id is None else table.owner_id == owner_id)
        for piece in pieces(shared):
            found += _workspaces_where(connection, table.id.in_(piece) & (table.owner_id != owner_id))
        return sorted(found, key=lambda row: (row.name, row.id))

    @writes
    def set_workspace_status(
        self, connection: sa.Connection, workspace_id: UUID, status: WorkspaceStatus, now: datetime
    ) -> bool:
        """Returns whether that workspace exists."""
        change = workspaces.update().where(workspaces.c.id == workspace_id)
        scope = Scope(workspaces=frozenset((workspace_id,)))
        return change_callers(connection, change.values(status=int(status), updated_at=now), scope=scope) > 0

    @writes
    def delete_workspace(self, connection: sa.Connection, workspace_id: UUID) -> bool:
        """Delete a workspace with its agents, their tokens and reports.  Returns whether it existed."""
        scope = Scope(workspaces=frozenset((workspace_id,)))
        return change_callers(connection, workspaces.delete().where(workspaces.c.id == workspace_id), scope=scope) > 0

    @writes
    def delete_agent(self, connection: sa.Connection, agent_id: PeerID) -> bool:
        """Delete an agent with its sub-agents and reports.  Returns whether it existed."""
        scope = _workspace_of(connection, agent_id)
        return change_callers(connection, agents.delete().where(agents.c.id == agent_id), scope=scope) > 0

    @writes
    def delete_sub_agent(self, connection: sa.Connection, parent_id: PeerID, agent_id: PeerID) -> bool:
        """Delete an agent if it is a sub-agent of that one.  Returns whether it was."""
        scope = _workspace_of(connection, agent_id)
        deletion = agents.delete().where(agents.c.id == agent_id, agents.c.parent_id == parent_id)
        return change_callers(connection, deletion, scope=scope) > 0

    @writes
    def add_sub_agent(
        self,
        connection: sa.Connection,
        parent_id: PeerID,
        agent_id: PeerID,
        token_digest: bytes,
        name: str,
        now: datetime,
        *,
        directory: str = "",
        architecture: str = "",
        operating_system: str = "",
        apps: Mapping[UUID, Mapping[str, Any]] = NO_APPS,
    ) -> bool:
        """Add an agent to its parent's workspace, with apps as store/definitions.py makes them, in their order.

        Returns False if there is no such parent.  Raises StoreError.
        """
        workspace_id = connection.execute(
            sa.select(agents.c.workspace_id).where(agents.c.id == parent_id)
        ).scalar_one_or_none()
        if workspace_id is None:
            return False
        connection.execute(
            agents.insert().values(
                id=agent_id,
                workspace_id=workspace_id,
                parent_id=parent_id,
                name=name,
                token_digest=token_digest,
                created_at=now,
                updated_at=now,
                directory=directory,
                architecture=architecture,
                operating_system=operating_system,
            )
        )
        rows = [
            {
                "id": app_id,
                "agent_id": agent_id,
                "position": position,
                "definition": dict(definition),
                "health": int(first_health(definition)),
            }
            for position, (app_id, definition) in enumerate(apps.items())
        ]
        if rows:
            connection.execute(agent_apps.insert(), rows)
        raise_generation(connection, Scope(workspaces=frozenset((workspace_id,))))
        return True

    @writes
    def update_user(
        self,
        connection: sa.Connection,
        user_id: UUID,
        now: datetime,
        *,
        active: bool | None = None,
        role: Role | None = None,
    ) -> bool:
        """Change what is given.  A user who is not active is signed out everywhere.  Returns whether it exists."""
        values: dict[str, object] = {"updated_at": now}
        if active is not None:
            values["active"] = active
        if role is not None:
            values["role"] = role
        change = users.update().where(users.c.id == user_id).values(values)
        return change_callers(connection, change, scope=Scope(users=frozenset((user_id,)))) > 0

    @writes
    def add_user_token(
        self,
        connection: sa.Connection,
        user_id: UUID,
        token_id: str,
        secret_digest: bytes,
        now: datetime,
        expires_at: datetime | None = None,
    ) -> None:
        """Store a session token's id and digest.  Raises StoreError if the id is taken or the user unknown."""
        connection.execute(
            user_tokens.insert().values(
                id=token_id, user_id=user_id, secret_digest=secret_digest, created_at=now, expires_at=expires_at
            )
        )
        raise_generation(connection, Scope(users=frozenset((user_id,))))

    @writes
    def delete_user_token(self, connection: sa.Connection, token_id: str) -> bool:
        """Returns whether it existed."""
        return change_callers(connection, user_tokens.delete().where(user_tokens.c.id == token_id)) > 0


def _workspaces_where(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[WorkspaceRow]:
    of_workspace: dict[UUID, list[AgentRow]] = {}
    query = _AGENT_ROWS.join(workspaces, agents.c.workspace_id == workspaces.c.id)
    for row in connection.execute(query.where(condition).order_by(agents.c.name, agents.c.id)):
        of_workspace.setdefault(row.workspace_id, []).append(_agent(row))
    return [
        WorkspaceRow(ident, owner_id, owner, name, WorkspaceStatus(status), of_workspace.get(ident, ()), *times)
        for ident, owner_id, owner, name, status, *times in connection.execute(_WORKSPACES.where(condition))
    ]


def _workspace_of(connection: sa.Connection, agent_id: PeerID) -> Scope:
    found = connection.execute(sa.select(agents.c.workspace_id).where(agents.c.id == agent_id)).scalars()
    return Scope(workspaces=frozenset(found))


def change_callers(connection: sa.Connection, *statements: sa.Update | sa.Delete, scope: Scope | None = None) -> int:
    """How many rows these change, inside a write transaction; every cache hears of it if there are any."""
    changed = sum(connection.execute(each).rowcount for each in statements)
    if changed:
        raise_generation(connection, scope)
    return changed


def _user(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> UserIdentity | None:
    query = sa.select(users.c.id, users.c.username, users.c.active, users.c.role).where(condition)
    row = connection.execute(query).first()
    if row is None:
        return None
    return UserIdentity(*row, _grants_of(connection, [row[0]]).get(row[0], NO_GRANTS))


def _grants_of(connection: sa.Connection, user_ids: Collection[UUID]) -> dict[UUID, Grants]:
    """What users have on workspaces of others; who has nothing is absent."""
    rows: list[sa.Row[Any]] = []
    for piece in pieces(user_ids):
        rows += connection.execute(_GRANTS.where(workspace_grants.c.user_id.in_(piece)))
    return _by_user(rows)


def _by_user(rows: Iterable[Any]) -> dict[UUID, Grants]:
    found: dict[UUID, dict[UUID, frozenset[Right]]] = {}
    for user_id, workspace_id, rights in rows:
        found.setdefault(user_id, {})[workspace_id] = rights
    return {user_id: MappingProxyType(grants) for user_id, grants in found.items()}


def raise_generation(connection: sa.Connection, scope: Scope | None = None) -> None:
    """Tell every cache, in this process and in others, to forget whom a change was about; None: anybody.  Inside a
    write transaction.

    It rises by a random number: a store that was restored, or a standby that lacks the last changes, would otherwise
    come to the number that a cache knows by other changes, and the cache would not forget.
    """
    step = 1 + secrets.randbelow(MAX_STEP)
    # Locks the row until the commit, so changes are numbered in the order in which they are seen.
    connection.execute(counters.update().where(counters.c.name == "callers").values(value=counters.c.value + step))
    serial = int(connection.execute(_GENERATION).scalar_one())
    told = [(_ANYBODY, "")]
    if scope is not None and len(scope.users) + len(scope.workspaces) <= MAX_IN_SCOPE:
        told = [("user", str(each)) for each in scope.users] + [("workspace", str(each)) for each in scope.workspaces]
    # Of a change that was about nobody, keys for example, there is a row too: the chain must not break.
    about = [{"kind": kind, "id": ident} for kind, ident in told or [("nobody", "")]]
    common = {"serial": serial, "previous": serial - step, "at": datetime.now(UTC)}
    connection.execute(revocations.insert(), [common | each for each in about])


def _scope(connection: sa.Connection, known: int, generation: int) -> Scope | None:
    """Whom the changes between two generations were about; None: anybody, or that is not known of each of them."""
    query = sa.select(revocations.c.serial, revocations.c.previous, revocations.c.kind, revocations.c.id)
    query = query.where(revocations.c.serial > known).order_by(revocations.c.serial).limit(_MAX_ROWS)
    rows = connection.execute(query).all()
    if len(rows) == _MAX_ROWS:
        return None  # more may be left
    reached = known
    ids: dict[str, set[UUID]] = {"user": set(), "workspace": set()}
    for serial, previous, kind, ident in rows:
        if (serial != reached and previous != reached) or kind == _ANYBODY:
            return None
        reached = serial
        if kind in ids:
            ids[kind].add(UUID(ident))
    return Scope(frozenset(ids["user"]), frozenset(ids["workspace"])) if reached == generation else None


def identity_of(answer: AgentIdentity | UserToken | None) -> AgentIdentity | UserIdentity | None:
    """Who it is, whatever he came in with."""
    return answer.user if isinstance(answer, UserToken) else answer


def pieces(values: Iterable[T]) -> Iterator[list[T]]:
    """Cut a list into pieces that fit one statement."""
    left = list(values)
    for start in range(0, len(left), IDS_PER_STATEMENT):
        yield left[start : start + IDS_PER_STATEMENT]


def _sort(keys: Iterable[CallerKey]) -> tuple[list[bytes], list[PeerID], list[str]]:
    digests: list[bytes] = []
    agent_ids: list[PeerID] = []
    token_ids: list[str] = []
    for key in keys:
        if isinstance(key, str):
            token_ids.append(key)
        elif isinstance(key, PeerID):
            agent_ids.append(key)
        else:
            digests.append(key)
    return digests, agent_ids, token_ids


def _agents_by_digest(connection: sa.Connection, digests: Collection[bytes]) -> dict[bytes, AgentIdentity]:
    found: dict[bytes, AgentIdentity] = {}
    for piece in pieces(digests):
        for row in connection.execute(_IDENTITIES.where(agents.c.token_digest.in_(piece))):
            found[row[0]] = AgentIdentity(*row[1:])
    # Most agents come with their own token, so a storm of them needs no second query.
    for piece in pieces(digest for digest in digests if digest not in found):
        for row in connection.execute(_ISSUED.where(agent_tokens.c.digest.in_(piece))):
            found[row[0]] = AgentIdentity(*row[1:])
    return found


def _agents_by_id(connection: sa.Connection, ids: Collection[PeerID]) -> dict[PeerID, AgentIdentity]:
    return {
        row[1]: AgentIdentity(*row[1:])
        for piece in pieces(ids)
        for row in connection.execute(_IDENTITIES.where(agents.c.id.in_(piece)))
    }


def _tokens_by_id(connection: sa.Connection, token_ids: Collection[str]) -> dict[str, UserToken]:
    rows: list[Any] = []
    for piece in pieces(token_ids):
        rows += connection.execute(_TOKENS.where(user_tokens.c.id.in_(piece)))
    grants = _grants_of(connection, {row[3] for row in rows})
    return {row[0]: _token(row, grants) for row in rows}


def _token(row: Any, grants: Mapping[UUID, Grants]) -> UserToken:
    token_id, secret_digest, expires_at, user_id, username, active, role = row
    user = UserIdentity(user_id, username, active, role, grants.get(user_id, NO_GRANTS))
    return UserToken(token_id, secret_digest, expires_at, user)


def _agent(row: sa.Row[Any]) -> AgentRow:
    values = dict(row._mapping)
    values["lifecycle_state"] = LifecycleState(values["lifecycle_state"])
    return AgentRow(**values)
