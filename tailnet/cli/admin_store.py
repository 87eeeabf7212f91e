"""`tailnet admin store`: is it whole, backups while servers use it, and their restoration (layer L4).

Next hop: store/check.py, store/backup.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from derp.cli_run import FILE
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options, store_url
from tailnet.store.backup import back_up, restore
from tailnet.store.check import StoreReport, check
from tailnet.store.database import Database
from tailnet.store.schema import HEAD_REVISION

# A check that found something, as a command that failed.
_FOUND_STATUS: Final = 1
_UNITS: Final = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


@click.group("store")
def store_group() -> None:
    """Look after the store itself.  Servers may go on using it meanwhile."""


@store_group.command("check")
@store_options
def check_store(store: str | None, config: str | None, as_json: bool) -> None:
    """Read all of the store and say what is wrong with it, how large it is, and who uses it.

    Changes nothing, also where the schema is an older one.  Exit status 1 when something is wrong.
    """
    with _opened(store, config) as database:
        report = check(database)
    if as_json:
        say_json(_as_json(report))
    else:
        _say(report)
    if report.problems:
        sys.exit(_FOUND_STATUS)


@store_group.command()
@store_options
def vacuum(store: str | None, config: str | None, as_json: bool) -> None:
    """Give room that removed rows left back to the disk.

    SQLite writes the whole file anew, for which it needs its size once more; servers write again afterwards.
    """
    with _opened(store, config) as database:
        before = _size(database)
        database.vacuum()
        after = _size(database)
    if as_json:
        say_json({"bytes_before": before, "bytes": after})
    else:
        console().print(f"{_bytes(before)} before, {_bytes(after)} now")


@store_group.command()
@click.argument("file", type=FILE)
@store_options
def backup(file: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Write the store as it is at this moment to FILE, which must not exist yet.

    FILE is a SQLite store, complete in one file, also where the store is PostgreSQL; it holds keys, so it is readable
    by its owner only.  Servers go on reading and writing meanwhile.
    """
    with _opened(store, config) as database:
        size = back_up(database, Path(file))
    if as_json:
        say_json({"file": file, "bytes": size})
    else:
        console().print(f"{file}: {_bytes(size)}")


@store_group.command("restore")
@click.argument("file", type=FILE)
@store_options
def restore_store(file: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Fill an empty store with the backup FILE; it is made if it is missing.

    The store may be of the other kind than the one that FILE is a backup of, which is how one moves from SQLite to
    PostgreSQL.  Nothing is changed in a store that has rows already.
    """
    copied = restore(Path(file), store_url(store, config))
    if as_json:
        say_json({"rows": copied})
    else:
        for table, count in copied.items():
            if count:
                console().print(f"{table}: {count:,} rows")


@contextmanager
def _opened(store: str | None, config: str | None) -> Iterator[Database]:
    database = Database.open(store_url(store, config), migrate=False)
    try:
        yield database
    finally:
        database.close()


def _size(database: Database) -> int:
    with database.reading() as connection:
        return database.dialect.size_bytes(connection)


def _as_json(report: StoreReport) -> dict[str, object]:
    servers = [
        {"host": each.host, "process": each.pid, "version": each.version, "since": each.started_at.isoformat()}
        for each in report.servers
    ]
    return {
        "store": report.store,
        "kind": report.kind,
        "schema": report.schema,
        "bytes": report.size_bytes,
        "rows": report.rows,
        "servers": servers,
        "problems": list(report.problems),
    }


def _say(report: StoreReport) -> None:
    out = console()
    newest = "" if report.schema == HEAD_REVISION else f", this program's is {HEAD_REVISION}"
    out.print(f"store {report.store}")
    out.print(f"{report.kind}, schema {report.schema}{newest}, {_bytes(report.size_bytes)}")
    for table, count in report.rows.items():
        out.print(f"  {table}: {count:,} rows")
    for each in report.servers:
        out.print(f"used by {each.host}, process {each.pid}, version {each.version}, since {each.started_at:%F %T} UTC")
    for problem in report.problems:
        out.print(f"! {problem}")
    out.print("it is whole" if not report.problems else f"{len(report.problems)} things are wrong")


def _bytes(number: int) -> str:
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
