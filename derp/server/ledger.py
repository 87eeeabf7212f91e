"""The ledger: what each key and tenant carried on each day, in a file of SQLite that outlives the relay.  Layer L3.

`Ledger` reads the counters of clients every few seconds and at their end (relay/usage.py), and adds them to the file
in a thread.  `LedgerFile` is for it and for `derp ledger`.  Processes that replace each other add to the same rows.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import trio

from derp.errors import ConfigError
from derp.relay.clients import Client
from derp.relay.limits import DEFAULT_TENANT, MAX_TENANTS
from derp.relay.usage import OTHERS, Tally, Usage
from derp.server.sqlite_file import transaction

_log = logging.getLogger("derp.server")

# So much a crash loses.
WRITE_SECONDS: Final = 3.0
# Of one day.  100,000 rows are 12 MB; only a relay that is open to strangers sees more keys in a day.
MAX_ROWS: Final = 100_000
# What other processes wrote is read as often: those that this one replaces, and other workers.  It takes a millisecond
# for 2,000 rows of the month, in a thread; where it takes long it is done so seldom that it has this part of a core.
RECALL_SECONDS: Final = 30.0
_RECALL_PART: Final = 0.02
# Clients read, and accounts recalled, between two turns of everybody else: 2 us each.
_AT_ONCE: Final = 1000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS ledger (
    day TEXT NOT NULL, tenant TEXT NOT NULL, key BLOB NOT NULL,
    packets_in INTEGER NOT NULL, bytes_in INTEGER NOT NULL, packets_out INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    packets_dropped INTEGER NOT NULL, bytes_dropped INTEGER NOT NULL,
    PRIMARY KEY (day, tenant, key)
) WITHOUT ROWID;
"""
_ADD: Final = "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET " + ", ".join(
    f"{name} = {name} + excluded.{name}" for name in Usage._fields
)

_USED: Final = (
    "SELECT {whose}, SUM((bytes_in + bytes_out) * (day = ?)), SUM(bytes_in + bytes_out) FROM ledger "
    "WHERE day BETWEEN ? AND ? GROUP BY {whose}"
)

Row = tuple[str, str, bytes, Usage]


def day_of(seconds: float) -> str:
    """The day of UTC, such as 2026-11-30."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


class LedgerFile:
    """The file.  Every method blocks, and raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, rows: Mapping[tuple[str, str, bytes], Usage], oldest_day: str) -> None:
        """Add to the rows of these days, tenants and keys, and forget all days before `oldest_day`."""
        with self._open() as connection:
            connection.execute("DELETE FROM ledger WHERE day < ?", (oldest_day,))
            counts = {day: self._count(connection, day) for day in {day for day, _, _ in rows}}
            for (day, tenant, key), usage in rows.items():
                if counts[day] >= MAX_ROWS and not self._has(connection, day, tenant, key):
                    key = OTHERS
                    if counts[day] >= MAX_ROWS + MAX_TENANTS and not self._has(connection, day, tenant, key):
                        tenant = DEFAULT_TENANT
                connection.execute(_ADD, (day, tenant, key, *usage))
                counts[day] += 1  # or it was there: the next time they are counted anew

    @staticmethod
    def _count(connection: sqlite3.Connection, day: str) -> int:
        (count,) = connection.execute("SELECT COUNT(*) FROM ledger WHERE day = ?", (day,)).fetchone()
        return int(count)

    @staticmethod
    def _has(connection: sqlite3.Connection, day: str, tenant: str, key: bytes) -> bool:
        found = "SELECT 1 FROM ledger WHERE day = ? AND tenant = ? AND key = ?"
        return connection.execute(found, (day, tenant, key)).fetchone() is not None

    def read(self, first: str = "", last: str = "9999") -> Iterator[Row]:
        """All rows from the first to the last of these days, by day, tenant and key."""
        with self._open() as connection:
            found = "SELECT * FROM ledger WHERE day >= ? AND day <= ? ORDER BY day, tenant, key"
            for day, tenant, key, *counts in connection.execute(found, (first, last)):
                yield day, tenant, key, Usage(*counts)

    def used(self, day: str) -> list[tuple[bytes | str, int, int]]:
        """Bytes that each key and each tenant carried, both ways, on a day and in its month until then."""
        with self._open() as connection:
            found: list[tuple[bytes | str, int, int]] = []
            for whose in ("key", "tenant"):
                found += connection.execute(_USED.format(whose=whose), (day, f"{day[:7]}-01", day))
        return found

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._path, _SCHEMA, "as the ledger")


