"""PostgreSQL: one database that several servers share, by psycopg 3 in threads (layer L2).

Every wait has an end: connecting, statements, locks, a network that swallows packets.  What several servers decide is
guarded by advisory locks, and rows are locked in one order everywhere.  database.py makes one of these for each store;
dialect.py says what each method is for.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError

from derp.text import MASK, error_text, without_secrets
from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.dialect import Dialect

# A server has these and one that writes: ten servers fit twice into PostgreSQL's usual hundred.
MAX_READERS: Final = 4
CONNECT_TIMEOUT_SECONDS: Final = 5
# Nothing that a server asks takes longer than some tens of milliseconds; commands that do (vacuum) lift it.
STATEMENT_TIMEOUT_SECONDS: Final = 10
LOCK_TIMEOUT_SECONDS: Final = 5
# Where the network swallows packets: asked after ten idle seconds, given up on after 25.
_KEEPALIVES: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

# Before a migration these are left where they are.
_NOT_COPIED: Final = frozenset({"agent_logs", "agent_stats"})

_LOCKED: Final = (
    StoreTrouble.LOCKED,
    "somebody else held a lock for too long: look for an open transaction in pg_stat_activity",
)
_CROWDED: Final = (
    StoreTrouble.CROWDED,
    f"it has no connection left, and each server wants {MAX_READERS + 1}: raise max_connections, or end other clients",
)
_READ_ONLY: Final = (
    StoreTrouble.READ_ONLY,
    "it takes no writes: is it a standby, or default_transaction_read_only? Name the primary",
)
_GONE: Final = (StoreTrouble.UNREACHABLE, "it is stopped, restarting or not to be reached ({})")
_REFUSED: Final = (StoreTrouble.REFUSED, "it lets us not in ({}): check user, password and database in the URL")

# Classes and codes of PostgreSQL's errors (its manual, appendix A); the longest that fits counts.
_CODES: Final = {
    "08": _GONE,
    "57P": _GONE,
    "28": _REFUSED,
    "3D": _REFUSED,
    "42501": (StoreTrouble.REFUSED, "this user may not do that ({}): have it own the database, or grant it the schema"),
    "53300": _CROWDED,
    "53100": (StoreTrouble.FULL, "the disk of the database is full: free some space"),
    "55P03": _LOCKED,
    "57014": (StoreTrouble.SLOW, f"it did not answer within {STATEMENT_TIMEOUT_SECONDS} s: is it overloaded?"),
    "25006": _READ_ONLY,
    "40001": (StoreTrouble.CONFLICT, "another server wrote the same rows at the same time"),
    "40P01": (StoreTrouble.CONFLICT, "another server wrote the same rows at the same time"),
    "22": (StoreTrouble.UNFIT, "{}"),
    "23": (StoreTrouble.UNFIT, "{}"),
    "XX": (StoreTrouble.DAMAGED, "it is damaged ({}): restore it from a backup"),
}
# A connection that fails has no code; libpq passes on what the server said, in the server's language.
_WORDS: Final = (
    (re.compile(r"too many c(onnections|lients)|connection slots|QueuePool limit"), _CROWDED),
    (re.compile(r"(password|peer|ident|certificate) auth|no password|pg_hba|does not exist|not permitted"), _REFUSED),
    (re.compile(r"read-only"), _READ_ONLY),
)


class PostgresqlDialect(Dialect):
    """One PostgreSQL database."""

    name: ClassVar[str] = "PostgreSQL"
    max_readers = MAX_READERS

    def __init__(self, url: sa.URL) -> None:
        super().__init__(url, without_secrets(url.render_as_string(hide_password=False)))
        try:
            import psycopg
        except ImportError as error:
            raise StoreError(
                f"store {self.shown}: no driver: pip install 'tailnet-derp[postgresql]' ({error_text(error)})"
            ) from None
        self.driver_errors = (SQLAlchemyError, psycopg.Error)
        self._snapshot = psycopg.IsolationLevel.REPEATABLE_READ

    def prepare(self, *, create: bool) -> None:
        """Nothing to do: somebody made the database."""

    def readers(self) -> sa.Engine:
        engine = self._engine(MAX_READERS)

        def forbid_writing(connection: Any, _record: object) -> None:
            connection.isolation_level = self._snapshot
            connection.read_only = True

        sa.event.listen(engine, "connect", forbid_writing)
        return engine

    def writer(self) -> sa.Engine:
        return self._engine(1)

    def _engine(self, connections: int) -> sa.Engine:
        arguments: dict[str, object] = {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "tailnet",
            **_KEEPALIVES,
        }
        engine = sa.create_engine(
            self.url,
            poolclass=sa.QueuePool,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=STATEMENT_TIMEOUT_SECONDS,
            # A server that was restarted leaves connections that look alive: one question more tells.
            pool_pre_ping=True,
            # What the URL says is stronger.
            connect_args={name: value for name, value in arguments.items() if name not in self.url.query},
        )
        sa.event.listen(engine, "connect", _set_timeouts)
        return engine

    def begin_write(self, connection: sa.Connection, *, durable: bool) -> None:
        if not durable:
            # What is reported again need not wait for the disk; the database stays whole either way.
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")

    def begin_long(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")

    def lock(self, connection: sa.Connection, name: str) -> None:
        # 64 bits of a digest: advisory locks have numbers, and other programs may use small ones.
        number = int.from_bytes(hashlib.sha256(f"tailnet {name}".encode()).digest()[:8], "big", signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

    def upsert(self, table: sa.Table, key: Collection[str], replaced: Collection[str]) -> sa.Insert:
        new = postgresql.insert(table)
        if not replaced:
            return new.on_conflict_do_nothing(index_elements=list(key))
        return new.on_conflict_do_update(index_elements=list(key), set_={name: new.excluded[name] for name in replaced})

    def insert_rows(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[object, ...]]
    ) -> None:
        names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", list(rows))  # ours

    def byte_length(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
        return sa.func.octet_length(column, type_=sa.Integer)

    def table_names(self, connection: sa.Connection) -> Collection[str]:
        query = "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = current_schema()"
        return connection.exec_driver_sql(query).scalars().all()

    def keep_copy(self, connection: sa.Connection, revision: str) -> str:
        # A schema beside ours, with all but what agents reported by the million.
        name = f"tailnet_{revision}"
        found = sa.text("SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname LIKE :name || '%'")
        taken = connection.execute(found, {"name": name}).scalar_one()
        schema = f"{name}_{taken + 1}" if taken else name
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
        for table in sorted(set(self.table_names(connection)) - _NOT_COPIED):
            connection.exec_driver_sql(f'CREATE TABLE "{schema}"."{table}" AS TABLE "{table}"')
        return f"schema {schema} (without {' and '.join(sorted(_NOT_COPIED))})"

    def vacuum(self, writers: sa.Engine) -> None:
        with writers.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql("VACUUM (ANALYZE)")
            connection.invalidate()  # with its settings

    def go_on_numbering(self, connection: sa.Connection, table: sa.Table) -> None:
        highest = sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0) + 1).scalar_subquery()
        sequence = sa.func.pg_get_serial_sequence(table.name, "id")
        connection.execute(sa.select(sa.func.setval(sequence, highest, False)))

    def find_damage(self, connection: sa.Connection) -> Collection[str]:
        query = (
            "SELECT i.indexrelid::regclass::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c "
            "ON c.oid = i.indexrelid WHERE NOT i.indisvalid AND c.relnamespace = current_schema()::regnamespace"
        )
        broken = connection.exec_driver_sql(query).scalars()
        return [f"index {name} is not valid: REINDEX INDEX {name}" for name in broken]

    def size_bytes(self, connection: sa.Connection) -> int:
        return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())

    def clock(self, connection: sa.Connection) -> datetime | None:
        moment: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        return moment

    def version(self, connection: sa.Connection) -> str:
        return str(connection.exec_driver_sql("SHOW server_version").scalar_one())

    def explain(self, error: Exception) -> tuple[StoreTrouble, str]:
        cause = getattr(error, "orig", None) or error
        said = self._reason(cause)
        code = getattr(cause, "sqlstate", None) or ""
        found = next((_CODES[code[:length]] for length in (5, 3, 2) if code[:length] in _CODES), None)
        if found is None and not code:
            found = next((meaning for words, meaning in _WORDS if words.search(str(cause))), _without_words(cause))
        trouble, advice = found or (StoreTrouble.OTHER, "{}")
        return trouble, advice.format(said)

    def _reason(self, error: Exception) -> str:
        # The details that may follow are values of rows.  No message holds the password, as far as anybody knows.
        reason = error_text(error).partition(" DETAIL: ")[0]
        password = self.url.password
        return reason.replace(str(password), MASK) if password else reason


def _without_words(cause: Exception) -> tuple[StoreTrouble, str] | None:
    names = {each.__name__ for each in type(cause).__mro__}
    if "DataError" in names:  # before it was sent
        return StoreTrouble.UNFIT, "{}"
    return _GONE if "OperationalError" in names else None


def _set_timeouts(connection: Any, _record: object) -> None:
    # Not among the options of the connection: poolers between us and the server refuse those.
    was, connection.autocommit = connection.autocommit, True
    connection.execute(
        f"SET statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'; SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'; "
        f"SET idle_in_transaction_session_timeout = '{3 * STATEMENT_TIMEOUT_SECONDS}s'"
    )
    connection.autocommit = was
