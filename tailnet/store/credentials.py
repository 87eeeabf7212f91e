"""What workspaces come in with elsewhere: users' links to providers, and their SSH keys, encrypted (layer L2).

Here lie sealed bytes (sealing.py) and what may be shown of them.  A provider takes each refresh token once, and some
end the whole link when one is shown twice: so a server claims a link before it refreshes it.
Next hop: services/git_keys.py; cli/admin_secrets.py seals anew.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from tailnet.errors import SecretsError
from tailnet.store.callers import pieces
from tailnet.store.part import Part, reads, writes
from tailnet.store.schema import external_auth_links, git_keys
from tailnet.store.sealing import Sealer

# Whose link, to which provider.
LinkKey = tuple[UUID, str]
# Rows of one transaction that seals anew.
_STEP_ROWS: Final = 200


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A user's link to a provider.  `sealed`: its tokens, None when the provider takes them no more."""

    user_id: UUID
    provider_id: str
    sealed: bytes | None = field(repr=False)
    expires_at: datetime | None
    failure: str  # why it is of no use any more, in the words of whom we asked
    created_at: datetime
    updated_at: datetime
    refreshing_until: datetime | None


@dataclass(frozen=True, slots=True)
class GitKeyRow:
    """A user's pair of keys; the private one sealed."""

    user_id: UUID
    public_key: str
    sealed: bytes = field(repr=False)
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Resealed:
    """What sealing anew did: rows by what happened to them."""

    resealed: int
    current: int  # were sealed with the first key
    unreadable: tuple[str, ...]  # why, one sentence each


def link_place(user_id: UUID, provider_id: str) -> str:
    """Where a link's tokens lie, for the seal."""
    return f"link of user {user_id} to {provider_id}"


def key_place(user_id: UUID) -> str:
    """Where a user's private key lies, for the seal."""
    return f"SSH key of user {user_id}"


