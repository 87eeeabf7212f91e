"""Logs of agents, from the store and live (layer L3): asked by api/logs.py.

    lines = await logs.read(agent_id, after)              # a page; StoreError
    with logs.follow(agent_id, after, lines) as follower:
        async for lines in follower: ...                  # that page first, also an empty one
Lines have the ids that the store gave, which rise over all agents.  A follower reads the store until it is at the end,
and from there the feed that all followers of the agent share; falls it behind what that keeps, it reads the store
again.  So it gets every line once and in order, whoever wrote it, also after the store was away for a while.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

import trio

from tailnet.errors import StoreError
from tailnet.services.agent_feeds import AgentFeeds, AgentTopic
from tailnet.services.feed import PATIENCE_SECONDS, Feed, FeedCounts, FollowerDropped, patiently
from tailnet.store.rows import LogLine
from tailnet.store.store import Store
from tailnet.types import PeerID

# Lines in one read and one message.
PAGE_LINES: Final = 1_000
# What stays for those who are behind, instead of a read each: lines of an agent have 1 MiB in all.
KEPT_LINES: Final = 2_000
# A follower that is behind tries so often, while the store is away.
AWAY_SECONDS: Final = 2.0
# How soon lines are seen that another server wrote: one read of an index for each agent that is followed.
FOREIGN_SECONDS: Final = 2.0


class Logs:
    """All agents' logs.  `run` is one task of the server; AgentReports says `written`."""

    def __init__(
        self, store: Store, *, page_lines: int = PAGE_LINES, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self.counts = FeedCounts()
        self.patience_seconds = patience_seconds
        self._store = store
        self._page_lines = page_lines
        self._feeds = AgentFeeds[LogLine](lambda start: Feed(kept=KEPT_LINES, start=start), self._fill)

    async def run(self) -> None:
        """Feed those who follow, until cancelled."""
        await self._feeds.run()

    def close(self, because: str) -> None:
        """The server leaves: followers are told."""
        self._feeds.close(because)

    def written(self, agent_ids: Collection[PeerID]) -> None:
        """The store has new lines of these agents."""
        self._feeds.changed(agent_ids)

    async def read(self, agent_id: PeerID, after: int = 0) -> Sequence[LogLine]:
        """A page of lines with ids above `after`, the oldest first; a short one is the last.  Raises StoreError."""
        return await self._store.run(self._store.reports.list_logs, agent_id, after, self._page_lines)

    async def read_last(self, agent_id: PeerID, count: int) -> Sequence[LogLine]:
        """The last lines, at most `count`, the oldest first.  Raises StoreError."""
        return await self._store.run(self._store.reports.list_last_logs, agent_id, count)

    def is_last(self, lines: Sequence[LogLine]) -> bool:
        """Whether a page was the last."""
        return len(lines) < self._page_lines

    async def pages(self, agent_id: PeerID, first: Sequence[LogLine]) -> AsyncIterator[Sequence[LogLine]]:
        """All lines from the page `first` on.  Raises StoreError."""
        lines = first
        while lines:
            yield lines
            lines = () if self.is_last(lines) else await self.read(agent_id, lines[-1].id)

    async def source_names(self, agent_id: PeerID) -> dict[str, str]:
        """How sources of lines are shown, by their id.  Raises StoreError."""
        sources = await self._store.run(self._store.reports.list_log_sources, agent_id)
        return {str(source.id): source.display_name for source in sources}

    @contextmanager
    def follow(self, agent_id: PeerID, after: int, first: Sequence[LogLine]) -> Iterator["LogFollower"]:
        """Follow from the page `first` on, which `read(agent_id, after)` gave."""
        with self.counts.following(), ExitStack() as joined:
            yield LogFollower(self, self._feeds, joined, agent_id, after, first)

    async def _fill(self, topic: AgentTopic[LogLine]) -> None:
        while True:
            try:
                lines = await self.read(topic.agent_id, topic.feed.last_id)
            except StoreError:
                # The log says so elsewhere.  Lines wait like everybody, and none is lost.
                lines = ()
            if topic.feed.closed_because is not None:
                return
            for line in lines:
                topic.feed.publish(line, line.id)
            if self.is_last(lines):
                await topic.wait_changed(FOREIGN_SECONDS)


class LogFollower:
    """One who follows: iterate for what came since, the first time at once."""

    def __init__(
        self,
        logs: Logs,
        feeds: AgentFeeds[LogLine],
        joined: ExitStack,
        agent_id: PeerID,
        after: int,
        first: Sequence[LogLine],
    ) -> None:
        self._logs = logs
        self._feeds = feeds
        self._joined = joined
        self._agent_id = agent_id
        self._position = after
        self._first: Sequence[LogLine] | None = first
        self._is_at_end = False  # of the store, so that the feed goes on from here
        self._feed: Feed[LogLine] | None = None

    @property
    def ended_because(self) -> str:
        """Why no more comes; "" while more may."""
        return self._feeds.closed_because or (self._feed.closed_because if self._feed is not None else "") or ""

    def sending(self) -> AbstractContextManager[None]:
        """Around each send.  Raises FollowerDropped when the reader takes too long."""
        return patiently(self._logs.patience_seconds)

    def __aiter__(self) -> "LogFollower":
        return self

    async def __anext__(self) -> Sequence[LogLine]:
        """What came since the last time."""
        if self._first is not None:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, None
            return self._take(first)
        while True:
            if not self._is_at_end:
                try:
                    lines = self._take(await self._logs.read(self._agent_id, self._position))
                except StoreError:
                    # The log says so elsewhere.  Nothing is lost: lines wait in the store, or on their way to it.
                    if self._feeds.closed_because is not None:
                        raise StopAsyncIteration from None
                    await trio.sleep(AWAY_SECONDS)
                    continue
                if lines:
                    return lines
            if self._feed is None:
                self._feed = self._joined.enter_context(self._feeds.joined(self._agent_id, self._position))
            try:
                events = self._feed.since(self._position)
            except FollowerDropped:
                self._is_at_end = False
                continue
            if events:
                await trio.lowlevel.checkpoint()
                self._position = events[-1].id
                return [event.value for event in events]
            if self._feed.closed_because is not None:
                raise StopAsyncIteration
            await self._feed.wait_changed()

    def _take(self, lines: Sequence[LogLine]) -> Sequence[LogLine]:
        self._is_at_end = self._logs.is_last(lines)
        if lines:
            self._position = lines[-1].id
        return lines
