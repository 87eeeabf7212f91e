"""What the store needs from time to time while a server runs.  Layer L3.

What goes, and in which steps, is store/retention.py's.
"""

import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from tailnet.config import CoordinatorConfig
from tailnet.errors import StoreError
from tailnet.store.retention import Retention
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

# What is kept is kept for a day at least: an hour more or less is nothing.
PRUNE_SECONDS: Final = 3_600.0
# Between two steps of some milliseconds, so that others write in between: 20,000 rows a second at the most.
PAUSE_SECONDS: Final = 0.05
# How much longer than its time of grace a replaced token is good at the most; a look at an empty table is microseconds.
GRACE_SECONDS: Final = 15.0


def retention(config: CoordinatorConfig) -> Retention:
    """What is kept of what agents report, as the settings say."""
    return Retention(
        stats=timedelta(seconds=config.keep_stats_seconds),
        logs=timedelta(seconds=config.keep_logs_seconds),
        sessions=timedelta(seconds=config.keep_sessions_seconds),
        events=timedelta(seconds=config.keep_events_seconds),
        audit=timedelta(seconds=config.keep_audit_seconds),
        max_log_bytes=config.max_stored_log_bytes,
    )


class Upkeep:
    """Removes what is kept no longer; `run` is one task."""

    def __init__(
        self, store: Store, limits: Retention, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.limits = limits
        self.removed: Counter[str] = Counter()  # rows, by what they were
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Remove what is due, now and every hour, until cancelled; a store that fails is asked again in an hour."""
        while True:
            try:
                await self.remove_due()
            except StoreError as error:
                _log.error("! what is kept no longer is not removed: %s", error)
            await trio.sleep(PRUNE_SECONDS)

    async def end_grace_forever(self) -> None:
        """End replaced tokens of agents when their time of grace is over, until cancelled."""
        while True:
            await self.end_grace()
            await trio.sleep(GRACE_SECONDS)

    async def end_grace(self) -> None:
        """End those whose time is over now."""
        issued = self._store.issued
        try:
            if await self._store.run(issued.find_expired, self._clock()):
                await self._store.run(issued.remove_expired, self._clock())
        except StoreError as error:
            _log.error("! replaced tokens of agents are good for longer than they should: %s", error)

    async def remove_due(self) -> None:
        """All of it, step by step.  Raises StoreError."""
        for step in self._store.retention.steps(self.limits, self._clock()):
            while due := await self._store.run(step.find):
                self.removed[step.name] += await self._store.run(step.remove, due)
                await trio.sleep(PAUSE_SECONDS)
