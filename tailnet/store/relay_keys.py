"""Keys of nodes that the coordinator has heard of, for relays: the content of its key sets (layer L2).

The version rises with every change of who may come in, and each row says at which it changed: all servers on one store
publish the same set under the same version.  services/relay_keys.py signs it.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.part import Part, notes, reads, writes
from tailnet.store.rows import RelayKeyChanges
from tailnet.store.schema import relay_key_state, relay_keys

_LOCK: Final = "relay keys"
_ONLY: Final = 1  # the number of the one row of state


class RelayKeyTables(Part):
    """The part of the store with these keys.  Every method raises StoreError."""

    @reads
    def changes(self, connection: sa.Connection, after: int) -> RelayKeyChanges:
        """What is different since a version; everything, if keys were removed meanwhile or `after` is 0."""
        version, removed_at = _state(connection)
        is_whole = after < removed_at or after == 0
        query = sa.select(relay_keys.c.key, relay_keys.c.is_revoked, relay_keys.c.tenant)
        if not is_whole:
            query = query.where(relay_keys.c.changed_at > after)
        rows = connection.execute(query).all() if version > after else ()
        return RelayKeyChanges(
            version,
            is_whole and version > after,
            {key: tenant for key, is_revoked, tenant in rows if not is_revoked},
            frozenset(key for key, is_revoked, _ in rows if is_revoked),
        )

    @writes
    def put(
        self, connection: sa.Connection, heard: Mapping[bytes, str], revoked: Collection[bytes], now: datetime
    ) -> None:
        """Keys that were heard of with whose they are, and keys that may come in no more; of both, revoked."""
        version = self._next_version(connection, now)
        rows = [
            {
                "key": key,
                "is_revoked": key in revoked,
                "heard_at": now,
                "changed_at": version,
                "tenant": heard.get(key, ""),
            }
            for key in {*heard, *revoked}
        ]
        put = self.database.dialect.upsert(relay_keys, ("key",), ("is_revoked", "heard_at", "changed_at", "tenant"))
        connection.execute(put, rows)

    @notes
    def touch(self, connection: sa.Connection, keys: Collection[bytes], now: datetime) -> None:
        """These are in use still."""
        for piece in pieces(keys):
            connection.execute(relay_keys.update().where(relay_keys.c.key.in_(piece)).values(heard_at=now))

    @notes
    def remove(self, connection: sa.Connection, before: datetime, most: int, now: datetime) -> int:
        """Forget what nobody has used since then, and the oldest of more than `most`.  Returns how many they were."""
        count = sa.select(sa.func.count()).select_from(relay_keys).scalar_subquery()
        old = relay_keys.c.heard_at < before
        oldest = sa.select(relay_keys.c.key).order_by(relay_keys.c.heard_at)
        extra = max(0, int(connection.execute(sa.select(count)).scalar_one()) - most)
        if extra:
            old |= relay_keys.c.key.in_(oldest.limit(extra))
        removed = connection.execute(relay_keys.delete().where(old)).rowcount
        if removed:
            version = self._next_version(connection, now)
            connection.execute(relay_key_state.update().values(removed_at=version))
        return removed

    def _next_version(self, connection: sa.Connection, now: datetime) -> int:
        """By the clock, so that a store that was put back from a copy goes on above what relays have seen."""
        self.database.dialect.lock(connection, _LOCK)
        version = max(_state(connection)[0] + 1, int(now.timestamp() * 1000))
        put = self.database.dialect.upsert(relay_key_state, ("id",), ("version",))
        connection.execute(put, {"id": _ONLY, "version": version, "removed_at": 0})
        return version


def _state(connection: sa.Connection) -> tuple[int, int]:
    row = connection.execute(sa.select(relay_key_state.c.version, relay_key_state.c.removed_at)).first()
    return (0, 0) if row is None else (row[0], row[1])
