"""A check reads everything and changes nothing; what is planted is found."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import tailnet.store.migrations
from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.check import check
from tailnet.store.database import Database
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import LogBatch, ServerRow
from tailnet.store.schema import HEAD_REVISION, agents
from tailnet.store.store import Store
from tests.support.postgresql import Cluster
from tests.support.seeds import NOW, fill, peer_id

MAIN = peer_id("main")


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    store.reports.insert_logs([LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, "zwei ü")], NOW)])
    return store


def test_a_store_that_is_whole(filled: Store) -> None:
    late = NOW + timedelta(seconds=40)
    for name, at in (("one", NOW), ("two", late)):
        filled.presence.beat(ServerRow(name, "host", 7, "1.0", at, at))
    report = check(filled.database, late)
    assert report.problems == []
    assert (report.store, report.schema) == (filled.shown, HEAD_REVISION)
    assert report.kind.startswith(("SQLite 3.", "PostgreSQL 1"))
    assert (report.rows["users"], report.rows["agents"], report.rows["agent_logs"]) == (2, 3, 1)
    assert report.size_bytes > 50_000
    assert [each.id for each in report.servers] == ["two"]  # the other was not heard of for too long


def test_sums_that_are_wrong(filled: Store) -> None:
    with filled.writing() as connection:
        connection.execute(agents.update().where(agents.c.id == MAIN).values(logs_bytes=99))
    assert check(filled.database).problems == [f"agent {MAIN}: 99 bytes of logs are counted, 7 are there"]


def test_a_store_of_an_older_schema_is_checked_as_it_is(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    config = Config()
    config.set_main_option("script_location", str(Path(tailnet.store.migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    engine.dispose()
    for _ in range(2):
        database = Database.open(store_url, migrate=False)
        report = check(database)
        database.close()
        assert (report.schema, report.problems) == ("0002", [])


@pytest.mark.stores("sqlite")
def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file") as caught:
        Database.open(f"sqlite:///{tmp_path}/missing.db", migrate=False)
    assert caught.value.trouble is StoreTrouble.UNREACHABLE
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_says_so(store_url: str, store_kind: str, tmp_path: Path) -> None:
    if store_kind == "sqlite":
        (tmp_path / "tailnet.db").touch()
    database = Database.open(store_url, migrate=False)
    assert check(database).problems == ["it has no schema: tailnet serve makes it"]
    database.close()


@pytest.mark.stores("sqlite")
def test_a_damaged_file(filled: Store, store_url: str, tmp_path: Path) -> None:
    filled.close()
    path = tmp_path / "tailnet.db"
    raw = bytearray(path.read_bytes())
    at = raw.index(b"zwei")
    raw[at - 60 : at + 4] = bytes(64)  # the head of a row's cell, or its text
    path.write_bytes(raw)
    database = Database.open(store_url, migrate=False)
    try:
        found = check(database).problems
    except StoreError as error:
        found = [str(error)]
    database.close()
    assert found


@pytest.mark.stores("sqlite")
def test_rows_that_belong_to_nothing(filled: Store) -> None:
    with filled.database._writers.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("DELETE FROM agents")
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    problems = check(filled.database).problems
    assert len(problems) == 2  # a line and its source
    assert all("agents that is not there" in problem for problem in problems)


@pytest.mark.stores("postgresql")
def test_an_index_that_is_not_valid(filled: Store, cluster: Cluster) -> None:
    with cluster.connect(str(filled.database.dialect.url.database)) as admin:
        admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_agent_logs_agent_id'::regclass")
    assert check(filled.database).problems == [
        "index ix_agent_logs_agent_id is not valid: REINDEX INDEX ix_agent_logs_agent_id"
    ]
