"""An open store: connections, transactions, migrations, error texts (layer L2).

Readers have a pool and never wait for a writer; writers take turns, and what trio tasks write goes through one thread
(writer.py) that commits many of them at once.  What differs between databases is the dialect's.  `reading` and
`writing` block; tasks go through `run`.  Next hop: part.py and the tables built on it; store.py puts them together.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

import sqlalchemy as sa
import trio

from tailnet.errors import StoreError, StoreTrouble, StoreVersionError
from tailnet.store.dialect import Dialect
from tailnet.store.postgresql import PostgresqlDialect
from tailnet.store.schema import HEAD_REVISION, READABLE_FROM, counters
from tailnet.store.sqlite import BUSY_TIMEOUT_SECONDS, SqliteDialect
from tailnet.store.urls import parse_store_url
from tailnet.store.writer import Change, Writer

_log = logging.getLogger("tailnet.store")

P = ParamSpec("P")
T = TypeVar("T")

# SQLite allows 32,766 parameters in a statement and PostgreSQL 65,535; lists of ids are cut into pieces well below.
IDS_PER_STATEMENT: Final = 1_000

# What a store has that nobody can use; the others are the fault of one statement.
AWAY: Final = frozenset(StoreTrouble) - {StoreTrouble.UNFIT, StoreTrouble.CONFLICT}

_MIGRATIONS: Final = Path(__file__).parent / "migrations"


class Database:
    """An open store.  Thread-safe.  Whoever opened it calls `close` when no thread uses it any more."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.shown = dialect.shown
        self.failures: Counter[StoreTrouble] = Counter()
        # Why the last transaction of each sort failed, if it did: it says how the store is.
        self.read_trouble: StoreError | None = None
        self.write_trouble: StoreError | None = None
        self._readers = dialect.readers()
        self._writers = dialect.writer()
        self._turn = threading.RLock()
        self._is_abandoned = False
        self._here = threading.local()  # the snapshot that this thread reads from, while it does
        self._limiter = trio.CapacityLimiter(dialect.max_readers)
        self.writer = Writer(self.writing)

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS, migrate: bool = True) -> Self:
        """Open, create or migrate the store at `url`; without `migrate` it has to be there, and stays as it is.

        Raises StoreError, StoreVersionError.
        """
        dialect = make_dialect(url, busy_timeout_seconds=busy_timeout_seconds)
        dialect.prepare(create=migrate)
        database = cls(dialect)
        try:
            if migrate:
                database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Write what tasks still wait for, and close every connection."""
        self.writer.close()
        self._readers.dispose()
        self._writers.dispose()
        self.dialect.leave()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work on this store beside the tasks, and wait for it.

        What changes the store (part.py) goes to the writer's thread, everything else to a reader's.  Whoever is
        cancelled leaves the queue of the writer; what has begun is waited for.  Raises what the work raises.
        """
        if isinstance(work, Change):
            return await self.writer.run(work.bind(*args, **kwargs), durable=work.durable)
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._limiter)

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
        try:
            with self._explained(), self._readers.connect() as connection, connection.begin():
                self._here.snapshot = connection
                try:
                    yield connection
                finally:
                    self._here.snapshot = None
            self.read_trouble = None
        except StoreError as error:
            if error.trouble in AWAY:
                self.read_trouble = error
            raise

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """The one write transaction of this process.  Commits on exit, rolls back on an exception.

        `durable`: what it commits is on the disk when it returns; without it a power cut may lose the last moments.
        Raises StoreError.
        """
        try:
            with self._turn, self._explained(), self._writers.connect() as connection, connection.begin():
                self.dialect.begin_write(connection, durable=durable)
                yield connection
            self.write_trouble = None
        except StoreError as error:
            if error.trouble in AWAY:
                self.write_trouble = error
            raise

    def check(self) -> None:
        """Read one row, for health checks.  Raises StoreError."""
        with self.reading() as connection:
            connection.exec_driver_sql("SELECT value FROM counters LIMIT 1").first()

    def schema_revision(self, connection: sa.Connection) -> str | None:
        """The schema that the store has; None if it has none of ours."""
        if "alembic_version" not in self.dialect.table_names(connection):
            return None
        row = connection.exec_driver_sql("SELECT version_num FROM alembic_version").first()
        return None if row is None else str(row[0])

    def vacuum(self) -> None:
        """Give room that deleted rows left back to the disk; writers wait meanwhile.  Raises StoreError."""
        with self._turn, self._explained():
            self.dialect.vacuum(self._writers)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            self.dialect.look()
            yield
        except StoreError as error:
            self.failures[error.trouble] += 1
            if error.trouble is StoreTrouble.REPLACED:
                self._abandon()
            raise
        except self.dialect.driver_errors as error:
            explained = self.dialect.error(error)
            self.failures[explained.trouble] += 1
            raise explained from error

    def _abandon(self) -> None:
        # Whoever writes now finds out by itself, and has the turn then.
        if not self._is_abandoned and self._turn.acquire(blocking=False):
            try:
                self._is_abandoned = True
                self.dialect.abandon(self._writers)
            finally:
                self._turn.release()

    def _migrate(self) -> None:
        with self.reading() as connection:
            revision = self.schema_revision(connection)
            if revision == HEAD_REVISION:
                return
            if self._is_for_us_too(connection, revision):
                told = "store %s: its schema %s is newer than this program's %s, which can use it"
                _log.info("= " + told, self.shown, revision, HEAD_REVISION)
                return
        # Again under the write lock: of several processes that start together, one migrates and the others find it
        # done.
        with self.writing() as connection:
            self.dialect.begin_long(connection)
            self.dialect.lock(connection, "migration")
            revision = self.schema_revision(connection)
            if revision == HEAD_REVISION or self._is_for_us_too(connection, revision):
                return
            if revision is None and self.dialect.table_names(connection):
                raise StoreError(
                    f"store {self.shown}: this {self.dialect.name} database belongs to another program: name a new one"
                )
            self._upgrade(connection, revision)

    def _is_for_us_too(self, connection: sa.Connection, revision: str | None) -> bool:
        """Whether whoever made a newer schema says that programs of ours can use it."""
        if revision is None or revision <= HEAD_REVISION or counters.name not in self.dialect.table_names(connection):
            return False
        oldest = connection.execute(sa.select(counters.c.value).where(counters.c.name == _readable(revision))).scalar()
        return oldest is not None and oldest <= int(HEAD_REVISION)

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
                f"store {self.shown}: its schema {revision} is newer than this program's {HEAD_REVISION}: "
                "start the newer program, or name another store"
            )
        kept = "" if revision is None else f"; as it was: {self.dialect.keep_copy(connection, revision)}"
        command.upgrade(config, "head")
        connection.execute(counters.delete().where(counters.c.name == _readable(HEAD_REVISION)))
        connection.execute(counters.insert().values(name=_readable(HEAD_REVISION), value=int(READABLE_FROM)))
        _log.info("= store %s: schema %s, was %s%s", self.shown, HEAD_REVISION, revision or "empty", kept)


def _readable(revision: str) -> str:
    """Under which name `counters` has the oldest schema whose programs can use that one."""
    return f"schema {revision} is for programs from"


def make_dialect(url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> Dialect:
    """The dialect of the store at `url`, not connected yet.  `busy_timeout_seconds` is SQLite's.  Raises StoreError."""
    parsed = parse_store_url(url)
    if parsed.drivername == "sqlite":
        return SqliteDialect(parsed, busy_timeout_seconds)
    return PostgresqlDialect(parsed)
