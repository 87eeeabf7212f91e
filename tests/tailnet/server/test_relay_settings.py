"""Settings of the embedded relay, from the flag to what a client notices; each has its own way through the server."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from derp.client.client import DerpClient, Identity, open_derp_client, reach
from derp.client.dial import DialOptions
from derp.config import MeshPeer, TlsConfig
from derp.errors import ConnectError, DerpError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.messages import KeepAlive, RecvPacket
from tailnet.config import load_config
from tailnet.server.server import CoordinatorServer
from tests.derp.server.control_plane import NO, YES, open_control_plane
from tests.derp.server.mesh_world import MESH_KEY, NAMES, Node, authority, leaf
from tests.derp.server.tailscaled import open_tailscaled
from tests.support.certificates import client_context
from tests.support.tailnet_driver import open_connection, read_answer, wait_for

Serve = Callable[..., Awaitable[CoordinatorServer]]
ServeWith = Callable[..., Awaitable[CoordinatorServer]]
PATIENCE_SECONDS = 60.0  # a hang guard, never part of what is asserted


@pytest.fixture
def serve_with(serve: Serve) -> ServeWith:
    """A coordinator whose relay was told `flags`, as a command line tells it."""

    async def serve_with_flags(flags: dict[str, str], **changes: object) -> CoordinatorServer:
        config = load_config({f"relay_{name}": text for name, text in flags.items()}, {}, open_files=1 << 20)
        return await serve(relay=config.relay, **changes)

    return serve_with_flags


def url_of(server: CoordinatorServer) -> str:
    listening = server.listening[0]
    return f"{'https' if listening.kind.endswith('+tls') else 'http'}://{listening.host}:{listening.port}/derp"


async def comes_in(server: CoordinatorServer, private: NodePrivate) -> bool:
    """Whether the relay takes a client: it answers a ping, or ends the connection."""
    try:
        async with open_derp_client(url_of(server), private) as client:
            await client.ping()
    except DerpError:
        return False
    return True


async def next_packet(client: DerpClient) -> RecvPacket:
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            message = await client.receive()
            if isinstance(message, RecvPacket):
                return message


async def test_rates_of_single_keys(serve_with: ServeWith) -> None:
    slow, target = NodePrivate.generate(), NodePrivate.generate()
    server = await serve_with({"rate_keys": f"{slow.public()}=300000/70000", "open": "true"})
    assert server.relay is not None
    async with open_derp_client(url_of(server), slow) as sender, open_derp_client(url_of(server), target) as receiver:
        for private, client, other in ((target, receiver, slow), (slow, sender, target)):
            limited = server.relay.router.counters.rate_limited
            async with trio.open_nursery() as nursery:

                async def send(client: DerpClient = client, key: bytes = other.public().raw) -> None:
                    for _ in range(30):
                        await client.send(key, bytes(10_000))

                nursery.start_soon(send)
                for _ in range(30):
                    packet = await next_packet(sender if client is receiver else receiver)
                    assert packet == RecvPacket(private.public().raw, bytes(10_000))
            assert (server.relay.router.counters.rate_limited > limited) is (private is slow)


async def test_lists_of_keys(serve_with: ServeWith) -> None:
    friend, stranger, enemy = (NodePrivate.generate() for _ in range(3))
    server = await serve_with({"allow_keys": f"{friend.public()},{enemy.public()}", "deny_keys": str(enemy.public())})
    assert [await comes_in(server, each) for each in (friend, stranger, enemy)] == [True, False, False]


async def test_a_url_is_asked(serve_with: ServeWith) -> None:
    friend, stranger = NodePrivate.generate(), NodePrivate.generate()
    async with open_control_plane(
        lambda asked: YES if friend.public().raw.hex().encode() in asked.body else NO
    ) as plane:
        server = await serve_with({"verify_client_url": plane.url})
        assert [await comes_in(server, each) for each in (friend, stranger)] == [True, False]
        assert len(plane.requests) == 2


@pytest.mark.parametrize("fails_open", ["true", "false"])
async def test_a_url_that_does_not_answer(serve_with: ServeWith, fails_open: str) -> None:
    flags = {"verify_client_url": "http://127.0.0.1:1/", "verify_client_url_fail_open": fails_open}
    server = await serve_with(flags)
    assert await comes_in(server, NodePrivate.generate()) is (fails_open == "true")


async def test_the_tailscaled_of_this_machine_is_asked(serve_with: ServeWith, tmp_path: Path) -> None:
    friend, stranger = NodePrivate.generate(), NodePrivate.generate()
    async with open_tailscaled(tmp_path / "tailscaled.sock") as tailscaled:
        tailscaled.nodes.add(friend.public().raw)
        server = await serve_with({"verify_clients": "true", "socket": str(tailscaled.path)})
        assert [await comes_in(server, each) for each in (friend, stranger)] == [True, False]


async def test_keep_alives_come_as_often_as_is_set(serve_with: ServeWith) -> None:
    """By default the first one comes after a minute."""
    server = await serve_with({"keepalive": "1s"})
    reached = await reach(url_of(server), Identity(NodePrivate.generate()), DialOptions(), "", PATIENCE_SECONDS)
    heard: list[object] = []
    async with reached.dialled.stream as stream:
        with trio.fail_after(PATIENCE_SECONDS):
            while heard.count(KeepAlive()) < 2:
                heard += reached.core.receive_data(await stream.receive_some())


async def test_a_queue_is_as_deep_as_is_set(serve_with: ServeWith) -> None:
    server = await serve_with({"queue_depth": "7", "queue_bytes": "131072", "queue_total": "300000", "open": "true"})
    assert server.relay is not None
    slow = NodePrivate.generate()
    async with (
        open_derp_client(url_of(server), NodePrivate.generate()) as sender,
        open_derp_client(url_of(server), slow),
    ):
        router = server.relay.router
        await sender.ping()
        for _ in range(400):  # nobody reads them: what the kernels do not take waits here, and no more than is set
            await sender.send(slow.public().raw, bytes(60_000))
        await sender.ping()
        queues = [client.queue for client in router.clients.values() if client.queue is not None]
        assert queues
        assert all(queue.packets <= 7 and queue.held_bytes <= 131_072 for queue in queues)
        assert sum(router.counters.packets_dropped) > 0


async def test_names_for_clients_without_dns(serve_with: ServeWith) -> None:
    server = await serve_with({"bootstrap_dns_names": "localhost"})
    assert server.relay is not None
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            async with open_connection(server) as stream:
                await stream.send_all(b"GET /bootstrap-dns HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = await read_answer(stream)
            if re.search(rb'"localhost": \[\s+"', answer.body):
                break


async def test_a_certificate_of_our_own_making_is_pinned_in_the_map(serve: Serve) -> None:
    server = await serve(tls=TlsConfig(self_signed=True, hostname="127.0.0.1"))
    [node] = server.maps.current.map.regions[999].nodes
    assert node.cert_name.startswith("sha256-raw:")
    for pin, is_taken in ((node.cert_name, True), ("sha256-raw:" + "00" * 32, False)):
        options = DialOptions(cert_name=pin)
        try:
            async with open_derp_client(url_of(server), NodePrivate.generate(), options=options) as client:
                await client.ping()
        except ConnectError:
            assert not is_taken
        else:
            assert is_taken


# Mesh.


def write_mesh_key(folder: Path) -> dict[str, str]:
    path = folder / "mesh.key"
    path.write_text(f"{MESH_KEY.raw.hex()}\n")
    path.chmod(0o600)
    return {"mesh_psk_file": str(path)}


def certificate(folder: Path) -> TlsConfig:
    (folder / "leaf.crt").write_bytes(leaf().pem)
    (folder / "leaf.key").touch(mode=0o600)
    (folder / "leaf.key").write_bytes(leaf().key_pem)
    return TlsConfig(folder / "leaf.crt", folder / "leaf.key")


async def test_a_mesh_with_a_second_relay(
    serve_with: ServeWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """Packets go from a client of either relay to one of the other, over one link in each direction."""
    name, other_name = NAMES[:2]
    (tmp_path / "authority.pem").write_bytes(authority().pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    other = Node(other_name)
    await nursery.start(other.run)
    server = await serve_with(
        write_mesh_key(tmp_path) | {"mesh_with": f"{other_name}:{other.peer.port}/127.0.0.1"}, tls=certificate(tmp_path)
    )
    assert server.relay is not None
    router = server.relay.router
    other.join(MeshPeer(host=name, port=server.listening[0].port, dial_host="127.0.0.1"))
    context = client_context(authority())
    here, there = NodePrivate.generate(), NodePrivate.generate()
    options = DialOptions(context=context, dial_host="127.0.0.1")
    async with (
        open_derp_client(f"https://{name}:{server.listening[0].port}/derp", here, options=options) as one,
        open_derp_client(f"https://{other_name}:{other.peer.port}/derp", there, options=options) as two,
    ):
        await wait_for(lambda: there.public().raw in router.members and here.public().raw in other.router.members)
        await one.send(there.public().raw, b"to there")
        assert await next_packet(two) == RecvPacket(here.public().raw, b"to there")
        await two.send(here.public().raw, b"to here")
        assert await next_packet(one) == RecvPacket(there.public().raw, b"to here")
    await other.stop()


async def test_who_has_another_mesh_key_is_no_mesh_client(serve_with: ServeWith, tmp_path: Path) -> None:
    server = await serve_with(write_mesh_key(tmp_path))
    assert server.relay is not None
    for key, is_peer in ((MESH_KEY, True), (MeshKey(b"x" * 32), False)):
        try:
            async with open_derp_client(url_of(server), NodePrivate.generate(), mesh_key=key) as client:
                await client.ping()
                assert [one.is_mesh_peer for one in server.relay.router.clients.values()] == [is_peer]
        except ConnectError:
            assert not is_peer
        await wait_for(lambda: not server.relay.router.clients)
