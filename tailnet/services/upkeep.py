"""What the store needs from time to time while a server runs.  Layer L3.

store/reports.py decides what is deleted.
"""

import logging
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet.errors import StoreError
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

# The store keeps statistics for a day: an hour more is no harm, and one hour's rows are deleted in a few pieces.
PRUNE_SECONDS: Final = 3_600.0


async def prune_forever(store: Store) -> None:
    """Delete old statistics, now and every hour, until cancelled.  A store that fails is asked again in an hour."""
    while True:
        try:
            # Piece by piece, each of them bounded, so that other writers come in between.
            while await store.run(store.reports.prune, datetime.now(UTC)):
                pass
        except StoreError as error:
            _log.error("! old statistics are not deleted: %s", error)
        await trio.sleep(PRUNE_SECONDS)
