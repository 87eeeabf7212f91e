"""DERP over QUIC with quic-go at the other end: its client at our relay, and its relay under our client.

What it is told to do and what it answers: tests/interop/go_wires/cmd/quicpeer.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from subprocess import PIPE
from typing import Any

import pytest
import trio
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.serialization import Encoding

from derp.client.client import open_derp_client
from derp.client.dial import Carrier, DialOptions
from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from derp.relay.limits import TokenBucket
from derp.server.server import RelayServer
from derp.transport.quic_client import QuicStream
from derp.transport.quic_wire import HANDSHAKES_AT_ONCE, HANDSHAKES_PER_SECOND
from tests.derp.server.world import HOST, PATIENCE_SECONDS, call, config_for, count_of, open_server, port_of
from tests.support.go_program import Answering, run, tell
from tests.support.gobuild import QUICPEER
from tests.support.peers import require

pytestmark = pytest.mark.interop


class QuicPeerError(Exception):
    """In the words of the program."""


class QuicPeer(Answering):
    """A client by quic-go."""

    failure = QuicPeerError
    key = b""

    async def ask(self, order: str) -> dict[str, Any]:
        await tell(self._process, order)
        return await self.answer()

    async def dial(self, server: RelayServer) -> dict[str, Any]:
        said = await self.ask(f"dial {HOST}:{port_of(server)}")
        self.key = bytes.fromhex(said["key"])
        return said


@asynccontextmanager
async def open_peer() -> AsyncIterator[QuicPeer]:
    binary = require(QUICPEER)
    async with trio.open_nursery() as nursery:
        yield QuicPeer(await nursery.start(run, [str(binary)]))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_world() -> AsyncIterator[tuple[RelayServer, QuicPeer]]:
    """A relay of ours, and a peer that is its client."""
    async with open_server(config_for("quic")) as server, open_peer() as peer:
        await peer.dial(server)
        yield server, peer


def totals(server: RelayServer) -> dict[str, int]:
    assert server.ports.quic is not None
    return server.ports.quic.totals()


async def test_it_is_let_in_with_the_certificate_of_tls_and_no_tickets() -> None:
    async with open_server(config_for("quic")) as server, open_peer() as peer:
        said = await peer.dial(server)
        assert server.tls is not None
        assert said["leaf"] == sha256(server.tls.leaf.public_bytes(Encoding.DER)).hexdigest()
        assert said["server"] == server.config.private_key.public().raw.hex()
        assert (said["protocol"], said["datagrams"], said["early"]) == ("derp-quic/2", True, False)
        await peer.ask("echoes 1 100")
        assert (await peer.ask("tickets"))["count"] == 0


@pytest.mark.parametrize(("size", "way"), [(0, "datagram"), (1312, "datagram"), (1330, "stream"), (65_536, "stream")])
async def test_packets_go_to_a_client_over_tcp_and_come_from_it(size: int, way: str) -> None:
    async with open_world() as (server, peer):
        over_tcp = await call(server)
        sent = await peer.ask(f"send {over_tcp.key.hex()} {size}")
        got = await over_tcp.receive_a(RecvPacket)
        assert (got.src, sha256(got.packet).hexdigest()) == (peer.key, sent["sum"])
        packet = os.urandom(size)
        await over_tcp.send(peer.key, packet)
        said = await peer.ask("receive")
        wanted = {"from": over_tcp.key.hex(), "size": size, "sum": sha256(packet).hexdigest(), "way": way}
        assert {name: said[name] for name in wanted} == wanted
        await over_tcp.aclose()


async def test_new_keys_of_quic_are_taken() -> None:
    """quic-go takes new ones after a hundred packets, for the first time."""
    async with open_world() as (server, peer):
        assert (await peer.ask("echoes 300 1000"))["ways"] == {"datagram": 300}
        (wire,) = {wire for wire in server.reactor.wires if hasattr(wire, "line")}
        # Nothing that is public tells of it.
        assert wire.line._connection._cryptos[Epoch.ONE_RTT].recv.key_phase == 1


async def test_it_moves_to_another_socket_and_is_told_its_address_each_time() -> None:
    async with open_world() as (server, peer):
        for moves in range(4):
            said = await peer.ask("address")
            assert said["address"] == said["local"]
            await peer.ask("echoes 20 1200")
            assert totals(server)["moved"] == moves
            await peer.ask("move")
        assert totals(server)["accepted"] == 1


async def test_it_may_open_no_other_streams() -> None:
    async with open_world() as (_, peer):
        both = (await peer.ask("streams"))["refused"]
        assert len(both) == 2
        assert all("too many open streams" in refused for refused in both)
        await peer.ask("echoes 1 10")


async def test_a_datagram_that_is_no_packet_ends_the_connection() -> None:
    async with open_world() as (server, peer):
        ended = await peer.ask("garbage")
        assert (ended["by"], ended["code"], ended["remote"]) == ("transport", 0xA, True)
        assert count_of(server, CloseReason.PROTOCOL_ERROR) == 1


async def test_a_goodbye_of_either_side_is_understood() -> None:
    async with open_server(config_for("quic")) as server, open_peer() as peer:
        await peer.dial(server)
        await peer.ask("close")
        await peer.dial(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            assert (await peer.ask("ended"))["remote"] is True
        assert count_of(server, CloseReason.CLOSED_BY_PEER) == 1


async def test_it_is_told_that_the_relay_has_started_anew() -> None:
    async with open_world() as (server, peer):
        assert server.ports.quic is not None
        server.ports.quic.endpoints[0]._by_name.clear()  # as after a crash
        await peer.ask(f"send {peer.key.hex()} 100")
        assert (await peer.ask("ended"))["by"] == "reset"
        assert totals(server)["reset"] >= 1


async def test_who_comes_when_too_many_come_is_asked_for_its_address() -> None:
    async with open_server(config_for("quic")) as server, open_peer() as peer, trio.open_nursery() as nursery:
        assert server.ports.quic is not None
        endpoint, now = server.ports.quic.endpoints[0], server.reactor.tick()
        endpoint._bucket = TokenBucket(1e-9, 0.0, now)
        nursery.start_soon(peer.dial, server)
        with trio.fail_after(PATIENCE_SECONDS):
            while not totals(server)["retried"]:  # noqa: ASYNC110  # nobody else would tell
                await trio.sleep(0.01)
        assert totals(server)["accepted"] == 0
        endpoint._bucket = TokenBucket(HANDSHAKES_PER_SECOND, HANDSHAKES_AT_ONCE, now)


# --- quic-go's relay, which asks everybody for a Retry, gives tickets and tokens, and tries larger packets


@asynccontextmanager
async def open_quic_go_relay() -> AsyncIterator[tuple[str, DialOptions]]:
    binary = require(QUICPEER)
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, [str(binary), "-relay"], stdout=PIPE)
        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        text = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while b"\n" not in text:
                text += await process.stdout.receive_some()
        said = json.loads(text)
        yield f"https://{HOST}:{said['port']}", DialOptions(cert_name=said["pin"], only_quic=True, environment=None)
        nursery.cancel_scope.cancel()


async def test_our_client_at_a_relay_by_quic_go() -> None:
    private = NodePrivate.generate()
    key = private.public().raw
    async with (
        open_quic_go_relay() as (url, options),
        open_derp_client(url, private, options=options, timeout_seconds=PATIENCE_SECONDS) as client,
    ):
        assert client.carrier is Carrier.QUIC
        stream = client._stream
        assert isinstance(stream, QuicStream)
        for _ in range(3):
            for size in (0, 1, 1312, 1400, 65_536):
                packet = os.urandom(size)
                await client.send(key, packet)
                with trio.fail_after(PATIENCE_SECONDS):
                    assert await client.receive() == RecvPacket(key, packet)
            port = int(stream._socket.getsockname()[1])
            assert await client.observed_address(PATIENCE_SECONDS) == ("127.0.0.1", port)
            stream.change_socket()
            assert await client.ping() > 0.0
