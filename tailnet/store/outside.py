"""Rows of agents that the store does not know and the control plane does (layer L2).

What an agent reports belongs to a row of its own, and that to a workspace and an owner: they are written when it comes
in for the first time, and again when the control plane calls something differently.  No token of theirs is in the
store, so only who vouched for them once can let them in again.  Called by auth/chain.py.
"""

import hashlib
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tailnet.store.callers import raise_generation
from tailnet.store.part import Part, writes
from tailnet.store.rows import AgentIdentity, Scope, UserIdentity, WorkspaceStatus
from tailnet.store.schema import agents, users, workspaces


class OutsideTables(Part):
    """The part of the store that takes in agents of others.  Raises StoreError."""

    @writes
    def put_agent(self, connection: sa.Connection, agent: AgentIdentity, now: datetime) -> bool:
        """Have rows for an agent, its workspace and its owner.  Returns whether anything had to be written."""
        self.database.dialect.lock(connection, "outside")
        before = _row(connection, agents, agent.id, ["workspace_id"])
        places = {agent.workspace_id, *(before.values() if before is not None else ())}
        changed = _put_user(connection, agent.owner_id, agent.owner_name, now)
        changed |= _put(
            connection,
            workspaces,
            agent.workspace_id,
            {"owner_id": agent.owner_id, "name": agent.workspace_name},
            {"status": int(WorkspaceStatus.RUNNING)},
            now,
        )
        parent = agent.parent_id
        if parent is not None and _row(connection, agents, parent, ["id"]) is None:
            parent = None
        values = {"workspace_id": agent.workspace_id, "name": agent.name, "parent_id": parent}
        changed |= _put(connection, agents, agent.id, values, {"token_digest": _no_token(agent)}, now)
        if changed:
            raise_generation(connection, Scope(frozenset((agent.owner_id,)), frozenset(places)))
        return changed

    @writes
    def put_user(self, connection: sa.Connection, user: UserIdentity, now: datetime) -> bool:
        """Have a row for a user, for what belongs to him alone; one that is there stays as it is.

        Returns whether it had to be written.
        """
        self.database.dialect.lock(connection, "outside")
        if _row(connection, users, user.id, ["id"]) is not None:
            return False
        _put_user(connection, user.id, user.username, now)
        raise_generation(connection, Scope(users=frozenset((user.id,))))
        return True


def _put_user(connection: sa.Connection, ident: object, name: str, now: datetime) -> bool:
    """A user's name is nobody else's: who comes later has a piece of the id behind it, and the next word puts it right
    when the other one has left it."""
    holder = connection.execute(sa.select(users.c.id).where(users.c.username == name)).scalar_one_or_none()
    if holder == ident:
        return False
    free = name if holder is None else f"{name}-{str(ident)[:8]}"
    return _put(connection, users, ident, {"username": free}, {}, now)


def _put(
    connection: sa.Connection,
    table: sa.Table,
    ident: object,
    values: dict[str, Any],
    of_new: dict[str, Any],
    now: datetime,
) -> bool:
    before = _row(connection, table, ident, list(values))
    if before == values:
        return False
    if before is None:
        connection.execute(table.insert().values(id=ident, created_at=now, updated_at=now, **values, **of_new))
    else:
        connection.execute(table.update().where(table.c.id == ident).values(updated_at=now, **values))
    return True


def _row(connection: sa.Connection, table: sa.Table, ident: object, names: list[str]) -> dict[str, Any] | None:
    row = connection.execute(sa.select(*[table.c[name] for name in names]).where(table.c.id == ident)).first()
    return None if row is None else dict(row._mapping)


def _no_token(agent: AgentIdentity) -> bytes:
    """A digest that is no token's: tokens are UUIDs, and this is of another text."""
    return hashlib.sha256(f"no token of agent {agent.id}".encode()).digest()
