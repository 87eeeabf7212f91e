"""Where a node is: the nearest home that lets it in, how others see it, and what changes of addresses do."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from weakref import WeakKeyDictionary

import pytest
import trio

from derp.config import RelayConfig
from derp.errors import ConfigError
from derp.keys import NodePrivate
from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from derp.netcheck.report import Report
from derp.server.server import serve_relay
from tailnet.node import place as place_module
from tailnet.node.engine import Engine, open_engine
from tailnet.node.place import MAX_SEEN, Place, are_similar, choose_home, latencies_of
from tailnet.paths.endpoint import Endpoint
from tailnet.transport import udp as udp_module
from tests.support.inprocess import map_of, node_of, open_regions, port_of
from tests.support.restartable import Restartable
from tests.support.tailnet_driver import wait_for

PATIENCE_SECONDS = 60
NEAR, FAR = 902, 901


def with_scores(derp_map: DERPMap, far: int = FAR) -> DERPMap:
    """On loopback all are near: the map says that one is not."""
    return replace(derp_map, home_params=DERPHomeParams({far: 1e6}))


@asynccontextmanager
async def open_place(derp_map: DERPMap, *, home: int | None = None, is_direct: bool = True) -> AsyncIterator[Place]:
    async with open_engine(NodePrivate.generate(), [], {}, None, is_direct=is_direct) as engine:
        homes: list[int | None] = []
        place = Place(engine, home, None, changed=lambda: homes.append(engine.relays.home))
        HOMES[place] = homes
        place.take_map(derp_map)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.run)
            yield place
            nursery.cancel_scope.cancel()


# Where each place was at home whenever it told others.
HOMES: WeakKeyDictionary[Place, list[int | None]] = WeakKeyDictionary()


def engine_of(place: Place) -> Engine:
    return place._engine


@pytest.mark.parametrize("is_direct", [True, False])
async def test_the_nearest_is_home_and_how_we_are_seen_is_told(is_direct: bool) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_regions(FAR, NEAR, tls=False) as (_, derp_map),
            open_place(with_scores(derp_map), is_direct=is_direct) as place,
        ):
            await place.wait_home()
            described = place.describe()
            assert described.home == NEAR
            assert set(described.latencies) == {f"{FAR}-v4", f"{NEAR}-v4"}
            assert place.report is not None
            if is_direct:
                # By the very socket that peers will reach.
                ports = {sock.getsockname()[1] for sock in engine_of(place).sockets.all}
                assert int(place.report.global_ipv4.rpartition(":")[2]) in ports
                assert Endpoint("127.0.0.1", int(place.report.global_ipv4.rpartition(":")[2])) in described.endpoints
            else:
                assert described.endpoints == ()


async def test_a_home_that_is_wanted_is_kept() -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_regions(FAR, NEAR, tls=False) as (_, derp_map),
            open_place(with_scores(derp_map), home=FAR) as place,
        ):
            await wait_for(lambda: place.report)
            assert place.describe().home == FAR


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "DEAD_SECONDS", 0.3)
    monkeypatch.setattr(place_module, "HOME_SECONDS", 0.1)


async def test_a_region_whose_relay_is_dead_becomes_no_home(impatient: None) -> None:
    """Its STUN answers, and is the nearest."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_regions(NEAR, FAR, tls=False) as ((near, far), _):
            with trio.socket.socket() as dead:
                await dead.bind(("127.0.0.1", 0))
                derp_map = map_of(node_of(near, NEAR, derp_port=dead.getsockname()[1]), node_of(far, FAR))
                async with open_place(with_scores(derp_map)) as place:
                    await place.wait_home()
                    await engine_of(place).relays.wait_home()
                    assert place.describe().home == FAR
                    await wait_for(lambda: NEAR in place._avoided)
                    assert set(HOMES[place]) <= {FAR, None}


async def test_a_home_whose_relay_dies_is_left(impatient: None) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_regions(FAR, tls=False) as ((far,), _), trio.open_nursery() as nursery:
            config = RelayConfig(
                private_key=NodePrivate.generate(), listen=(("127.0.0.1", 0),), stun_enabled=False, self_check=False
            )
            near = Restartable(nursery, serve_relay, lambda port: config)
            await near.start()
            # The STUN of both is one server's, which stays.
            derp_map = map_of(node_of(near.server, NEAR, stun_port=port_of(far, "stun")), node_of(far, FAR))
            async with open_place(with_scores(derp_map)) as place:
                await wait_for(lambda: engine_of(place).relays.home == NEAR)
                await engine_of(place).relays.wait_home()
                await near.stop()
                await wait_for(lambda: engine_of(place).relays.home == FAR)


class Watch:
    """The system tells when the test says so."""

    event = trio.Event()

    async def wait(self) -> None:
        await Watch.event.wait()
        Watch.event = trio.Event()

    def close(self) -> None:
        pass


async def test_other_addresses_are_told_and_paths_are_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ["192.0.2.7"]
    Watch.event = trio.Event()
    for module in (udp_module, place_module):
        monkeypatch.setattr(module, "own_hosts", lambda: list(hosts))
    monkeypatch.setattr(place_module, "AddressWatch", Watch)
    monkeypatch.setattr(place_module, "SETTLE_SECONDS", 0.0)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_regions(NEAR, tls=False) as (_, derp_map), open_place(derp_map) as place:
            await engine_of(place).relays.wait_home()
            assert [each.host for each in place.describe().endpoints][:2] == ["127.0.0.1", "192.0.2.7"]
            heard_at = engine_of(place).relays.last_heard(NEAR)
            hosts[:] = ["192.0.2.7", "198.51.100.8"]
            Watch.event.set()
            await wait_for(lambda: "198.51.100.8" in {each.host for each in place.describe().endpoints})
            assert engine_of(place).relays.last_heard(NEAR) == heard_at, "the connection has its address still"
            hosts[:] = ["198.51.100.8"]
            Watch.event.set()
            await wait_for(lambda: "192.0.2.7" not in {each.host for each in place.describe().endpoints})
            await engine_of(place).relays.wait_home()
            assert engine_of(place).relays.last_heard(NEAR) != heard_at, "it was made anew"


