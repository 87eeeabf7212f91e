"""`-verify-clients` with a genuine tailscaled: our relay and the genuine one, on the same socket, say the same."""

import http.client

import pytest
import trio

from derp.keys import NodePrivate
from tests.support.peers import PATIENCE_SECONDS, PeerError, Peers, open_peers
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay
from tests.support.tailnets import open_tailnet
from tests.support.tailscaled import Tailscaled


def flags(node: Tailscaled) -> tuple[str, ...]:
    return ("-verify-clients", f"-socket={node.socket}")


async def admits(peers: Peers, relay: Relay, private: NodePrivate) -> bool:
    """Whether a genuine client with this key gets its ServerInfo."""
    try:
        peer = await peers.connect(f"{relay.kind} {private.public()}", relay.url, private_key=private.raw)
    except PeerError:
        return False
    assert peer.key == private.public().raw
    await peer.close()
    return True


async def check(relay: Relay) -> int:
    """The status of /debug/check."""

    def fetch() -> int:
        connection = http.client.HTTPConnection(HOST, relay.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", "/debug/check")
        status = connection.getresponse().status
        connection.close()
        return status

    return await trio.to_thread.run_sync(fetch)


async def test_the_same_verdicts_as_the_genuine_relay() -> None:
    member, gone, late, stranger = (NodePrivate.generate() for _ in range(4))
    async with (
        open_tailnet() as tailnet,
        tailnet.open_node() as node,
        open_peers() as peers,
        open_relay("ours", extra=flags(node)) as ours,
        open_relay("genuine", extra=flags(node)) as genuine,
    ):

        async def verdict(private: NodePrivate) -> bool:
            said = [await admits(peers, relay, private) for relay in (ours, genuine)]
            assert said[0] == said[1], said
            return said[0]

        assert not await verdict(stranger)  # not logged in: it knows nobody
        await ours.says("is not logged in, so it knows nobody: run `tailscale up`")
        await tailnet.up(node)
        await tailnet.add(node, member.public().raw)
        await tailnet.add(node, gone.public().raw)
        await tailnet.remove(node, gone.public().raw)
        assert await verdict(member)
        assert not await verdict(gone)
        assert not await verdict(NodePrivate.generate())
        await ours.says(f"is not admitted: the tailscaled at {node.socket} does not know it")
        await tailnet.down(node)
        await node.stop()
        assert not await verdict(late)
        await ours.says(f"tailscaled: {node.socket} cannot be reached: ")
        for relay in (ours, genuine):
            assert await check(relay) == 500


@pytest.mark.parametrize("kind", ["ours", "genuine"])
async def test_who_is_inside_stays_when_it_leaves_the_tailnet(kind: RelayKind) -> None:
    one, other = NodePrivate.generate(), NodePrivate.generate()
    async with open_tailnet() as tailnet, tailnet.open_node() as node, open_peers() as peers:
        await tailnet.up(node)
        for private in (one, other):
            await tailnet.add(node, private.public().raw)
        async with open_relay(kind, extra=flags(node)) as relay:
            assert await check(relay) == 200  # the genuine one asks about tailscaled's own key for it
            a = await peers.connect("a", relay.url, private_key=one.raw)
            b = await peers.connect("b", relay.url, private_key=other.raw)
            await tailnet.remove(node, one.public().raw)
            await a.send(b.key, b"still here")
            assert await b.receive_packet() == (a.key, b"still here")
