"""Our client through a relay, the genuine derper and ours, with the genuine Go client at the other end."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import pytest
import trio

from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import Carrier, DialOptions
from derp.errors import ConnectError, ConnectionClosed
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPNode, DERPRegion
from derp.protocol.frames import PeerGoneReason, PeerPresentFlags
from derp.protocol.messages import PeerGone, PeerPresent, RecvPacket, ServerInfo
from tests.support.peers import PATIENCE_SECONDS, Peers, open_peers
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay

pytestmark = pytest.mark.interop

Way = Literal["plain", "region", "rooted", "websocket", "wss"]
WAYS: tuple[Way, ...] = ("plain", "region", "rooted", "websocket", "wss")
CARRIER_OF: dict[Way, Carrier] = {
    "plain": Carrier.DERP,
    "region": Carrier.DERP_FAST_START,
    "rooted": Carrier.DERP_FAST_START,
    "websocket": Carrier.WEBSOCKET,
    "wss": Carrier.WEBSOCKET,
}
MESH_KEY = "5f" * 32
WINDOW = 24  # the genuine relay queues 32 packets for a client and drops the rest
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)


@pytest.fixture(params=["genuine", "ours"])
def kind(request: pytest.FixtureRequest) -> RelayKind:
    chosen: RelayKind = request.param
    return chosen


def region(relay: Relay, cert_name: str) -> DERPRegion:
    node = DERPNode(
        name="900a", region_id=900, host_name=HOST, ipv4=HOST, ipv6="none", derp_port=relay.port, cert_name=cert_name
    )
    return DERPRegion(region_id=900, region_code="test", nodes=(node,))


def connect(
    relay: Relay, way: Way, private: NodePrivate | None = None, mesh_key: MeshKey | None = None
) -> AbstractAsyncContextManager[DerpClient]:
    """Our client, connected in this way."""
    context = ssl.create_default_context(cafile=relay.certificate) if way in ("rooted", "wss") else None
    options = DialOptions(context=context, environment=None)
    websocket = way in ("websocket", "wss")
    target = region(relay, relay.pin) if way == "region" else relay.websocket_url if websocket else relay.url
    return open_derp_client(target, private or NodePrivate.generate(), mesh_key=mesh_key, options=options)


@asynccontextmanager
async def relay_and_peers(kind: RelayKind, way: Way = "plain") -> AsyncIterator[tuple[Relay, Peers, str]]:
    """A relay, the genuine client program, and the URL it connects to."""
    tls = way in ("region", "rooted", "wss")
    async with open_relay(kind, tls=tls, mesh_key=MESH_KEY) as relay, open_peers(trusted=relay.certificate) as peers:
        yield relay, peers, relay.url


async def next_of(client: DerpClient, *kinds: type) -> object:
    """The next message of these kinds; ServerInfo is passed over."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            message = await client.receive()
            if isinstance(message, kinds) or not isinstance(message, ServerInfo):
                assert isinstance(message, kinds), message
                return message


async def next_packet(client: DerpClient) -> tuple[bytes, bytes]:
    message = await next_of(client, RecvPacket)
    assert isinstance(message, RecvPacket)
    return bytes(message.src), bytes(message.packet)


@pytest.mark.parametrize("way", WAYS)
async def test_packets_of_every_size_both_ways(kind: RelayKind, way: Way) -> None:
    private = NodePrivate.generate()
    mine = private.public().raw
    async with relay_and_peers(kind, way) as (relay, peers, url):
        genuine = await peers.connect("genuine", url)
        async with connect(relay, way, private) as client:
            assert client.carrier is CARRIER_OF[way]
            assert client.server_key.hex() == genuine.hello["server_key"]
            # Unlike the genuine client, ours cuts its websocket messages: the largest packet passes any relay.
            for size in (0, 1, 1280, 65536):
                packet = bytes((5 * i + size) % 251 for i in range(size))
                await client.send(genuine.key, packet)
                assert await genuine.receive_packet() == (mine, packet)
                await genuine.send(mine, packet)
                assert await next_packet(client) == (genuine.key, packet)


@pytest.mark.parametrize("way", WAYS)
async def test_bursts_arrive_whole_and_in_order(kind: RelayKind, way: Way) -> None:
    count, other = 5000, NodePrivate.generate()
    async with relay_and_peers(kind, way) as (relay, _, _), connect(relay, way) as a, connect(relay, way, other) as b:
        slots = trio.Semaphore(WINDOW)
        arrived: list[bytes] = []

        async def send() -> None:
            for number in range(count):
                await slots.acquire()
                await a.send(other.public().raw, numbered(number))

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while len(arrived) < count:
                    for message in await b.receive_batch():
                        if isinstance(message, RecvPacket):
                            arrived.append(bytes(message.packet))
                            slots.release()
        assert arrived == [numbered(number) for number in range(count)]


