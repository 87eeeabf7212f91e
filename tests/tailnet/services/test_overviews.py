"""What pages follow: at once, when it is another, and never older than some seconds."""

from collections.abc import Sequence
from datetime import datetime

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.proto.coordination import decode_request
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.agents import Agents
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.feed import Event
from tailnet.services.inspection import Inspection
from tailnet.services.overviews import AGENT_GONE, LOOK_SECONDS, STORE_FAILED, Overviews
from tailnet.services.region_load import RegionLoads
from tailnet.services.why import Why
from tailnet.store.rows import AgentStatus
from tailnet.store.store import Store
from tests.support.clocks import going_on
from tests.support.seeds import NOW, came, fill, make_id, peer_id

MAIN, WEB = peer_id("main"), peer_id("web")


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = NOW
        self.coordinator: Coordinator[object] = Coordinator()
        maps = DerpMaps([], None)
        inspection = Inspection(self.coordinator, maps, lambda: 1.0, list)
        agents = Agents(store, inspection, lambda: maps.current.map, 30.0, self.clock)
        self.overviews = Overviews(agents, inspection, Why(inspection, None, RegionLoads(maps)))

    def clock(self) -> datetime:
        return self.now


@pytest.fixture
async def world(store: Store, nursery: trio.Nursery) -> World:
    fill(store)
    world = World(store)
    nursery.start_soon(world.overviews.run)
    await wait_all_tasks_blocked()
    return world


async def test_a_list_is_told_when_it_is_another(world: World, mock_clock: MockClock) -> None:
    with world.overviews.follow_user(make_id("alice")) as follower:
        first: Sequence[Event[object]] = await anext(follower)
        assert [each.agent.name for each in first[-1].value.lines] == ["gpu", "main"]  # type: ignore[attr-defined]  # lines
        came(world.store, MAIN, NOW)
        with going_on(mock_clock):
            second = await anext(follower)
        assert [each.status for each in second[-1].value.lines] == [AgentStatus.CONNECTING, AgentStatus.CONNECTED]
        mock_clock.jump(LOOK_SECONDS)
        await wait_all_tasks_blocked(0.05)
        assert follower._feed.last_id == second[-1].id, "nothing is another"
        with going_on(mock_clock):
            assert (await anext(follower))[-1].id == second[-1].id + 1


async def test_an_agent_that_is_gone_ends_it(world: World, mock_clock: MockClock) -> None:
    with world.overviews.follow_agent(MAIN) as follower:
        assert (await anext(follower))[-1].value.history.view.agent.id == MAIN
        world.store.callers.delete_agent(MAIN)
        with going_on(mock_clock), pytest.raises(StopAsyncIteration):
            await anext(follower)
        assert follower.ended_because == AGENT_GONE


async def test_a_store_that_fails_ends_it(world: World, mock_clock: MockClock) -> None:
    with world.overviews.follow_agent(MAIN) as follower:
        await anext(follower)
        with world.store.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE agent_apps RENAME TO away")
        with going_on(mock_clock), pytest.raises(StopAsyncIteration):
            await anext(follower)
        assert follower.ended_because == STORE_FAILED


async def test_a_server_that_leaves_ends_all(world: World) -> None:
    with world.overviews.follow_agent(MAIN) as agent, world.overviews.follow_user(make_id("alice")) as user:
        await anext(agent)
        await anext(user)
        world.overviews.close("the server leaves")
        for follower in (agent, user):
            with pytest.raises(StopAsyncIteration):
                await anext(follower)  # type: ignore[call-overload]  # one of two kinds
            assert follower.ended_because == "the server leaves"


def test_why_not_of_a_peer_that_is_joined_and_of_one_that_is_not(store: Store) -> None:
    fill(store)
    world = World(store)
    client = peer_id("a client")
    world.coordinator.handle_connect(MAIN, AgentPolicy(MAIN), object(), 0.0)
    connection = object()
    world.coordinator.handle_connect(client, ClientPolicy(MAIN), connection, 0.0)
    request = tailnet.CoordinateRequest(add_tunnel={"id": bytes(MAIN)})
    world.coordinator.handle_request(connection, decode_request(request.SerializeToString()), 0.5)
    assert world.overviews.why_not(client, MAIN)[0] == f"{client} is connected as client since 1 s."
    (sentence,) = world.overviews.why_not(WEB, MAIN)
    assert sentence.startswith(f"No tunnel joins {WEB} and this agent")
    reach = world.overviews.reach_of(MAIN)
    assert [peer for peer, _ in reach.peers] == [client]
    assert reach.peers_count == 1
