"""What the relay says to users: each sentence as the genuine client library hears it, and in a genuine tailscaled's own
list of health problems, from where it goes again.
"""

import json
from pathlib import Path

import pytest
import trio

from derp.keys import NodePrivate
from tests.interop.test_derp_tailnet import CODE, map_of, trusting
from tests.support.peers import PATIENCE_SECONDS, Peer, open_peers
from tests.support.regions import open_region
from tests.support.relays import open_relay
from tests.support.tailnets import open_tailnet

pytestmark = pytest.mark.interop


async def hears(peer: Peer, *words: str) -> None:
    """The next text a client is told, be it after packets."""
    with trio.fail_after(PATIENCE_SECONDS):
        event = await peer.receive("health")
    problem = str(event["problem"])
    assert all(word in problem for word in words), problem
    assert bool(problem) == bool(words), problem


async def test_two_machines_with_one_key() -> None:
    private = NodePrivate.generate()
    async with open_relay("ours") as relay, open_peers() as peers:
        one = await peers.connect("one", relay.url, private_key=private.raw)
        other = await peers.connect("other", relay.url, private_key=private.raw)
        for peer in (one, other):
            await hears(peer, "this machine's key is in use by another connection too, from 127.0.0.1")
        await other.close()
        await hears(one)


async def test_a_rate_limit_and_packets_to_nobody(tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"PerClientRateLimitBytesPerSec": 100_000, "PerClientRateBurstBytes": 1000}))
    async with open_relay("ours", extra=(f"--rate-config={limits}",)) as relay, open_peers() as peers:
        one, other = [await peers.connect(name, relay.url) for name in ("one", "other")]
        for _ in range(6):
            await one.send(other.key, bytes(60_000))
        await hears(one, "lets this machine send 100,000 bytes a second")
        await hears(one)
        for _ in range(20):
            await other.send(NodePrivate.generate().public().raw, b"lost")
        gone = NodePrivate.generate().public().raw
        for _ in range(20):
            await other.send(gone, b"lost")
        await hears(other, "are lost: nobody with that key is connected here")
        await hears(other)
        await other.send(gone, b"TS\xf0\x9f\x92\xac" + bytes(56))  # is answered as ever
        with trio.fail_after(PATIENCE_SECONDS):
            await other.receive("peer_gone")


async def test_who_is_not_admitted_is_told_so_and_does_not_come_back_at_once() -> None:
    """The genuine library takes any frame for a sign of life: closed at once it would be back within 10 ms."""
    private, friend = NodePrivate.generate(), NodePrivate.generate()
    async with open_relay("ours", extra=(f"--allow-keys={friend.public()}",)) as relay, open_peers() as peers:
        stranger = await peers.connect("stranger", relay.url, private_key=private.raw, reconnect=True)
        began = trio.current_time()
        for _ in range(2):
            await hears(stranger, "does not admit this machine's key")
        assert trio.current_time() - began > 4


async def test_a_stock_node_shows_it_and_forgets_it() -> None:
    """One of two relays of a region is away: who is at home at the other reads that, until it is back."""
    async with (
        open_region("ours", "ours") as region,
        open_tailnet() as tailnet,
        tailnet.open_node(trusting(region)) as node,
    ):
        await tailnet.set_map(map_of(region))
        await tailnet.up(node)
        await node.wait_status(lambda status: bool(status["Self"]["Relay"] == CODE))
        await region.stop(1)
        began = trio.current_time()
        words = "this relay is cut off from localhost"
        status = await node.wait_status(lambda status: any(words in text for text in status["Health"] or ()))
        print(f"shown {trio.current_time() - began:.1f} s after the other relay ended: {status['Health']}")
        await region.start(1, "ours")
        began = trio.current_time()
        await node.wait_status(lambda status: not any(words in text for text in status["Health"] or ()))
        print(f"gone {trio.current_time() - began:.1f} s after it was back")
