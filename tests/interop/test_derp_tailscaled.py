"""`-verify-clients` with a genuine tailscaled: our relay and the genuine one, on the same socket, say the same."""

import http.client

import pytest
import trio

from derp.keys import NodePrivate
from tests.support.peers import PATIENCE_SECONDS, PeerError, Peers, open_peers
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay
from tests.support.tailnets import Tailnet, open_tailnet


def flags(tailnet: Tailnet) -> tuple[str, ...]:
    return ("-verify-clients", f"-socket={tailnet.socket}")


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
        open_peers() as peers,
        open_relay("ours", extra=flags(tailnet)) as ours,
        open_relay("genuine", extra=flags(tailnet)) as genuine,
    ):

        async def verdict(private: NodePrivate) -> bool:
            said = [await admits(peers, relay, private) for relay in (ours, genuine)]
            assert said[0] == said[1], said
            return said[0]

        assert not await verdict(stranger)  # not logged in: it knows nobody
        assert "is not logged in, so it knows nobody: run `tailscale up`" in ours.output()
        await tailnet.up()
        await tailnet.add(member.public().raw)
        await tailnet.add(gone.public().raw)
        await tailnet.remove(gone.public().raw)
        assert await verdict(member)
        assert not await verdict(gone)
        assert not await verdict(NodePrivate.generate())
        assert f"is not admitted: the tailscaled at {tailnet.socket} does not know it" in ours.output()
        await tailnet.down()
        await tailnet.stop()
        assert not await verdict(late)
        assert f"tailscaled: {tailnet.socket} cannot be reached: " in ours.output()
        for relay in (ours, genuine):
            assert await check(relay) == 500


@pytest.mark.parametrize("kind", ["ours", "genuine"])
async def test_who_is_inside_stays_when_it_leaves_the_tailnet(kind: RelayKind) -> None:
    one, other = NodePrivate.generate(), NodePrivate.generate()
    async with open_tailnet() as tailnet, open_peers() as peers:
        await tailnet.up()
        for private in (one, other):
            await tailnet.add(private.public().raw)
        async with open_relay(kind, extra=flags(tailnet)) as relay:
            assert await check(relay) == 200  # the genuine one asks about tailscaled's own key for it
            a = await peers.connect("a", relay.url, private_key=one.raw)
            b = await peers.connect("b", relay.url, private_key=other.raw)
            await tailnet.remove(one.public().raw)
            await a.send(b.key, b"still here")
            assert await b.receive_packet() == (a.key, b"still here")
