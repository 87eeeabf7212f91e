"""Probes against relays in this process: all good, and each thing that can be wrong, called by its name."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.client import passage, probe
from derp.client.dial import DialOptions
from derp.client.probe import Outcome, ProbeKind, ProbeOptions, ProbeResult, probe_map
from derp.config.relay import MeshPeer, TlsConfig
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPMap
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
    assert "--mesh-with" in crossing["901b"].reason
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


async def test_a_name_without_ipv6_is_no_fault() -> None:
    async with open_relay_here(tls=False) as server:
        asked = map_of(node_of(server, 901, host_name="no.such.name.invalid", ipv6=""))
        results = await probe_map(asked, QUICK)
    by_family = {one.family: one.outcome for one in results if one.kind is ProbeKind.STUN}
    assert by_family == {4: Outcome.GOOD, 6: Outcome.SKIPPED}


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
