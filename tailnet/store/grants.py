"""Rights on workspaces for others than their owners (layer L2).

A user's grants are a part of his identity (rows.py), so every change raises the `callers` counter: who is inside with a
right that he lost is out within a second (services/rights.py).  Next hop: auth/policy.py decides with them.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.callers import raise_generation
from tailnet.store.part import Part, reads, writes
from tailnet.store.rows import Grant, Right, as_granted
from tailnet.store.schema import users, workspace_grants, workspaces

# All of a user's come into memory with him, 100 bytes each.  Who needs more has a role.
MAX_GRANTS_PER_USER: Final = 4_096

_table: Final = workspace_grants.c


class GrantTables(Part):
    """The part of the store that says who may do what with others' workspaces.  Every method raises StoreError."""

    @writes
    def put(
        self, connection: sa.Connection, workspace_id: UUID, user_id: UUID, rights: Iterable[Right], now: datetime
    ) -> bool:
        """Give a user exactly these rights on a workspace, and to read it; none: take them away.

        Returns whether there are such a workspace and such a user.
        """
        for table, ident in ((workspaces, workspace_id), (users, user_id)):
            if connection.execute(sa.select(table.c.id).where(table.c.id == ident)).first() is None:
                return False
        given = as_granted(rights)
        if not given:
            _revoke(connection, workspace_id, user_id)
            return True
        others = sa.select(sa.func.count()).where(_table.user_id == user_id, _table.workspace_id != workspace_id)
        if connection.execute(others).scalar_one() >= MAX_GRANTS_PER_USER:
            raise StoreError(
                f"user {user_id} has {MAX_GRANTS_PER_USER:,} grants, the most: revoke some, or give him a role",
                StoreTrouble.UNFIT,
            )
        put = self.database.dialect.upsert(
            workspace_grants, key=("workspace_id", "user_id"), replaced=("rights", "updated_at")
        )
        row = {"workspace_id": workspace_id, "user_id": user_id, "rights": given, "created_at": now, "updated_at": now}
        connection.execute(put, row)
        raise_generation(connection)
        return True

    @writes
    def revoke(self, connection: sa.Connection, workspace_id: UUID, user_id: UUID) -> bool:
        """Take all rights on a workspace from a user.  Returns whether he had any."""
        return _revoke(connection, workspace_id, user_id)

    @reads
    def list_all(
        self, connection: sa.Connection, *, workspace_id: UUID | None = None, user_id: UUID | None = None
    ) -> list[Grant]:
        """All grants, or those on one workspace, or of one user; by the names of workspaces and users."""
        query = (
            sa.select(
                _table.workspace_id,
                workspaces.c.name,
                _table.user_id,
                users.c.username,
                _table.rights,
                _table.created_at,
                _table.updated_at,
            )
            .join(workspaces, _table.workspace_id == workspaces.c.id)
            .join(users, _table.user_id == users.c.id)
            .order_by(workspaces.c.name, _table.workspace_id, users.c.username)
        )
        if workspace_id is not None:
            query = query.where(_table.workspace_id == workspace_id)
        if user_id is not None:
            query = query.where(_table.user_id == user_id)
        return [Grant(*row) for row in connection.execute(query)]


def _revoke(connection: sa.Connection, workspace_id: UUID, user_id: UUID) -> bool:
    gone = workspace_grants.delete().where(_table.workspace_id == workspace_id, _table.user_id == user_id)
    had_any = connection.execute(gone).rowcount > 0
    if had_any:
        raise_generation(connection)
    return had_any
