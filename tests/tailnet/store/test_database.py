"""Opening, migrating, transactions: what every kind of store does alike, and the sentences for the operator."""

import logging
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from alembic import command
from alembic.config import Config

import tailnet.store.migrations
from tailnet.errors import StoreError, StoreTrouble, StoreVersionError
from tailnet.store.database import Database
from tailnet.store.schema import HEAD_REVISION, READABLE_FROM, counters
from tests.support.disks import full_disk
from tests.support.seeds import OUR_SCHEMA


def revision(database: Database) -> str:
    with database.reading() as connection:
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


def names(connection: sa.Connection) -> list[str]:
    """Of counters beside the one that a new store has of its schema."""
    return [name for name in connection.execute(sa.select(counters.c.name)).scalars() if name != OUR_SCHEMA]


def add(database: Database, name: str) -> None:
    with database.writing() as connection:
        connection.execute(counters.insert().values(name=name, value=0))


def test_a_new_store_has_the_newest_schema(store_url: str) -> None:
    database = Database.open(store_url)
    assert revision(database) == HEAD_REVISION
    database.check()
    database.close()


def test_a_store_of_a_newer_version(store_url: str) -> None:
    database = Database.open(store_url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(StoreVersionError, match="9999 is newer"):
        Database.open(store_url)


def test_a_database_of_another_program_that_uses_alembic(store_url: str) -> None:
    database = Database.open(store_url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'ae1027a6acf1'")
        connection.exec_driver_sql("DROP TABLE counters")
    database.close()
    with pytest.raises(StoreVersionError, match="its schema ae1027a6acf1 is newer"):
        Database.open(store_url)


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_store_of_a_newer_version_that_says_for_whom_it_is(
    is_readable: bool, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As a release has to leave it that is updated while the one before serves, or that is given up again."""
    caplog.set_level(logging.INFO)
    database = Database.open(store_url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        oldest = int(HEAD_REVISION) + (not is_readable)
        connection.execute(counters.insert().values(name="schema 9999 is for programs from", value=oldest))
    database.close()
    if not is_readable:
        with pytest.raises(StoreVersionError, match="9999 is newer"):
            Database.open(store_url)
        return
    database = Database.open(store_url)
    assert revision(database) == "9999"
    assert f"its schema 9999 is newer than this program's {HEAD_REVISION}, which can use it" in caplog.text
    database.check()
    database.close()


def test_the_newest_schema_says_for_whom_it_is(store_url: str) -> None:
    database = Database.open(store_url)
    with database.reading() as connection:
        oldest = connection.execute(sa.select(counters.c.value).where(counters.c.name == OUR_SCHEMA)).scalar_one()
    database.close()
    assert f"{oldest:04}" == READABLE_FROM < HEAD_REVISION


def test_many_processes_start_together(store_url: str) -> None:
    # Threads stand for processes: each opens its own engine, so nothing but the store is shared.
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


def test_an_exception_rolls_back(store_url: str) -> None:
    database = Database.open(store_url)

    def fail_half_way() -> None:
        with database.writing() as connection:
            connection.execute(counters.insert().values(name="x", value=1))
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    with database.reading() as connection:
        assert names(connection) == ["callers"]
    database.close()


def test_a_reader_sees_one_moment(store_url: str) -> None:
    database = Database.open(store_url)
    count = sa.select(sa.func.count()).select_from(counters)
    with database.reading() as before:
        first = before.execute(count).scalar_one()
        add(database, "x")
        assert before.execute(count).scalar_one() == first
    with database.reading() as after:
        assert after.execute(count).scalar_one() == first + 1
    database.close()


def test_what_reads_inside_a_snapshot_sees_the_same_moment(store_url: str) -> None:
    """Otherwise an answer put together of several reads may hold two halves that never belonged together."""
    database = Database.open(store_url)
    with database.reading() as outer:
        before = names(outer)
        add(database, "x")
        with database.reading() as inner:
            assert names(inner) == before
        assert names(outer) == before, "the end of an inner one ends nothing"
        seen: list[str] = []

        def look() -> None:
            with database.reading() as connection:
                seen.extend(names(connection))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert "x" in seen, "another thread has a snapshot of its own"
    with database.reading() as connection:
        assert "x" in names(connection)
    database.close()


def test_a_reader_cannot_write(store_url: str) -> None:
    database = Database.open(store_url)

    def write() -> None:
        with database.reading() as connection:
            connection.execute(counters.insert().values(name="x", value=1))

    with pytest.raises(StoreError) as caught:
        write()
    assert caught.value.trouble is StoreTrouble.READ_ONLY
    assert database.failures[StoreTrouble.READ_ONLY] == 1
    add(database, "x")  # and the writer still can
    database.close()


async def test_writers_of_one_process_queue_up(store_url: str) -> None:
    database = Database.open(store_url)
    add(database, "x")

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


async def test_work_with_arguments_and_errors_of_its_own(store_url: str) -> None:
    database = Database.open(store_url)
    assert await database.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await database.run(divmod, 7, 0)
    database.close()


def test_a_vacuum_gives_room_back_and_keeps_the_rest(store_url: str) -> None:
    database = Database.open(store_url)
    with database.writing() as connection:
        many = [{"name": f"{number:0>1000}", "value": 0} for number in range(3_000)]
        connection.execute(counters.insert(), many)
    with database.writing() as connection:
        connection.execute(counters.delete().where(counters.c.name != "callers"))
    database.vacuum()
    with database.reading() as connection:
        assert names(connection) == ["callers"]
        if database.dialect.name == "SQLite":
            assert database.dialect.size_bytes(connection) < 1_000_000
    add(database, "after")
    database.close()


def test_an_older_schema_is_migrated_with_a_copy_of_what_was_there(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = sa.create_engine(store_url)
    config = Config()
    config.set_main_option("script_location", str(Path(tailnet.store.migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(counters.insert().values(name="from before", value=7))
    engine.dispose()
    with caplog.at_level(logging.INFO):
        database = Database.open(store_url)
    assert revision(database) == HEAD_REVISION
    [line] = [record.getMessage() for record in caplog.records if "as it was" in record.getMessage()]
    assert f"schema {HEAD_REVISION}, was 0002" in line
    if database.dialect.name == "SQLite":
        copy = f"{database.shown}.schema-0002"
        assert copy in line
        assert Path(copy).stat().st_mode & 0o777 == 0o600
        kept = Database.open(f"sqlite:///{copy}", migrate=False)
        assert revision(kept) == "0002"
        with kept.reading() as connection:
            assert "from before" in names(connection)
        kept.close()
    else:
        assert "schema tailnet_0002" in line
        with database.reading() as connection:
            rows = connection.exec_driver_sql('SELECT name FROM "tailnet_0002".counters').scalars().all()
        assert "from before" in rows
    database.close()


@pytest.mark.stores("sqlite")
def test_without_room_for_the_copy_nothing_is_migrated(store_url: str, tmp_path: Path) -> None:
    engine = sa.create_engine(store_url)
    config = Config()
    config.set_main_option("script_location", str(Path(tailnet.store.migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    engine.dispose()
    copies = [tmp_path / "tailnet.db.schema-0002", tmp_path / "tailnet.db.schema-0002.2"]
    copies[0].write_text("of an earlier try")
    with full_disk(), pytest.raises(StoreError):
        Database.open(store_url)
    assert [copy.exists() for copy in copies] == [True, False]
    database = Database.open(store_url, migrate=False)
    assert revision(database) == "0002"
    database.close()
    Database.open(store_url).close()
    assert copies[0].read_text() == "of an earlier try"
    assert copies[1].stat().st_size > 10_000
