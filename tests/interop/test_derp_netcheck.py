"""The genuine netcheck library and ours, asked about the same map, say the same."""

import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from derp.client.dial import DialOptions
from derp.client.netcheck import Netcheck, NetcheckOptions
from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from derp.netcheck.report import History, Report
from tests.support.inprocess import node_of, open_relay_here
from tests.support.netchecks import compare, genuine
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay

pytestmark = pytest.mark.interop

# A score this small wins whatever the latencies on loopback are, so that the home is no matter of luck.
WINNER = 1e-3
DIRECT = DialOptions(environment=None)


@pytest.fixture(params=["genuine", "ours"])
def kind(request: pytest.FixtureRequest) -> RelayKind:
    chosen: RelayKind = request.param
    return chosen


@asynccontextmanager
async def two_regions(kind: RelayKind, *, stun_port: int | None = None) -> AsyncIterator[DERPMap]:
    """901 and 902, one relay each; region 902 wins by its score.  `stun_port`: instead of the relays' own."""
    async with AsyncExitStack() as stack:
        regions = {}
        for region_id in (901, 902):
            relay = await stack.enter_async_context(open_relay(kind, tls=True, stun=True))
            regions[region_id] = region(region_id, node(region_id, relay, stun_port))
        yield DERPMap(regions, DERPHomeParams({902: WINNER}))


def node(region_id: int, relay: Relay, stun_port: int | None = None) -> DERPNode:
    return DERPNode(
        name=f"{region_id}a",
        region_id=region_id,
        host_name=HOST,
        ipv4=HOST,
        ipv6="none",
        derp_port=relay.port,
        stun_port=stun_port or relay.stun_port,
        cert_name=relay.pin,
    )


def region(region_id: int, *nodes: DERPNode, **more: Any) -> DERPRegion:
    return DERPRegion(region_id, f"r{region_id}", f"Region {region_id}", nodes=nodes, **more)


async def test_two_regions_with_stun(kind: RelayKind) -> None:
    async with two_regions(kind) as derp_map:
        [report] = await compare(derp_map)
    assert (report.udp, report.ipv4, report.ipv6, report.preferred) == (True, True, False, 902)
    assert set(report.region_ipv4_seconds) == {901, 902}


async def test_udp_blocked(kind: RelayKind) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        async with two_regions(kind, stun_port=silent.getsockname()[1]) as derp_map:
            [report] = await compare(derp_map)
    assert (report.udp, report.ipv4, report.preferred) == (False, True, 902)
    assert set(report.region_seconds) == {901, 902}
    assert report.region_ipv4_seconds == {}


async def test_udp_blocked_in_one_region_only() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        async with two_regions("ours") as derp_map:
            winner = derp_map.regions[902]
            dead = replace(winner, nodes=(replace(winner.nodes[0], stun_port=silent.getsockname()[1]),))
            [report] = await compare(replace(derp_map, regions=dict(derp_map.regions) | {902: dead}))
    assert (report.udp, report.preferred) == (True, 901)


@pytest.mark.parametrize(("flag", "home"), [("no_measure_no_home", 901), ("avoid", 902)])
async def test_flags_of_the_map(flag: str, home: int) -> None:
    async with two_regions("ours") as derp_map:
        winner = replace(derp_map.regions[902], **{flag: True})  # type: ignore[arg-type]  # a boolean field by name
        [report] = await compare(replace(derp_map, regions=dict(derp_map.regions) | {902: winner}))
    assert report.preferred == home


@pytest.mark.parametrize("stun_port", [-1, 70000])
async def test_a_map_without_stun(stun_port: int) -> None:
    async with two_regions("ours", stun_port=stun_port) as derp_map:
        [report] = await compare(derp_map)
    assert (report.udp, report.ipv4, report.preferred) == (False, True, 902)


async def test_ipv6() -> None:
    async with open_relay_here(listen=(("::1", 0),)) as server:
        # With STUNTestIP the library asks over IPv6 even where the machine has no IPv6 but on loopback.
        asked = node_of(server, 901, host_name="::1", ipv4="none", ipv6="::1", stun_test_ip="::1")
        [report] = await compare(DERPMap({901: region(901, asked)}))
    assert (report.udp, report.ipv4, report.ipv6, report.preferred) == (True, False, True, 901)
    assert report.global_ipv6.startswith("[::1]:")


async def test_a_host_that_answers_pings_is_no_relay_to_us() -> None:
    """The one verdict that differs, on purpose: without UDP the library, where it may, also trusts in pings."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        async with two_regions("ours", stun_port=silent.getsockname()[1]) as derp_map:
            winner = derp_map.regions[902]
            dead = replace(winner, nodes=(replace(winner.nodes[0], derp_port=1),))
            asked = replace(derp_map, regions=dict(derp_map.regions) | {902: dead})
            [theirs] = await genuine("report", steps=[{"map": asked.to_json()}])
            mine = await Netcheck(NetcheckOptions(enough_regions=None, dial=DIRECT)).report(asked)
    assert set(theirs["region_seconds"]) == ({"901", "902"} if theirs["icmp_ipv4"] else {"901"})
    assert set(mine.region_seconds) == {901}
    assert "nothing listens on that port" in mine.reasons[902]


async def test_the_home_is_kept_while_its_relay_is_heard(kind: RelayKind) -> None:
    """Three netchecks of one client: all well; the home's STUN gone but its relay heard; its relay silent too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        async with two_regions(kind) as derp_map:
            home = derp_map.regions[902]
            lost = replace(home, nodes=(replace(home.nodes[0], stun_port=silent.getsockname()[1]),))
            after = replace(derp_map, regions=dict(derp_map.regions) | {902: lost})
            reports = await compare(derp_map, after, after, heard=[{}, {902: 1.0}, {902: 60.0}])
    assert [report.preferred for report in reports] == [902, 902, 901]
    assert [set(report.region_seconds) for report in reports] == [{901, 902}, {901}, {901}]


