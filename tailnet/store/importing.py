"""Writing a seed into the store (layer L2): only what differs, in one transaction.

Importing twice changes nothing, and a refused file leaves nothing behind.  A seed adds and changes, it never deletes:
what it does not name stays as it is; only apps, scripts and metadata, where an agent has them, are its whole list.
Called by cli/admin.py and `tailnet serve --dev`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa

from tailnet.errors import SeedError
from tailnet.store.administration.audit import Account
from tailnet.store.administration.values import Actor
from tailnet.store.callers import pieces, raise_generation
from tailnet.store.importing_definitions import ID_TABLES, put_definitions
from tailnet.store.issued import revoke_issued
from tailnet.store.problems import Problems
from tailnet.store.rows import MAX_GRANTS_PER_USER, Right, Role, WorkspaceStatus
from tailnet.store.schema import (
    agents,
    user_tokens,
    users,
    workspace_grants,
    workspaces,
)
from tailnet.store.seed import Seed, SeedUser
from tailnet.store.store import Store
from tailnet.types import PeerID

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Tally:
    added: int
    changed: int
    unchanged: int


NOTHING: Final = Tally(0, 0, 0)


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """What an import did."""

    users: Tally
    workspaces: Tally
    agents: Tally
    grants: Tally = NOTHING

    @property
    def tallies(self) -> dict[str, Tally]:
        """Each with its name."""
        return {"users": self.users, "workspaces": self.workspaces, "agents": self.agents, "grants": self.grants}

    @property
    def changed_anything(self) -> bool:
        return any(tally.added or tally.changed for tally in self.tallies.values())


def import_seed(store: Store, seed: Seed, now: datetime, name: str = "seed", actor: Actor | None = None) -> SeedOutcome:
    """Write what differs; the account of changes has a line of it if `actor` is somebody.

    Blocks.  Raises SeedError, with nothing written, and StoreError.
    """
    # On the disk when it returns: whoever imports may delete the file next.
    with store.writing() as connection:
        store.database.dialect.lock(connection, "import")
        writer = _Writer(connection, seed, now)
        writer.check(Problems(name))
        outcome = SeedOutcome(writer.put_users(), writer.put_workspaces(), writer.put_agents(), writer.put_grants())
        if outcome.changed_anything:
            raise_generation(connection)
            if actor is not None:
                account = Account(actor, now)
                counts = {
                    sort: {"created": tally.added, "changed": tally.changed} for sort, tally in outcome.tallies.items()
                }
                account.note("import", "seed", name, None, counts)
                account.write(connection)
    return outcome


class _Writer:
    """Compares a seed with the store, inside the import's transaction."""

    def __init__(self, connection: sa.Connection, seed: Seed, now: datetime) -> None:
        self._connection = connection
        self._seed = seed
        self._now = now

    def check(self, problems: Problems) -> None:
        """Raises SeedError for what is wrong only in the light of what the store has."""
        seed = self._seed
        given = {user.id for user in seed.users}
        names = self._values(users.c.username, (user.username for user in seed.users), users.c.id)
        holders = self._values(user_tokens.c.id, (user.token.id for user in seed.users), user_tokens.c.user_id)
        for user in seed.users:
            # A name or a token may change hands when its holder gets another one in the same file.
            if names.get(user.username, user.id) not in given:
                problems.add(f"{user.place}.username", f"belongs to user {names[user.username]} in the store")
            if holders.get(user.token.id, user.id) not in given:
                problems.add(f"{user.place}.token", f"belongs to user {holders[user.token.id]} in the store")
        owned = self._values(agents.c.token_digest, (agent.token_digest for agent in seed.agents), agents.c.id)
        known = given | self._values(users.c.id, {agent.owner_id for agent in seed.agents}, users.c.id).keys()
        for agent in seed.agents:
            if owned.get(agent.token_digest, agent.id) != agent.id:
                problems.add(f"{agent.place}.token", f"belongs to agent {owned[agent.token_digest]} in the store")
            if agent.owner_id not in known:
                problems.add(
                    f"{agent.place}.owner_id", f"{agent.owner_id} is no user, neither in this file nor in the store"
                )
        self._check_grants(problems, known)
        for sort, table in ID_TABLES.items():
            items = [(agent.id, item) for agent in seed.agents for item in getattr(agent.definitions, sort) or ()]
            holders_of = self._values(table.c.id, (item.key for _, item in items), table.c.agent_id)
            for agent_id, item in items:
                if holders_of.get(item.key, agent_id) != agent_id:
                    problems.add(f"{item.place}.id", f"belongs to agent {holders_of[item.key]} in the store")
        problems.raise_if_any()

    def _check_grants(self, problems: Problems, known: set[Any]) -> None:
        grants = self._seed.grants
        known = known | self._values(users.c.id, {grant.user_id for grant in grants}, users.c.id).keys()
        places = {agent.workspace_id for agent in self._seed.agents}
        places |= self._values(workspaces.c.id, {grant.workspace_id for grant in grants}, workspaces.c.id).keys()
        for grant in grants:
            if grant.user_id not in known:
                problems.add(
                    f"{grant.place}.user_id", f"{grant.user_id} is no user, neither in this file nor in the store"
                )
            if grant.workspace_id not in places:
                problems.add(
                    f"{grant.place}.workspace_id",
                    f"{grant.workspace_id} is no workspace, neither of an agent in this file nor in the store",
                )

    def put_users(self) -> Tally:
        seed_users = self._seed.users
        names = self._values(users.c.id, (user.id for user in seed_users), users.c.username)
        tokens = self._seeded_tokens(names)
        new = [user for user in seed_users if user.id not in names]
        renamed = [user for user in seed_users if names.get(user.id, user.username) != user.username]
        # A seeded user has one seeded token; tokens made by other means are none of the seed's business.
        reissued = [user for user in seed_users if tokens.get(user.id) != {user.token.id: user.token.secret_digest}]
        if renamed:
            # In two steps, since two users may exchange their names.
            for step in ("between two names", ""):
                self._update(
                    users, {user.id: {"username": f"{user.id} {step}" if step else user.username} for user in renamed}
                )
        self._insert(users, {user.id: {"username": user.username, "role": user.role or Role.USER} for user in new}, {})
        roles = self._values(users.c.id, names, users.c.role)
        promoted = [user for user in seed_users if user.role not in (None, roles.get(user.id, user.role))]
        self._update(users, {user.id: {"role": user.role} for user in promoted})
        for piece in pieces(user.id for user in reissued if user.id in tokens):
            self._connection.execute(user_tokens.delete().where(user_tokens.c.user_id.in_(piece), user_tokens.c.seeded))
        if reissued:
            self._connection.execute(user_tokens.insert(), [self._token_row(user) for user in reissued])
        changed = {user.id for user in (*renamed, *promoted)} | {user.id for user in reissued if user.id in names}
        return Tally(len(new), len(changed), len(seed_users) - len(new) - len(changed))

    def put_workspaces(self) -> Tally:
        wanted = {
            agent.workspace_id: {"owner_id": agent.owner_id, "name": agent.workspace_name}
            for agent in self._seed.agents
        }
        # Somebody else builds, starts and stops workspaces; one whose agents come here is running.
        new, changed = self._put(workspaces, wanted, {"status": int(WorkspaceStatus.RUNNING)})
        return Tally(len(new), len(changed), len(wanted) - len(new) - len(changed))

    def put_agents(self) -> Tally:
        wanted = {
            agent.id: {"workspace_id": agent.workspace_id, "name": agent.name, "token_digest": agent.token_digest}
            for agent in self._seed.agents
        }
        tokens = self._values(agents.c.id, wanted, agents.c.token_digest)
        new, changed = self._put(agents, wanted, {})
        # A token that is exchanged is one that somebody else may have, with what was issued beside it.
        revoke_issued(
            self._connection,
            [key for key in changed if tokens[key] != wanted[key]["token_digest"]],
        )
        changed |= self._put_instances() - new
        changed |= put_definitions(self._connection, self._seed.agents) - new
        return Tally(len(new), len(changed), len(wanted) - len(new) - len(changed))

    def _put_instances(self) -> set[PeerID]:
        """Which agents run on another machine than before.  What was issued for that one ends."""
        wanted = {agent.id: agent.instance_id for agent in self._seed.agents if agent.instance_id is not None}
        before = self._values(agents.c.id, wanted, agents.c.instance_id)
        moved = {key: {"instance_id": value} for key, value in wanted.items() if before[key] != value}
        self._update(agents, moved)
        revoke_issued(self._connection, moved)
        return set(moved)

    def put_grants(self) -> Tally:
        wanted = {(grant.workspace_id, grant.user_id): grant.rights for grant in self._seed.grants}
        table = workspace_grants.c
        existing: dict[tuple[UUID, UUID], frozenset[Right]] = {}
        query = sa.select(table.workspace_id, table.user_id, table.rights)
        for piece in pieces({user_id for _, user_id in wanted}):
            for row in self._connection.execute(query.where(table.user_id.in_(piece))):
                existing[row[0], row[1]] = row[2]
        new = {key: rights for key, rights in wanted.items() if rights and key not in existing}
        changed = {key: rights for key, rights in wanted.items() if key in existing and existing[key] != rights}
        key_is = sa.and_(table.workspace_id == sa.bindparam("workspace"), table.user_id == sa.bindparam("holder"))
        of = {key: {"workspace": key[0], "holder": key[1]} for key in changed}
        if gone := [of[key] for key, rights in changed.items() if not rights]:
            self._connection.execute(workspace_grants.delete().where(key_is), gone)
        if kept := [of[key] | {"given": rights} for key, rights in changed.items() if rights]:
            given = sa.bindparam("given", type_=table.rights.type)
            self._connection.execute(
                workspace_grants.update().where(key_is).values(rights=given, updated_at=self._now), kept
            )
        if new:
            times = {"created_at": self._now, "updated_at": self._now}
            rows = [
                {"workspace_id": key[0], "user_id": key[1], "rights": rights} | times for key, rights in new.items()
            ]
            self._connection.execute(workspace_grants.insert(), rows)
        self._insist_on_few({user_id for _, user_id in new})
        return Tally(len(new), len(changed), len(wanted) - len(new) - len(changed))

    def _insist_on_few(self, user_ids: set[UUID]) -> None:
        """Raises SeedError for a user with more grants than one may have."""
        table = workspace_grants.c
        count = sa.func.count()
        query = sa.select(table.user_id, count).group_by(table.user_id).having(count > MAX_GRANTS_PER_USER)
        for piece in pieces(user_ids):
            for user_id, has in self._connection.execute(query.where(table.user_id.in_(piece))):
                raise SeedError(
                    [
                        f"user {user_id} would have {has:,} grants, at most {MAX_GRANTS_PER_USER:,} are possible: "
                        "give a role instead"
                    ]
                )

    def _put(
        self, table: sa.Table, wanted: Mapping[K, Mapping[str, object]], defaults: Mapping[str, object]
    ) -> tuple[set[K], set[K]]:
        """Which rows are new, and which had to be changed."""
        if not wanted:
            return set(), set()
        columns = [table.c[name] for name in next(iter(wanted.values()))]
        existing: dict[K, dict[str, object]] = {}
        for piece in pieces(wanted):
            for row in self._connection.execute(sa.select(table.c.id, *columns).where(table.c.id.in_(piece))):
                existing[row[0]] = {column.name: value for column, value in zip(columns, row[1:], strict=True)}
        new = {key: values for key, values in wanted.items() if key not in existing}
        changed = {key: values for key, values in wanted.items() if existing.get(key, values) != values}
        self._update(table, changed)
        self._insert(table, new, defaults)
        return set(new), set(changed)

    def _insert(self, table: sa.Table, rows: Mapping[K, Mapping[str, object]], defaults: Mapping[str, object]) -> None:
        times = {"created_at": self._now, "updated_at": self._now}
        if rows:
            self._connection.execute(
                table.insert(), [{"id": key, **values, **defaults, **times} for key, values in rows.items()]
            )

    def _update(self, table: sa.Table, rows: Mapping[K, Mapping[str, object]]) -> None:
        if not rows:
            return
        names = list(next(iter(rows.values())))
        statement = (
            table.update()
            .where(table.c.id == sa.bindparam("row_id"))
            .values({name: sa.bindparam(f"new_{name}") for name in names} | {"updated_at": self._now})
        )
        self._connection.execute(
            statement,
            [{"row_id": key} | {f"new_{name}": values[name] for name in names} for key, values in rows.items()],
        )

    def _values(self, key: sa.Column[Any], keys: Iterable[object], value: sa.Column[Any]) -> dict[Any, Any]:
        """`value` by `key`, of the rows whose key is among `keys`."""
        found: dict[Any, Any] = {}
        for piece in pieces(keys):
            for row in self._connection.execute(sa.select(key, value).where(key.in_(piece))):
                found[row[0]] = row[1]
        return found

    def _seeded_tokens(self, user_ids: Iterable[UUID]) -> dict[UUID, dict[str, bytes]]:
        found: dict[UUID, dict[str, bytes]] = {}
        query = sa.select(user_tokens.c.user_id, user_tokens.c.id, user_tokens.c.secret_digest)
        for piece in pieces(user_ids):
            for user_id, token_id, digest in self._connection.execute(
                query.where(user_tokens.c.user_id.in_(piece), user_tokens.c.seeded)
            ):
                found.setdefault(user_id, {})[token_id] = digest
        return found

    def _token_row(self, user: SeedUser) -> dict[str, object]:
        return {
            "id": user.token.id,
            "user_id": user.id,
            "secret_digest": user.token.secret_digest,
            "seeded": True,
            "created_at": self._now,
        }
