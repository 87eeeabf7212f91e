"""The relay over QUIC, on real sockets: packets, refusals, moves, ends, and strangers."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from derp.client.client import DerpClient, Identity, open_derp_client, reach
from derp.client.dial import Carrier, DialOptions
from derp.client.quic import dial_quic
from derp.close_reason import CloseReason
from derp.config import TlsConfig
from derp.errors import ConnectError, TransportError
from derp.keys import NodePrivate
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.messages import Health, RecvPacket
from derp.protocol.stun import encode_request
from derp.relay.limits import Rate
from derp.server.server import RelayServer
from derp.transport.quic import dial
from derp.transport.quic_wire import MAX_HALF_OPEN_PER_ADDRESS, Drop, QuicEndpoint
from derp.transport.tcp import TcpTarget
from derp.transport.tls_client import TlsTrust
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    call,
    closed,
    config_for,
    open_server,
    port_of,
    relay_config,
)
from tests.support.quic import CLIENT, NAME, open_nat

OPTIONS = DialOptions(insecure_for_tests=True, only_quic=True, environment=None)


@asynccontextmanager
async def open_quic_client(server: RelayServer, port: int = 0) -> AsyncIterator[tuple[DerpClient, bytes]]:
    private = NodePrivate.generate()
    url = f"https://{HOST}:{port or port_of(server)}"
    async with open_derp_client(url, private, options=OPTIONS, timeout_seconds=PATIENCE_SECONDS) as client:
        yield client, private.public().raw


def endpoint_of(server: RelayServer) -> QuicEndpoint:
    assert server.ports.quic is not None
    return server.ports.quic.endpoints[0]


async def receive(client: DerpClient) -> RecvPacket:
    with trio.fail_after(PATIENCE_SECONDS):
        while not isinstance(message := await client.receive(), RecvPacket):
            pass
    return message


async def until(client: DerpClient, is_so: Callable[[], object]) -> None:
    """A condition that the relay's work fulfils; it works while it is pinged."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not is_so():
            await client.ping()


async def cut_off(client: DerpClient) -> None:
    """Receive until the connection has ended, in whatever way."""
    with suppress(TransportError), trio.fail_after(PATIENCE_SECONDS):
        while True:
            await client.receive()


@asynccontextmanager
async def two_clients(server: RelayServer) -> AsyncIterator[tuple[DerpClient, bytes, DerpClient, bytes]]:
    async with open_quic_client(server) as (one, its_key), open_quic_client(server) as (other, key_of_other):
        yield one, its_key, other, key_of_other


@pytest.mark.parametrize("size", [1, 1312, 1319, 1320, 65_536])
async def test_packets_of_every_size_come_through(size: int) -> None:
    async with open_server(config_for("quic")) as server, two_clients(server) as (a, one, b, other):
        packet = os.urandom(size)
        await a.send(other, packet)
        assert await receive(b) == RecvPacket(one, packet)
        assert (a.carrier, a.tls_version) == (Carrier.QUIC, "TLSv1.3")
        assert await a.ping() > 0.0


async def test_carriers_reach_each_other() -> None:
    async with open_server(config_for("quic")) as server:
        over_tcp = await call(server)
        async with open_quic_client(server) as (client, key):
            await over_tcp.send(key, b"to QUIC")
            assert await receive(client) == RecvPacket(over_tcp.key, b"to QUIC")
            await client.send(over_tcp.key, b"to TCP")
            assert await over_tcp.receive() == RecvPacket(key, b"to TCP")
        await over_tcp.aclose()


async def test_a_client_behind_a_nat_that_forgot_it_keeps_its_session() -> None:
    async with (
        open_server(config_for("quic")) as server,
        open_nat((HOST, port_of(server))) as nat,
        open_quic_client(server, nat.port) as (client, key),
        open_quic_client(server) as (peer, other),
    ):
        await client.send(other, b"before")
        assert (await receive(peer)).packet == b"before"
        assert (await client.observed_address(PATIENCE_SECONDS)) == (HOST, nat.ports[0])
        nat.forget()
        await client.send(other, b"after")
        assert (await receive(peer)).packet == b"after"
        await peer.send(key, b"found")
        assert (await receive(client)).packet == b"found"
        assert (await client.observed_address(PATIENCE_SECONDS)) == (HOST, nat.ports[1])
        assert len(nat.ports) == 2
        assert endpoint_of(server).moved_count == 1
        assert len(server.relay.router.clients) == 2


