"""One SQLite file: opening, migrating, transactions, error texts (layer L2).

WAL, so that readers never wait for the writer; foreign keys on; one writer at a time in this process by a lock, other
processes by SQLite's busy time-out.  Every method blocks: trio callers go through `await database.run(method, ...)`.
Next hop: callers.py, reports.py and seed.py build on this class; store.py puts them together.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar, TypeVarTuple

import sqlalchemy as sa
import trio
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tailnet.errors import StoreError, StoreVersionError
from tailnet.store.schema import HEAD_REVISION

_log = logging.getLogger("tailnet.store")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How long a writer waits for another process.  An import of 10,000 agents holds the lock for about a second; ten
# seconds outlast that many times over and still end before callers give up.
BUSY_TIMEOUT_SECONDS: Final = 10.0

# How long to wait for the others when several open a new file at once.
WAL_TIMEOUT_SECONDS: Final = 2.0

# Threads, and connections, that work on the store at once.  SQLite serves one writer, and its reads take tens of
# microseconds under the interpreter lock: more threads would only queue elsewhere.
MAX_CONNECTIONS: Final = 4

# SQLite allows 32,766 parameters in a statement; lists of ids are cut into pieces well below it.
IDS_PER_STATEMENT: Final = 1_000

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_WRITE: Final = "tailnet_write"


def store_path(url: str) -> Path:
    """The file that a store URL names.  Raises StoreError with the form that is wanted."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise StoreError(
            f"store {url!r} is not a URL: write sqlite:///tailnet.db or sqlite:////absolute/path.db"
        ) from None
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        # The URL may hold a password, so only its scheme is repeated.
        raise StoreError(f"store: {parsed.drivername} is not supported, only SQLite: write sqlite:///tailnet.db")
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError("store: a database in memory would forget its keys: name a file, as in sqlite:///tailnet.db")
    if parsed.query or parsed.database.startswith("file:"):
        raise StoreError("store: a SQLite URL takes no parameters here: write sqlite:///tailnet.db")
    return Path(parsed.database)


class Database:
    """An open store file.  Thread-safe.  Whoever opened it calls `close` when no thread uses it any more."""

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self._engine = engine
        self.path = path
        self._writer = threading.Lock()
        self._limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
        self._here = threading.local()  # the snapshot that this thread reads from, while it does

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> Self:
        """Open, create or migrate the store at `url`.  Raises StoreError, StoreVersionError."""
        path = store_path(url)
        _create_private(path)
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            poolclass=sa.QueuePool,
            pool_size=MAX_CONNECTIONS,
            max_overflow=0,
            connect_args={"timeout": busy_timeout_seconds, "check_same_thread": False},
        )
        sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin)
        database = cls(engine, path)
        try:
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close every connection; SQLite folds the write-ahead log into the file."""
        self._engine.dispose()

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a blocking method of this store in a thread and wait for it.  A cancelled caller still lets it finish."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A snapshot of the store: a transaction that does not see later writes.  Raises StoreError.

        Methods of the store that read, called inside it by the same thread, read from this snapshot too: so a service
        puts together what belongs together.
        """
        outer: sa.Connection | None = getattr(self._here, "snapshot", None)
        if outer is not None:
            with self._explained():
                yield outer
            return
        with self._explained(), self._engine.connect() as connection, connection.begin():
            self._here.snapshot = connection
            try:
                yield connection
            finally:
                self._here.snapshot = None

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """The one write transaction of this process.  Commits on exit, rolls back on an exception.

        Raises StoreError.
        """
        with (
            self._writer,
            self._explained(),
            self._engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def make_durable(self) -> None:
        """Bring what was committed so far onto the disk, for what nobody would report again.  Raises StoreError."""
        # Passive: it syncs and copies what it can, and waits neither for readers nor for writers.  Past SQLAlchemy,
        # which would begin a transaction, and in one there is no checkpoint.
        with self._explained(), closing(self._engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def check(self) -> None:
        """Read one row, for health checks.  Raises StoreError."""
        with self.reading() as connection:
            connection.exec_driver_sql("SELECT value FROM counters LIMIT 1").first()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:  # the latter from `_prepare`
            raise StoreError(f"store {self.path}: {_advice(error)}") from error

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _revision(connection) == HEAD_REVISION:
                return
        # Again under the write lock: of several processes that start together, one migrates and the others find it
        # done.
        with self.writing() as connection:
            revision = _revision(connection)
            if revision == HEAD_REVISION:
                return
            if revision is None and sa.inspect(connection).get_table_names():
                raise StoreError(f"store {self.path}: this SQLite file belongs to another program: name a new file")
            self._upgrade(connection, revision)

    def _upgrade(self, connection: sa.Connection, revision: str | None) -> None:
        # Its own account is that of its plug-ins, which begins with its import; ours is one line.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # Alembic costs a tenth of a second and some megabytes; an up-to-date store never gets here.
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise StoreVersionError(
                f"store {self.path}: its schema {revision} is newer than this program's {HEAD_REVISION}: "
                "start the newer program, or name another store"
            )
        command.upgrade(config, "head")
        _log.info("= store %s: schema %s, was %s", self.path, HEAD_REVISION, revision or "empty")


def _create_private(path: Path) -> None:
    # SQLite would create the file with the umask's rights.  It holds signing keys, so only its owner may read it; the
    # log and index files beside it inherit the mode.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except FileNotFoundError:
        raise StoreError(f"store {path}: the folder {path.parent} does not exist: create it") from None
    except OSError as error:
        raise StoreError(f"store {path}: cannot create the file: {error.strerror}") from None


def _prepare(dbapi_connection: Any, _record: object) -> None:
    # sqlite3 would open transactions by its own rules; `_begin` does it instead.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    try:
        mode = _switch_to_wal(cursor)
        if mode != "wal":
            raise StoreError(f"store: SQLite cannot keep a write-ahead log here (mode {mode}): use a local disk")
        # A crash of the program loses nothing; a power cut may lose the last moments but never corrupts.  What is
        # lost so (a connection time, some log lines) is reported again, and a sync per batch would cost milliseconds.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> str:
    # SQLite does not wait here as it does elsewhere: where several open a new file at once, all but one are told that
    # it is locked, however long their time-out is.  It is over in milliseconds.
    give_up_at = time.monotonic() + WAL_TIMEOUT_SECONDS
    while True:
        try:
            return str(cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        time.sleep(0.005)


def _begin(connection: sa.Connection) -> None:
    # A transaction that begins as a reader and writes later gets SQLITE_BUSY at once, however long the time-out is,
    # when another one wrote in between.  So a writer takes the write lock at its start.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _revision(connection: sa.Connection) -> str | None:
    table = connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").first()
    if table is None:
        return None
    row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
    return None if row is None else str(row[0])


def _advice(error: Exception) -> str:
    cause = str(getattr(error, "orig", None) or error)
    if "locked" in cause:
        return "another process kept it locked for too long: stop that process, or give each its own store"
    if "readonly" in cause:
        return "it is read-only: make the file and its folder writable for this user"
    if "unable to open" in cause:
        return "SQLite cannot open it: is it a file, and may this user read and write it and its folder?"
    if "full" in cause:
        return "the disk is full: free some space"
    if "not a database" in cause or "malformed" in cause:
        return f"it is damaged or no SQLite file ({cause}): restore it from a copy"
    return cause