def numbered(number: int) -> bytes:
    return number.to_bytes(8, "big") * 160


async def test_genuine_bursts_reach_us_in_order(kind: RelayKind) -> None:
    private = NodePrivate.generate()
    async with relay_and_peers(kind) as (relay, peers, url), connect(relay, "plain", private) as client:
        genuine = await peers.connect("genuine", url)
        for first in range(0, 20 * WINDOW, WINDOW):
            batch = [numbered(number) for number in range(first, first + WINDOW)]
            for packet in batch:
                await genuine.send(private.public().raw, packet)
            assert [await next_packet(client) for _ in batch] == [(genuine.key, packet) for packet in batch]


@pytest.mark.parametrize("way", ["plain", "region", "websocket"])
async def test_ping(kind: RelayKind, way: Way) -> None:
    async with relay_and_peers(kind, way) as (relay, _, _), connect(relay, way) as client:
        assert await client.ping() > 0
        client.note_preferred(True)
        assert await client.ping() > 0


async def test_we_hear_that_a_peer_left(kind: RelayKind) -> None:
    private = NodePrivate.generate()
    async with relay_and_peers(kind) as (relay, peers, url), connect(relay, "plain", private) as client:
        genuine = await peers.connect("genuine", url)
        await genuine.send(private.public().raw, b"hello")
        assert await next_packet(client) == (genuine.key, b"hello")
        await genuine.close()
        assert await next_of(client, PeerGone) == PeerGone(genuine.key, PeerGoneReason.DISCONNECTED)


async def test_we_hear_that_a_peer_is_not_here(kind: RelayKind) -> None:
    async with relay_and_peers(kind) as (relay, _, _), connect(relay, "plain") as client:
        await client.send(bytes(range(32)), DISCO)
        assert await next_of(client, PeerGone) == PeerGone(bytes(range(32)), PeerGoneReason.NOT_HERE)


async def test_a_genuine_peer_hears_that_we_left(kind: RelayKind) -> None:
    private = NodePrivate.generate()
    async with relay_and_peers(kind) as (relay, peers, url):
        genuine = await peers.connect("genuine", url)
        async with connect(relay, "plain", private) as client:
            await client.send(genuine.key, b"hello")
            assert await genuine.receive_packet() == (private.public().raw, b"hello")
        gone = await genuine.receive()
        assert (gone["event"], gone["key"], gone["reason"]) == ("peer_gone", private.public().raw.hex(), 0)


async def test_as_mesh_client_we_watch_forward_and_close(kind: RelayKind) -> None:
    mesh_key = MeshKey.parse(MESH_KEY)
    async with relay_and_peers(kind) as (relay, peers, url), connect(relay, "plain", mesh_key=mesh_key) as mesh:
        genuine = await peers.connect("genuine", url)
        mesh.watch_conns()
        present = [await next_of(mesh, PeerPresent) for _ in range(2)]
        flags = {bytes(p.key): p.flags for p in present if isinstance(p, PeerPresent)}
        assert flags[genuine.key] == PeerPresentFlags.REGULAR
        assert sorted(flags.values()) == [PeerPresentFlags.REGULAR, PeerPresentFlags.MESH_PEER]
        elsewhere = bytes(range(32))
        await mesh.forward(elsewhere, genuine.key, b"from another relay")
        assert await genuine.receive_packet() == (elsewhere, b"from another relay")
        await mesh.close_peer(genuine.key)
        assert (await genuine.receive())["event"] == "closed"
        assert await next_of(mesh, PeerGone) == PeerGone(genuine.key, PeerGoneReason.DISCONNECTED)


async def test_being_closed_by_the_relay_is_an_error(kind: RelayKind) -> None:
    private = NodePrivate.generate()
    async with relay_and_peers(kind) as (relay, peers, url), connect(relay, "plain", private) as client:
        genuine = await peers.connect("genuine", url, mesh_key=MESH_KEY)
        await genuine.close_peer(private.public().raw)
        with pytest.raises(ConnectionClosed):
            await next_of(client, PeerGone)


async def test_a_wrong_pin_is_refused(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True) as relay:
        with pytest.raises(ConnectError, match="certificate"):
            async with open_derp_client(region(relay, f"sha256-raw:{'00' * 32}"), NodePrivate.generate()):
                pass
