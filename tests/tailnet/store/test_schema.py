"""The schema in Python and the one that the migrations make are the same; times survive the way through the file."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import tailnet.store.migrations
from tailnet.store.rows import Role
from tailnet.store.schema import HEAD_REVISION, UtcTime, kept_maps, metadata
from tailnet.store.store import Store
from tests.support.seeds import NOW, defined_document, fill, make_id, peer_id


def test_migrations_make_the_schema(store: Store) -> None:
    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_comparison_can_fail(store: Store) -> None:
    other = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(other)
    other.tables["agents"].append_column(sa.Column("forgotten", sa.Text))
    with store.reading() as connection:
        assert len(compare_metadata(MigrationContext.configure(connection), other)) == 1


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(tailnet.store.migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD_REVISION


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_times_keep_their_microsecond(store: Store, moment: datetime) -> None:
    with store.writing() as connection:
        connection.execute(kept_maps.insert().values(source="a", body="{}", fetched_at=moment))
    with store.reading() as connection:
        found = connection.execute(sa.select(kept_maps.c.fetched_at)).scalar_one()
    assert found == moment
    assert found.utcoffset() == timedelta(0)


def test_a_time_without_zone_is_refused(store: Store) -> None:
    with pytest.raises(TypeError):
        UtcTime().process_bind_param(datetime(2026, 1, 1), store.database._readers.dialect)


def test_a_store_of_the_first_schema_keeps_what_it_has(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    config = Config()
    config.set_main_option("script_location", str(Path(tailnet.store.migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        times = {"created_at": NOW, "updated_at": NOW}
        connection.execute(metadata.tables["users"].insert().values(id=make_id("alice"), username="alice", **times))
        connection.execute(metadata.tables["users"].insert().values(id=make_id("root"), username="root", **times))
        connection.execute(sa.text("UPDATE users SET admin = true WHERE username = 'root'"))
        workspace = {"id": make_id("dev"), "owner_id": make_id("alice"), "name": "dev", "status": 3}
        connection.execute(metadata.tables["workspaces"].insert().values(**workspace, **times))
        agent = {"id": peer_id("old"), "workspace_id": make_id("dev"), "name": "old", "token_digest": bytes(32)}
        connection.execute(metadata.tables["agents"].insert().values(**agent, **times))
    engine.dispose()
    store = Store.open(store_url)
    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    row = store.callers.get_agent(peer_id("old"))
    assert row is not None
    assert row.name == "old"
    roles = {name: store.callers.find_user(name).role for name in ("alice", "root")}  # type: ignore[union-attr]
    assert roles == {"alice": Role.USER, "root": Role.ADMIN}
    assert fill(store, defined_document()).agents.added == 3
    assert len(store.apps.definitions(peer_id("main")).apps) == 2
    store.close()
