"""What the store needs from time to time while a server runs.  Layer L3.  What goes is decided in store/reports.py."""

import logging
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet.errors import StoreError
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

# Statistics are kept for a day; an hour more or less is nothing, and the work of an hour is done in a few pieces.
PRUNE_SECONDS: Final = 3_600.0


async def prune_forever(store: Store) -> None:
    """Delete old statistics, now and every hour, until cancelled; a store that fails is asked again in an hour."""
    while True:
        try:
            # One bounded piece after the other: whoever else wants to write comes in between.
            while await store.run(store.reports.prune, datetime.now(UTC)):
                pass
        except StoreError as error:
            _log.error("! old statistics are not deleted: %s", error)
        await trio.sleep(PRUNE_SECONDS)
