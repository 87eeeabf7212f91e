"""What happens to agents, kept for the control plane (layer L3): noted by services, told by api/events.py, webhook.py.

`note` costs nothing while nobody asked for events.  They go through the outbox like reports, so they are in the store
about a second later, numbered; `page` waits for more if it is told to.  A server that died without a word took the
departures of its agents with it: `run` notices.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from tailnet.errors import StoreError
from tailnet.services.feed import Feed, newest_only
from tailnet.store.events import PAGE_EVENTS
from tailnet.store.outbox import Outbox
from tailnet.store.outbox_queue import Kind
from tailnet.store.rows import EventPage, EventType, Happening
from tailnet.store.store import Store
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

MOST_EVENTS: Final = PAGE_EVENTS  # of one page
# How soon events are seen that another server wrote.
FOREIGN_SECONDS: Final = 2.0
# Servers say each ten seconds that they are there (store_watch.py); a store that was away takes them a while to tell.
DEAD_AFTER: Final = timedelta(seconds=90)
LOOK_SECONDS: Final = 30.0
# Of one agent: it reconnects once a second while the store is away for minutes.
MAX_WAITING: Final = 512
EVENT_BYTES: Final = 300


class Events:
    """All events of one server.  `is_on` may change at any time; `run` is one task."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        *,
        is_on: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.is_on = is_on
        self.feed = Feed[int](key=newest_only)  # the number of the newest event that this server wrote
        self._store = store
        self._outbox = outbox
        self._clock = clock
        self._kind = Kind[Happening](
            name="event",
            write=store.events.add,
            agent_of=lambda happening: happening.agent_id,
            size_of=lambda happening: EVENT_BYTES + 20 * len(happening.details),
            max_items=MAX_WAITING,
            max_bytes=1024 * 1024,
            written=self._note_written,
        )
        outbox.add_kind(self._kind)

    def note(self, agent_id: PeerID, kind: EventType, details: Mapping[str, object] | None = None) -> None:
        """Something happened now."""
        if self.is_on:
            self._outbox.put(self._kind, Happening(agent_id, kind, self._clock(), details or {}))

    async def page(self, after: int, limit: int = PAGE_EVENTS, wait_seconds: float = 0.0) -> EventPage:
        """Events with a number above `after`; if there is none yet, waits for one as long as it may.

        Raises StoreError.
        """
        until = trio.current_time() + wait_seconds
        while True:
            page = await self._store.run(self._store.events.page, after, limit)
            left = until - trio.current_time()
            if page.events or left <= 0:
                return page
            await self.wait_more(min(left, FOREIGN_SECONDS))

    async def wait_more(self, seconds: float) -> None:
        """Until this server wrote another event, at most so long."""
        with trio.move_on_after(seconds):
            await self.feed.wait_changed()

    async def run(self) -> None:
        """Say of which agents nobody says any more that they are here, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self.is_on and self._outbox.trouble is None:
                try:
                    await self.note_forsaken()
                except StoreError as error:
                    _log.warning("! agents of servers that died are not looked for: %s", error)

    async def note_forsaken(self) -> None:
        """Take agents from servers that died, and say that they went away.  Raises StoreError."""
        for agent_id in await self._store.run(self._store.presence.release_forsaken, self._clock() - DEAD_AFTER):
            self.note(agent_id, EventType.DISCONNECTED, {"reason": "the server that it was connected to died"})

    def _note_written(self, _: Sequence[Happening], newest: int) -> None:
        if newest > self.feed.last_id:
            self.feed.publish(newest, newest)
