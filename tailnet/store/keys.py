"""Keys that survive restarts, and the DERP maps that were last good (layer L2).

A purpose has one key that signs, older ones that still verify, and for a while a newer one that all servers read before
any signs with it.  A new one is made when the newest is too old; a key is deleted when nothing it signed can still be
valid.  A lasting key, the relay's identity, never changes.  Several processes on one store agree, since the store
decides.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

import sqlalchemy as sa

from tailnet.errors import StoreError
from tailnet.store.part import Part, notes, reads, writes
from tailnet.store.rows import SigningKey
from tailnet.store.schema import kept_maps, signing_keys

_log = logging.getLogger("tailnet.store")

# HS512 gains nothing from more than its block's 64 bytes of hash output.
KEY_BYTES: Final = 64
KEY_ID_BYTES: Final = 8

# A month limits what a copied key is good for, and is far above the life of a token (24 hours).
ROTATE_AFTER: Final = timedelta(days=30)
# Tokens live 24 hours; the second day covers clocks that disagree and replicas that rotate late.
VERIFY_AFTER_ROTATION: Final = timedelta(hours=48)
# How often servers read the keys again.
REFRESH_SECONDS: Final = 600.0
# A key that signed at once would be unknown to every other server for up to REFRESH_SECONDS; of two reads one may fail.
LEAD_TIME: Final = timedelta(seconds=2 * REFRESH_SECONDS)


class KeyTables(Part):
    """The part of the store that keeps secrets and maps.  Every method raises StoreError."""

    def signing_keys(self, purpose: str, now: datetime, random_bytes: Callable[[int], bytes]) -> list[SigningKey]:
        """The keys of a purpose, newest first: `signer` says which one signs, all of them verify.

        Makes the first key, rotates and deletes as needed; call it at start and about once an hour.  Blocks.  Where
        the store can be read but not written, the keys that are there go on for longer.
        """
        keys = self.stored_keys(purpose)
        if keys and now - keys[0].created_at < ROTATE_AFTER and not _spent(keys, now):
            return keys
        try:
            return self.rotate(purpose, now, random_bytes)
        except StoreError as error:
            if not keys:
                raise
            _log.error("! %s keys are not rotated, those of before go on: %s", purpose, error)
            return keys

    @reads
    def stored_keys(self, connection: sa.Connection, purpose: str) -> list[SigningKey]:
        """The keys as they are, newest first."""
        return _keys(connection, purpose)

    @reads
    def all_keys(self, connection: sa.Connection) -> dict[str, list[SigningKey]]:
        """All keys by purpose, the newest first."""
        return find_keys(connection)

    @writes
    def rotate(
        self, connection: sa.Connection, purpose: str, now: datetime, random_bytes: Callable[[int], bytes]
    ) -> list[SigningKey]:
        """Make the key that is due, delete those that are spent.  Returns those that are left, newest first."""
        # Read under the lock: another process may have rotated since somebody found it necessary.
        self.database.dialect.lock(connection, "keys")
        keys = _keys(connection, purpose)
        if not keys or now - keys[0].created_at >= ROTATE_AFTER:
            keys.insert(0, _new_key(connection, purpose, now, random_bytes, KEY_BYTES))
        spent = _spent(keys, now)
        if spent:
            connection.execute(signing_keys.delete().where(signing_keys.c.id.in_([key.id for key in spent])))
        return [key for key in keys if key not in spent]

    def lasting_key(self, purpose: str, now: datetime, random_bytes: Callable[[int], bytes], length: int) -> bytes:
        """The one key of a purpose that never changes, `length` bytes; made when it is first asked for.  Blocks."""
        keys = self.stored_keys(purpose)
        return keys[0].secret if keys else self.make_lasting_key(purpose, now, random_bytes, length)

    @writes
    def make_lasting_key(
        self,
        connection: sa.Connection,
        purpose: str,
        now: datetime,
        random_bytes: Callable[[int], bytes],
        length: int,
    ) -> bytes:
        """The key of that purpose, made if nobody else made it first."""
        # Of several processes that start together, all have the key of one.
        self.database.dialect.lock(connection, "keys")
        keys = _keys(connection, purpose) or [_new_key(connection, purpose, now, random_bytes, length)]
        return keys[0].secret

    @notes
    def keep_map(self, connection: sa.Connection, source: str, body: str, now: datetime) -> None:
        """Remember the last good DERP map of a source."""
        put = self.database.dialect.upsert(kept_maps, key=("source",), replaced=("body", "fetched_at"))
        connection.execute(put, {"source": source, "body": body, "fetched_at": now})

    @reads
    def kept_map(self, connection: sa.Connection, source: str) -> tuple[str, datetime] | None:
        """The last good DERP map of a source as JSON text, and since when it is known."""
        row = connection.execute(
            sa.select(kept_maps.c.body, kept_maps.c.fetched_at).where(kept_maps.c.source == source)
        ).first()
        return None if row is None else (row[0], row[1])


def signer(keys: Sequence[SigningKey], now: datetime) -> SigningKey:
    """Of keys of a purpose, newest first, the one that signs: the newest that every server has had time to read, or
    where all are younger the oldest, which most have read.  So the very first one signs at once."""
    return next((key for key in keys if now - key.created_at >= LEAD_TIME), keys[-1])


def add_key(connection: sa.Connection, purpose: str, now: datetime, random_bytes: Callable[[int], bytes]) -> SigningKey:
    """A new key of a purpose, which signs when it is LEAD_TIME old.  Inside a write transaction."""
    return _new_key(connection, purpose, now, random_bytes, KEY_BYTES)


def drop_key(connection: sa.Connection, key_id: str) -> None:
    """Delete a key.  Inside a write transaction."""
    connection.execute(signing_keys.delete().where(signing_keys.c.id == key_id))


def find_keys(connection: sa.Connection) -> dict[str, list[SigningKey]]:
    """All keys by purpose, the newest first."""
    purposes = connection.execute(sa.select(signing_keys.c.purpose).distinct().order_by(signing_keys.c.purpose))
    return {purpose: _keys(connection, purpose) for purpose in purposes.scalars().all()}


def _new_key(
    connection: sa.Connection, purpose: str, now: datetime, random_bytes: Callable[[int], bytes], length: int
) -> SigningKey:
    fresh = SigningKey(random_bytes(KEY_ID_BYTES).hex(), random_bytes(length), now)
    connection.execute(
        signing_keys.insert().values(id=fresh.id, purpose=purpose, secret=fresh.secret, created_at=fresh.created_at)
    )
    return fresh


def _keys(connection: sa.Connection, purpose: str) -> list[SigningKey]:
    rows = connection.execute(
        sa.select(signing_keys.c.id, signing_keys.c.secret, signing_keys.c.created_at)
        .where(signing_keys.c.purpose == purpose)
        .order_by(signing_keys.c.created_at.desc(), signing_keys.c.id)
    )
    return [SigningKey(*row) for row in rows]


def _spent(keys: list[SigningKey], now: datetime) -> list[SigningKey]:
    # A key signs until its successor does, which is LEAD_TIME younger than that: nothing beside two days.
    return [old for new, old in pairwise(keys) if now - new.created_at >= VERIFY_AFTER_ROTATION]
