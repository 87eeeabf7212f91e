"""The store as an actor: a row for each agent says who holds its connection; replicas write behind what they saw.

A replica's part is real: tailnet/services/presence.py, and the outbox's queue with its merging.  The rule of a row is
SQL in tailnet/store/presence.py; tests/tailnet/store/test_presence.py compares the two on random histories.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from sim.heap import Heap
from sim.peers import Connection
from tailnet.services.presence import AgentPresence
from tailnet.services.reports import presence_kind
from tailnet.store.outbox import BATCH_BYTES, BATCH_ITEMS, WRITE_SECONDS
from tailnet.store.outbox_queue import Queue
from tailnet.store.presence import CLOCKS_DIFFER
from tailnet.store.rows import PresenceChange
from tailnet.types import PeerID

SIGN_OF_LIFE_SECONDS: Final = 15.0
INACTIVE: Final = timedelta(seconds=2 * SIGN_OF_LIFE_SECONDS)
# A write that fails is told as late.
FAILURE_SECONDS: Final = 0.5
# Servers say that they are there, and look for those that have not for DEAD; a run is shorter than the real 90 s.
BEAT_SECONDS: Final = 5.0
DEAD: Final = timedelta(seconds=15)


@dataclass(slots=True)
class Row:
    """What tailnet/store keeps of one agent: last_connected_at, disconnected_at, seen_by."""

    last: datetime | None = None
    left: datetime | None = None
    holder: str | None = None

    def seen_at(self, beats: Mapping[str, datetime]) -> datetime | None:
        """LAST_CONNECTED_AT; `beats`: when each server said last that it is there."""
        known = self.last, beats.get(self.holder) if self.holder is not None else self.left
        return max((each for each in known if each is not None), default=None) if self.last is not None else None

    def is_connected(self, now: datetime, beats: Mapping[str, datetime]) -> bool:
        """AgentRow.status, for one that has come once."""
        seen_at = self.seen_at(beats)
        if seen_at is None or (self.left is not None and self.left >= seen_at):
            return False
        return abs(now - seen_at) <= INACTIVE

    def apply(self, change: PresenceChange, server: str, now: datetime, beats: Mapping[str, datetime]) -> None:
        """PresenceTables.record."""
        if change.came_at is not None and self._is_newest(change.came_at, server, now):
            self._be_here(change.came_at, server)
        if change.seen_at is not None and self._is_free(server, now, beats):
            self._be_here(change.seen_at, server)
        if change.left_at is not None and self.is_held_by(server):
            self.left, self.holder = change.left_at, None
            self.last = min(self.last, change.left_at) if self.last is not None else None

    def is_held_by(self, server: str) -> bool:
        return self.holder == server

    def _is_newest(self, at: datetime, server: str, now: datetime) -> bool:
        return self.holder == server or self.last is None or self.last <= at or self.last > now + CLOCKS_DIFFER

    def _is_free(self, server: str, now: datetime, beats: Mapping[str, datetime]) -> bool:
        if self.holder is None or self.holder == server or self.last is None:
            return self.holder in (server, None)
        beat = beats.get(self.holder)
        is_silent = self.last < now - INACTIVE and (beat is None or beat < now - INACTIVE)
        return is_silent or self.last > now + CLOCKS_DIFFER

    def _be_here(self, at: datetime, server: str) -> None:
        self.last, self.holder = at, server
        if self.left is not None and self.left >= at:
            self.left = None


class Store:
    """What all replicas write to."""

    def __init__(self) -> None:
        self.rows: dict[PeerID, Row] = {}
        self.is_away = False
        self.beats: dict[str, datetime] = {}

    def row(self, agent_id: PeerID) -> Row:
        return self.rows.setdefault(agent_id, Row())

    def beat(self, server: str, now: datetime) -> int:
        """A server is there; how many agents it took from servers that are not."""
        self.beats[server] = now
        return self.release_forsaken({each for each, at in self.beats.items() if at >= now - DEAD}, now - DEAD)

    def held_by(self, server: str) -> dict[PeerID, datetime]:
        """PresenceTables.list_held."""
        return {each: row.last for each, row in self.rows.items() if row.holder == server and row.last is not None}

    def release_forsaken(self, alive: set[str], silent_since: datetime) -> int:
        """PresenceTables.release_forsaken."""
        count = 0
        for row in self.rows.values():
            is_old = row.last is not None and row.last < silent_since
            if row.holder is not None and row.holder not in alive and is_old:
                row.left, row.holder = row.seen_at(self.beats), None
                count += 1
        return count


class Reporter:
    """What one replica tells the store.  `do` runs a call when the process is awake, `written` hears of each write."""

    def __init__(
        self,
        server: str,
        heap: Heap,
        store: Store,
        wall_ahead: float,
        do: Callable[[Callable[[], object]], None],
        written: Callable[[PresenceChange, Row, Row], None],
    ) -> None:
        self._server = server
        self._heap = heap
        self._store = store
        self._wall_ahead = wall_ahead
        self._do = do
        self._written = written
        self._queue = Queue(presence_kind(lambda: None, tuple))
        self._presence = AgentPresence(cast(Any, self), SIGN_OF_LIFE_SECONDS, lambda _: None, clock=self.now)
        self._is_due = False
        self.swept_count = 0
        heap.after(BEAT_SECONDS, self._beat_later)
        heap.after(SIGN_OF_LIFE_SECONDS, self._compare_later)

    def now(self) -> datetime:
        """By its own wall clock."""
        return datetime.fromtimestamp(1e9 + self._heap.now + self._wall_ahead, UTC)

    def came(self, connection: Connection) -> None:
        self._presence.came(cast(Any, connection))

    def left(self, connection: Connection) -> None:
        self._presence.left(cast(Any, connection))

    def note_presence(self, change: PresenceChange) -> None:
        """AgentReports.note_presence."""
        self._queue.put(change, self._heap.now)
        self._write_later()

    def finish(self) -> None:
        """The end of a server in good order."""
        self._presence.finish()
        self.write()

    def write(self) -> None:
        """Outbox: a batch, which waits again if the store does not take it."""
        self._is_due = False
        entries = self._queue.take(BATCH_ITEMS, BATCH_BYTES)
        if self._store.is_away:
            self._heap.after(FAILURE_SECONDS, lambda: self._do(lambda: self._give_back(entries)))
            return
        for entry in entries:
            row = self._store.row(entry.item.agent_id)
            before = Row(row.last, row.left, row.holder)
            row.apply(entry.item, self._server, self.now(), self._store.beats)
            if not self._queue.waiting_of(entry.item.agent_id):
                self._written(entry.item, before, row)

    def _give_back(self, entries: Sequence[Any]) -> None:
        self._queue.give_back(entries)
        self._write_later()

    def _write_later(self) -> None:
        if not self._is_due and self._queue.count:
            self._is_due = True
            self._heap.after(WRITE_SECONDS, lambda: self._do(self.write))

    def _compare_later(self) -> None:
        def compare() -> None:
            if not self._store.is_away:
                self._presence.note_alive(self._presence.compare(self._store.held_by(self._server)))
            self._heap.after(SIGN_OF_LIFE_SECONDS, self._compare_later)

        self._do(compare)

    def _beat_later(self) -> None:
        def beat() -> None:
            if not self._store.is_away:
                self.swept_count += self._store.beat(self._server, self.now())
            self._heap.after(BEAT_SECONDS, self._beat_later)

        self._do(beat)
