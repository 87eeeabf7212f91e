"""Answers that are kept: within a day, and only so many."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from tailnet.store.administration import answers
from tailnet.store.administration.answers import KEPT_FOR, KeptAnswer, find_answer, keep_answer
from tailnet.store.schema import kept_answers
from tailnet.store.store import Store

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_a_day(store: Store) -> None:
    with store.writing() as connection:
        answer = KeptAnswer(key(7), b"sealed")
        keep_answer(connection, key(1), answer, NOW)
        assert find_answer(connection, key(1), NOW) == answer
        assert find_answer(connection, key(2), NOW) is None
        assert find_answer(connection, key(1), NOW + KEPT_FOR) is None
        # The key may be used anew then.
        keep_answer(connection, key(1), KeptAnswer(key(8), b""), NOW + KEPT_FOR)
        assert find_answer(connection, key(1), NOW + KEPT_FOR) == KeptAnswer(key(8), b"")


def test_so_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_KEPT", 3)
    with store.writing() as connection:
        for number in range(10):
            keep_answer(connection, key(number), KeptAnswer(key(0), b""), NOW + timedelta(seconds=number))
        found = connection.execute(sa.select(kept_answers.c.key_digest).order_by(kept_answers.c.created_at))
        assert found.scalars().all() == [key(7), key(8), key(9)]
