"""What pages for people show, live (layer L3): a user's agents, and one agent with its past.

    with overviews.follow_agent(agent_id) as follower:
        async for events in follower: ...        # the newest is the one to show
Each topic is read while somebody follows it, at once and then again and again, and published when it is another than
before.  Nobody tells it of changes: it sees what other servers wrote, too.  A store that cannot be read closes the
feed; who comes back begins anew.  Asked by api/home.py and api/agent_page.py.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

import trio

from tailnet.coordinator.explain import PeerView
from tailnet.errors import StoreError
from tailnet.services.agent_feeds import AgentFeeds, AgentTopic
from tailnet.services.agents import AgentHistory, AgentLines, Agents
from tailnet.services.feed import Feed, FeedCounts, Follower, newest_only
from tailnet.services.inspection import Inspection
from tailnet.services.why import Why
from tailnet.types import PeerID

T = TypeVar("T")

# How soon a page shows what changed.
LOOK_SECONDS: Final = 2.0
# A look that takes long, as one at ten thousand agents does, leaves nine tenths of the time to others.
LOOK_SHARE: Final = 0.1
# Sentences hold ages, which grow; what a page says is never older than this.
MOST_SECONDS: Final = 10.0
# Agents on one page; a list that is longer has more pages.
MAX_LINES: Final = 100
# Peers of an agent that are told about, and sentences of each.
MAX_PEERS: Final = 20
STORE_FAILED: Final = "The server cannot read its store."
AGENT_GONE: Final = "The agent is gone."


@dataclass(frozen=True, slots=True)
class AgentOverview:
    """One agent with its past, and what the coordinator says of it."""

    history: AgentHistory
    reach: "Reach"


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether others reach an agent, in sentences.  `peers`: those with a tunnel to or from it, and why not."""

    sentences: Sequence[str]
    peers: Sequence[tuple[PeerID, Sequence[str]]]
    peers_count: int


class Overviews:
    """All pages that are open.  `run` is one task of the server."""

    def __init__(self, agents: Agents, inspection: Inspection, why: Why) -> None:
        self.counts = FeedCounts()
        self._agents = agents
        self._inspection = inspection
        self._why = why
        self._of_users = AgentFeeds[AgentLines](
            lambda start: Feed(key=newest_only, counts=self.counts), self._fill_user
        )
        self._of_agents = AgentFeeds[AgentOverview](
            lambda start: Feed(key=newest_only, counts=self.counts), self._fill_agent
        )

    async def run(self) -> None:
        """Feed those who follow, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._of_users.run)
            nursery.start_soon(self._of_agents.run)

    def close(self, because: str) -> None:
        """The server leaves: followers are told."""
        self._of_users.close(because)
        self._of_agents.close(because)

    async def of_user(self, user_id: UUID, first: int = 0) -> AgentLines:
        """A user's agents from the one numbered `first` on.  Raises StoreError."""
        return await self._agents.list_agents(user_id, first, MAX_LINES)

    async def of_agent(self, agent_id: PeerID) -> AgentOverview | None:
        """One agent; None if it is gone.  Raises StoreError."""
        history = await self._agents.describe_history(agent_id)
        return None if history is None else AgentOverview(history, self.reach_of(agent_id))

    def reach_of(self, agent_id: PeerID) -> Reach:
        """What the coordinator, and the relay of this server, say of an agent now."""
        linked = self._linked(agent_id)
        peers = [(each, self._inspection.explain(each, agent_id)) for each in linked[:MAX_PEERS]]
        return Reach(self._why.answer({"key": str(agent_id)}).splitlines(), peers, len(linked))

    def why_not(self, peer_id: PeerID, agent_id: PeerID) -> Sequence[str]:
        """Why a peer does not know an agent.  Who asks may see the agent; of a peer that has nothing to do with it he
        learns nothing, not even whether it exists."""
        if peer_id in self._linked(agent_id):
            return self._inspection.explain(peer_id, agent_id)
        return [
            f"No tunnel joins {peer_id} and this agent: the client of them has to open one, and has to be connected "
            "with a session token of the agent's owner."
        ]

    @contextmanager
    def follow_user(self, user_id: UUID) -> Iterator[Follower[AgentLines]]:
        """Follow the first page of a user's agents."""
        # The id of a user is sixteen bytes like that of an agent.
        with self._of_users.joined(PeerID(user_id.bytes)) as feed, feed.follow() as follower:
            yield follower

    @contextmanager
    def follow_agent(self, agent_id: PeerID) -> Iterator[Follower[AgentOverview]]:
        """Follow one agent."""
        with self._of_agents.joined(agent_id) as feed, feed.follow() as follower:
            yield follower

    def _linked(self, agent_id: PeerID) -> Sequence[PeerID]:
        view: PeerView | None = self._inspection.peer(agent_id)
        return () if view is None else tuple(dict.fromkeys((*view.tunnels_from, *view.tunnels_to)))

    async def _fill_user(self, topic: AgentTopic[AgentLines]) -> None:
        await _fill(topic, lambda: self.of_user(topic.agent_id.uuid), lambda value: value)

    async def _fill_agent(self, topic: AgentTopic[AgentOverview]) -> None:
        await _fill(topic, lambda: self.of_agent(topic.agent_id), lambda value: value.history)


async def _fill(
    topic: AgentTopic[T], read: Callable[[], Awaitable[T | None]], what_counts: Callable[[T], object]
) -> None:
    shown: object = None
    shown_at = -MOST_SECONDS
    while topic.feed.closed_because is None:
        began = trio.current_time()
        try:
            value = await read()
        except StoreError:
            topic.feed.close(STORE_FAILED)
            return
        if value is None:
            topic.feed.close(AGENT_GONE)
            return
        now = trio.current_time()
        counts = what_counts(value)
        if topic.feed.closed_because is None and (counts != shown or now - shown_at >= MOST_SECONDS):
            shown, shown_at = counts, now
            topic.feed.publish(value)
        await topic.wait_changed(max(LOOK_SECONDS, (now - began) / LOOK_SHARE))
