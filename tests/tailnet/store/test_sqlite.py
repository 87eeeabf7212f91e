"""SQLite: the file and its rights, other processes' locks, and what each error of it means."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.database import Database
from tailnet.store.schema import counters
from tailnet.store.sqlite import SqliteDialect
from tailnet.store.urls import parse_store_url
from tests.support.disks import full_disk, open_folder, read_only
from tests.support.seeds import OUR_SCHEMA

pytestmark = pytest.mark.stores("sqlite")


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


def test_a_failed_migration_leaves_nothing(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("step two", None, Exception("disk is full"))

    monkeypatch.setattr("alembic.op.create_index", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        Database.open(store_url)
    raw = sqlite3.connect(tmp_path / "tailnet.db")
    assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    raw.close()


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


def test_settings_of_a_connection(store_url: str) -> None:
    database = Database.open(store_url)

    def settings(connection: sa.Connection) -> list[object]:
        names = ("journal_mode", "foreign_keys", "query_only", "synchronous")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    with database.reading() as connection:
        assert settings(connection)[:3] == ["wal", 1, 1]
    # What must not be lost waits for the disk (2 is FULL), what is reported again does not (1 is NORMAL).
    with database.writing() as connection:
        assert settings(connection) == ["wal", 1, 0, 2]
    with database.writing(durable=False) as connection:
        assert settings(connection) == ["wal", 1, 0, 1]
    with database.writing() as connection:
        assert settings(connection) == ["wal", 1, 0, 2]
    database.close()


@pytest.mark.parametrize(
    ("error", "trouble", "words"),
    [
        (sqlite3.OperationalError("database is locked"), StoreTrouble.LOCKED, "stop that process"),
        (sqlite3.OperationalError("attempt to write a readonly database"), StoreTrouble.READ_ONLY, "writable"),
        (sqlite3.OperationalError("unable to open database file"), StoreTrouble.UNREACHABLE, "may this user"),
        (sqlite3.OperationalError("database or disk is full"), StoreTrouble.FULL, "free some space"),
        (sqlite3.OperationalError("disk I/O error"), StoreTrouble.FULL, "over a quota"),
        (sqlite3.DatabaseError("database disk image is malformed"), StoreTrouble.DAMAGED, "restore it"),
        (sqlite3.DatabaseError("file is not a database"), StoreTrouble.DAMAGED, "restore it"),
        (sqlite3.IntegrityError("UNIQUE constraint failed: agents.id"), StoreTrouble.UNFIT, "agents.id"),
        (sqlite3.OperationalError("no such table: agents"), StoreTrouble.OTHER, "no such table"),
    ],
)
def test_what_errors_mean(error: Exception, trouble: StoreTrouble, words: str) -> None:
    dialect = SqliteDialect(parse_store_url("sqlite:////srv/tailnet.db"))
    explained = dialect.error(error)
    assert (explained.trouble, words in str(explained)) == (trouble, True)
    assert str(explained).startswith("store /srv/tailnet.db: ")
    # And as SQLAlchemy hands it on.
    assert dialect.error(sa.exc.OperationalError("SELECT", None, error)).trouble is trouble


def names(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(connection.execute(sa.select(counters.c.name)).scalars()) - {OUR_SCHEMA}


def add(database: Database, name: str) -> None:
    with database.writing() as connection:
        connection.execute(counters.insert().values(name=name, value=1))


def trouble_of(work: Callable[[], object]) -> StoreTrouble:
    with pytest.raises(StoreError) as caught:
        work()
    return caught.value.trouble


def test_a_file_that_was_replaced_never_gives_two_answers(store_url: str, tmp_path: Path) -> None:
    path, aside, new = (tmp_path / name for name in ("tailnet.db", "aside.db", "new.db"))
    database = Database.open(store_url)
    add(database, "old")
    other = Database.open(f"sqlite:///{new}")
    add(other, "new")
    other.close()
    path.rename(aside)
    assert trouble_of(database.check) is StoreTrouble.REPLACED  # it is away
    new.rename(path)
    for work in (database.check, lambda: names(database), lambda: add(database, "lost")):
        assert trouble_of(work) is StoreTrouble.REPLACED
    assert database.failures[StoreTrouble.REPLACED] == 4
    database.close()
    # The next start has the new file, untouched by the log of the old one; and the old one is complete.
    database = Database.open(store_url)
    assert names(database) == {"callers", "new"}
    database.close()
    database = Database.open(f"sqlite:///{aside}")
    assert names(database) == {"callers", "old"}
    database.close()


def test_the_log_of_the_old_file_never_meets_the_new_one(tmp_path: Path) -> None:
    """Somebody reads the old one, so its log cannot be folded into it; SQLite would take it for the new file's."""
    path, aside, new = (tmp_path / name for name in ("tailnet.db", "aside.db", "new.db"))
    database = Database.open(f"sqlite:///{path}", busy_timeout_seconds=0.05)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM counters").fetchall()
    for number in range(500):
        add(database, f"old {number}")
    other = Database.open(f"sqlite:///{new}")
    add(other, "new")
    other.close()
    path.rename(aside)
    new.rename(path)
    assert trouble_of(database.check) is StoreTrouble.REPLACED
    assert not (tmp_path / "tailnet.db-wal").exists()
    database.close()
    database = Database.open(f"sqlite:///{path}")
    assert names(database) == {"callers", "new"}
    database.close()
    reader.close()


