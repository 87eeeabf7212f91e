"""How the store is, and who else is on it: for readiness, metrics and the log.  Layer L3.

Each server says every few seconds in the store that it is there.  That write finds out whether the store takes any when
no agent reports, and tells other servers about this one.  What is found out by others' reads and writes
(store/database.py) counts too.  `problem` is for /readyz: sessions that stand do not need the store.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Final

import trio

from tailnet.errors import StoreError, StoreTrouble
from tailnet.store.rows import ServerRow
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

# Its agents count as connected for as long as this is heard: twice the interval of their pings, by default 30 s.
BEAT_SECONDS: Final = 5.0
# While it fails: its return should not be noticed late.
RETRY_SECONDS: Final = 2.0
# Who has not been heard of for so long has ended.
SILENT_SECONDS: Final = 30.0


class StoreWatch:
    """One per server.  `start`, then `run` as one task, then `finish`.  `id` is what the store knows this server by.
    `inactive_seconds`: how long its agents count as connected after its last beat."""

    def __init__(
        self,
        store: Store,
        server_id: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        inactive_seconds: float = 30.0,
    ) -> None:
        self.id = server_id
        self._store = store
        self._clock = clock
        self._started_at = clock()
        self._inactive_seconds = inactive_seconds
        self._is_told = False  # that the store has a problem
        self._others: list[ServerRow] = []
        self._has_claim = False
        self.write_seconds: float | None = None  # how long the last sign of life took to be written

    def trouble(self) -> StoreError | None:
        """Why the store cannot be used; None if it can, as far as is known."""
        database = self._store.database
        return database.read_trouble or database.write_trouble

    def problem(self) -> str | None:
        """The same in a sentence."""
        trouble = self.trouble()
        return None if trouble is None else f"{trouble}; sessions that stand go on"

    def troubles(self) -> dict[str, bool]:
        """Every trouble by name, and whether the store has it now."""
        trouble = self.trouble()
        return {each.value: trouble is not None and trouble.trouble is each for each in StoreTrouble}

    @property
    def servers(self) -> int:
        """Servers that use this store now, this one among them."""
        return 1 + len(self._others)

    @property
    def has_older(self) -> bool:
        """Whether a server is here, too, that looks for signs of life in the rows of agents alone."""
        return not all(each.reads_beats for each in self._others)

    @property
    def has_island(self) -> bool:
        """Whether another server uses a store that only one should."""
        return not self._has_claim and bool(self._others)

    async def start(self, *, replaces_another: bool = False) -> None:
        """Warn of another server that this one should not have beside it.  Writes nothing, so it takes no time.

        `replaces_another`: one that ends has the store for a little longer.  Raises StoreError.
        """
        self._has_claim = await self._store.run(self._store.database.dialect.claim)
        if self._has_claim or replaces_another:
            return
        self._note_servers(await self._store.run(self._store.presence.list_servers))
        _log.warning(
            "! another server uses the store %s (%s): the two are islands. Who is connected to one never meets who is "
            "connected to the other, and each writes what the other does not know: stop one of them",
            self._store.shown,
            "; ".join(f"{each.host}, process {each.pid}, since {each.started_at:%F %T} UTC" for each in self._others)
            or "it has not said which",
        )

    async def run(self) -> None:
        """Say that this server is there, until cancelled."""
        while True:
            await self.beat()
            seconds = BEAT_SECONDS if self.trouble() is None else RETRY_SECONDS
            await trio.sleep(min(seconds, self._inactive_seconds / 3))
            if not self._has_claim:
                # The other one may have ended, and a third may come.
                self._has_claim = await self._store.run(self._store.database.dialect.claim)

    async def beat(self) -> None:
        """Say it once, and look who else does."""
        presence, now = self._store.presence, self._clock()
        row = ServerRow(self.id, socket.gethostname(), os.getpid(), version("tailnet-derp"), self._started_at, now)
        began = trio.current_time()
        try:
            await self._store.run(presence.beat, row)
            self.write_seconds = trio.current_time() - began
            servers = await self._store.run(presence.list_servers)
        except StoreError as error:
            if not self._is_told:
                _log.error("! %s; sessions that stand go on, reports of agents wait", error)
            self._is_told = True
            return
        if self._is_told:
            _log.warning("= store %s: it can be read and written again", self._store.shown)
        self._is_told = False
        self._note_servers(servers)

    def _note_servers(self, servers: Sequence[ServerRow]) -> None:
        heard_since = self._clock() - timedelta(seconds=SILENT_SECONDS)
        self._others = [each for each in servers if each.id != self.id and each.seen_at > heard_since]

    async def finish(self) -> None:
        """Say that this server has ended."""
        try:
            await self._store.run(self._store.presence.end, self.id)
        except StoreError as error:
            _log.warning("! %s", error)