@pytest.mark.parametrize("self_check", [True, False])
async def test_a_stock_client_leaves_a_relay_whose_tcp_is_dead(self_check: bool) -> None:
    """Three netchecks of one client: all well, the home's TCP dead while its UDP answers, all well again."""
    async with (
        open_relay_here(stun_port=0) as other,
        open_relay_here(stun_port=0) as well,
        open_relay_here(stun_port=0, self_check=self_check) as dead,
    ):
        listener = dead.ports.listeners[0]
        dead.reactor.unwatch(listener._sock.fileno())  # it accepts nobody any more
        with trio.fail_after(60):
            while self_check and dead.problem() is None:  # noqa: ASYNC110
                await trio.sleep(0.1)
        maps = [
            DERPMap({901: region(901, node_of(other, 901)), 902: region(902, node_of(home, 902))})
            for home in (well, dead, well)
        ]
        maps = [replace(each, home_params=DERPHomeParams({902: WINNER})) for each in maps]
        reports = await compare(*maps)
    assert [report.preferred for report in reports][:2] == [902, 901 if self_check else 902]
    assert [902 in report.region_seconds for report in reports] == [True, not self_check, True]


@asynccontextmanager
async def portal_at(host: str) -> AsyncIterator[None]:
    """A captive portal: whatever is asked of port 80, it answers with its login page."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, serve, 80, host=host))
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def port_80() -> None:
    """Where relays and portals of a test may take it: a skip elsewhere."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, 80))
    except OSError as error:
        pytest.skip(f"port 80 of {HOST} cannot be taken: {error.strerror}")


async def portal_verdicts(*hosts: str) -> tuple[bool, bool | None]:
    """(theirs, ours).  Of less than five nodes the library would go on to hosts on the internet."""
    nodes = [
        DERPNode(
            f"901{letter}",
            901,
            host,
            ipv4=host,
            ipv6="none",
            derp_port=1,
            stun_port=-1,
            can_port_80=True,
            cert_name=host,
        )
        for letter, host in zip("abcde", hosts * 5, strict=False)
    ]
    derp_map = DERPMap({901: region(901, *nodes)})
    theirs: bool = await genuine("portal", map=derp_map.to_json(), home=901)
    return theirs, (await Netcheck(NetcheckOptions(dial=DIRECT)).report(derp_map)).captive_portal


@pytest.mark.usefixtures("port_80")
async def test_captive_portals(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True, extra=("--http-port=80",)), portal_at("127.80.0.1"):
        assert await portal_verdicts(HOST) == (False, False)
        assert await portal_verdicts("127.80.0.1") == (True, True)
        assert await portal_verdicts(HOST, "127.80.0.1") == (True, True)
        assert await portal_verdicts("127.80.0.2") == (False, False)  # nobody is no portal


def made_up_reports(chance: random.Random, count: int) -> list[tuple[float, dict[int, float]]]:
    """Regions that come, go, and drift; never two with the same latency, where the library would throw dice."""
    near = {region_id: chance.uniform(0.002, 0.2) for region_id in (1, 2, 3, 4)}
    at = 0.0
    reports: list[tuple[float, dict[int, float]]] = []
    for _ in range(count):
        at += chance.choice([1, 20, 30, 290, 304, 306, 400])
        if chance.random() < 0.05:
            reports.append((at, {}))
            continue
        reports.append(
            (at, {one: best * chance.choice([1, 1.05, 1.6, 5]) for one, best in near.items() if chance.random() < 0.8})
        )
    return reports


@pytest.mark.parametrize("scores", [{}, {1: 0.5, 2: 3.0, 3: -1.0, 4: 0.0}])
async def test_the_home_moves_when_the_genuine_one_does(scores: dict[int, float]) -> None:
    derp_map = DERPMap({one: region(one) for one in (1, 2, 3, 4)}, DERPHomeParams(scores))
    reports = made_up_reports(random.Random(7), 400)
    asked = [{"at": at, "seconds": {str(one): seconds for one, seconds in table.items()}} for at, table in reports]
    theirs = await genuine("history", map=derp_map.to_json(), reports=asked)
    history = History()
    mine = [
        history.settle(Report(region_seconds=table), derp_map, started=at, now=at).preferred for at, table in reports
    ]
    assert mine == theirs
    assert len(set(mine)) == 5  # every region and none: the walk is not trivial
