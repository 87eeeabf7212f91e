"""Backups while others write, their restoration into either kind of store, and what is refused without a trace."""

import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import tailnet.store.migrations
from tailnet.errors import StoreError, StoreTrouble, StoreVersionError
from tailnet.store.administration.answers import KeptAnswer, keep_answer
from tailnet.store.administration.audit import Account
from tailnet.store.administration.values import Actor
from tailnet.store.backup import back_up, restore
from tailnet.store.database import Database
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import (
    AppState,
    AppStatus,
    AppStatusReport,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    EventType,
    Happening,
    LogBatch,
    MetadataValue,
    Right,
    RunStage,
    RunStatus,
    ScriptRun,
    ServerRow,
    StatsReport,
)
from tailnet.store.schema import (
    HEAD_REVISION,
    counters,
    external_auth_links,
    git_keys,
    metadata,
    replicas,
    revocations,
    servers,
)
from tailnet.store.store import Store
from tests.support.administration import grant
from tests.support.disks import full_disk
from tests.support.postgresql import Cluster
from tests.support.seeds import NOW, came, defined_document, fill, make_id, peer_id

MAIN = peer_id("main")


def fill_every_table(store: Store) -> None:
    """Something in each; an agent that sorts before the one that it belongs to; ids with gaps."""
    fill(store, defined_document())
    for name in ("a child", "another", "a third"):
        store.callers.add_sub_agent(MAIN, peer_id(name), make_id(name).bytes * 2, name, NOW)
    store.callers.add_sub_agent(peer_id("a child"), peer_id("grandchild"), make_id("g").bytes * 2, "grandchild", NOW)
    store.callers.add_user_token(make_id("alice"), "abcdefghij", bytes(range(32)), NOW, NOW + timedelta(days=1))
    store.issued.issue_agent_token(MAIN, make_id("issued").bytes * 2, NOW)
    grant(store, "dev", "bob", Right.SSH)
    store.relay_keys.put({bytes(range(32)): ""}, [bytes(32)], NOW)
    came(store, MAIN, NOW, "one")
    store.reports.insert_stats([StatsReport(MAIN, 1, 2, 1 << 40, {"a": [1.5, None, "ü"]}, NOW)])
    store.reports.put_metadata([MetadataValue(MAIN, "cpu", "3 %", "", NOW)])
    store.reports.insert_logs([LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, f"line {n}") for n in range(2_500)], NOW)])
    store.retention.remove_logs([1, 2])
    kind = ConnectionType.SSH
    session = ConnectionReport(MAIN, make_id("s"), ConnectionAction.CONNECT, kind, NOW, "192.0.2.1", 0, "", "")
    store.reports.insert_connections([session], NOW)
    status = AppStatus(make_id("status"), NOW, AppState.IDLE, "resting", "")
    store.apps.add_app_statuses([AppStatusReport(MAIN, "editor", status)])
    store.apps.add_script_runs(
        [(MAIN, ScriptRun(make_id("start of main"), NOW, NOW, 1, RunStage.START, RunStatus.EXIT_FAILURE))]
    )
    store.keys.signing_keys("resume", NOW, lambda count: b"k" * count)
    store.keys.keep_map("map.json", "{}", NOW)
    store.events.add([Happening(MAIN, EventType.STATS, NOW, {"rx_bytes": 7})])
    store.issued.issue_agent_token(MAIN, bytes(range(32)), NOW)
    store.events.hold_reader("webhook", "one", NOW, NOW)
    store.presence.beat(ServerRow("one", "host", 1, "1", NOW, NOW))
    with store.writing() as connection:
        account = Account(Actor("local", "somebody"), NOW)
        account.note("update", "user", make_id("alice"), {"active": True}, {"active": False})
        account.note("revoke", "key", "x")
        account.write(connection)
        keep_answer(connection, bytes(32), KeptAnswer(bytes(32), b"sealed"), NOW)
        of_alice = {"user_id": make_id("alice"), "sealed": b"sealed", "created_at": NOW, "updated_at": NOW}
        connection.execute(git_keys.insert().values(public_key="ssh-ed25519 x", **of_alice))
        link = {"provider_id": "github", "failure": "", "expires_at": NOW, **of_alice}
        connection.execute(external_auth_links.insert().values(link))


def content(url: str) -> dict[str, list[Any]]:
    """All rows, by table, but who is there now and the number that tells caches to forget."""
    database = Database.open(url, migrate=False)
    with database.reading() as connection:
        found = {
            table.name: [
                tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))
            ]
            for table in metadata.sorted_tables
            if table not in (servers, replicas, revocations, counters)
        }
    database.close()
    return found


@pytest.fixture
def full(store: Store) -> Store:
    fill_every_table(store)
    return store


@pytest.fixture
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Gives the URL of an empty store of that kind, beside the test's own."""
    made: list[tuple[Cluster, str]] = []

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'restored.db'}"
        cluster: Cluster = request.getfixturevalue("cluster")
        made.append((cluster, cluster.make_database()))
        return cluster.url(made[-1][1])

    yield make
    for cluster, name in made:
        cluster.drop_database(name)


