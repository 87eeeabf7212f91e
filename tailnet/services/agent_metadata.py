"""What metadata scripts of agents say, live (layer L3): asked by api/metadata.py.

    with metadata.follow(agent_id) as follower:
        async for events in follower: ...        # snapshots; the newest is the one to show
A snapshot is all of an agent's metadata: at once, then when a value was written but once a second at the most, and each
five seconds in any case, because ages grow.  All followers of an agent share it.  A store that cannot be read closes
the feed with `STORE_FAILED`; who comes back begins anew.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet.errors import StoreError
from tailnet.services.agent_feeds import AgentFeeds, AgentTopic
from tailnet.services.feed import PATIENCE_SECONDS, Feed, FeedCounts, Follower, newest_only
from tailnet.store.store import Store
from tailnet.types import PeerID

# The reference's rhythm.
LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 5.0
STORE_FAILED: Final = "Failed to get metadata."
# What Go's clock says of a script that never ran: the longest time it knows, since its zero time is farther away.
NEVER_SECONDS: Final = ((1 << 63) - 1) // 1_000_000_000


@dataclass(frozen=True, slots=True)
class MetadataView:
    """A script and its last result, as they are shown.  `collected_at`: None until it ran."""

    key: str
    display_name: str
    script: str
    interval: int
    timeout: int
    collected_at: datetime | None
    age: int  # seconds
    value: str
    error: str


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All metadata of an agent at one moment.  Each is another one, also with equal items."""

    items: Sequence[MetadataView]


class AgentMetadata:
    """All agents' metadata.  `run` is one task of the server; AgentReports says `written`."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.counts = FeedCounts()
        self._store = store
        self._clock = clock
        self._feeds = AgentFeeds[Snapshot](
            lambda start: Feed(key=newest_only, counts=self.counts, patience_seconds=patience_seconds), self._fill
        )

    async def run(self) -> None:
        """Feed those who follow, until cancelled."""
        await self._feeds.run()

    def close(self, because: str) -> None:
        """The server leaves: followers are told."""
        self._feeds.close(because)

    def written(self, agent_ids: Collection[PeerID]) -> None:
        """The store has new values of these agents."""
        self._feeds.changed(agent_ids)

    async def read(self, agent_id: PeerID) -> Snapshot:
        """As it is now, in the order of the template.  Raises StoreError."""
        return Snapshot(await self._store.run(self._read, agent_id))

    @contextmanager
    def follow(self, agent_id: PeerID, after: int = 0) -> Iterator[Follower[Snapshot]]:
        """Follow from the snapshot after the one of that id, or from the newest.

        Ids are milliseconds of our clock, so they mean the same after a restart.
        """
        with self._feeds.joined(agent_id) as feed, feed.follow(min(after, feed.last_id)) as follower:
            yield follower

    async def _fill(self, topic: AgentTopic[Snapshot]) -> None:
        while topic.feed.closed_because is None:
            try:
                snapshot = await self.read(topic.agent_id)
            except StoreError:
                topic.feed.close(STORE_FAILED)
                return
            if topic.feed.closed_because is None:
                now = int(self._clock().timestamp() * 1000)
                topic.feed.publish(snapshot, max(now, topic.feed.last_id + 1))
            await trio.sleep(LEAST_SECONDS)
            await topic.wait_changed(MOST_SECONDS - LEAST_SECONDS)

    def _read(self, agent_id: PeerID) -> Sequence[MetadataView]:
        with self._store.reading():
            descriptions = self._store.apps.list_metadata_descriptions(agent_id)
            values = {value.key: value for value in self._store.reports.list_metadata(agent_id)}
        now = self._clock()
        found = []
        for each in descriptions:
            value = values.get(each["key"])
            # An agent's server may have another clock than we.
            age = max(0, int((now - value.collected_at).total_seconds())) if value is not None else NEVER_SECONDS
            view = MetadataView(
                **each,
                collected_at=value.collected_at if value is not None else None,
                age=age,
                value=value.value if value is not None else "",
                error=value.error if value is not None else "",
            )
            found.append(view)
        return found