class CredentialTables(Part):
    """The part of the store that keeps others' secrets.  Every method raises StoreError."""

    @reads
    def link(self, connection: sa.Connection, user_id: UUID, provider_id: str) -> LinkRow | None:
        row = connection.execute(sa.select(external_auth_links).where(_is_link(user_id, provider_id))).first()
        return None if row is None else LinkRow(**row._mapping)

    @reads
    def links(self, connection: sa.Connection, user_id: UUID) -> list[LinkRow]:
        """All of a user's links, by provider."""
        table = external_auth_links
        query = sa.select(table).where(table.c.user_id == user_id).order_by(table.c.provider_id)
        return [LinkRow(**row._mapping) for row in connection.execute(query)]

    @reads
    def links_changed_at(self, connection: sa.Connection, keys: Collection[LinkKey]) -> dict[LinkKey, datetime]:
        """When these links changed last; those that are not there are absent."""
        table, found = external_auth_links, {}
        query = sa.select(table.c.user_id, table.c.provider_id, table.c.updated_at)
        for piece in pieces({user_id for user_id, _ in keys}):
            for user_id, provider_id, updated_at in connection.execute(query.where(table.c.user_id.in_(piece))):
                found[user_id, provider_id] = updated_at
        return {key: at for key, at in found.items() if key in keys}

    @writes
    def put_link(
        self,
        connection: sa.Connection,
        user_id: UUID,
        provider_id: str,
        sealed: bytes,
        expires_at: datetime | None,
        now: datetime,
    ) -> None:
        """Keep a link that its user just made, in the place of an older one."""
        put = self.database.dialect.upsert(
            external_auth_links,
            key=("user_id", "provider_id"),
            replaced=("sealed", "expires_at", "failure", "updated_at", "refreshing_until"),
        )
        times = {"expires_at": expires_at, "created_at": now, "updated_at": now, "refreshing_until": None}
        values = {"sealed": sealed, "failure": "", **times}
        connection.execute(put, {"user_id": user_id, "provider_id": provider_id, **values})

    @writes
    def change_link(
        self,
        connection: sa.Connection,
        before: LinkRow,
        sealed: bytes | None,
        expires_at: datetime | None,
        failure: str,
        now: datetime,
    ) -> bool:
        """Change a link if it is still what was read.  Returns whether it was."""
        change = external_auth_links.update().where(_is_still(before))
        values = change.values(
            sealed=sealed, expires_at=expires_at, failure=failure, updated_at=now, refreshing_until=None
        )
        return connection.execute(values).rowcount > 0

    @writes
    def claim_link(self, connection: sa.Connection, row: LinkRow, until: datetime, now: datetime) -> bool:
        """Have a link, as it was read, for oneself until then.  Returns False while another server has it."""
        table = external_auth_links
        is_free = sa.or_(table.c.refreshing_until.is_(None), table.c.refreshing_until <= now)
        mine = table.update().where(_is_still(row), is_free)
        return connection.execute(mine.values(refreshing_until=until)).rowcount > 0

    @writes
    def release_link(self, connection: sa.Connection, row: LinkRow) -> None:
        """Give back what was claimed, as it was."""
        mine = external_auth_links.update().where(_is_still(row))
        connection.execute(mine.values(refreshing_until=None))

    @writes
    def delete_link(self, connection: sa.Connection, user_id: UUID, provider_id: str) -> bool:
        """Returns whether it existed."""
        return connection.execute(external_auth_links.delete().where(_is_link(user_id, provider_id))).rowcount > 0

    @reads
    def git_key(self, connection: sa.Connection, user_id: UUID) -> GitKeyRow | None:
        return _git_key(connection, user_id)

    @writes
    def add_git_key(
        self, connection: sa.Connection, user_id: UUID, public_key: str, sealed: bytes, now: datetime
    ) -> GitKeyRow:
        """Keep a user's first pair of keys.  Returns the pair that counts: that of whoever was first."""
        self.database.dialect.lock(connection, "keys")
        found = _git_key(connection, user_id)
        if found is not None:
            return found
        row = {"user_id": user_id, "public_key": public_key, "sealed": sealed, "created_at": now, "updated_at": now}
        connection.execute(git_keys.insert().values(row))
        return GitKeyRow(user_id, public_key, sealed, now, now)

    @writes
    def put_git_key(
        self, connection: sa.Connection, user_id: UUID, public_key: str, sealed: bytes, now: datetime
    ) -> None:
        """Keep a user's new pair of keys in the place of the old one."""
        put = self.database.dialect.upsert(git_keys, key=("user_id",), replaced=("public_key", "sealed", "updated_at"))
        row = {"user_id": user_id, "public_key": public_key, "sealed": sealed, "created_at": now, "updated_at": now}
        connection.execute(put, row)

    def reseal(self, sealer: Sealer) -> Resealed:
        """Encrypt with the first key whatever is encrypted with another one.  Blocks.  Servers may go on meanwhile.

        What cannot be read stays as it is.
        """
        resealed, current, unreadable = 0, 0, list[str]()
        rows = self._sealed()
        for start in range(0, len(rows), _STEP_ROWS):
            with self.database.writing() as connection:
                for place, mine, sealed in rows[start : start + _STEP_ROWS]:
                    if sealer.is_current(sealed):
                        current += 1
                        continue
                    try:
                        fresh = sealer.seal(sealer.open(sealed, place), place)
                    except SecretsError as error:
                        unreadable.append(str(error))
                        continue
                    # Whoever changed it meanwhile sealed it with his own first key.
                    resealed += connection.execute(mine.values(sealed=fresh)).rowcount
        return Resealed(resealed, current, tuple(unreadable))

    def _sealed(self) -> list[tuple[str, sa.Update, bytes]]:
        """All that is sealed: where it lies, how it is changed, and what it is."""
        links, keys = external_auth_links, git_keys
        of_links = sa.select(links.c.user_id, links.c.provider_id, links.c.sealed).where(links.c.sealed.is_not(None))
        found: list[tuple[str, sa.Update, bytes]] = []
        with self.database.reading() as connection:
            for user_id, provider_id, sealed in connection.execute(of_links):
                mine = links.update().where(_is_link(user_id, provider_id), links.c.sealed == sealed)
                found.append((link_place(user_id, provider_id), mine, sealed))
            for user_id, sealed in connection.execute(sa.select(keys.c.user_id, keys.c.sealed)):
                mine = keys.update().where(keys.c.user_id == user_id, keys.c.sealed == sealed)
                found.append((key_place(user_id), mine, sealed))
        return found


def _is_link(user_id: UUID, provider_id: str) -> sa.ColumnElement[bool]:
    table = external_auth_links.c
    return sa.and_(table.user_id == user_id, table.provider_id == provider_id)


def _is_still(row: LinkRow) -> sa.ColumnElement[bool]:
    """Nobody changed its tokens since it was read."""
    return sa.and_(_is_link(row.user_id, row.provider_id), external_auth_links.c.sealed == row.sealed)


def _git_key(connection: sa.Connection, user_id: UUID) -> GitKeyRow | None:
    row = connection.execute(sa.select(git_keys).where(git_keys.c.user_id == user_id)).first()
    return None if row is None else GitKeyRow(**row._mapping)
