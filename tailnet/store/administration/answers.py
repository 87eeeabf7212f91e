"""What requests with an Idempotency-Key were answered, so that whoever asks again gets the same (layer L2).

Kept in the transaction of the change: neither is there without the other.  Answers are sealed by their caller's token
before they come here (services/administration/idempotency.py), since one may hold a new token.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from tailnet.store.schema import kept_answers

# Whoever asks again does so within minutes; a job that is run again the next day counts as another one.
KEPT_FOR: Final = timedelta(hours=24)
# With answers of at most 64 KiB, most of them 500 bytes: some megabytes.  Of more the oldest are forgotten.
MAX_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer of before.  `request_digest`: of the request that it belongs to."""

    request_digest: bytes
    sealed: bytes


def find_answer(connection: sa.Connection, key_digest: bytes, now: datetime) -> KeptAnswer | None:
    """What that key was answered within the last day."""
    query = sa.select(kept_answers.c.request_digest, kept_answers.c.sealed)
    row = connection.execute(
        query.where(kept_answers.c.key_digest == key_digest, kept_answers.c.created_at > now - KEPT_FOR)
    ).first()
    return None if row is None else KeptAnswer(*row)


def keep_answer(connection: sa.Connection, key_digest: bytes, answer: KeptAnswer, now: datetime) -> None:
    """Keep one more, and forget those that are too old or too many."""
    table = kept_answers
    oldest_kept = sa.select(table.c.created_at).order_by(table.c.created_at.desc()).offset(MAX_KEPT - 1).limit(1)
    too_many = connection.execute(oldest_kept).scalar_one_or_none()
    bound = max(now - KEPT_FOR, too_many) if too_many is not None else now - KEPT_FOR
    connection.execute(table.delete().where(table.c.created_at <= bound))
    connection.execute(
        table.insert().values(
            key_digest=key_digest, request_digest=answer.request_digest, sealed=answer.sealed, created_at=now
        )
    )
