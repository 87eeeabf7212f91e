"""The genuine derpprobe finds nothing wrong with a relay: TLS, STUN, and packets between two of its clients."""

import dataclasses
import json
import os
import subprocess

import pytest
import trio

from tests.support.gobuild import DERPPROBE
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay

pytestmark = pytest.mark.interop

# derpprobe compares the TLS server name with the node's HostName, which therefore cannot be an address.
NAME = "localhost"


def derp_map(relay: Relay) -> dict[str, object]:
    node = {
        "Name": "900a",
        "RegionID": 900,
        "HostName": NAME,
        "IPv4": HOST,
        "DERPPort": relay.port,
        "STUNPort": relay.stun_port,
    }
    return {"Regions": {"900": {"RegionID": 900, "RegionCode": "test", "RegionName": "Test", "Nodes": [node]}}}


async def probe(relay: Relay, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    path = relay.folder / "map.json"
    path.write_text(json.dumps(derp_map(relay)))
    command = [str(require(DERPPROBE)), "-once", "-spread=false", f"-derp-map=file://{path}", *arguments]
    environment = os.environ | {"SSL_CERT_FILE": str(relay.certificate)}
    with trio.fail_after(PATIENCE_SECONDS):
        return await trio.run_process(
            command, env=environment, check=False, capture_stderr=True, stdin=subprocess.DEVNULL
        )


@pytest.mark.parametrize("kind", ["genuine", "ours"])
async def test_every_probe_is_good(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True, hostname=NAME, stun=True) as relay:
        done = await probe(relay, "-bw-interval=1s", "-bw-probe-size-bytes=2000000")
        said = done.stderr.decode()
        assert done.returncode == 0, said
        good = {line.partition("good: ")[2].rsplit(":", 1)[0] for line in said.splitlines() if "good: " in line}
        assert good == {
            "derpmap-probe",
            "derp/test/900a/tls",
            "derp/test/900a/udp",
            "derp/test/900a/900a/mesh",
            "derp/test/900a/900a/bw",
        }


async def test_the_prober_sees_what_is_missing() -> None:
    async with open_relay("genuine", tls=True, hostname=NAME, stun=True) as relay:
        untrusted = dataclasses.replace(relay, certificate=relay.folder / "missing.pem")
        done = await probe(untrusted)
        assert done.returncode == 1
        assert b"bad: derp/test/900a/tls" in done.stderr
