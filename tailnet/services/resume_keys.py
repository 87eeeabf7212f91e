"""The keys of resume tokens, read from the store and read again now and then.  Layer L3.

What a token holds, and how keys sign and verify it, is coordinator/resume.py.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Hashable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from tailnet.auth.callers import Callers
from tailnet.coordinator.resume import ResumeKey, ResumeTokens
from tailnet.errors import StoreError
from tailnet.store.keys import REFRESH_SECONDS, signer
from tailnet.store.rows import SigningKey
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

PURPOSE: Final = "resume token"
# A key may have been revoked: a read that failed is not left until the next is due.
_RETRY_SECONDS: Final = 10.0
# A replica that could not read the store for so long lets nobody new in either; keys verify for twice as long behind
# the one that follows them.
MAX_HELD_BACK: Final = timedelta(hours=24)


class ResumeKeys:
    """The keys of this server.  `current` signs and verifies; call `start` once before anybody uses it."""

    def __init__(
        self,
        store: Store,
        callers: Callers | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`callers` tell when an administrator changed something, keys among it."""
        self._store = store
        self._callers = callers
        self._clock = clock
        self.current: ResumeTokens
        self.newest_at: datetime  # when the newest key was made
        self.read_at: datetime  # when the store was last asked
        self.on_read: list[Callable[[], None]] = []
        """Called when the keys were read anew."""
        self._keys: Sequence[SigningKey] = ()
        self._elsewhere: dict[Hashable, Collection[str]] = {}  # what other replicas can verify with

    async def start(self) -> None:
        """Read the keys, and make the first one.  Raises StoreError.

        Nothing is rotated: a store that takes no writes would hold up the start for the ten seconds that it needs to
        say so.
        """
        keys = await self._store.run(self._store.keys.stored_keys, PURPOSE)
        if keys:
            self._use(keys)
        else:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the keys; the store makes and rotates them when it is time.  Raises StoreError."""
        self._use(await self._store.run(self._store.keys.signing_keys, PURPOSE, self._clock(), secrets.token_bytes))

    @property
    def ids(self) -> Sequence[str]:
        """Of the keys that verify here, the newest first."""
        return [key.id for key in self._keys]

    def note_elsewhere(self, replica: Hashable, ids: Collection[str] | None) -> None:
        """Another replica verifies with these; None: it has left."""
        if ids is None:
            self._elsewhere.pop(replica, None)
        else:
            self._elsewhere[replica] = ids
        if self._keys:
            self._choose()

    def _use(self, keys: Sequence[SigningKey]) -> None:
        self._keys = keys
        self._choose()
        self.newest_at, self.read_at = keys[0].created_at, self._clock()
        for tell in self.on_read:
            tell()

    def _choose(self) -> None:
        """Sign with what every replica has read: one whose store was away meanwhile would refuse it."""
        keys, now = self._keys, self._clock()
        everywhere = [
            key
            for key in keys
            if now - key.created_at >= MAX_HELD_BACK or all(key.id in ids for ids in self._elsewhere.values())
        ]
        signing = signer(everywhere or keys, now)
        accepted = [ResumeKey(key.id, key.secret) for key in keys if key is not signing]
        self.current = ResumeTokens(ResumeKey(signing.id, signing.secret), accepted)

    async def refresh_forever(self) -> None:
        """Read the keys again and again, until cancelled.  While the store fails, those of before stay in use."""
        generation = self._callers.changes.count if self._callers is not None else 0
        has_failed = False
        while True:
            with trio.move_on_after(_RETRY_SECONDS if has_failed else REFRESH_SECONDS):
                if self._callers is None:
                    await trio.sleep_forever()
                else:
                    generation = await self._callers.changes.wait(generation)
            try:
                await self.refresh()
                has_failed = False
            except StoreError as error:
                if not has_failed:
                    _log.error("! resume keys cannot be read; those of before stay: %s", error)
                has_failed = True