class Use(Protocol):
    """Who wants to know what clients use; server/quotas.py does."""

    def spend(self, client: Client, count: int) -> None:
        """A client carried so many bytes."""

    def begin_recall(self) -> bool:
        """What is spent from now on will not be in what `recall` is given.  False: nobody needs it."""
        ...

    def recall(self, day: str, used: Iterable[tuple[bytes | str, int, int]]) -> None:
        """What each key and tenant used on a day, and in its month until then."""


class Ledger:
    """That of one relay.  `run` it as one task; the rest is for the reactor's thread."""

    def __init__(
        self,
        path: Path,
        days: int,
        clients: Mapping[int, Client],
        use: Use,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`days`: how many are kept, today included.  `clients`: those that are connected, whoever they are."""
        self._file = LedgerFile(path)
        self._days = days
        self._clients = clients
        self._use = use
        self._recall_at = 0.0
        self._clock = clock
        self._tally = Tally(MAX_ROWS)
        self.write_failures = 0

    @property
    def waiting_rows(self) -> int:
        """How many are not in the file yet."""
        return len(self._tally)

    def note(self, client: Client) -> None:
        """Read what a client carried."""
        if not (client.is_mesh_peer or client.is_own):
            count = self._tally.note(client, client.tenant, day_of(self._clock()))
            if count:
                self._use.spend(client, count)

    def note_adoption(self, client: Client) -> None:
        """A client came over from another process, which has counted all until now."""
        self._tally.adopt(client)

    def note_end(self, client: Client) -> None:
        """A client has gone, with everything that waited for it."""
        self.note(client)
        self._tally.depart(client)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, and then the rest.  Raises ConfigError at once if the file cannot be written."""
        await trio.to_thread.run_sync(self._file.add, {}, self._oldest_day())
        if self._use.begin_recall():
            await self._recall()
        task_status.started()
        trouble = ""
        try:
            while True:
                await trio.sleep(WRITE_SECONDS)
                await self._read_all()
                is_recalling = trio.current_time() >= self._recall_at and self._use.begin_recall()
                try:
                    await self._write()
                    if is_recalling:
                        await self._recall()
                    trouble = ""
                except ConfigError as error:
                    self.write_failures += 1
                    if str(error) != trouble:
                        trouble = str(error)
                        _log.error("! what clients carry is kept in memory until it can be written: %s", error)
        finally:
            for client in tuple(self._clients.values()):  # whoever has used up a quota is sent away
                self.note(client)
            self._file.add(self._tally.take(), self._oldest_day())

    async def _read_all(self) -> None:
        for number, client in enumerate(tuple(self._clients.values()), 1):
            if client.member is not None:
                self.note(client)
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _recall(self) -> None:
        began, day = trio.current_time(), day_of(self._clock())
        used = await trio.to_thread.run_sync(self._file.used, day)
        for at in range(0, len(used), _AT_ONCE):
            self._use.recall(day, used[at : at + _AT_ONCE])
            await trio.lowlevel.checkpoint()
        now = trio.current_time()
        self._recall_at = now + max(RECALL_SECONDS, (now - began) / _RECALL_PART)

    async def _write(self) -> None:
        rows = self._tally.take()
        try:
            if rows:
                await trio.to_thread.run_sync(self._file.add, rows, self._oldest_day())
        except BaseException:
            for (day, tenant, key), usage in rows.items():
                self._tally.add(day, tenant, key, usage)
            raise

    def _oldest_day(self) -> str:
        today = date.fromisoformat(day_of(self._clock()))
        return (today - timedelta(days=self._days - 1)).isoformat()
