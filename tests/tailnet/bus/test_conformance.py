"""What every kind of bus has to do for replicas: the same suite over memory, addresses, PostgreSQL and Redis.

Where a bus carries frames there are no direct links here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tailnet.bus.contract import Bus
from tailnet.bus.links import Link
from tailnet.bus.redis import RedisBus
from tailnet.bus.static import StaticBus
from tailnet.bus.store import StoreBus
from tailnet.coordinator.messages import Kind
from tailnet.replica import pair
from tailnet.store.store import Store
from tests.support.memory_bus import Exchange, MemoryBus
from tests.support.redis import RedisCluster, RedisServer, Sentineled
from tests.support.replicated import MAIN, ME, Place, meet, together
from tests.support.seeds import peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.usefixtures("brisk")
KINDS = ("memory", "static", "unix", "store", "redis", "valkey", "redis_cluster", "sentineled")
CARRIERS = ("memory", "redis", "valkey")
LINKED = ("static", "unix", "store")
Server = RedisServer | Sentineled | RedisCluster


class Kinds:
    """Makes replicas of one cluster on one kind of bus; with faults, where a bus carries."""

    def __init__(
        self, kind: str, nursery: trio.Nursery, server: Server | None, folder: Path, stores: list[Store]
    ) -> None:
        self.kind = kind
        self.exchange = Exchange()
        self.server = server
        self.places: list[Place] = []
        self._nursery = nursery
        self._folder = folder
        self.stores = stores

    async def start(self) -> Place:
        listen = ("127.0.0.1", 0) if self.kind in LINKED else None
        if self.kind == "unix":
            listen = str(self._folder / f"{len(self.places)}.sock"), 0
        place: Place = await self._nursery.start(Place(self._bus(), f"replica{len(self.places)}", listen).run)
        self.places.append(place)
        return place

    async def two(self) -> tuple[Place, Place]:
        """They have a session."""
        first, second = await self.start(), await self.start()
        await together(first, second)
        return first, second

    def _bus(self) -> Bus:
        match self.kind:
            case "memory":
                return MemoryBus(self.exchange)
            case "static" | "unix":
                return StaticBus([place.address for place in self.places])
            case "store":
                self.stores.append(Store.open(f"sqlite:///{self._folder / 'tailnet.db'}"))
                return StoreBus(self.stores[-1])
            case _:
                assert self.server is not None
                return RedisBus(self.server.place, "tests")

    def pause(self) -> None:
        self.exchange.pause() if self.server is None else self._one_server().pause()

    def go_on(self) -> None:
        self.exchange.go_on() if self.server is None else self._one_server().go_on()

    def restart_empty(self) -> None:
        if self.server is None:
            self.exchange.restart_empty()
        else:
            self._one_server().kill()
            self._one_server().start()

    def _one_server(self) -> RedisServer:
        assert isinstance(self.server, RedisServer)
        return self.server


@pytest.fixture
def stores() -> Iterator[list[Store]]:
    """Closed when no replica uses them any more."""
    opened: list[Store] = []
    yield opened
    for store in opened:
        store.close()


@pytest.fixture
def kinds(
    request: pytest.FixtureRequest, stores: list[Store], nursery: trio.Nursery, tmp_path: Path
) -> Callable[[str], Kinds]:
    def make(kind: str) -> Kinds:
        server = None if kind in ("memory", *LINKED) else request.getfixturevalue(kind)
        return Kinds(kind, nursery, server, tmp_path, stores)

    return make


@pytest.mark.parametrize("kind", KINDS)
async def test_all_find_each_other_and_peers_meet(kind: str, kinds: Callable[[str], Kinds]) -> None:
    world = kinds(kind)
    first, second, third = await world.start(), await world.start(), await world.start()
    await together(first, second, third)
    agent = first.agent(MAIN)
    first.node(agent, "a1")
    clients = [second.client(ME, MAIN), third.client(peer_id("you"), MAIN)]
    for client in clients:
        await client.hears(MAIN, Kind.NODE, "a1")
    second.node(clients[0], "c1")
    await agent.hears(ME, Kind.NODE, "c1")


@pytest.mark.parametrize("kind", ["memory", "store", "redis"])
async def test_who_leaves_is_found_no_more_and_still_talked_to(kind: str, kinds: Callable[[str], Kinds]) -> None:
    first, second = await kinds(kind).two()
    agent, client = await meet(first, second)
    await wait_for(lambda: first.replicas.id in second.replicas.records)
    await first.replicas.leave((), 60.0, 0.0)
    await wait_for(lambda: first.replicas.id not in second.replicas.records)
    first.node(agent, "a2")
    await client.hears(MAIN, Kind.NODE, "a2")
    assert first.replicas.id in second.replicas.leaving


@pytest.mark.parametrize("kind", KINDS)
async def test_updates_keep_their_order_and_the_last_arrives(kind: str, kinds: Callable[[str], Kinds]) -> None:
    world = kinds(kind)
    first, second = await world.two()
    agent, client = first.agent(MAIN), second.client(ME, MAIN)
    first.node(agent, "0")
    await client.hears(MAIN, Kind.NODE, "0")
    for number in range(1, 300):
        first.node(agent, str(number))
        if number % 10 == 0:
            await trio.lowlevel.checkpoint()
    await client.hears(MAIN, Kind.NODE, "299")
    numbers = [int(node) for _, _, node in client.words]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_largest_node_crosses(kind: str, kinds: Callable[[str], Kinds]) -> None:
    world = kinds(kind)
    first, second = await world.two()
    agent, client = first.agent(MAIN), second.client(ME, MAIN)
    first.node(agent, "n" * 32 * 1024)
    await client.hears(MAIN, Kind.NODE, "n" * 32 * 1024)


@pytest.mark.parametrize("kind", ["static", "redis"])
async def test_who_is_gone_is_lost_and_forgotten(
    kind: str, kinds: Callable[[str], Kinds], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "SILENCE_SECONDS", 2.5)
    world = kinds(kind)
    first, second = await world.two()
    client = second.client(ME, MAIN)
    first.node(first.agent(MAIN), "a1")
    await client.hears(MAIN, Kind.NODE, "a1")
    first.scope.cancel()
    await client.hears(MAIN, Kind.LOST)
    await wait_for(lambda: not second.replicas.cluster.pairs)


@pytest.mark.parametrize("kind", CARRIERS)
async def test_a_pause_is_no_silence(kind: str, kinds: Callable[[str], Kinds], patient: None) -> None:
    world = kinds(kind)
    first, second = await world.two()
    agent, client = await meet(first, second)
    world.pause()
    try:
        first.node(agent, "a2")
        await wait_for(lambda: first.replicas.cluster.is_deaf and second.replicas.cluster.is_deaf)
    finally:
        world.go_on()
    await client.hears(MAIN, Kind.NODE, "a2")
    await wait_for(lambda: not first.replicas.cluster.is_deaf)
    assert Kind.LOST not in client.kinds(MAIN)


@pytest.mark.parametrize("kind", [*LINKED, *CARRIERS])
async def test_a_reader_that_is_slow_costs_a_bounded_queue_and_gets_the_newest(
    kind: str, kinds: Callable[[str], Kinds], patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = kinds(kind)
    first, second = await world.two()
    agent, client = await meet(first, second)
    pairs, read_on, real = first.replicas.cluster.pairs, trio.Event(), Link.receive

    async def receive_later(link: Link) -> list[bytes]:
        if link.other == first.replicas.id:
            await read_on.wait()
        return await real(link)

    monkeypatch.setattr(Link, "receive", receive_later)
    if kind in CARRIERS:
        world.pause()
    most = 0
    try:
        for number in range(600):  # 18 MB, twice what may wait
            first.node(agent, f"{number:06}" + "n" * 30_000)
            most = max(most, pairs[second.replicas.id].queued_bytes)
            if number % 10 == 0:
                await trio.lowlevel.checkpoint()
    finally:
        read_on.set()
        if kind in CARRIERS:
            world.go_on()
    await client.hears(MAIN, Kind.NODE, "000599" + "n" * 30_000)
    assert most < pair.MAX_QUEUED_BYTES / 4  # one peer's newest node, and what is on its way
    assert Kind.LOST not in client.kinds(MAIN)


@pytest.mark.parametrize("kind", CARRIERS)
async def test_a_bus_that_restarts_empty_is_filled_again(
    kind: str, kinds: Callable[[str], Kinds], patient: None
) -> None:
    world = kinds(kind)
    first, second = await world.two()
    agent, client = await meet(first, second)
    world.restart_empty()
    first.node(agent, "a2")
    await client.hears(MAIN, Kind.NODE, "a2")
    await wait_for(lambda: len(first.replicas.records) == len(second.replicas.records) == 2)
    assert Kind.LOST not in client.kinds(MAIN)


@pytest.mark.parametrize("fault", ["lose", "double"])
async def test_what_is_lost_or_comes_twice_is_noticed(fault: str, kinds: Callable[[str], Kinds], patient: None) -> None:
    world = kinds("memory")
    first, second = await world.two()
    agent, client = await meet(first, second)
    setattr(world.exchange, fault, 1)
    first.node(agent, "a2")
    await client.hears(MAIN, Kind.NODE, "a2")
    await wait_for(lambda: second.replicas.cluster.pairs[first.replicas.id].session_count >= 2)
    assert Kind.LOST not in client.kinds(MAIN)


async def test_frames_of_strangers_change_nothing(kinds: Callable[[str], Kinds]) -> None:
    world = kinds("memory")
    first, second = await world.two()
    known = first.replicas.cluster.pairs[second.replicas.id]
    for sender in (second.replicas.id, first.replicas.id, type(second.replicas.id)(b"stranger")):
        for frame in (b"", b"\x92\x00", bytes(64), bytes(70_000)):
            first.replicas.hear_frame(sender, frame)
    assert known.is_open
    assert known.session_count == 1
    assert set(first.replicas.cluster.pairs) == {second.replicas.id}


async def test_a_link_takes_over_from_the_bus_and_the_bus_from_a_link(
    kinds: Callable[[str], Kinds], patient: None
) -> None:
    world = kinds("memory")
    world.kind = "linked"
    bus = [MemoryBus(world.exchange), MemoryBus(world.exchange)]
    first: Place = await world._nursery.start(Place(bus[0], "first", ("127.0.0.1", 0)).run)
    second: Place = await world._nursery.start(Place(bus[1], "second", ("127.0.0.1", 0)).run)
    await wait_for(lambda: second.replicas.id in first.replicas.linked and first.replicas.id in second.replicas.linked)
    await together(first, second)
    agent, client = await meet(first, second)
    world.exchange.pause()  # the link does not need it
    first.node(agent, "a2")
    await client.hears(MAIN, Kind.NODE, "a2")
    world.exchange.go_on()
    for place in (first, second):
        place.replicas.stop_listening()
    first.replicas.linked[second.replicas.id].scope.cancel()
    first.node(agent, "a3")
    await client.hears(MAIN, Kind.NODE, "a3")
    assert Kind.LOST not in client.kinds(MAIN)
