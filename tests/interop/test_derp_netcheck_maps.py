"""Made-up maps over live, half dead and dead relays of both kinds: the genuine netcheck library and ours agree on all.

The maps come from a seed, so that a map on which they differ comes again.  A failure names the map.
"""

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio

from derp.config import TlsConfig
from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from derp.netcheck.lint import errors, lint
from derp.netcheck.report import Report
from derp.protocol.stun import encode_response, parse_request
from tests.support.gobuild import DERPER, NETCHECKPEER
from tests.support.inprocess import node_of, open_relay_here
from tests.support.netchecks import compare
from tests.support.peers import require
from tests.support.relay_command import HOST
from tests.support.relays import Relay, free_port, open_relay

pytestmark = pytest.mark.interop

SEED = 7
MAPS = 24
# Most maps have a region that never answers, which takes both programs 3 to 5 s.  More at a time would make a busy
# machine miss the 2 s that are left for HTTPS.
AT_ONCE = 3
# So far apart that latencies on loopback, from 50 us to 100 ms, never decide between two regions: the home is no luck.
# The library multiplies whole nanoseconds, so the smallest still leaves some.  1.0 is written in several ways.
SCORES = (1e-4, 1.0, 1e4, 1e8)
SAME_AS_ONE = (None, 1.0, 0.0, -2.0)
WRONG_PIN = f"sha256-raw:{'00' * 32}"


@dataclass(slots=True)
class Ground:
    """What maps are made of: nodes without a name and region, and ports where nobody answers."""

    relays: list[DERPNode]
    both_families: DERPNode
    only_ipv6: DERPNode
    liar: DERPNode
    silent_udp: int


def genuine_node(relay: Relay) -> DERPNode:
    return DERPNode(
        host_name=HOST,
        ipv4=HOST,
        ipv6="none",
        derp_port=relay.port,
        stun_port=relay.stun_port,
        cert_name=relay.pin,
    )


async def lie(sock: trio.socket.SocketType) -> None:
    """STUN answers as through a NAT that maps each destination differently."""
    while True:
        request, address = await sock.recvfrom(1500)
        transaction_id = parse_request(request)
        if transaction_id is not None:
            await sock.sendto(encode_response(transaction_id, socket.inet_aton(address[0]), address[1] ^ 1), address)


@asynccontextmanager
async def open_ground() -> AsyncIterator[Ground]:
    require(DERPER)
    require(NETCHECKPEER)
    async with AsyncExitStack() as stack:
        relays = [
            genuine_node(await stack.enter_async_context(open_relay("genuine", tls=True, stun=True))) for _ in range(2)
        ]
        ours = [await stack.enter_async_context(open_relay_here()) for _ in range(2)]
        relays += [node_of(server, 0) for server in ours]
        port, stun_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
        both = await stack.enter_async_context(
            open_relay_here(listen=((HOST, port), ("::1", port)), stun_port=stun_port)
        )
        named = TlsConfig(self_signed=True, hostname="localhost")
        six = await stack.enter_async_context(open_relay_here(listen=(("::1", 0),), tls=named))
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind((HOST, 0))
        lying = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stack.callback(lying.close)
        await lying.bind((HOST, 0))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(lie, lying)
        yield Ground(
            relays,
            node_of(both, 0, ipv6="::1"),
            # With STUNTestIP the library asks over IPv6 even where the machine has none but on loopback.
            node_of(six, 0, host_name="localhost", ipv4="none", ipv6="::1", stun_test_ip="::1"),
            replace(relays[0], stun_port=lying.getsockname()[1]),
            silent.getsockname()[1],
        )
        nursery.cancel_scope.cancel()


def kinds_with_udp(ground: Ground, chance: random.Random) -> list[Callable[[], DERPNode]]:
    """Nodes of every kind there is, the good ones more often."""

    def live() -> DERPNode:
        return chance.choice(ground.relays)

    return [
        live,
        live,
        live,
        lambda: ground.both_families,
        lambda: ground.only_ipv6,
        lambda: ground.liar,
        lambda: ground.liar,
        lambda: replace(live(), stun_port=-1),
        lambda: replace(live(), stun_port=ground.silent_udp),
        lambda: replace(live(), stun_only=True),
        lambda: replace(live(), derp_port=1),  # a region whose STUN works, and nothing else
        lambda: replace(live(), derp_port=1, stun_port=-1),
        lambda: replace(live(), ipv4="", host_name="localhost", cert_name=WRONG_PIN),
        lambda: replace(live(), ipv4="none"),  # no way there at all
    ]


