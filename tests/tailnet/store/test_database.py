"""Opening, migrating, locking: with real files, other processes' locks, and the sentences for the operator."""

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from tailnet.errors import StoreError, StoreVersionError
from tailnet.store.database import Database, store_path
from tailnet.store.schema import counters


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("tailnet.db", "sqlite:///"),
        ("postgresql://alice:hunter2@db/tailnet", "postgresql is not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=ro&uri=true", "no parameters"),
    ],
)
def test_urls_that_name_no_file(url: str, wanted: str) -> None:
    with pytest.raises(StoreError, match=wanted) as caught:
        store_path(url)
    assert "hunter2" not in str(caught.value)


def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        database = Database.open(f"sqlite:///{tmp_path}/a.db")
        with database.writing() as connection:
            connection.execute(counters.insert().values(name="x", value=1))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        database.close()
    finally:
        os.umask(old)
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}


def test_settings_of_a_connection(store_url: str) -> None:
    database = Database.open(store_url)
    with database.reading() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "foreign_keys")
        ]
    database.close()
    assert values == ["wal", 1]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist: create it"):
        Database.open(f"sqlite:///{tmp_path}/no/a.db")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is it a file"):
        Database.open(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    with pytest.raises(StoreError, match="damaged or no SQLite file"):
        Database.open(f"sqlite:///{path}")


def test_the_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE songs (title TEXT)")
    other.close()
    with pytest.raises(StoreError, match="belongs to another program"):
        Database.open(f"sqlite:///{path}")
    other = sqlite3.connect(path)
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]
    other.close()


def test_a_store_of_a_newer_version(store_url: str, tmp_path: Path) -> None:
    Database.open(store_url).close()
    raw = sqlite3.connect(tmp_path / "tailnet.db")
    with raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreVersionError, match="9999 is newer"):
        Database.open(store_url)


def test_a_failed_migration_leaves_nothing(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("step two", None, Exception("disk is full"))

    monkeypatch.setattr("alembic.op.create_index", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        Database.open(store_url)
    raw = sqlite3.connect(tmp_path / "tailnet.db")
    assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    raw.close()


def test_many_processes_start_together(store_url: str) -> None:
    # Threads stand for processes: each opens its own engine, so nothing but the file is shared.
    failures: list[BaseException] = []
    gate = threading.Barrier(4)

    def open_and_close() -> None:
        gate.wait()
        try:
            Database.open(store_url).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_writer_that_waits_too_long_says_who(store_url: str, tmp_path: Path) -> None:
    database = Database.open(store_url, busy_timeout_seconds=0.05)
    other = sqlite3.connect(tmp_path / "tailnet.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process kept it locked"), database.writing():
        pass
    # Readers never wait for a writer.
    database.check()
    other.execute("ROLLBACK")
    other.close()
    with database.writing() as connection:
        connection.execute(counters.insert().values(name="x", value=1))
    database.close()


def test_an_exception_rolls_back(store_url: str) -> None:
    database = Database.open(store_url)

    def fail_half_way() -> None:
        with database.writing() as connection:
            connection.execute(counters.insert().values(name="x", value=1))
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    with database.reading() as connection:
        assert connection.execute(sa.select(counters.c.name)).scalars().all() == ["callers"]
    database.close()


def test_a_reader_sees_one_moment(store_url: str) -> None:
    database = Database.open(store_url)
    with database.reading() as before:
        first = before.execute(sa.select(sa.func.count()).select_from(counters)).scalar_one()
        with database.writing() as connection:
            connection.execute(counters.insert().values(name="x", value=1))
        assert before.execute(sa.select(sa.func.count()).select_from(counters)).scalar_one() == first
    database.close()


def test_what_reads_inside_a_snapshot_sees_the_same_moment(store_url: str) -> None:
    """Otherwise an answer put together of several reads may hold two halves that never belonged together."""
    database = Database.open(store_url)
    names = sa.select(counters.c.name)
    with database.reading() as outer:
        before = outer.execute(names).scalars().all()
        with database.writing() as writer:
            writer.execute(counters.insert().values(name="x", value=1))
        with database.reading() as inner:
            assert inner.execute(names).scalars().all() == before
        assert outer.execute(names).scalars().all() == before, "the end of an inner one ends nothing"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend(_names(database)))
        thread.start()
        thread.join()
        assert "x" in seen, "another thread has a snapshot of its own"
    assert "x" in _names(database)
    database.close()


def test_what_was_committed_is_brought_onto_the_disk(store_url: str, tmp_path: Path) -> None:
    database = Database.open(store_url)
    database.make_durable()
    before = (tmp_path / "tailnet.db").read_bytes()
    with database.writing() as connection:
        connection.execute(counters.insert().values(name="to be kept", value=1))
    assert (tmp_path / "tailnet.db").read_bytes() == before  # in the log only
    database.make_durable()
    assert b"to be kept" in (tmp_path / "tailnet.db").read_bytes()
    database.close()


async def test_writers_of_one_process_queue_up(store_url: str) -> None:
    database = Database.open(store_url, busy_timeout_seconds=0.05)
    with database.writing() as connection:
        connection.execute(counters.insert().values(name="x", value=0))

    def count() -> None:
        with database.writing() as connection:
            value = connection.execute(sa.select(counters.c.value).where(counters.c.name == "x")).scalar_one()
            connection.execute(counters.update().where(counters.c.name == "x").values(value=value + 1))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(database.run, count)
    with database.reading() as connection:
        assert connection.execute(sa.select(counters.c.value).where(counters.c.name == "x")).scalar_one() == 50
    database.close()


def _names(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.execute(sa.select(counters.c.name)).scalars())