async def test_what_stun_saw_is_bounded() -> None:
    async with (
        open_regions(NEAR, tls=False) as (_, derp_map),
        open_engine(NodePrivate.generate(), [], {}, None) as engine,
    ):
        place = Place(engine, NEAR, None, changed=lambda: None)
        place.take_map(derp_map)
        local = engine.local_endpoints
        for port in range(1, MAX_SEEN + 3):
            await place._take(Report(global_ipv4=f"192.0.2.1:{port}", global_ipv6=f"[2001:db8::1]:{port}"))
        seen = place.describe().endpoints[len(local) :]
        assert [each.port for each in seen] == [*range(MAX_SEEN + 2, 2, -1)] * 2


async def test_behind_a_hard_nat_our_own_port_is_told_too() -> None:
    """Somebody may have mapped it by hand; a measurement that cannot tell changes nothing, an easy NAT needs none."""
    hard, short, easy = (Report(global_ipv4="192.0.2.1:40000", mapping_varies=each) for each in (True, None, False))
    async with (
        open_regions(NEAR, tls=False) as (_, derp_map),
        open_engine(NodePrivate.generate(), [], {}, None) as engine,
    ):
        (port,) = (sock.getsockname()[1] for sock in engine.sockets.all if sock.family == socket.AF_INET)
        static = Endpoint("192.0.2.1", port)
        place = Place(engine, NEAR, None, changed=lambda: None)
        place.take_map(derp_map)
        for report in (easy, short):
            await place._take(report)
            assert static not in place.describe().endpoints
        await place._take(hard)
        assert {static, Endpoint("192.0.2.1", 40000)} <= set(place.describe().endpoints)
        for number in range(2 * MAX_SEEN):
            await place._take(replace(short, global_ipv4=f"192.0.2.1:{50000 + number}"))
        assert static in place.describe().endpoints


async def test_without_sockets_a_hard_nat_is_of_no_matter() -> None:
    async with (
        open_regions(NEAR, tls=False) as (_, derp_map),
        open_engine(NodePrivate.generate(), [], {}, None, is_direct=False) as engine,
    ):
        place = Place(engine, NEAR, None, changed=lambda: None)
        place.take_map(derp_map)
        await place._take(Report(global_ipv4="192.0.2.1:40000", mapping_varies=True))
        assert place.describe().endpoints == ()


def test_latencies_have_the_names_that_nodes_tell() -> None:
    report = Report(
        region_seconds={1: 0.01, 2: 0.02, 3: 0.03},
        region_ipv4_seconds={1: 0.01},
        region_ipv6_seconds={1: 0.02, 2: 0.02},
    )
    assert latencies_of(report) == {"1-v4": 0.01, "1-v6": 0.02, "2-v6": 0.02, "3-v4": 0.03}


@pytest.mark.parametrize(
    ("others", "similar"),
    [
        ({"1-v4": 0.101, "2-v4": 0.004}, True),
        ({"1-v4": 0.140, "2-v4": 0.013}, True),
        ({"1-v4": 0.160, "2-v4": 0.004}, False),
        ({"1-v4": 0.100, "2-v4": 0.020}, False),
        ({"1-v4": 0.100}, False),
        ({"1-v4": 0.100, "2-v4": 0.004, "3-v4": 0.1}, False),
    ],
)
def test_latencies_that_others_need_not_be_told(others: dict[str, float], similar: bool) -> None:
    assert are_similar(others, {"1-v4": 0.1, "2-v4": 0.004}) == similar


@pytest.mark.parametrize(
    ("regions", "home", "chosen"),
    [
        ({1: (False, False), 2: (True, False)}, None, 2),
        ({1: (False, True), 2: (False, False), 3: (False, False)}, None, 2),
        ({1: (False, False), 2: (True, False)}, 1, 1),
        ({1: (False, True)}, None, None),
        ({1: (False, False)}, 9, None),
    ],
)
def test_a_home(regions: dict[int, tuple[bool, bool]], home: int | None, chosen: int | None) -> None:
    made = {
        number: DERPRegion(
            number,
            embedded_relay=embedded,
            nodes=(DERPNode(f"{number}a", number, "relay.example", stun_only=stun_only),),
        )
        for number, (embedded, stun_only) in regions.items()
    }
    if chosen is None:
        with pytest.raises(ConfigError, match="relay"):
            choose_home(made, home)
    else:
        assert choose_home(made, home) == chosen


async def test_a_map_of_no_use_changes_nothing_and_a_wanted_home_is_gone_back_to() -> None:
    one, other = (map_of(DERPNode(f"{region}a", region, "127.0.0.1")) for region in (FAR, NEAR))
    two = replace(one, regions={**one.regions, **other.regions})
    async with open_engine(NodePrivate.generate(), [], {}, None, is_direct=False) as engine:
        place = Place(engine, FAR, None, changed=lambda: None)
        with pytest.raises(ConfigError):
            place.take_map(DERPMap({}))
        homes = []
        for derp_map in (two, DERPMap({}), other, two):
            place.take_map(derp_map)
            homes.append((engine.relays.home, len(engine.relays.regions)))
    assert homes == [(FAR, 2), (FAR, 2), (NEAR, 1), (FAR, 2)]
