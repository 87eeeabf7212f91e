"""Probes against relays in this process: all good, and each thing that can be wrong, called by its name."""

import contextlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from derp.client import passage, probe
from derp.client.dial import DialOptions
from derp.client.probe import Outcome, ProbeKind, ProbeOptions, ProbeResult, is_good, probe_map
from derp.config.relay import MeshPeer, TlsConfig
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPMap, DERPNode
from tests.support.inprocess import HOST, PATIENCE_SECONDS, map_of, node_of, open_regions, open_relay_here, port_of

QUICK = ProbeOptions(dial=DialOptions(environment=None), bandwidth_bytes=200_000, delay_packets=3)
Named = dict[tuple[str, str, str], ProbeResult]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(passage, "FIRST_PACKET_SECONDS", 1.0)
    monkeypatch.setattr(probe, "STUN_SECONDS", 0.2)


async def run(derp_map: DERPMap, options: ProbeOptions = QUICK) -> Named:
    with trio.fail_after(PATIENCE_SECONDS):
        results = await probe_map(derp_map, options)
    return {(one.kind.value, one.node, one.to): one for one in results}


def outcomes(results: Named) -> dict[tuple[str, str, str], str]:
    return {name: one.outcome.value for name, one in results.items()}


async def test_a_good_relay_is_good_in_everything() -> None:
    async with open_regions(901, 902) as (_, derp_map):
        results = await run(derp_map)
    expected = {
        (kind, f"{region_id}a", to)
        for region_id in (901, 902)
        for kind, to in [
            ("tls", ""),
            ("stun", ""),
            ("packet", f"{region_id}a"),
            ("queue_delay", f"{region_id}a"),
            ("bandwidth", f"{region_id}a"),
        ]
    }
    assert set(results) == expected
    assert set(outcomes(results).values()) == {"good"}
    assert results["tls", "901a", ""].values["expires_at"] > time.time()
    assert results["stun", "901a", ""].values["seconds"] > 0
    assert results["bandwidth", "901a", "901a"].values["bytes_per_second"] > 0
    delay = results["queue_delay", "901a", "901a"].values
    assert 0 < delay["median_seconds"] <= delay["worst_seconds"]
    assert delay["lost_packets"] == 0


async def test_quic_is_tried_where_the_map_has_it() -> None:
    async with open_relay_here(quic=True) as with_quic, open_relay_here() as without:
        good, bad = (node_of(each, 901, letter) for each, letter in ((with_quic, "a"), (without, "b")))
        nodes = (replace(good, quic_port=good.derp_port), replace(bad, quic_port=bad.derp_port))
        results = await run(map_of(*nodes))
    assert results["quic", "901a", ""].outcome is Outcome.GOOD
    assert results["quic", "901a", ""].values["seconds"] > 0
    assert results["quic", "901b", ""].outcome is Outcome.BAD
    assert "take QUICPort out of the map" in results["quic", "901b", ""].reason


async def test_packets_are_sent_from_each_node_to_each_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "relay.crt"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # which the mesh trusts
    tls = TlsConfig(certificate, tmp_path / "relay.key", HOST, self_signed=True)
    settings: dict[str, Any] = {"tls": tls, "stun_enabled": False, "mesh_key": MeshKey(b"\x5f" * 32)}
    async with open_relay_here(**settings) as one:
        # One direction only: the second relay reaches clients of the first, not the other way round.
        peers = (MeshPeer(HOST, port_of(one), HOST),)
        async with open_relay_here(**settings, mesh_with=peers) as two:
            results = await run(map_of(node_of(one, 901, "a"), node_of(two, 901, "b")))
    crossing = {to: results["packet", node, to] for node, to in (("901a", "901b"), ("901b", "901a"))}
    assert crossing["901a"].outcome is Outcome.GOOD
    assert crossing["901b"].outcome is Outcome.BAD
    assert "is 901b in the --mesh-with of 901a" in crossing["901b"].reason
    assert all(one.outcome is Outcome.GOOD for one in results.values() if one is not crossing["901b"])
    assert ("bandwidth", "901b", "901a") in results


