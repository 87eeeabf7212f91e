"""The genuine Go client against a relay: ours, and the genuine derper, which must behave the same."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest

from tests.support.peers import Node, PeerError, Peers, open_peers
from tests.support.relay_command import HOST, RelayKind
from tests.support.relays import Relay, open_relay, printed_pin

pytestmark = pytest.mark.interop

Carrier = Literal["plain", "pinned", "rooted", "websocket", "wss"]
CARRIERS: tuple[Carrier, ...] = ("plain", "pinned", "rooted", "websocket", "wss")

# The genuine relay holds 32 packets a client and drops beyond; ours holds more, but the test is the same for both.
WINDOW = 24
MESH_KEY = "5f" * 32
# The genuine client writes a packet as websocket messages of whatever size its buffer gives, and genuine ends take
# no message above 32,768 bytes, so genuine ends cannot carry larger packets over websocket.
WEBSOCKET_BYTES = 32_000
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)  # the shortest packet that counts as disco


@pytest.fixture(params=["genuine", "ours"])
def kind(request: pytest.FixtureRequest) -> RelayKind:
    chosen: RelayKind = request.param
    return chosen


@asynccontextmanager
async def relay_and_peers(kind: RelayKind, carrier: Carrier) -> AsyncIterator[tuple[Peers, str | Node, Relay]]:
    """A relay, the client program, and what to give to connect()."""
    async with open_relay(kind, tls=carrier in ("pinned", "rooted", "wss"), mesh_key=MESH_KEY) as relay:
        websocket = carrier in ("websocket", "wss")
        # A pinned certificate must be enough: give the client no root that would also accept it.
        trusted = relay.certificate if carrier != "pinned" else None
        async with open_peers(websocket=websocket, trusted=trusted) as peers:
            where = relay.websocket_url if websocket else relay.node if carrier == "pinned" else relay.url
            yield peers, where, relay


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_packets_of_every_size_both_ways(kind: RelayKind, carrier: Carrier) -> None:
    async with relay_and_peers(kind, carrier) as (peers, where, _):
        a, b = await peers.connect("a", where), await peers.connect("b", where)
        for one, other in ((a, b), (b, a)):
            for size in (0, 1, 1280, WEBSOCKET_BYTES if carrier in ("websocket", "wss") else 65536):
                packet = bytes((7 * i + size) % 251 for i in range(size))
                await one.send(other.key, packet)
                assert await other.receive_packet() == (one.key, packet)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("count", "size"), [(10_000, 1280), (300, 65536)])
async def test_bursts_arrive_whole_and_in_order(kind: RelayKind, carrier: Carrier, count: int, size: int) -> None:
    if carrier in ("websocket", "wss"):
        size = min(size, WEBSOCKET_BYTES)
    async with relay_and_peers(kind, carrier) as (peers, where, _):
        a, b = await peers.connect("a", where), await peers.connect("b", where)
        result = await a.burst(b, count=count, size=size, window=WINDOW)
        del result["id"], result["ok"]
        assert result == {"sent": count, "received": count, "reordered": 0, "corrupt": 0}


async def test_the_first_message_is_server_info(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        a = await peers.connect("a", where)
        # Genuine probers refuse a relay that says anything else first; 0 means that no rate is imposed.
        assert a.hello["first"] == {"event": "server_info", "bytes_per_second": 0, "burst": 0}


async def test_meta_certificate_gives_the_fast_start(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "pinned") as (peers, where, relay):
        a = await peers.connect("a", where)
        assert a.hello["tls"] == "TLS 1.3"
        assert f"sha256-raw:{a.hello['cert_sha256']}" == relay.pin
        # With the key known from the certificate the client asks for no HTTP answer and never reads a ServerKey:
        # had the relay sent an answer, the client would have taken it for frames.
        assert a.hello["meta_key"] == a.hello["server_key"]
        await a.send(a.key, b"to myself")
        assert await a.receive_packet() == (a.key, b"to myself")


async def test_the_relay_prints_the_pin_for_the_map(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True) as relay:
        assert printed_pin(relay) == relay.pin


async def test_a_wrong_pin_is_refused_by_the_client(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "pinned") as (peers, _, relay):
        with pytest.raises(PeerError, match="cert hash does not match"):
            await peers.connect("a", Node(HOST, relay.port, cert_name=f"sha256-raw:{'00' * 32}"))


@pytest.mark.parametrize("carrier", ["plain", "pinned", "websocket"])
async def test_ping_is_answered(kind: RelayKind, carrier: Carrier) -> None:
    async with relay_and_peers(kind, carrier) as (peers, where, _):
        a = await peers.connect("a", where)
        await a.ping()
        await a.send_ping(b"12345678")
        assert (await a.receive())["payload"] == b"12345678".hex()


async def test_receivers_learn_that_a_sender_left(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        a, b, c = [await peers.connect(name, where) for name in "abc"]
        await a.send(b.key, b"from a")
        await b.receive_packet()
        await c.send(a.key, b"from c")
        await a.receive_packet()
        await a.close()
        gone = await b.receive()
        assert (gone["event"], gone["key"], gone["reason"]) == ("peer_gone", a.key.hex(), 0)
        # c only sent to a, so it is told nothing: its next message is the one sent after the notice went out.
        await b.send(c.key, b"after")
        assert await c.receive_packet() == (b.key, b"after")


async def test_disco_to_an_unknown_key_is_answered_with_not_here(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        a = await peers.connect("a", where)
        nobody = bytes(range(32))
        await a.send(nobody, b"not disco, so silently dropped")
        await a.send(nobody, DISCO)
        gone = await a.receive()
        assert (gone["event"], gone["key"], gone["reason"]) == ("peer_gone", nobody.hex(), 1)
        await a.send(a.key, b"still alive")
        assert await a.receive_packet() == (a.key, b"still alive")


async def test_the_newest_connection_of_a_key_receives(kind: RelayKind) -> None:
    private = bytes(range(1, 33))
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        sender = await peers.connect("sender", where)
        first = await peers.connect("first", where, private_key=private)
        second = await peers.connect("second", where, private_key=private)
        assert first.key == second.key
        await sender.send(first.key, b"to the newest")
        assert await second.receive_packet() == (sender.key, b"to the newest")
        # Whoever of the two speaks last is the one that gets the packets.
        await first.ping()
        await sender.send(first.key, b"to the last speaker")
        assert await first.receive_packet() == (sender.key, b"to the last speaker")
        # One leaves, one remains.  Speaking makes it the active one, whenever the relay notices that the other left.
        await first.close()
        await second.ping()
        await sender.send(second.key, b"to the one that is left")
        assert await second.receive_packet() == (sender.key, b"to the one that is left")


async def test_note_preferred_keeps_the_connection(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        a = await peers.connect("a", where)
        for preferred in (True, False, True):
            await a.note_preferred(preferred)
        await a.ping()


async def test_a_reconnecting_client_comes_back(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        watcher = await peers.connect("watcher", where, mesh_key=MESH_KEY)
        a = await peers.connect("a", where, reconnect=True)
        await watcher.close_peer(a.key)
        assert (await a.receive("closed"))["error"]
        info = await a.receive("server_info")
        assert info["generation"] == 2
        await watcher.send(a.key, b"welcome back")
        assert await a.receive_packet() == (watcher.key, b"welcome back")


async def test_watchers_see_who_comes_and_goes(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        before = await peers.connect("before", where)
        watcher = await peers.connect("watcher", where, mesh_key=MESH_KEY, watch=True)
        present = {}
        for _ in range(2):
            event = await watcher.receive()
            present[event["key"]] = (event["event"], event["address"], event["flags"])
        assert present == {
            before.key.hex(): ("peer_present", before.hello["local"], 1),
            watcher.key.hex(): ("peer_present", watcher.hello["local"], 2),
        }
        prober = await peers.connect("prober", where, prober=True)
        event = await watcher.receive()
        assert (event["event"], event["key"], event["flags"]) == ("peer_present", prober.key.hex(), 4)
        await prober.close()
        event = await watcher.receive()
        assert (event["event"], event["key"], event["reason"]) == ("peer_gone", prober.key.hex(), 0)


async def test_a_mesh_client_forwards_and_closes(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        mesh = await peers.connect("mesh", where, mesh_key=MESH_KEY)
        a = await peers.connect("a", where)
        elsewhere = bytes(range(32))
        await mesh.forward(elsewhere, a.key, b"from another relay")
        assert await a.receive_packet() == (elsewhere, b"from another relay")
        await mesh.close_peer(a.key)
        assert (await a.receive())["event"] == "closed"


@pytest.mark.parametrize("mesh_key", ["", "00" * 32])
async def test_mesh_requests_without_the_key_end_the_connection(kind: RelayKind, mesh_key: str) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        victim = await peers.connect("victim", where)
        closer = await peers.connect("closer", where, mesh_key=mesh_key)
        await closer.close_peer(victim.key)
        assert (await closer.receive())["event"] == "closed"
        forger = await peers.connect("forger", where, mesh_key=mesh_key)
        await forger.forward(bytes(32), victim.key, b"forged")
        assert (await forger.receive())["event"] == "closed"
        await victim.send(victim.key, b"alone")
        assert await victim.receive_packet() == (victim.key, b"alone")


async def test_one_relay_serves_every_carrier_at_once(kind: RelayKind) -> None:
    async with open_relay(kind, tls=True) as relay, open_peers() as over_tls:
        a = await over_tls.connect("a", relay.node)
        async with open_peers(websocket=True, trusted=relay.certificate) as over_websocket:
            b = await over_websocket.connect("b", relay.websocket_url)
            # Larger than genuine ends can carry over websocket; ours cuts its messages and takes larger ones.
            size = WEBSOCKET_BYTES if kind == "genuine" else 65536
            for one, other in ((a, b), (b, a)):
                packet = bytes(i % 241 for i in range(size))
                await one.send(other.key, packet)
                assert await other.receive_packet() == (one.key, packet)


async def test_a_slow_reader_holds_up_nobody_else(kind: RelayKind) -> None:
    async with relay_and_peers(kind, "plain") as (peers, where, _):
        slow, a, b = [await peers.connect(name, where) for name in ("slow", "a", "b")]
        await slow.pause(True)
        for _ in range(200):  # 12.8 MB: far above what the kernel and any relay's queue hold for one client
            await a.send(slow.key, bytes(65536))
        result = await a.burst(b, count=500, size=1280, window=WINDOW)
        assert (result["received"], result["corrupt"]) == (500, 0)
        await slow.pause(False)


async def test_keep_alives_reach_a_silent_client() -> None:
    # Ours only: derper's 60 s cannot be changed.  One second, and up to five more that spread the clients.
    async with open_relay("ours", extra=("--keepalive=1s",)) as relay, open_peers() as peers:
        a = await peers.connect("a", relay.url)
        assert (await a.receive("keep_alive"))["event"] == "keep_alive"
        await a.ping()
