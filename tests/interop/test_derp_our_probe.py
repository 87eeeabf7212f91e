"""Our prober at genuine derpers, alone and meshed, and at ours: what is good, and each fault by its name."""

import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
import trio

from derp.client import passage
from derp.client.dial import DialOptions
from derp.client.probe import Outcome, ProbeKind, ProbeOptions, ProbeResult, is_good, probe_map
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPMap, DERPNode, DERPRegion
from derp.transport.http import Request
from tests.derp.server.control_plane import NO, YES, Answer, ControlPlane, open_control_plane
from tests.support.peers import PATIENCE_SECONDS
from tests.support.regions import MESH_KEY, NAME, Region, open_region
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay

pytestmark = pytest.mark.interop

DIAL = DialOptions(environment=None)
# A burst of 64 packets of 64 KiB: twice what the genuine relay would queue, so the window is put to the test.
THOROUGH = ProbeOptions(bandwidth_bytes=64 * 65_536, delay_packets=5, dial=DIAL)
QUICK = replace(THOROUGH, bandwidth_bytes=0, delay_packets=0)
KINDS: list[RelayKind] = ["genuine", "ours"]
MESHES: list[tuple[RelayKind, RelayKind]] = [("genuine", "genuine"), ("genuine", "ours"), ("ours", "genuine")]

Named = dict[tuple[str, str, str], ProbeResult]
NODES = ("901a", "901b")
PAIRS = (NODES, NODES[::-1])


def node_of(relay: Relay, name: str = "901a") -> DERPNode:
    return DERPNode(
        name=name,
        region_id=901,
        host_name=HOST,
        cert_name=relay.pin,
        ipv4=HOST,
        ipv6="none",
        stun_port=relay.stun_port or -1,
        derp_port=relay.port,
    )


def map_of(*nodes: DERPNode) -> DERPMap:
    return DERPMap({901: DERPRegion(901, "test", "Test", nodes=nodes)})


def map_of_region(region: Region) -> DERPMap:
    """By name, as meshes need it."""
    places = zip(NODES, region.ports, region.stun_ports, strict=False)  # or the first one alone
    return map_of(
        *(
            DERPNode(name, 901, host_name=NAME, ipv4=HOST, ipv6="none", stun_port=stun_port, derp_port=port)
            for name, port, stun_port in places
        )
    )


def trusting(region: Region, options: ProbeOptions = QUICK) -> ProbeOptions:
    context = ssl.create_default_context(cafile=str(region.authority))
    return replace(options, dial=replace(options.dial, context=context))


async def run(derp_map: DERPMap, options: ProbeOptions = QUICK) -> Named:
    with trio.fail_after(PATIENCE_SECONDS):
        results = await probe_map(derp_map, options)
    return {(one.kind.value, one.node, one.to): one for one in results}


async def settle(region: Region, options: ProbeOptions) -> None:
    """Until the mesh stands: genuine relays dial again only after 5 s."""
    with trio.fail_after(3 * PATIENCE_SECONDS):
        while not is_good(await probe_map(map_of_region(region), options)):
            pass


def reasons(results: Named) -> dict[tuple[str, str, str], str]:
    """What is not good, and why."""
    return {name: one.reason for name, one in results.items() if one.outcome is not Outcome.GOOD}


# --- one relay


@pytest.mark.parametrize("kind", KINDS)
async def test_every_probe_is_good(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True, stun=True) as relay:
        results = await run(map_of(node_of(relay)), THOROUGH)
    # Neither map says that the relay has QUIC.
    assert [one.kind for one in results.values()] == [kind for kind in ProbeKind if kind is not ProbeKind.QUIC]
    assert reasons(results) == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wrong_pin_and_a_closed_stun_port_are_named(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True) as relay, open_relay(kind, tls=True, stun=True) as other:
        node = node_of(relay)
        pinned_wrongly = await run(map_of(replace(node, cert_name=other.pin)))
        silent = await run(map_of(replace(node, stun_port=relay.port)))  # a UDP port that nobody has
    assert set(reasons(pinned_wrongly)) == {("tls", "901a", ""), ("packet", "901a", "901a")}
    assert all("not the pinned one" in reason for reason in reasons(pinned_wrongly).values())
    assert set(reasons(silent)) == {("stun", "901a", "")}
    assert f"UDP port {relay.port}: is the port open" in reasons(silent)["stun", "901a", ""]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_that_ends_soon_is_bad_while_everything_works(kind: RelayKind) -> None:
    async with open_region(kind, valid=(timedelta(days=-80), timedelta(days=3))) as region:
        asked = map_of_region(region)
        results = await run(asked, trusting(region))
        patient = await run(asked, replace(trusting(region), min_valid_seconds=86_400))
    assert set(reasons(results)) == {("tls", "901a", "")}
    assert "expires in 3.0 days: renew it" in results["tls", "901a", ""].reason
    assert abs(results["tls", "901a", ""].values["expires_at"] - time.time() - 3 * 86_400) < 3600
    assert reasons(patient) == {}


# --- two relays of a region


@pytest.mark.parametrize("kinds", MESHES, ids="-".join)
async def test_each_pair_of_meshed_relays_is_good_in_both_directions(kinds: tuple[RelayKind, RelayKind]) -> None:
    async with open_region(*kinds) as region:
        await settle(region, trusting(region))
        results = await run(map_of_region(region), trusting(region, THOROUGH))
    expected = {(kind, node, "") for kind in ("tls", "stun") for node in NODES}
    expected |= {(kind, *way) for kind in ("packet", "queue_delay", "bandwidth") for way in PAIRS}
    expected |= {(kind, node, node) for kind in ("packet", "queue_delay", "bandwidth") for node in NODES}
    assert set(results) == expected
    assert reasons(results) == {}


