"""Who waits until somebody links an account.  Layer L3.

Links that are made on this server wake them at once; those of others that share the store are seen within a second:
one query for all who wait, and none while nobody does.  Called by services/external_auth.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final
from uuid import UUID

import trio

from tailnet.errors import StoreError
from tailnet.store.credentials import LinkKey
from tailnet.store.store import Store

# The reference's rhythm.
POLL_SECONDS: Final = 1.0
# Whoever waits is asked anew after so long without a change: a provider that was away may be back.
AGAIN_SECONDS: Final = 30.0
# Git of one workspace asks for one repository at a time; a user has a handful of workspaces.
MAX_WATCHERS_PER_LINK: Final = 64
# Each holds a connection of the API, of which there are some thousands.
MAX_WATCHERS: Final = 4_096


class Watcher:
    """Those who wait for one link."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: datetime | None = None  # when the link changed last, as of the last look
        self.event = trio.Event()

    async def wait_changed(self, known: datetime | None) -> None:
        """Until the link changes after `known`, or for AGAIN_SECONDS."""
        with trio.move_on_after(AGAIN_SECONDS):
            # What was seen last may be older than what the caller just read himself.
            while self.seen is None or (known is not None and self.seen <= known):
                await self.event.wait()

    def wake(self, changed_at: datetime | None) -> None:
        """The link changed then, None: it is there no more."""
        if changed_at != self.seen:
            self.seen = changed_at
            self.event.set()
            self.event = trio.Event()


class LinkWatch:
    """All who wait on this server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[LinkKey, Watcher] = {}
        self._come = trio.Event()
        self._look = trio.Event()

    def __len__(self) -> int:
        return sum(each.count for each in self._watchers.values())

    async def run(self) -> None:
        """Look at the store while somebody waits, until cancelled.  One that cannot be read is looked at later."""
        while True:
            if not self._watchers:
                self._come = trio.Event()
                await self._come.wait()
            await self.look()
            self._look = trio.Event()
            with trio.move_on_after(POLL_SECONDS):
                await self._look.wait()

    async def look(self) -> None:
        """Wake those whose links changed."""
        asked = set(self._watchers)
        try:
            found = await self._store.run(self._store.credentials.links_changed_at, asked)
        except StoreError:
            return
        for key in asked & self._watchers.keys():
            self._watchers[key].wake(found.get(key))

    def changed(self, user_id: UUID, provider_id: str) -> None:
        """A link was made here: look now."""
        if (user_id, provider_id) in self._watchers:
            self._look.set()

    @contextmanager
    def watching(self, user_id: UUID, provider_id: str) -> Iterator[Watcher]:
        """Among those who wait.  Raises trio.WouldBlock when there are too many."""
        key = user_id, provider_id
        watcher = self._watchers.get(key) or Watcher()
        if watcher.count >= MAX_WATCHERS_PER_LINK or len(self) >= MAX_WATCHERS:
            raise trio.WouldBlock
        self._watchers[key] = watcher
        watcher.count += 1
        self._come.set()
        try:
            yield watcher
        finally:
            watcher.count -= 1
            if not watcher.count:
                del self._watchers[key]
