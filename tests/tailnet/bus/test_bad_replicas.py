"""Replicas that are not as they should be, beside two whose peers have met: nobody's session ends."""

import pytest
import trio

from tailnet.coordinator.messages import Kind
from tailnet.replica.codec import MAX_FRAME_BYTES
from tailnet.replica.proof import ClusterKey
from tests.support.memory_bus import Exchange, MemoryBus
from tests.support.replicated import MAIN, Place, Told, meet, stayed, together
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.usefixtures("patient")


class World:
    """Two replicas, an agent at the first, his client at the second."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.exchange = Exchange()
        self.first: Place
        self.second: Place
        self.agent: Told
        self.client: Told
        self._nursery = nursery

    async def start(self, name: str, **key: ClusterKey) -> Place:
        place: Place = await self._nursery.start(Place(MemoryBus(self.exchange), name, None, **key).run)
        return place

    async def meet(self) -> None:
        self.first, self.second = await self.start("first"), await self.start("second")
        await together(self.first, self.second)
        self.agent, self.client = await meet(self.first, self.second)

    async def crosses(self, node: str) -> None:
        self.first.node(self.agent, node)
        await self.client.hears(MAIN, Kind.NODE, node)
        assert stayed(self.agent, self.client)

    @property
    def sessions(self) -> int:
        """That the second had with the first."""
        return self.second.replicas.cluster.pairs[self.first.replicas.id].session_count


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    made = World(nursery)
    await made.meet()
    return made


async def test_two_of_one_name_are_two(world: World) -> None:
    namesake = await world.start("first")
    await together(world.first, world.second, namesake)
    other = namesake.client(world.second.replicas.id + bytes(8), MAIN)
    await other.hears(MAIN, Kind.NODE, "a1")
    await world.crosses("a2")
    await other.hears(MAIN, Kind.NODE, "a2")
    assert world.sessions == 1


@pytest.mark.parametrize("key", [ClusterKey("tests", b"x" * 32), ClusterKey("others", bytes(range(32)))])
async def test_one_with_another_secret_stays_alone(world: World, key: ClusterKey) -> None:
    stranger = await world.start("stranger", key=key)
    await wait_for(lambda: stranger.replicas.id in world.first.replicas.cluster.pairs)
    await world.crosses("a2")
    pair = world.first.replicas.cluster.pairs[stranger.replicas.id]
    await wait_for(lambda: pair.stray_count)
    assert not pair.is_open
    assert world.sessions == 1


@pytest.mark.parametrize("fault", ["forged", "cut", "reordered", "too long"])
async def test_frames_that_somebody_changed(world: World, fault: str) -> None:
    """Who may write into the bus, and has no secret, can end a session between replicas, which comes back, and none of
    a peer."""
    exchange, sender = world.exchange, world.first.replicas.id
    exchange.pause()
    for number, node in enumerate(("a2", "a3"), 1):
        world.first.node(world.agent, node)
        await wait_for(lambda: len([each for each in exchange.held if each[0] == sender]) >= number)  # noqa: B023
    one, other = [place for place, each in enumerate(exchange.held) if each[0] == sender][:2]
    if fault == "reordered":
        exchange.held[one], exchange.held[other] = exchange.held[other], exchange.held[one]
    else:
        frames = exchange.held[one][2]
        changed = {
            "forged": frames[0][:-1] + bytes((frames[0][-1] ^ 1,)),
            "cut": frames[0][:-1],
            "too long": frames[0] + bytes(MAX_FRAME_BYTES + 1 - len(frames[0])),
        }
        frames[0] = changed[fault]
    exchange.go_on()
    await world.crosses("a4")
    await wait_for(lambda: world.sessions == 2)
