"""What is followed of single agents: a feed of each, filled only while somebody follows it (layer L3).

Any number of followers of one agent cost one task and one read of the store.  logs.py and agent_metadata.py say what
is read; whoever writes says `changed`.  Other servers write into the same store and say nothing here, so each task
also looks by itself once in a while.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import trio

from tailnet.services.feed import Feed
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

T = TypeVar("T")


class AgentTopic(Generic[T]):
    """One agent that is followed."""

    __slots__ = ("_changed", "agent_id", "feed", "followers", "scope")

    def __init__(self, agent_id: PeerID, feed: Feed[T]) -> None:
        self.agent_id = agent_id
        self.feed = feed
        self.followers = 0
        self.scope = trio.CancelScope()
        self._changed = trio.Event()

    def note_change(self) -> None:
        """There is something new in the store."""
        self._changed.set()

    async def wait_changed(self, seconds: float) -> None:
        """Until there is something new since the last call returned, at most so long."""
        with trio.move_on_after(seconds):
            await self._changed.wait()
        if self._changed.is_set():
            self._changed = trio.Event()


class AgentFeeds(Generic[T]):
    """One kind of what is followed.  `run` is one task; `close` it before that is cancelled.

    `make(start)` is a new feed; `fill(topic)` publishes into it until it is cancelled, or closes it.
    """

    def __init__(self, make: Callable[[int], Feed[T]], fill: Callable[[AgentTopic[T]], Awaitable[None]]) -> None:
        self._make = make
        self._fill = fill
        self._topics: dict[PeerID, AgentTopic[T]] = {}  # as many as connections of the API at the most
        self._nursery: trio.Nursery | None = None
        self.closed_because: str | None = None

    async def run(self) -> None:
        """Fill what is followed, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def close(self, because: str) -> None:
        """No more will come; whoever follows is told."""
        self.closed_because = because
        for topic in self._topics.values():
            topic.feed.close(because)

    def changed(self, agent_ids: Collection[PeerID]) -> None:
        """The store has something new of these agents."""
        if self._topics:
            for agent_id in agent_ids:
                topic = self._topics.get(agent_id)
                if topic is not None:
                    topic.note_change()

    @contextmanager
    def joined(self, agent_id: PeerID, start: int = 0) -> Iterator[Feed[T]]:
        """The feed of one agent, kept filled meanwhile.  If nobody has it yet, it begins after the event `start`."""
        topic = self._topics.get(agent_id)
        if topic is None:
            topic = self._open(agent_id, start)
        topic.followers += 1
        try:
            yield topic.feed
        finally:
            topic.followers -= 1
            if not topic.followers:
                self._forget(topic)
                topic.scope.cancel()

    def _open(self, agent_id: PeerID, start: int) -> AgentTopic[T]:
        topic = AgentTopic(agent_id, self._make(start))
        if self.closed_because is not None:
            topic.feed.close(self.closed_because)
            return topic
        assert self._nursery is not None, "who follows agents runs beside `run`"
        self._topics[agent_id] = topic
        self._nursery.start_soon(self._fill_topic, topic)
        return topic

    async def _fill_topic(self, topic: AgentTopic[T]) -> None:
        with topic.scope:
            try:
                await self._fill(topic)
            except Exception:
                # A defect of one agent's stream must not take the server with it.
                _log.exception("! what is followed of agent %s cannot be read", topic.agent_id)
                topic.feed.close("the server failed; its log says more")
        # Who comes next begins anew.
        self._forget(topic)

    def _forget(self, topic: AgentTopic[T]) -> None:
        if self._topics.get(topic.agent_id) is topic:
            del self._topics[topic.agent_id]
