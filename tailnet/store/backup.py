"""Copies of a store: a backup while servers use it, its restoration, and the way from one kind of store to another
(layer L2).

A backup is one SQLite file, whatever kind of store it is of: complete, of one moment, readable by its owner only.  It
is restored into an empty store of either kind.  Called by cli/admin_store.py; SQLite copies its own files itself.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from derp.text import error_text
from tailnet.errors import StoreError, StoreVersionError
from tailnet.store.callers import raise_generation
from tailnet.store.database import Database
from tailnet.store.schema import HEAD_REVISION, agents, counters, metadata, replicas, revocations, servers
from tailnet.store.sqlite import SqliteDialect

# Rows in one statement.
_ROWS: Final = 1_000
# Who is there now, and what those have to forget, is no part of what is kept.
_LEFT_OUT: Final = frozenset({servers.name, replicas.name, revocations.name})


def back_up(database: Database, path: Path) -> int:
    """Copy a store, as it is at this moment, into a file that does not exist yet.  Returns its bytes.

    Servers go on reading and writing meanwhile.  Raises StoreError; then there is no file.
    """
    with _new_file(path) as part:
        if isinstance(database.dialect, SqliteDialect):
            database.dialect.copy_to(part)
        else:
            part.unlink()  # the store makes its file itself
            target = Database.open(f"sqlite:///{part}")
            try:
                _copy(database, target)
            finally:
                target.close()
    return path.stat().st_size


def restore(path: Path, url: str) -> dict[str, int]:
    """Fill an empty store, which is made if it is missing, with a backup.  Returns rows by table.

    Raises StoreError; then the store is as empty as before.
    """
    if not path.is_file():
        raise StoreError(f"{path}: there is no such backup")
    with tempfile.TemporaryDirectory(prefix="tailnet-restore-") as folder:
        # It stays as it is, also if it is of an older schema.
        copy = Path(folder) / "backup.db"
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error_text(error)}") from None
        source = Database.open(f"sqlite:///{copy}")
        try:
            target = Database.open(url)
            try:
                _insist_on_empty(target)
                return _copy(source, target)
            finally:
                target.close()
        finally:
            source.close()


def _insist_on_empty(database: Database) -> None:
    with database.reading() as connection:
        for table in metadata.sorted_tables:
            if table.name not in _LEFT_OUT | {counters.name} and connection.execute(sa.select(table).limit(1)).first():
                raise StoreError(
                    f"store {database.shown}: it has {table.name} already: restore into an empty store, so move its "
                    "file away, or name another one"
                )


def _copy(source: Database, target: Database) -> dict[str, int]:
    """All rows, in one transaction on either side."""
    copied: dict[str, int] = {}
    with source.reading() as reader, target.writing() as writer:
        revision = source.schema_revision(reader)
        if revision != HEAD_REVISION:  # which this program may use, but does not know all of
            raise StoreVersionError(
                f"store {source.shown}: its schema {revision} is a newer program's: copy it with that one"
            )
        source.dialect.begin_long(reader)
        target.dialect.begin_long(writer)
        writer.execute(counters.delete())
        for table in metadata.sorted_tables:
            if table.name not in _LEFT_OUT:
                copied[table.name] = _copy_table(reader, writer, table)
                if table.c[0].name == "id" and table.c[0].autoincrement is True:
                    target.dialect.go_on_numbering(writer, table)
        # Whoever knew the store that was here before has to forget it.
        raise_generation(writer)
    return copied


def _copy_table(reader: sa.Connection, writer: sa.Connection, table: sa.Table) -> int:
    query = sa.select(table).order_by(*table.primary_key.columns)
    rows = reader.execution_options(yield_per=_ROWS).execute(query)
    count = 0
    parents: list[dict[str, object]] = []
    for part in rows.partitions():
        values = [dict(row._mapping) for row in part]
        if table is agents:
            # An agent may come before the one that it belongs to.
            parents += [{"of": row["id"], "parent": row["parent_id"]} for row in values if row["parent_id"] is not None]
            for row in values:
                row["parent_id"] = None
        writer.execute(table.insert(), values)
        count += len(values)
    if parents:
        of, parent = (sa.bindparam(name, type_=agents.c.id.type) for name in ("of", "parent"))
        writer.execute(agents.update().where(agents.c.id == of).values(parent_id=parent), parents)
    return count


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A file to write, which gets its name when it is whole and on the disk."""
    part = path.with_name(f"{path.name}.part")
    try:
        if path.exists():
            raise StoreError(f"{path}: it exists already: name another file")
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(f"{part}: cannot be made: {error_text(error)}") from None
    try:
        yield part
        _sync(part)
        os.link(part, path)  # fails where a rename would replace what somebody made meanwhile
        _sync(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error_text(error)}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
