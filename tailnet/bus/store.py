"""Replicas that find each other in the PostgreSQL that they share (layer L2).  Frames go by direct links.

Each replica raises a number in its row every two seconds.  A row whose number stands still at several of our looks is
that of a replica that has gone.  So no clocks are compared, and while the store is away, or this process is stopped,
nobody grows old.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from tailnet.bus.contract import (
    LEASE_SECONDS,
    RENEW_SECONDS,
    Record,
    RecordReader,
    Watcher,
    encode_record,
)
from tailnet.errors import StoreError
from tailnet.replica.messages import ReplicaID
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.replicas")

# Looks, one each RENEW_SECONDS, at which a number stood still: a lease.
LEASE_LOOKS: Final = int(LEASE_SECONDS / RENEW_SECONDS)
# A minute.  Rows of those that ended without a word; a replica that was stopped for so long writes its row anew.
SWEEP_LOOKS: Final = 30
_LEAVE_SECONDS: Final = 2.0


class StoreBus:
    """A Bus."""

    kind = "store"
    can_carry = False

    def __init__(self, store: Store) -> None:
        self.trouble = ""
        self._store = store
        self._records = RecordReader("the store")
        self._row_id = ""  # "": it has none, or none any more
        self._seen: dict[str, tuple[int, int]] = {}  # the number of each row, and for how many looks it stood still

    async def run(self, own: Record, watcher: Watcher) -> None:
        self._row_id, beat = own.replica.hex(), 0
        try:
            while self._row_id:
                beat, encoded = beat + 1, encode_record(own)
                try:
                    rows = await self._store.run(self._store.replicas.renew, self._row_id, encoded, beat, self._dead())
                    self.trouble = ""
                    watcher.see_records(self._alive(rows))
                except StoreError as error:
                    # Whoever is known stays so: the store says nothing about replicas while it is away.
                    self.trouble = str(error)
                await trio.sleep(RENEW_SECONDS)
        finally:
            await self.leave()

    async def leave(self) -> None:
        row_id, self._row_id = self._row_id, ""
        if not row_id:
            return
        with trio.move_on_after(_LEAVE_SECONDS, shield=True):
            try:
                # Changes are made one after the other: a renewal that is on its way is before this one.
                await self._store.run(self._store.replicas.leave, row_id)
            except StoreError as error:
                _log.warning("! %s: this replica's row stays until others sweep it", error)

    def _alive(self, rows: Sequence[tuple[str, int, bytes]]) -> dict[ReplicaID, Record]:
        before, self._seen = self._seen, {}
        for row_id, beat, _ in rows:
            known = before.get(row_id)
            looks = known[1] + 1 if known is not None and known[0] == beat else 0
            self._seen[row_id] = beat, looks
        return self._records.read(encoded for row_id, _, encoded in rows if self._seen[row_id][1] < LEASE_LOOKS)

    def _dead(self) -> list[str]:
        """Rows that nobody raises any more."""
        return [row_id for row_id, (_, looks) in self._seen.items() if looks >= SWEEP_LOOKS]

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        return False