def test_a_log_that_came_with_the_new_file_stays(store_url: str, tmp_path: Path) -> None:
    """As where a whole folder is restored, a snapshot of one that was in use."""
    source = tmp_path / "source"
    source.mkdir()
    running = Database.open(f"sqlite:///{source}/tailnet.db")
    add(running, "in the log only")
    database = Database.open(store_url)
    add(database, "old")
    for suffix in ("", "-wal"):
        copy = tmp_path / f"copy{suffix}"
        shutil.copy(source / f"tailnet.db{suffix}", copy)
        copy.rename(tmp_path / f"tailnet.db{suffix}")
    assert trouble_of(database.check) is StoreTrouble.REPLACED
    database.close()
    running.close()
    (tmp_path / "tailnet.db-shm").unlink(missing_ok=True)
    database = Database.open(store_url)
    assert names(database) == {"callers", "in the log only"}
    database.close()


def test_one_server_has_a_file_to_itself(store_url: str) -> None:
    first, second = Database.open(store_url), Database.open(store_url)
    assert [first.dialect.claim(), first.dialect.claim(), second.dialect.claim()] == [True, True, False]
    first.close()
    assert second.dialect.claim()
    second.close()


def test_whoever_replaces_a_server_has_its_claim_and_keeps_it(store_url: str, tmp_path: Path) -> None:
    first, successor, third = (Database.open(store_url) for _ in range(3))
    assert first.dialect.claim_to_hand_over() is None
    assert first.dialect.claim()
    claim = first.dialect.claim_to_hand_over()
    assert claim is not None
    successor.dialect.take_claim(os.dup(claim))  # as a process inherits it
    assert successor.dialect.claim()
    first.close()
    assert not third.dialect.claim()
    elsewhere = Database.open(f"sqlite:///{tmp_path}/elsewhere.db")
    passed = os.dup(successor.dialect.claim_to_hand_over() or -1)
    elsewhere.dialect.take_claim(passed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(passed)
    assert elsewhere.dialect.claim_to_hand_over() is None
    successor.close()
    assert third.dialect.claim()
    for database in (third, elsewhere):
        database.close()


def test_a_full_disk_reads_and_says_why_it_does_not_write(store_url: str) -> None:
    database = Database.open(store_url)
    add(database, "before")
    with full_disk():
        assert names(database) == {"callers", "before"}
        assert trouble_of(lambda: add(database, "lost")) is StoreTrouble.FULL
        assert database.write_trouble is not None
        assert database.read_trouble is None
    add(database, "after")
    assert (names(database), database.write_trouble) == ({"callers", "before", "after"}, None)
    database.close()


def test_a_store_opens_on_a_full_disk(store_url: str) -> None:
    Database.open(store_url).close()  # its log is gone with the last who had it open
    with full_disk():
        database = Database.open(store_url)
        assert names(database) == {"callers"}
        assert trouble_of(lambda: add(database, "lost")) is StoreTrouble.FULL
    add(database, "after")
    assert names(database) == {"callers", "after"}  # what was opened without a log is not kept
    database.close()


def test_a_read_only_folder() -> None:
    with open_folder() as folder:
        url = f"sqlite:///{folder}/tailnet.db"
        database = Database.open(url)
        add(database, "before")
        database.close()
        with read_only(folder):
            database = Database.open(url)
            assert names(database) == {"callers", "before"}
            assert trouble_of(lambda: add(database, "lost")) is StoreTrouble.READ_ONLY
            assert database.dialect.claim()  # nothing can be told there
        add(database, "after")
        assert names(database) == {"callers", "before", "after"}
        database.close()


def test_many_rows_are_inserted_in_their_order_and_as_they_are(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/a.db")
    odd = ["", "'", '"', "\\", "\\u0000", "\x1b[31m\x01\x7f", "\n\r\t", "\N{SNOWMAN}\N{OLD PERSIAN SIGN A}"]
    texts = [*odd, "[1]", "null", "1"]
    rows = [(f"{number:04d} {texts[number % len(texts)]}", (1 << 62) - number) for number in range(1_000)]
    with database.writing() as connection:
        database.dialect.insert_rows(connection, counters, ("name", "value"), rows)
    with database.reading() as connection:
        stored = connection.execute(sa.select(counters.c.name, counters.c.value).order_by(sa.text("rowid"))).all()
    assert [tuple(row) for row in stored if row[0][:4].isdigit()] == rows
    database.close()