def kinds_without_udp(ground: Ground, chance: random.Random) -> list[Callable[[], DERPNode]]:
    """Nodes whose STUN gives nothing, so that HTTPS decides."""

    def mute() -> DERPNode:
        return replace(chance.choice(ground.relays), stun_port=chance.choice([-1, ground.silent_udp]))

    return [
        mute,
        mute,
        mute,
        lambda: replace(ground.only_ipv6, stun_port=-1),
        lambda: replace(ground.only_ipv6, stun_port=-1, host_name="::1"),  # what the library makes no URL of
        lambda: replace(mute(), derp_port=1),
        lambda: replace(mute(), cert_name=WRONG_PIN),
        lambda: replace(mute(), stun_only=True),
    ]


def made_up_map(ground: Ground, chance: random.Random, *, udp: bool) -> DERPMap:
    kinds = kinds_with_udp(ground, chance) if udp else kinds_without_udp(ground, chance)
    regions = {}
    for region_id in range(901, 901 + chance.randint(1, len(SCORES))):
        nodes = [chance.choice(kinds)() for _ in range(chance.choice([1, 1, 2, 3, 4]))]
        if not udp:
            # The library pings the first node, unless it has no STUN: see test_derp_netcheck.py.
            nodes[0] = replace(nodes[0], stun_port=-1)
        named = tuple(
            replace(node, name=f"{region_id}{letter}", region_id=region_id)
            for node, letter in zip(nodes, "abcd", strict=False)
        )
        regions[region_id] = DERPRegion(
            region_id,
            f"r{region_id}",
            nodes=named,
            no_measure_no_home=chance.random() < 0.15,
            avoid=chance.random() < 0.25,
        )
    scores = dict(zip(regions, chance.sample(SCORES, len(regions)), strict=True))
    written = {one: chance.choice(SAME_AS_ONE) if score == 1.0 else score for one, score in scores.items()}
    return DERPMap(regions, DERPHomeParams({one: score for one, score in written.items() if score is not None}))


async def test_made_up_maps() -> None:
    chance = random.Random(SEED)
    reports: list[Report] = []
    limit = trio.CapacityLimiter(AT_ONCE)

    async def ask(derp_map: DERPMap) -> None:
        async with limit:
            reports.extend(await compare(derp_map))

    async with open_ground() as ground, trio.open_nursery() as nursery:
        for number in range(MAPS):
            nursery.start_soon(ask, made_up_map(ground, chance, udp=number % 3 != 0))
    # The maps were worth asking about: every verdict came out each way.
    assert {report.udp for report in reports} == {True, False}
    assert {report.ipv4 for report in reports} == {True, False}
    assert {report.ipv6 for report in reports} == {True, False}
    assert {report.mapping_varies for report in reports} == {None, False, True}
    assert len({report.preferred for report in reports}) >= 4
    assert any(len(report.region_seconds) < 2 for report in reports)
    assert any(report.region_seconds and not report.udp for report in reports)
    assert any(report.region_ipv4_seconds and report.region_ipv6_seconds for report in reports)


async def test_maps_with_mistakes_mislead_both_alike() -> None:
    """Nodes that name another region than theirs: their answers count there (tailscale#9526, headscale#236)."""
    async with open_ground() as ground:
        first, second, *_ = (replace(node, name=f"n{number}") for number, node in enumerate(ground.relays))
        for wrong in (0, 9, 901):
            there = DERPRegion(901, "r901", nodes=(replace(first, region_id=901),))
            lost = DERPRegion(902, "r902", nodes=(replace(second, region_id=wrong),))
            # The library would throw dice over a region 0 that is the best.
            asked = DERPMap({901: there, 902: lost}, DERPHomeParams({901: 1e4 if wrong else 1e-4}))
            assert errors(lint(asked.to_json()))
            [report] = await compare(asked)
            assert set(report.region_seconds) == {901, wrong}
