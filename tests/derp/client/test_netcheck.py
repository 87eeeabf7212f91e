"""Netchecks against real relays in this process: flags, latencies, blocked UDP, portals, reasons."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from derp.client.dial import DialOptions
from derp.client.netcheck import Netcheck, NetcheckOptions
from derp.map import DERPMap, DERPRegion
from derp.netcheck.report import verdicts
from tests.support.inprocess import HOST, map_of, node_of, open_regions, open_relay_here, port_of

DIRECT = DialOptions(environment=None)


def checker(portal_port: int = 1) -> Netcheck:
    return Netcheck(NetcheckOptions(enough_regions=None, dial=DIRECT, portal_port=portal_port))


@asynccontextmanager
async def silent_udp() -> AsyncIterator[int]:
    """A port that takes datagrams and never answers: UDP blocked on the way."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind((HOST, 0))
        yield sock.getsockname()[1]


@asynccontextmanager
async def http_answering(answer: bytes) -> AsyncIterator[int]:
    """A port that answers every connection with these bytes."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_every_region_with_stun_gets_a_latency_and_one_becomes_home() -> None:
    async with open_regions(901, 902) as (_, derp_map):
        report = await checker().report(derp_map)
    assert set(report.region_seconds) == set(report.region_ipv4_seconds) == {901, 902}
    assert report.preferred in (901, 902)
    assert (report.udp, report.ipv4, report.ipv6) == (True, True, False)
    assert report.ipv4_can_send
    assert report.mapping_varies is False
    assert report.global_ipv4.startswith(f"{HOST}:")
    assert verdicts(report, derp_map) == []


async def test_scores_decide_between_regions_of_the_same_place() -> None:
    async with open_regions(901, 902) as (_, derp_map):
        params = DERPMap.parse({"HomeParams": {"RegionScore": {"901": 1e9}}}).home_params
        report = await checker().report(replace(derp_map, home_params=params))
    assert report.preferred == 902


async def test_ipv6_is_seen_where_a_relay_has_it() -> None:
    async with open_relay_here(listen=(("::1", 0),)) as server:
        node = node_of(server, 901, host_name="::1", ipv4="none", ipv6="::1")
        report = await checker().report(map_of(node))
    assert (report.ipv4, report.ipv6, report.ipv6_can_send, report.os_has_ipv6) == (False, True, True, True)
    assert set(report.region_ipv6_seconds) == {901}
    assert report.global_ipv6.startswith("[::1]:")


async def test_without_stun_answers_https_measures_and_udp_counts_as_blocked() -> None:
    async with open_regions(901, 902) as (servers, _), silent_udp() as port:
        nodes = [node_of(server, 901 + at, stun_port=port) for at, server in enumerate(servers)]
        derp_map = map_of(*nodes)
        report = await checker().report(derp_map)
    assert set(report.region_seconds) == {901, 902}
    assert report.region_ipv4_seconds == {}
    assert (report.udp, report.ipv4, report.ipv4_can_send) == (False, True, True)
    assert report.preferred in (901, 902)
    assert [sentence for sentence in verdicts(report, derp_map) if "UDP is blocked" in sentence]


async def test_plain_http_relays_are_measured_too() -> None:
    async with open_relay_here(tls=False, stun_enabled=False) as server:
        report = await checker().report(map_of(node_of(server, 901)))
    assert set(report.region_seconds) == {901}
    assert not report.stun_asked


async def test_why_a_region_cannot_be_used_is_told() -> None:
    async with open_relay_here(stun_enabled=False) as server, http_answering(b"HTTP/1.1 403 No\r\n\r\n") as forbidding:
        derp_map = map_of(
            node_of(server, 901, cert_name=f"sha256-raw:{'00' * 32}"),
            node_of(server, 902, force_http=True, derp_port=forbidding),
            node_of(server, 903),
        )
        report = await checker().report(derp_map)
    assert set(report.region_seconds) == {903}
    assert "not the pinned one" in report.reasons[901]
    assert "status 403" in report.reasons[902]
    assert any("region 901" in sentence and "pinned" in sentence for sentence in verdicts(report, derp_map))


async def test_the_second_node_measures_a_region_whose_first_is_dead() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        dead = node_of(server, 901, "a", derp_port=1)
        report = await checker().report(map_of(dead, node_of(server, 901, "b")))
    assert set(report.region_seconds) == {901}


async def test_the_first_node_that_accepts_a_connection_decides_as_for_genuine_clients() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        broken = node_of(server, 901, "a", cert_name=f"sha256-raw:{'00' * 32}")
        report = await checker().report(map_of(broken, node_of(server, 901, "b")))
    assert report.region_seconds == {}
    assert "not the pinned one" in report.reasons[901]
    assert report.reasons[901].endswith("; clients go no further than the first node that accepts a connection")


async def test_an_ipv6_address_as_host_name_is_not_measured_over_https() -> None:
    async with open_relay_here(listen=(("::1", 0),), stun_enabled=False) as server:
        report = await checker().report(map_of(node_of(server, 901, host_name="::1", ipv4="none", ipv6="::1")))
    assert report.region_seconds == {}
    assert "give the relay a name" in report.reasons[901]


async def test_an_answer_counts_for_the_region_that_the_node_names() -> None:
    async with open_regions(901, 902) as (_, derp_map):
        lost = derp_map.regions[902]
        lost = replace(lost, nodes=(replace(lost.nodes[0], region_id=9),))
        params = DERPMap.parse({"HomeParams": {"RegionScore": {"901": 1e9}}}).home_params
        wrong = DERPMap({901: derp_map.regions[901], 902: lost}, params)
        report = await checker().report(wrong)
    assert set(report.region_seconds) == {901, 9}
    assert report.preferred == 9
    said = verdicts(report, wrong)
    assert any("region 9 as its own, which the map does not have" in one and "nobody finds them" in one for one in said)


async def test_a_map_that_names_no_port_80_says_nothing_of_portals() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        report = await checker(port_of(server)).report(map_of(node_of(server, 901)))
    assert report.captive_portal is None


async def test_a_relay_behind_no_portal_and_a_portal_in_its_place() -> None:
    portal = b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n"
    async with open_relay_here(stun_enabled=False, http_port=0) as server, http_answering(portal) as in_between:
        derp_map = map_of(node_of(server, 901, can_port_80=True))
        good = await checker(port_of(server, "http")).report(derp_map)
        bad = await checker(in_between).report(derp_map)
        nobody = await checker().report(derp_map)
    assert (good.captive_portal, bad.captive_portal, nobody.captive_portal) == (False, True, False)


async def test_a_stun_answer_makes_the_search_for_a_portal_superfluous() -> None:
    async with open_relay_here() as server, http_answering(b"HTTP/1.1 200 OK\r\n\r\n") as portal:
        report = await checker(portal).report(map_of(node_of(server, 901, can_port_80=True)))
    assert report.udp
    assert report.captive_portal is None


async def test_the_second_netcheck_asks_only_the_nearest_regions_and_the_home() -> None:
    async with open_regions(*range(901, 907)) as (_, derp_map):
        netcheck = checker()
        first = await netcheck.report(derp_map)
        second = await netcheck.report(derp_map)
    assert len(first.region_seconds) == 6
    assert first.preferred in second.region_seconds
    assert len(second.region_seconds) <= 4


async def test_an_empty_map_gives_an_empty_report_at_once() -> None:
    report = await checker().report(DERPMap({901: DERPRegion(901)}))
    assert report.region_seconds == {}
    assert report.preferred == 0