@pytest.mark.parametrize("kinds", MESHES, ids="-".join)
async def test_relays_that_are_not_meshed_are_good_alone_and_bad_together(
    kinds: tuple[RelayKind, RelayKind], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passage, "FIRST_PACKET_SECONDS", 1.0)  # there is nothing to wait for
    async with open_relay(kinds[0], tls=True, stun=True) as one, open_relay(kinds[1], tls=True, stun=True) as two:
        results = await run(map_of(node_of(one, "901a"), node_of(two, "901b")))
    assert set(reasons(results)) == {("packet", *way) for way in PAIRS}
    for node, to in PAIRS:
        assert (
            f"not meshed in this direction: is {to} in the --mesh-with of {node}"
            in reasons(results)["packet", node, to]
        )


@pytest.mark.parametrize("kinds", MESHES, ids="-".join)
async def test_a_relay_that_stops_between_two_runs(kinds: tuple[RelayKind, RelayKind]) -> None:
    async with open_region(*kinds) as region:
        options = trusting(region)
        await settle(region, options)
        await region.stop(1)
        results = await run(map_of_region(region), options)
        await region.start(1, kinds[1])
        await settle(region, options)
        assert reasons(await run(map_of_region(region), options)) == {}
    assert {name: one.outcome.value for name, one in results.items()} == {
        ("tls", "901a", ""): "good",
        ("stun", "901a", ""): "good",
        ("packet", "901a", "901a"): "good",
        ("tls", "901b", ""): "bad",
        ("stun", "901b", ""): "bad",
        ("packet", "901b", "901b"): "bad",
        ("packet", "901a", "901b"): "skipped",
        ("packet", "901b", "901a"): "skipped",
    }
    assert "nothing listens on that port" in results["tls", "901b", ""].reason


# --- admission


@asynccontextmanager
async def open_guarded(
    kind: RelayKind, answer: Callable[[Request], Answer | None]
) -> AsyncIterator[tuple[Relay, ControlPlane]]:
    """A relay that asks a control plane whom to admit, and refuses whoever it cannot ask about."""
    async with open_control_plane(answer) as plane:
        extra = (f"--verify-client-url={plane.url}", "--verify-client-url-fail-open=false")
        async with open_relay(kind, tls=True, stun=True, mesh_key=MESH_KEY, extra=extra) as relay:
            yield relay, plane


@pytest.mark.parametrize("kind", KINDS)
async def test_with_admission_on_it_comes_with_keys_that_are_admitted(kind: RelayKind) -> None:
    keys = NodePrivate.generate(), NodePrivate.generate()
    admitted = {str(key.public()) for key in keys}

    def answer(request: Request) -> Answer:
        return YES if json.loads(request.body)["NodePublic"] in admitted else NO

    async with open_guarded(kind, answer) as (relay, plane):
        asked = map_of(node_of(relay))
        strangers = await run(asked)
        assert plane.requests
        one = await run(asked, replace(THOROUGH, keys=keys[:1]))
        two = await run(asked, replace(THOROUGH, keys=keys))
    assert set(reasons(strangers)) == {("packet", "901a", "901a")}
    refusal = "does not admit this machine's key" if kind == "ours" else "may not admit this client's key"
    assert refusal in reasons(strangers)["packet", "901a", "901a"]
    assert reasons(one) == reasons(two) == {}


@pytest.mark.parametrize("answer", [lambda request: NO, lambda request: None], ids=["refuses", "hangs-up"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_mesh_key_passes_an_admission_that_admits_nobody(
    kind: RelayKind, answer: Callable[[Request], Answer | None]
) -> None:
    async with open_guarded(kind, answer) as (relay, plane):
        asked = map_of(node_of(relay))
        members = await run(asked, replace(THOROUGH, mesh_key=MeshKey.parse(MESH_KEY)))
        assert plane.requests == []
        strangers = await run(asked)
        wrong = await run(asked, replace(QUICK, mesh_key=MeshKey.parse("60" * 32)))
        assert plane.requests
    assert reasons(members) == {}
    assert set(reasons(strangers)) == set(reasons(wrong)) == {("packet", "901a", "901a")}


@pytest.mark.parametrize("kinds", MESHES, ids="-".join)
async def test_the_mesh_key_goes_from_node_to_node_of_a_region_that_admits_nobody(
    kinds: tuple[RelayKind, RelayKind],
) -> None:
    async with open_control_plane(lambda request: NO) as plane:
        extra = (f"--verify-client-url={plane.url}", "--verify-client-url-fail-open=false")
        async with open_region(*kinds, extra=extra) as region:
            options = replace(trusting(region), mesh_key=MeshKey.parse(MESH_KEY))
            await settle(region, options)
            results = await run(map_of_region(region), replace(trusting(region, THOROUGH), mesh_key=options.mesh_key))
            strangers = await run(map_of_region(region), trusting(region))
    assert reasons(results) == {}
    assert all(("bandwidth", *way) in results for way in PAIRS)
    assert set(reasons(strangers)) == {("packet", node, to) for node in NODES for to in NODES}
