"""Replicas that find each other in the PostgreSQL that they share (layer L2).  Frames go by direct links.

Each replica raises a number in its row every two seconds.  A row whose number stands still is that of a replica that
has gone: so nobody's wall clock is compared with another's.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from tailnet.bus.contract import (
    LEASE_SECONDS,
    MAX_REPLICAS,
    RENEW_SECONDS,
    Record,
    Watcher,
    decode_record,
    encode_record,
)
from tailnet.errors import MalformedField, StoreError
from tailnet.replica.messages import ReplicaID
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.replicas")

# Rows of those that ended without a word; a replica that was stopped for so long writes its row anew.
SWEEP_SECONDS: Final = 60.0
_LEAVE_SECONDS: Final = 2.0


class StoreBus:
    """A Bus."""

    kind = "store"
    can_carry = False

    def __init__(self, store: Store) -> None:
        self.trouble = ""
        self._store = store
        self._seen: dict[str, tuple[int, float]] = {}  # the number of each row, and when it came to be that

    async def run(self, own: Record, watcher: Watcher) -> None:
        row_id, encoded, beat = own.replica.hex(), encode_record(own), 0
        try:
            while True:
                beat += 1
                try:
                    rows = await self._store.run(self._store.replicas.renew, row_id, encoded, beat, self._dead())
                    self.trouble = ""
                    watcher.see_records(self._alive(rows))
                except StoreError as error:
                    # Whoever is known stays so: the store says nothing about replicas while it is away.
                    self.trouble = str(error)
                await trio.sleep(RENEW_SECONDS)
        finally:
            with trio.move_on_after(_LEAVE_SECONDS, shield=True):
                try:
                    await self._store.run(self._store.replicas.leave, row_id)
                except StoreError as error:
                    _log.warning("! %s: this replica's row stays until others sweep it", error)

    def _alive(self, rows: Sequence[tuple[str, int, bytes]]) -> dict[ReplicaID, Record]:
        now = trio.current_time()
        before, self._seen = self._seen, {}
        found: dict[ReplicaID, Record] = {}
        for row_id, beat, encoded in rows:
            known = before.get(row_id)
            changed_at = known[1] if known is not None and known[0] == beat else now
            self._seen[row_id] = beat, changed_at
            if now - changed_at >= LEASE_SECONDS or len(found) >= MAX_REPLICAS:
                continue
            try:
                record = decode_record(encoded)
            except MalformedField as error:
                _log.warning("! the store has a row that no replica wrote: %s", error)
                continue
            found[record.replica] = record
        return found

    def _dead(self) -> list[str]:
        """Rows that nobody raises any more."""
        now = trio.current_time()
        return [row_id for row_id, (_, changed_at) in self._seen.items() if now - changed_at >= SWEEP_SECONDS]

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        return False
