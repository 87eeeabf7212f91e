"""SQLite: one file, a write-ahead log beside it, readers that never wait (layer L2).

Foreign keys on; other processes are waited for by SQLite's busy time-out.  database.py makes one of these for each
store; dialect.py says what each method is for.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.dialect import Dialect
from tailnet.store.sqlite_file import (
    LOCK_SUFFIX,
    FileIdentity,
    create_private,
    has_log,
    identify,
    identify_companions,
    lock_file,
    remove_companions,
)
from tailnet.store.urls import store_path

# How long a writer waits for another process.  An import of 10,000 agents holds the lock for about a second; ten
# seconds outlast that many times over and still end before callers give up.
BUSY_TIMEOUT_SECONDS: Final = 10.0
# How long to wait for the others when several open a new file at once.
WAL_TIMEOUT_SECONDS: Final = 2.0
# Its reads take tens of microseconds, under the interpreter lock: more of them would only queue elsewhere.
MAX_READERS: Final = 4

# Where SQLite cannot make its log: a read-only folder, a full disk.
_NO_ROOM_FOR_A_LOG: Final = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
)

# What SQLite says -> what it means.  The first that is found counts.
_MEANINGS: Final = (
    (
        "locked",
        StoreTrouble.LOCKED,
        "another process kept it locked for too long: stop that process, or give each its own store",
    ),
    ("readonly", StoreTrouble.READ_ONLY, "it is read-only: make the file and its folder writable for this user"),
    (
        "unable to open",
        StoreTrouble.UNREACHABLE,
        "SQLite cannot open it: is it a file, and may this user read and write it and its folder?",
    ),
    ("full", StoreTrouble.FULL, "the disk is full: free some space"),
    ("disk I/O error", StoreTrouble.FULL, "the disk refuses: is it full, over a quota, or failing?"),
    ("not a database", StoreTrouble.DAMAGED, "it is damaged or no SQLite file ({}): restore it from a copy"),
    ("malformed", StoreTrouble.DAMAGED, "it is damaged or no SQLite file ({}): restore it from a copy"),
)


class SqliteDialect(Dialect):
    """One SQLite file."""

    name: ClassVar[str] = "SQLite"
    driver_errors: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error)
    max_readers = MAX_READERS

    def __init__(self, url: sa.URL, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> None:
        self.path = store_path(url)
        super().__init__(url, str(self.path))
        self._busy_timeout_seconds = busy_timeout_seconds
        self._file: FileIdentity | None = None
        self._companions: dict[Path, FileIdentity] = {}
        self._frozen: set[sqlite3.Connection | None] = set()
        self._claim: int | None = None  # the descriptor that holds the lock

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + LOCK_SUFFIX)

    def prepare(self, *, create: bool) -> None:
        if create:
            create_private(self.path)
        elif not self.path.exists():
            raise StoreError(f"store {self.path}: there is no such file", StoreTrouble.UNREACHABLE)
        self._file = identify(self.path)

    def look(self) -> None:
        # A file that was moved away is written as long as it is open, and a connection made later opens the one that
        # took its place: two answers.  So there are none until the next start.
        if self._file is not None and identify(self.path) != self._file:
            raise StoreError(
                f"store {self.path}: the file was replaced or removed while this program had it open: start it again "
                "(and next time stop it first)",
                StoreTrouble.REPLACED,
            )

    def claim(self) -> bool:
        if self._claim is None:
            try:
                self._claim = lock_file(self._lock_path)
            except BlockingIOError:
                return False
            except OSError:
                pass  # where nothing can be made, nothing can be told
        return True

    def claim_to_hand_over(self) -> int | None:
        return self._claim

    def take_claim(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if self._claim is None and identify(self._lock_path) == (found.st_dev, found.st_ino):
            self._claim = descriptor
        else:  # the settings name another file now
            os.close(descriptor)

    def abandon(self, writers: sa.Engine) -> None:
        # The old file gets what is still in its log, wherever it was moved; the new one must not meet that log.
        if writers.pool.checkedin() if isinstance(writers.pool, sa.QueuePool) else 0:
            with suppress(sqlite3.Error, StoreError), closing(writers.raw_connection()) as connection:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        remove_companions(self._companions)

    def leave(self) -> None:
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def readers(self) -> sa.Engine:
        engine = self._engine(MAX_READERS, self._open_to_read)
        sa.event.listen(engine, "begin", _begin_reading)
        sa.event.listen(engine, "checkin", self._forget_if_frozen)
        return engine

    def writer(self) -> sa.Engine:
        # The transaction begins in `begin_write`.
        return self._engine(1, self._open)

    def _engine(self, connections: int, connect: Callable[[], sqlite3.Connection]) -> sa.Engine:
        return sa.create_engine(
            sa.URL.create("sqlite", database=str(self.path)),
            poolclass=sa.QueuePool,
            pool_size=connections,
            max_overflow=0,
            creator=connect,
        )

    def _open(self) -> sqlite3.Connection:
        connection = self._connect(str(self.path))
        try:
            mode = _switch_to_wal(connection)
            if mode != "wal":
                raise StoreError(
                    f"store {self.path}: SQLite cannot keep a write-ahead log here (mode {mode}): use a local disk"
                )
            connection.execute("PRAGMA foreign_keys = ON")
            # Between the look before a transaction and this opening the file may have become another one.
            self.look()
        except BaseException:
            connection.close()
            raise
        self._companions = identify_companions(self.path)
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        try:
            connection = self._open()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _NO_ROOM_FOR_A_LOG or has_log(self.path):
                raise
            # The folder is read-only or the disk is full, so there can be no log, and so no readers: as long as nobody
            # writes, the file can be read as it is.
            connection = self._connect(f"file:{quote(str(self.path))}?immutable=1", uri=True)
            self._frozen.add(connection)
        # Whoever writes among the readers would meet the writer's lock, after ten seconds in a thread of theirs.
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _connect(self, name: str, *, uri: bool = False) -> sqlite3.Connection:
        # sqlite3 would open transactions by its own rules; ours begin where we say.
        return sqlite3.connect(
            name, timeout=self._busy_timeout_seconds, isolation_level=None, check_same_thread=False, uri=uri
        )

    def _forget_if_frozen(self, connection: sqlite3.Connection | None, record: Any) -> None:
        # Such a connection would never see what is written later, so it serves one transaction.
        if connection in self._frozen:
            self._frozen.discard(connection)
            record.invalidate()

    def begin_write(self, connection: sa.Connection, *, durable: bool) -> None:
        # FULL has the commit wait for the disk, some milliseconds; with NORMAL a power cut may lose the last moments
        # but never corrupts, and a crash of the program loses nothing either way.
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        # A transaction that begins as a reader and writes later gets SQLITE_BUSY at once, however long the time-out
        # is, when another one wrote in between.  So a writer takes the write lock at its start.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def lock(self, connection: sa.Connection, name: str) -> None:
        """Nothing to do: a write transaction has the whole file to itself."""

    def upsert(self, table: sa.Table, key: Collection[str], replaced: Collection[str]) -> sa.Insert:
        new = sqlite.insert(table)
        if not replaced:
            return new.on_conflict_do_nothing(index_elements=list(key))
        return new.on_conflict_do_update(index_elements=list(key), set_={name: new.excluded[name] for name in replaced})

    def insert_rows(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[object, ...]]
    ) -> None:
        # One statement whose rows come out of one text, all inside SQLite and without Python's lock.  `executemany`
        # takes the lock back for each row, and whoever sends to 200 peers meanwhile waits for it after each send.
        values = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(len(columns)))
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        names = ", ".join(columns)
        statement = f"INSERT INTO {table.name} ({names}) SELECT {values} FROM json_each(?) ORDER BY key"  # ours
        connection.exec_driver_sql(statement, (text,))

    def byte_length(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
        return sa.func.length(sa.cast(column, sa.LargeBinary), type_=sa.Integer)

    def table_names(self, connection: sa.Connection) -> Collection[str]:
        return connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()

    def copy_to(self, path: Path) -> None:
        """Copy the store as it is at this moment into an empty file, and read that once.  Raises StoreError."""
        # By a connection of its own: a copy takes seconds, in one read transaction that keeps nobody from writing.
        try:
            with closing(self._connect(str(self.path))) as source, closing(sqlite3.connect(path)) as target:
                source.backup(target)
                # One file, with no log beside it.
                target.execute("PRAGMA journal_mode = DELETE")
                found = target.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as error:
            trouble, advice = self.explain(error)
            raise StoreError(f"{path}: the copy of {self.path} failed: {advice}", trouble) from error
        if found != "ok":
            raise StoreError(f"{path}: the copy of {self.path} is damaged: {found}", StoreTrouble.DAMAGED)

    def keep_copy(self, connection: sa.Connection, revision: str) -> str:
        path = next(path for path in _copies(self.path, revision) if not path.exists())
        create_private(path)
        try:
            self.copy_to(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return str(path)

    def vacuum(self, writers: sa.Engine) -> None:
        with closing(writers.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA optimize")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def go_on_numbering(self, connection: sa.Connection, table: sa.Table) -> None:
        """Nothing to do: SQLite counts on from the highest number that a row had."""

    def find_damage(self, connection: sa.Connection) -> Collection[str]:
        found = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars().all()
        problems = [f"damaged: {line}" for line in found if line != "ok"]
        astray = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        return problems + [f"row {row[1]} of {row[0]} belongs to a row of {row[2]} that is not there" for row in astray]

    def size_bytes(self, connection: sa.Connection) -> int:
        # With its log, which grows to some megabytes and is folded into the file now and then.
        companions = (self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal"))
        return sum(each.stat().st_size for each in companions if each.exists())

    def disk(self) -> Path | None:
        return self.path.parent

    def version(self, connection: sa.Connection) -> str:
        return sqlite3.sqlite_version

    def explain(self, error: Exception) -> tuple[StoreTrouble, str]:
        cause = getattr(error, "orig", None) or error
        said = str(cause)
        for words, trouble, advice in _MEANINGS:
            if words in said:
                return trouble, advice.format(said)
        # A constraint, a number beyond 64 bits, text that is no UTF-8: this row, and no other.
        unfit = isinstance(cause, sqlite3.IntegrityError | sqlite3.DataError | OverflowError | UnicodeError)
        return StoreTrouble.UNFIT if unfit else StoreTrouble.OTHER, said


def _copies(path: Path, revision: str) -> Iterator[Path]:
    yield path.with_name(f"{path.name}.schema-{revision}")
    for number in count(2):
        yield path.with_name(f"{path.name}.schema-{revision}.{number}")


def _begin_reading(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _switch_to_wal(connection: sqlite3.Connection) -> str:
    # SQLite does not wait here as it does elsewhere: where several open a new file at once, all but one are told that
    # it is locked, however long their time-out is.  It is over in milliseconds.
    give_up_at = time.monotonic() + WAL_TIMEOUT_SECONDS
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        time.sleep(0.005)
