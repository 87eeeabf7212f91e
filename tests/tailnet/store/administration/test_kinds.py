"""What kinds say of themselves is so: columns exist, and orders of ids are those of the database."""

import pytest
import sqlalchemy as sa

from tailnet.store.administration.kinds import GRANT, KINDS, USER, Kind
from tailnet.store.schema import metadata
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, make_id


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_name_is_a_column(kind: Kind) -> None:
    names = {*kind.columns, *kind.reported, *kind.references, *kind.unique, *kind.fixed, *kind.key}
    assert names | ({kind.digest} - {""}) <= set(kind.table.c.keys())
    assert all(table is metadata.tables[table.name] for table in kind.references.values())


def test_kinds_come_after_those_that_they_refer_to() -> None:
    seen: list[sa.Table] = []
    for kind in KINDS.values():
        seen.append(kind.table)
        assert all(table in seen for table in kind.references.values()), kind.name


def test_what_administrators_set_is_all_that_is_not_known_otherwise() -> None:
    """A column that comes later is somebody's: set here, shown here, or told to be neither."""
    others = {
        "agent": {
            "seen_by",
            "started_at",
            "ready_at",
            "expanded_directory",
            "subsystems",
            "logs_bytes",
            "logs_overflowed",
        },
    }
    for kind in KINDS.values():
        known = {*kind.key, *kind.columns, *kind.reported, kind.digest, *kind.times}
        assert set(kind.table.c.keys()) - known == others.get(kind.name, set()), kind.name


def test_ids_of_two_columns_are_in_order(store: Store) -> None:
    fill(store)
    ids = sorted((make_id(w), make_id(u)) for w in ("dev", "shop") for u in ("alice", "bob"))
    with store.writing() as connection:
        for workspace_id, user_id in ids:
            times = {"created_at": NOW, "updated_at": NOW}
            connection.execute(
                GRANT.table.insert().values(workspace_id=workspace_id, user_id=user_id, rights=frozenset(), **times)
            )
        for place, ident in enumerate(ids):
            query = sa.select(*GRANT.key_columns).where(GRANT.is_behind(ident)).order_by(*GRANT.key_columns)
            assert [tuple(row) for row in connection.execute(query)] == ids[place + 1 :]
            found = connection.execute(GRANT.table.select().where(GRANT.is_one(ident))).one()
            assert GRANT.ident(found._mapping) == ident
        some = connection.execute(sa.select(*GRANT.key_columns).where(GRANT.is_among(ids[1:3]))).all()
        assert sorted(tuple(row) for row in some) == ids[1:3]


def test_filters_are_of_their_table(store: Store) -> None:
    fill(store)
    with store.reading() as connection:
        query = sa.select(USER.table.c.username).where(USER.filters["q"]("LIC"))
        assert connection.execute(query).scalars().all() == ["alice"]
        assert connection.execute(sa.select(USER.table.c.username).where(USER.filters["q"]("%"))).all() == []
