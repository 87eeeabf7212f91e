"""What every dialect does alike: insert or update, and errors of drivers as ours."""

import sqlalchemy as sa

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.schema import counters
from tailnet.store.store import Store
from tests.support.seeds import OWN_COUNTERS


def test_insert_or_update(store: Store) -> None:
    dialect = store.database.dialect
    put = dialect.upsert(counters, key=("name",), replaced=("value",))
    keep = dialect.upsert(counters, key=("name",), replaced=())
    with store.writing() as connection:
        connection.execute(put, [{"name": "a", "value": 1}, {"name": "b", "value": 2}])
        connection.execute(put, [{"name": "b", "value": 3}, {"name": "c", "value": 4}])
        connection.execute(keep, [{"name": "c", "value": 5}, {"name": "d", "value": 6}])
    with store.reading() as connection:
        rows = connection.execute(
            sa.select(counters).where(counters.c.name.not_in(OWN_COUNTERS)).order_by(counters.c.name)
        )
        assert [tuple(row) for row in rows] == [("a", 1), ("b", 3), ("c", 4), ("d", 6)]


def test_the_tables_that_are_there(store: Store) -> None:
    with store.reading() as connection:
        assert {"agents", "alembic_version"} <= set(store.database.dialect.table_names(connection))


def test_an_error_names_the_store(store: Store) -> None:
    error = store.database.dialect.error(sa.exc.TimeoutError("all in use"))
    assert isinstance(error, StoreError)
    assert str(error).startswith(f"store {store.shown}: ")
    assert isinstance(error.trouble, StoreTrouble)