async def test_a_client_that_changes_its_socket_keeps_its_session() -> None:
    async with open_server(config_for("quic")) as server, two_clients(server) as (client, _, peer, other):
        before = await client.observed_address(PATIENCE_SECONDS)
        client._stream.change_socket()  # type: ignore[attr-defined]
        await client.send(other, b"from elsewhere")
        assert (await receive(peer)).packet == b"from elsewhere"
        assert await client.observed_address(PATIENCE_SECONDS) not in (before, None)


async def test_whoever_asks_for_its_address_when_the_connection_has_ended_hears_that() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, key):
        server.relay.host.close(server.relay.router.members[key].connections[0].wire, CloseReason.DRAINED)
        server.reactor.flush()
        with pytest.raises(TransportError):
            await client.observed_address(PATIENCE_SECONDS)


async def test_a_refused_client_hears_why() -> None:
    async with open_server(config_for("quic", allow_keys=frozenset())) as server:
        private = NodePrivate.generate()
        with pytest.raises(ConnectError, match="does not admit"):
            await reach(f"https://{HOST}:{port_of(server)}", Identity(private), OPTIONS, "", PATIENCE_SECONDS)


async def test_only_derp_is_served() -> None:
    async with open_server(config_for("quic")) as server:
        url = f"https://{HOST}:{port_of(server)}"
        with pytest.raises(ConnectError, match="404"):
            await reach(f"{url}/elsewhere", Identity(NodePrivate.generate()), OPTIONS, "", PATIENCE_SECONDS)
        assert server.ports.quic is not None
        assert server.statistics().requests_refused > 0


async def test_a_drain_sends_clients_away() -> None:
    async with open_server(config_for("quic")) as server:
        async with open_quic_client(server) as (client, _):
            await client.ping()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain)
                await cut_off(client)
            assert client.restarting is not None
        assert endpoint_of(server).sock.fileno() == -1


async def test_a_new_certificate_is_shown_to_newcomers(tmp_path: Path) -> None:
    files = {"cert_file": tmp_path / "crt", "key_file": tmp_path / "key"}
    tls = TlsConfig(hostname=HOST, self_signed=True, **files)
    async with open_server(relay_config(tls=tls, quic=True)) as server:
        assert server.tls is not None
        url, before = f"https://{HOST}:{port_of(server)}", server.tls.pin
        identity = Identity(NodePrivate.generate())
        options = DialOptions(cert_name=before, only_quic=True, environment=None)
        reached = await reach(url, identity, options, "", PATIENCE_SECONDS)
        other = TlsConfig(hostname=HOST, self_signed=True, cert_file=tmp_path / "c", key_file=tmp_path / "k")
        async with open_server(relay_config(tls=other)):  # which makes them
            for path in files.values():
                path.write_bytes((tmp_path / path.name[0]).read_bytes())
        server.ports.look_at_certificate()
        assert server.tls.pin != before
        with pytest.raises(ConnectError, match="not the pinned one"):
            await reach(url, identity, options, "", PATIENCE_SECONDS)
        await reached.dialled.stream.send_all(encode_frame(FrameType.PING, bytes(8)))
        assert (await reached.dialled.stream.receive_some()).startswith(bytes([FrameType.PONG]))
        await trio.aclose_forcefully(reached.dialled.stream)


async def test_a_held_back_client_loses_nothing_that_fits_and_goes_on() -> None:
    rate = Rate(bytes_per_second=200_000, burst_bytes=70_000)
    # A machine that stands still for a moment makes packets no older than a queue may hold them.
    config = config_for("quic", rate=rate, queue_delay_seconds=60.0)
    async with open_server(config) as server, two_clients(server) as (client, _, peer, other):
        for number in range(150):
            await client.send(other, number.to_bytes(2, "big") * 500)
        got = [int.from_bytes((await receive(peer)).packet[:2], "big") for _ in range(150)]
        assert got == list(range(150))
        assert server.relay.router.counters.rate_limited > 0


def stray(name: bytes) -> bytes:
    """A short packet for the connection of this name."""
    return b"\x40" + name + bytes(50)


async def test_a_port_tells_of_no_end_while_the_connection_lives_at_another() -> None:
    config = config_for("quic", listen=((HOST, 0), ("::1", 0)))
    async with open_server(config) as server, open_quic_client(server) as (client, _):
        assert server.ports.quic is not None
        first, second = server.ports.quic.endpoints
        name = next(iter(first._by_name))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            for each in (name, os.urandom(8)):
                sock.sendto(stray(each), second.sock.getsockname()[:2])
        await until(client, lambda: second.dropped[Drop.UNKNOWN] == 2)
        assert second.reset_count == 1


