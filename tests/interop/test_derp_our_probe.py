"""Our prober finds nothing wrong with a genuine derper, nor with a relay of ours started by the same command line."""

import pytest
import trio

from derp.client.dial import DialOptions
from derp.client.probe import Outcome, ProbeKind, ProbeOptions, probe_map
from derp.map import DERPMap, DERPNode, DERPRegion
from tests.support.peers import PATIENCE_SECONDS
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import open_relay

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("kind", ["genuine", "ours"])
async def test_every_probe_is_good(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True, stun=True) as relay:
        node = DERPNode(
            name="901a",
            region_id=901,
            host_name=HOST,
            cert_name=relay.pin,
            ipv4=HOST,
            ipv6="none",
            stun_port=relay.stun_port,
            derp_port=relay.port,
        )
        derp_map = DERPMap({901: DERPRegion(901, "test", "Test", nodes=(node,))})
        # 64 packets of 64 KiB: twice what the genuine relay would queue, so the window is put to the test.
        options = ProbeOptions(bandwidth_bytes=64 * 65_536, delay_packets=5, dial=DialOptions(environment=None))
        with trio.fail_after(PATIENCE_SECONDS):
            results = await probe_map(derp_map, options)
    assert [result.kind for result in results] == list(ProbeKind)
    assert [result.reason for result in results if result.outcome is not Outcome.GOOD] == []