def test_the_fixture_has_something_in_every_table(full: Store, store_url: str) -> None:
    assert [name for name, rows in content(store_url).items() if not rows] == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_is_restored_into_either_kind(
    full: Store, store_url: str, tmp_path: Path, other_url: Callable[[str], str], kind: str
) -> None:
    file = tmp_path / "backup.db"
    assert back_up(full.database, file) == file.stat().st_size
    assert [path.name for path in tmp_path.glob("backup*")] == ["backup.db"]
    assert file.stat().st_mode & 0o777 == 0o600
    before = content(store_url)
    assert content(f"sqlite:///{file}") == before
    target = other_url(kind)
    assert restore(file, target) == {name: len(rows) for name, rows in before.items()} | {"counters": 2}
    assert content(target) == before
    # It goes on where the other one stopped.
    restored = Store.open(target)
    restored.reports.insert_logs([LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, "after")], NOW)])
    assert [line.id for line in restored.reports.list_logs(MAIN, after=2_500)] == [2_501]
    assert restored.callers.callers_generation() != full.callers.callers_generation()
    assert [row.name for row in restored.callers.list_sub_agents(peer_id("a child"))] == ["grandchild"]
    restored.close()


def test_a_backup_is_of_one_moment_while_others_write(full: Store, tmp_path: Path) -> None:
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            # Two tables in one transaction: a backup has both or neither.
            with full.writing() as connection:
                connection.execute(counters.insert().values(name=f"n{written}", value=0))
                put = full.database.dialect.upsert(metadata.tables["kept_maps"], ("source",), ("body", "fetched_at"))
                connection.execute(put, {"source": f"n{written}", "body": "{}", "fetched_at": NOW})
            written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            back_up(full.database, tmp_path / f"backup{number}.db")
    finally:
        stop.set()
        writer.join()
    assert written > 0
    for number in range(3):
        database = Database.open(f"sqlite:///{tmp_path}/backup{number}.db", migrate=False)
        with database.reading() as connection:
            names = {each for each in connection.execute(sa.select(counters.c.name)).scalars() if each.startswith("n")}
            maps = set(connection.execute(sa.select(metadata.tables["kept_maps"].c.source)).scalars()) - {"map.json"}
        database.close()
        assert names == maps


def test_a_file_that_is_there_stays(full: Store, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    file.write_text("precious")
    with pytest.raises(StoreError, match="exists already"):
        back_up(full.database, file)
    assert file.read_text() == "precious"
    with pytest.raises(StoreError, match="cannot be made: No such file"):
        back_up(full.database, tmp_path / "no" / "backup.db")
    (tmp_path / "other.db.part").touch()
    with pytest.raises(StoreError, match="cannot be made: File exists"):
        back_up(full.database, tmp_path / "other.db")


def test_a_backup_that_fails_leaves_nothing(full: Store, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    with full_disk(), pytest.raises(StoreError) as caught:
        back_up(full.database, folder / "backup.db")
    assert caught.value.trouble in (StoreTrouble.FULL, StoreTrouble.OTHER)
    assert list(folder.iterdir()) == []


def test_a_store_that_has_rows_is_not_touched(full: Store, store_url: str, tmp_path: Path) -> None:
    back_up(full.database, tmp_path / "backup.db")
    full.callers.delete_agent(MAIN)
    before = content(store_url)
    with pytest.raises(StoreError, match=r"it has .* already: restore into an empty store"):
        restore(tmp_path / "backup.db", store_url)
    assert content(store_url) == before


def test_what_is_no_backup(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such backup"):
        restore(tmp_path / "missing.db", store_url)
    (tmp_path / "text.db").write_text("not a database, " * 100)
    with pytest.raises(StoreError, match="damaged or no SQLite file"):
        restore(tmp_path / "text.db", store_url)


@pytest.mark.stores("sqlite")
def test_a_backup_of_an_older_schema_is_restored_and_stays_as_it_is(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'backup.db'}")
    config = Config()
    config.set_main_option("script_location", str(Path(tailnet.store.migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        times = {"created_at": NOW, "updated_at": NOW}
        connection.execute(metadata.tables["users"].insert().values(id=make_id("alice"), username="alice", **times))
    engine.dispose()
    before = (tmp_path / "backup.db").read_bytes()
    url = f"sqlite:///{tmp_path / 'restored.db'}"
    assert restore(tmp_path / "backup.db", url)["users"] == 1
    assert (tmp_path / "backup.db").read_bytes() == before
    database = Database.open(url)
    with database.reading() as connection:
        assert database.schema_revision(connection) == HEAD_REVISION
    database.close()


@pytest.mark.stores("sqlite")
def test_a_backup_of_sqlite_is_put_back_as_the_documentation_says(full: Store, store_url: str, tmp_path: Path) -> None:
    """docs/store.md: stop the server, take the log away with the file, copy, start."""
    back_up(full.database, tmp_path / "backup.db")
    before = content(store_url)
    full.callers.delete_agent(MAIN)
    full.close()
    store = tmp_path / "tailnet.db"
    for path in (store, tmp_path / "tailnet.db-wal", tmp_path / "tailnet.db-shm"):
        path.unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "backup.db", store)
    assert content(store_url) == before


def test_what_a_newer_program_made_is_copied_by_that_one(full: Store, tmp_path: Path) -> None:
    with full.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.execute(counters.insert().values(name="schema 9999 is for programs from", value=int(HEAD_REVISION)))
    file = tmp_path / "backup.db"
    with pytest.raises(StoreVersionError, match="its schema 9999 is a newer program's"):
        copy_by_a_file(full, file, f"sqlite:///{tmp_path}/anew.db")


def copy_by_a_file(store: Store, file: Path, url: str) -> None:
    """A file of SQLite is copied as it is, so that restoring it tells."""
    back_up(store.database, file)
    restore(file, url)