async def test_whoever_hands_over_tells_nobody_of_an_end_meanwhile() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, _):
        endpoint = endpoint_of(server)
        assert not await server.hand_over(["/does/not/exist"])
        throw(server, stray(os.urandom(8)))
        await until(client, lambda: endpoint.dropped[Drop.UNKNOWN] == 1)
        assert endpoint.reset_count == 0
        server.share_sockets(is_shared=False)
        throw(server, stray(os.urandom(8)))
        await until(client, lambda: endpoint.dropped[Drop.UNKNOWN] == 2)
        assert endpoint.reset_count == 1


async def test_quic_wants_what_it_needs() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_server(relay_config(quic=True)):
            pass
    assert "--quic needs a certificate" in str(caught.value.exceptions[0])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_server(relay_config(quic=True, tls=SELF_SIGNED, derp_enabled=False)):
            pass
    assert "--quic needs the relay" in str(caught.value.exceptions[0])


# --- strangers


def throw(server: RelayServer, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, (HOST, port_of(server)))


def first_datagram() -> bytes:
    (datagram, _), *_ = dial(CLIENT, NAME, 0.0).datagrams_to_send(0.0)
    return datagram


async def test_garbage_costs_nobody_anything() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, _):
        throw(server, b"", b"\0", b"\xff" * 1400, os.urandom(1400), b"\x40" + bytes(40), bytes(9000))
        throw(server, *(first_datagram()[:size] for size in (1, 5, 6, 20, 1199)), encode_request(bytes(12)))
        await until(client, lambda: endpoint_of(server).dropped[Drop.UNKNOWN])
        assert await client.ping() > 0.0
        assert endpoint_of(server).accepted_count == 1


async def test_a_flood_of_first_packets_is_asked_to_come_again_and_bounded() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, _):
        endpoint = endpoint_of(server)
        with trio.fail_after(PATIENCE_SECONDS):
            while not endpoint.retry_count or not endpoint.dropped[Drop.HALF_OPEN]:
                throw(server, *(first_datagram() for _ in range(20)))
                await client.ping()
        waiting = len(server.reactor.wires) - 1
        assert waiting <= MAX_HALF_OPEN_PER_ADDRESS
        assert await client.ping() > 0.0


async def test_a_first_packet_that_comes_again_makes_no_second_connection() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, _):
        datagram = first_datagram()
        throw(server, *[datagram] * 10)
        await until(client, lambda: endpoint_of(server).accepted_count == 2)
        await client.ping()
        assert endpoint_of(server).accepted_count == 2


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0" * 60,
        encode_frame(FrameType.RECV_PACKET, bytes(40)),
        encode_frame(FrameType.SEND_PACKET, bytes(40))[:-1],
        encode_frame(FrameType.SEND_PACKET, bytes(31)),
        encode_frame(FrameType.PING, bytes(8)),
        encode_frame(FrameType.WATCH_CONNS),
    ],
)
async def test_a_datagram_that_is_no_packet_ends_its_client_alone(datagram: bytes) -> None:
    async with open_server(config_for("quic")) as server, two_clients(server) as (client, _, peer, _):
        client._stream.line.send_datagram(datagram)  # type: ignore[attr-defined]
        client._stream._transmit()  # type: ignore[attr-defined]
        await cut_off(client)
        assert closed(server) == {"protocol_error": 1}
        assert await peer.ping() > 0.0


async def test_a_frame_that_no_client_may_send_ends_it() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, _):
        await client._stream.send_all(encode_frame(FrameType.WATCH_CONNS))
        await cut_off(client)
        assert closed(server) == {"protocol_error": 1}


async def test_packets_of_whoever_is_not_in_yet_are_dropped() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, _):
        early = await dial_quic(TcpTarget(HOST, port_of(server)), TlsTrust(HOST, insecure_for_tests=True), "relay")
        early.line.send_stream(b"GET")
        early.line.send_datagram(encode_frame(FrameType.SEND_PACKET, bytes(40)))
        early._transmit()
        await until(client, lambda: endpoint_of(server).dropped[Drop.EARLY])
        await trio.aclose_forcefully(early)


async def test_without_quic_nothing_listens() -> None:
    async with open_server(config_for("tls")) as server:
        with pytest.raises(ConnectError):
            await reach(
                f"https://{HOST}:{port_of(server)}", Identity(NodePrivate.generate()), OPTIONS, "", PATIENCE_SECONDS
            )


async def test_health_is_told() -> None:
    async with open_server(config_for("quic")) as server, open_quic_client(server) as (client, key):
        client_of = server.relay.router.members[key].connections[0]
        server.relay.router.send(client_of, encode_frame(FrameType.HEALTH, b"all is not well"))
        server.reactor.flush()
        with trio.fail_after(PATIENCE_SECONDS):
            assert await client.receive() == Health("all is not well")