async def test_with_admission_on_it_works_with_keys_that_are_admitted() -> None:
    keys = NodePrivate.generate(), NodePrivate.generate()
    admitted = frozenset(key.public().raw for key in keys)
    async with open_relay_here(stun_enabled=False, allow_keys=admitted) as server:
        asked = map_of(node_of(server, 901, "a"), node_of(server, 901, "b"))
        strangers = await run(asked)
        single = await run(asked, replace(QUICK, keys=keys[:1]))
        both = await run(asked, replace(QUICK, keys=keys))
    assert strangers["packet", "901a", "901a"].outcome is Outcome.BAD
    assert strangers["packet", "901a", "901b"].outcome is Outcome.SKIPPED
    assert single["packet", "901a", "901a"].outcome is Outcome.GOOD
    assert single["packet", "901a", "901b"].outcome is Outcome.SKIPPED
    assert single["bandwidth", "901a", "901a"].outcome is Outcome.GOOD
    assert set(outcomes(both).values()) == {"good"}


async def test_a_wrong_pin_fails_the_certificate_and_the_packets() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        results = await run(map_of(node_of(server, 901, cert_name=f"sha256-raw:{'00' * 32}")))
    assert outcomes(results) == {("tls", "901a", ""): "bad", ("packet", "901a", "901a"): "bad"}
    assert all("not the pinned one" in one.reason for one in results.values())


async def test_a_certificate_near_its_end_is_bad_before_clients_notice() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        options = replace(QUICK, min_valid_seconds=1e12, bandwidth_bytes=0, delay_packets=0)
        results = await run(map_of(node_of(server, 901)), options)
    assert outcomes(results) == {("tls", "901a", ""): "bad", ("packet", "901a", "901a"): "good"}
    assert "expires in" in results["tls", "901a", ""].reason


async def test_stun_that_does_not_answer_is_bad_and_a_relay_without_it_is_not_asked() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        silent = node_of(server, 901, "a", stun_port=1)
        results = await run(map_of(silent, node_of(server, 902, "b")))
    assert results["stun", "901a", ""].outcome is Outcome.BAD
    assert "UDP port 1" in results["stun", "901a", ""].reason
    assert ("stun", "902b", "") not in results


async def test_a_name_without_ipv6_is_no_fault_but_one_without_any_address_is() -> None:
    async with open_relay_here(tls=False) as server:
        nameless = {"host_name": "no.such.name.invalid", "ipv6": ""}
        asked = map_of(node_of(server, 901, **nameless), node_of(server, 902, ipv4="", stun_only=True, **nameless))
        results = await probe_map(asked, QUICK)
    by_family = {(one.node, one.family): one for one in results if one.kind is ProbeKind.STUN}
    assert {name: one.outcome.value for name, one in by_family.items()} == {
        ("901a", 4): "good",
        ("901a", 6): "skipped",
        ("902a", 4): "bad",
        ("902a", 6): "bad",
    }
    assert "has no IPv6 address" in by_family["901a", 6].reason
    assert "does not resolve" in by_family["902a", 4].reason


async def test_a_relay_that_is_down_is_bad_everywhere_and_others_are_not_held_up() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        results = await run(map_of(node_of(server, 901, derp_port=1), node_of(server, 902)))
    assert results["tls", "901a", ""].outcome is Outcome.BAD
    assert "nothing listens" in results["packet", "901a", "901a"].reason
    assert results["bandwidth", "902a", "902a"].outcome is Outcome.GOOD


async def test_a_node_for_stun_only_gets_no_packets() -> None:
    async with open_relay_here() as server:
        results = await run(map_of(node_of(server, 901, stun_only=True)))
    assert outcomes(results) == {("stun", "901a", ""): "good"}


async def test_pairs_with_a_node_that_is_down_are_not_tried() -> None:
    async with open_relay_here(stun_enabled=False) as server:
        nodes = node_of(server, 901, "a"), node_of(server, 901, "b", derp_port=1), node_of(server, 901, "c")
        results = await run(map_of(*nodes))
    packets = {(node, to): one for (kind, node, to), one in results.items() if kind == "packet"}
    assert len(packets) == 9
    assert packets.pop(("901b", "901b")).outcome is Outcome.BAD
    for (node, to), one in packets.items():
        if "901b" in (node, to):
            assert one.outcome is Outcome.SKIPPED
            assert "901b alone must be good first" in one.reason
        else:  # here both are one relay
            assert one.outcome is Outcome.GOOD


