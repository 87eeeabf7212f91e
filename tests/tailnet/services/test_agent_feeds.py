"""Feeds of single agents: filled by one task each, while somebody follows, and told when there is something new."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.services.agent_feeds import AgentFeeds, AgentTopic
from tailnet.services.feed import Feed
from tests.support.seeds import peer_id

MAIN, GPU = peer_id("main"), peer_id("gpu")


class World:
    """A store of one number, which is read whenever a task looks."""

    def __init__(self) -> None:
        self.reads: list[object] = []
        self.fault: Exception | None = None
        self.feeds = AgentFeeds[int](lambda start: Feed(kept=100, start=start), self._fill)

    async def _fill(self, topic: AgentTopic[int]) -> None:
        while True:
            self.reads.append(topic.agent_id)
            if self.fault is not None:
                raise self.fault
            topic.feed.publish(len(self.reads))
            await topic.wait_changed(60.0)


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    world = World()
    nursery.start_soon(world.feeds.run)
    await wait_all_tasks_blocked()
    return world


async def test_one_task_for_all_who_follow_an_agent(world: World) -> None:
    with world.feeds.joined(MAIN) as one, world.feeds.joined(MAIN) as other, world.feeds.joined(GPU):
        assert one is other
        await wait_all_tasks_blocked()
        assert sorted(map(str, world.reads)) == sorted(map(str, [MAIN, GPU]))
        world.feeds.changed([MAIN])
        await wait_all_tasks_blocked()
        assert world.reads.count(MAIN) == 2
    world.feeds.changed([MAIN, GPU])
    await wait_all_tasks_blocked()
    assert len(world.reads) == 3, "nobody follows any more"


async def test_a_change_while_it_is_read_is_not_lost(world: World) -> None:
    topic = AgentTopic(MAIN, Feed[int]())
    topic.note_change()
    with trio.fail_after(5):
        await topic.wait_changed(60.0)


async def test_it_looks_by_itself(world: World, mock_clock: MockClock) -> None:
    with world.feeds.joined(MAIN):
        await wait_all_tasks_blocked()
        mock_clock.jump(61.0)
        await wait_all_tasks_blocked()
        assert world.reads == [MAIN, MAIN]


async def test_who_leaves_does_not_take_the_others_with_him(world: World) -> None:
    with world.feeds.joined(MAIN) as feed:
        with world.feeds.joined(MAIN):
            await wait_all_tasks_blocked()
        world.feeds.changed([MAIN])
        await wait_all_tasks_blocked()
        assert feed.last_id == 2
    with world.feeds.joined(MAIN, start=40) as feed:
        await wait_all_tasks_blocked()
        assert feed.last_id == 41, "a new one, from where its first follower is"


async def test_a_defect_ends_one_feed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.fault = ValueError("planted")
    with world.feeds.joined(MAIN) as feed:
        await wait_all_tasks_blocked()
        assert feed.closed_because == "the server failed; its log says more"
        assert "planted" in caplog.text
        world.fault = None
        with world.feeds.joined(MAIN) as fresh:
            await wait_all_tasks_blocked()
            assert (fresh.last_id, fresh.closed_because) == (1, None)


async def test_a_server_that_leaves(world: World) -> None:
    with world.feeds.joined(MAIN) as feed:
        world.feeds.close("the server leaves")
        with world.feeds.joined(GPU) as late:
            assert feed.closed_because == late.closed_because == "the server leaves"
