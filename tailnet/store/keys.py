"""Keys that survive restarts, and the DERP maps that were last good (layer L2).

A purpose has one key that signs and the older ones that still verify.  A new one is made when the newest is too old;
a key is deleted when nothing it signed can still be valid.  A lasting key, the relay's identity, never changes.
Several processes on one store agree, since the store decides.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from tailnet.store.database import Database
from tailnet.store.rows import SigningKey
from tailnet.store.schema import kept_maps, signing_keys

RESUME_PURPOSE: Final = "tailnet_resume"

# HS512 gains nothing from more than its block's 64 bytes of hash output.
KEY_BYTES: Final = 64
KEY_ID_BYTES: Final = 8

# A month limits what a copied key is good for, and is far above the life of a token (24 hours).
ROTATE_AFTER: Final = timedelta(days=30)
# Tokens live 24 hours; the second day covers clocks that disagree and replicas that rotate late.
VERIFY_AFTER_ROTATION: Final = timedelta(hours=48)


class KeyTables(Database):
    """The part of the store that keeps secrets and maps.  Every method blocks and raises StoreError."""

    def signing_keys(self, purpose: str, now: datetime, random_bytes: Callable[[int], bytes]) -> list[SigningKey]:
        """The keys of a purpose, newest first: the first one signs, all of them verify.

        Makes the first key, rotates and deletes as needed; call it at start and about once an hour.
        """
        with self.reading() as connection:
            keys = _keys(connection, purpose)
        if keys and now - keys[0].created_at < ROTATE_AFTER and not _spent(keys, now):
            return keys
        with self.writing() as connection:
            # Read again: another process may have rotated between the two transactions.
            keys = _keys(connection, purpose)
            if not keys or now - keys[0].created_at >= ROTATE_AFTER:
                fresh = SigningKey(random_bytes(KEY_ID_BYTES).hex(), random_bytes(KEY_BYTES), now)
                connection.execute(
                    signing_keys.insert().values(
                        id=fresh.id, purpose=purpose, secret=fresh.secret, created_at=fresh.created_at
                    )
                )
                keys.insert(0, fresh)
            spent = _spent(keys, now)
            if spent:
                ids = [key.id for key in spent]
                connection.execute(signing_keys.delete().where(signing_keys.c.id.in_(ids)))
        return [key for key in keys if key not in spent]

    def lasting_key(self, purpose: str, now: datetime, random_bytes: Callable[[int], bytes], length: int) -> bytes:
        """The one key of a purpose that never changes, `length` bytes; made when it is first asked for."""
        with self.reading() as connection:
            keys = _keys(connection, purpose)
        if not keys:
            with self.writing() as connection:
                # Again under the lock: of several processes that start together, all have the key of one.
                keys = _keys(connection, purpose)
                if not keys:
                    keys = [SigningKey(random_bytes(KEY_ID_BYTES).hex(), random_bytes(length), now)]
                    connection.execute(
                        signing_keys.insert().values(
                            id=keys[0].id, purpose=purpose, secret=keys[0].secret, created_at=now
                        )
                    )
        return keys[0].secret

    def keep_map(self, source: str, body: str, now: datetime) -> None:
        """Remember the last good DERP map of a source."""
        new = insert(kept_maps).values(source=source, body=body, fetched_at=now)
        with self.writing() as connection:
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=["source"], set_={"body": new.excluded.body, "fetched_at": new.excluded.fetched_at}
                )
            )

    def kept_map(self, source: str) -> tuple[str, datetime] | None:
        """The last good DERP map of a source as JSON text, and since when it is known."""
        with self.reading() as connection:
            row = connection.execute(
                sa.select(kept_maps.c.body, kept_maps.c.fetched_at).where(kept_maps.c.source == source)
            ).first()
        return None if row is None else (row[0], row[1])


def _keys(connection: sa.Connection, purpose: str) -> list[SigningKey]:
    rows = connection.execute(
        sa.select(signing_keys.c.id, signing_keys.c.secret, signing_keys.c.created_at)
        .where(signing_keys.c.purpose == purpose)
        .order_by(signing_keys.c.created_at.desc(), signing_keys.c.id)
    )
    return [SigningKey(*row) for row in rows]


def _spent(keys: list[SigningKey], now: datetime) -> list[SigningKey]:
    # A key signs until its successor is made, so its last token is as old as the successor.
    return [old for new, old in pairwise(keys) if now - new.created_at >= VERIFY_AFTER_ROTATION]