@pytest.mark.parametrize("family", [4, 6])
async def test_a_node_of_one_address_family(family: int) -> None:
    host = {4: HOST, 6: "::1"}[family]
    tls = TlsConfig(self_signed=True, hostname=host)
    async with open_relay_here(tls=tls, listen=((host, 0),)) as server:
        addresses = {"ipv4": "none", "ipv6": "none"} | {f"ipv{family}": host}
        results = await run(map_of(node_of(server, 901, host_name=host, **addresses)))
    assert set(outcomes(results).values()) == {"good"}
    assert results["stun", "901a", ""].family == family


async def test_the_mesh_key_passes_admission() -> None:
    mesh_key = MeshKey(b"\x5f" * 32)
    own = NodePrivate.generate()
    async with open_relay_here(stun_enabled=False, allow_keys=frozenset(), mesh_key=mesh_key) as server:
        asked = map_of(node_of(server, 901, "a"), node_of(server, 901, "b"))
        strangers = await run(asked)
        wrong = await run(asked, replace(QUICK, mesh_key=MeshKey(b"\x60" * 32)))
        members = await run(asked, replace(QUICK, mesh_key=mesh_key))
        with_a_key = await run(asked, replace(QUICK, mesh_key=mesh_key, keys=[own]))
    for refused in (strangers, wrong):
        assert refused["packet", "901a", "901a"].outcome is Outcome.BAD
        assert "does not admit" in refused["packet", "901a", "901a"].reason
    for admitted in (members, with_a_key):
        assert set(outcomes(admitted).values()) == {"good"}
        assert ("bandwidth", "901b", "901a") in admitted


@pytest.mark.parametrize(
    "changes", [{"force_http": True}, {"insecure_for_tests": True}], ids=lambda one: next(iter(one))
)
async def test_the_mesh_key_goes_nowhere_without_verified_tls(changes: dict[str, Any]) -> None:
    mesh_key = MeshKey(b"\x5f" * 32)
    async with open_relay_here(tls="force_http" not in changes, stun_enabled=False, mesh_key=mesh_key) as server:
        asked = map_of(node_of(server, 901, **changes))
        results = await run(asked, replace(QUICK, mesh_key=mesh_key))
        before = server.statistics().counters.packets_received
        assert outcomes(await run(asked))["packet", "901a", "901a"] == "good"
    assert results["packet", "901a", "901a"].outcome is Outcome.SKIPPED
    assert "verified TLS" in results["packet", "901a", "901a"].reason
    assert before == 0


async def test_a_map_of_a_thousand_regions_is_tried_a_few_at_a_time() -> None:
    at_once = most = 0

    async def turn_away(stream: trio.SocketStream) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked()  # all that are tried at a time have come
            await stream.send_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            await stream.receive_some()
        await stream.aclose()
        at_once -= 1

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, turn_away, 0, host=HOST))
        port = listener.socket.getsockname()[1]
        settings: dict[str, Any] = {"host_name": HOST, "ipv4": HOST, "ipv6": "none", "stun_port": -1, "derp_port": port}
        nodes = [DERPNode(f"{number}a", number, force_http=True, **settings) for number in range(1, 1001)]
        large = await run(map_of(*nodes))
        # TLS of all nodes of one region is tried at once, up to the same bound.
        nodes = [DERPNode(f"1n{number}", 1, **settings) for number in range(30)]
        wide = await run(map_of(*nodes))
        nursery.cancel_scope.cancel()
    assert len(large) == 1000
    assert sum(kind == "tls" for kind, _, _ in wide) == 30
    assert {one.outcome for one in (*large.values(), *wide.values())} == {Outcome.BAD, Outcome.SKIPPED}
    assert most == 8


def test_good_is_something_good_and_nothing_bad() -> None:
    good, bad, skipped = (ProbeResult(ProbeKind.TLS, 1, "x", "1a", outcome) for outcome in Outcome)
    assert is_good([good, skipped])
    assert not is_good([good, bad])
    assert not is_good([skipped])
    assert not is_good([])
