"""The whole relay on real sockets: what strangers say to it, and what that costs everybody else (nothing)."""

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from derp.close_reason import CloseReason
from derp.config import TlsConfig
from derp.errors import ConfigError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import HEADER, MAX_UNKNOWN_BYTES, NONCE_BYTES, PeerGoneReason
from derp.protocol.handshake import seal_client_info
from derp.protocol.messages import ClientInfo, PeerGone, RecvPacket, Restarting
from derp.relay.counters import DropReason
from derp.server.lobby import RESERVE
from derp.server.server import RelayServer, serve_relay
from tests.derp.server.world import (
    CARRIERS,
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    Caller,
    Carrier,
    ask,
    call,
    closed,
    config_for,
    count_of,
    dial,
    drained,
    open_bystanders,
    open_server,
    port_of,
    relay_config,
)
from tests.support.certificates import Issued, issue

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
NONCE = b"n" * NONCE_BYTES


def frame(frame_type: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return HEADER.pack(frame_type, len(payload) if length is None else length) + payload


WRONG_FRAMES = {
    "a packet without a whole key": frame(0x04, bytes(31)),
    "a packet too large": frame(0x04, bytes(32), length=32 + 65537),
    "a packet of four gigabytes": frame(0x04, bytes(32), length=0xFFFFFFFF),
    "a preference of two bytes": frame(0x07, b"\x01\x00"),
    "a ping too short": frame(0x12, b"1234567"),
    "a ping too long": frame(0x12, bytes(1001)),
    "a forward without the mesh key": frame(0x0A, bytes(64)),
    "a watch without the mesh key": frame(0x10),
    "a close without the mesh key": frame(0x11, bytes(32)),
    "an unknown frame beyond the bound": frame(0x77, length=MAX_UNKNOWN_BYTES + 1),
    "an unknown frame of four gigabytes": frame(0x77, length=0xFFFFFFFF),
}


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_wrong_frame_ends_its_connection_alone(carrier: Carrier) -> None:
    config = config_for(carrier)
    async with open_server(config) as server, open_bystanders(server) as bystanders:
        for number, (what, data) in enumerate(WRONG_FRAMES.items(), 1):
            caller = await call(server, carrier)
            # what came before the wrong frame, in the same write, still counts
            await caller.write(frame(0x04, bystanders.one.key + b"last words") + data)
            assert await bystanders.one.receive() == RecvPacket(caller.key, b"last words"), what
            await caller.wait_closed()
            assert closed(server) == {"protocol_error": number}, what
            assert await bystanders.one.receive() == PeerGone(caller.key, PeerGoneReason.DISCONNECTED)
            await bystanders.go_on(3)
            await caller.aclose()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_flood_of_control_frames_ends_its_connection(carrier: Carrier) -> None:
    async with open_server(config_for(carrier)) as server, open_bystanders(server) as bystanders:
        caller = await call(server, carrier)
        with contextlib.suppress(trio.BrokenResourceError):
            await caller.write(frame(0x07, b"\x01") * 40_000)
        await caller.wait_closed()
        assert closed(server) == {"flood": 1}
        await bystanders.go_on()
        await caller.aclose()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_unknown_and_misplaced_frames_are_skipped(carrier: Carrier) -> None:
    async with open_server(config_for(carrier)) as server:
        caller = await call(server, carrier)
        skipped = [
            frame(0x77, b"?"),
            frame(0xFF, bytes(300_000)),
            frame(0x01, b"x" * 40),
            frame(0x06),
            frame(0x14, b"hm"),
        ]
        await caller.write(b"".join(skipped))
        await caller.ping()
        assert server.relay.router.counters.unknown_frames >= 2
        assert closed(server) == {}
        await caller.aclose()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_frames_arrive_in_any_pieces(carrier: Carrier) -> None:
    async with open_server(config_for(carrier)) as server:
        one, other = await call(server, carrier), await call(server, carrier)
        stream = frame(0x07, b"\x01") + frame(0x04, other.key + b"small") + frame(0x04, other.key + bytes(3000))
        for at in range(0, len(stream), 7):
            await one.write(stream[at : at + 7])
        assert await other.receive() == RecvPacket(one.key, b"small")
        assert await other.receive() == RecvPacket(one.key, bytes(3000))
        await one.aclose()
        await other.aclose()


async def test_a_frame_cut_by_the_end_of_the_stream_is_dropped_in_silence() -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        caller = await call(server)
        await caller.write(frame(0x04, bystanders.one.key + b"half")[:-2])
        await caller.aclose()
        await bystanders.go_on()
        assert closed(server) == {"closed_by_peer": 1}


# --- the handshake


def client_info(private: NodePrivate, server_key: bytes, info: ClientInfo | None = None) -> bytes:
    return seal_client_info(private, server_key, info or ClientInfo(None, 2, True, False, ""), NONCE)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


HANDSHAKES: dict[str, Callable[[bytes], bytes]] = {
    "a packet instead": lambda key: frame(0x04, bytes(40)),
    "too short": lambda key: frame(0x02, bytes(55)),
    "beyond the bound": lambda key: frame(0x02, length=256 * 1024 + 1),
    "four gigabytes": lambda key: frame(0x02, length=0xFFFFFFFF),
    "another key": lambda key: _flipped(client_info(NodePrivate.generate(), key), 5),
    "another nonce": lambda key: _flipped(client_info(NodePrivate.generate(), key), 5 + 32),
    "a garbled box": lambda key: _flipped(client_info(NodePrivate.generate(), key), -1),
    "sealed for another relay": lambda key: client_info(NodePrivate.generate(), NodePrivate.generate().public().raw),
    "the key zero": lambda key: frame(0x02, bytes(32 + 24 + 16 + 20)),
    "HTTP once more": lambda key: UPGRADE,
}


@pytest.mark.parametrize("what", HANDSHAKES)
async def test_a_wrong_handshake_is_closed_without_a_word(what: str) -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        key = server.relay.public_key.raw
        answer = await ask(server, UPGRADE + HANDSHAKES[what](key))
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert rest == server.relay.sessions.greeting  # ServerKey, and nothing else
        assert closed(server) == {"protocol_error": 1}
        await bystanders.go_on(5)


async def test_the_handshake_may_come_byte_by_byte_and_with_packets_behind_it() -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        private = NodePrivate.generate()
        stream = await dial(server)
        packet = frame(0x04, bystanders.one.key + b"at once")
        everything = UPGRADE + client_info(private, server.relay.public_key.raw) + packet
        for at in range(len(everything)):
            await stream.send_all(everything[at : at + 1])
        source = private.public().raw
        assert await bystanders.one.receive() == RecvPacket(source, b"at once")
        await trio.aclose_forcefully(stream)
        assert await bystanders.one.receive() == PeerGone(source, PeerGoneReason.DISCONNECTED)


@pytest.mark.parametrize("tls", [False, True])
async def test_fast_start_in_one_segment(tls: bool) -> None:
    async with open_server(config_for("tls" if tls else "plain")) as server, open_bystanders(server) as bystanders:
        private = NodePrivate.generate()
        stream = await dial(server, tls=tls)
        fast = UPGRADE.replace(b"\r\n\r\n", b"\r\nDerp-Fast-Start: 1\r\n\r\n")
        packet = frame(0x04, bystanders.one.key + b"at once")
        await stream.send_all(fast + client_info(private, server.relay.public_key.raw) + packet)
        assert await bystanders.one.receive() == RecvPacket(private.public().raw, b"at once")
        assert (await stream.receive_some())[:13] == server.relay.sessions.greeting[:13]
        await trio.aclose_forcefully(stream)
        assert isinstance(await bystanders.one.receive(), PeerGone)


# --- before the handshake


async def test_http_that_cannot_be_served_gets_a_status_and_a_sentence() -> None:
    wrong = {
        b"nonsense\r\n\r\n": b"400",
        b"GET / HTTP/1.1\r\n\r\n": b"400",  # no Host
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000: b"431",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300: b"431",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789": b"413",
        b"\x16\x03\x01\x02\x00\x01": b"400",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": b"505",
    }
    async with open_server() as server, open_bystanders(server) as bystanders:
        for number, (request, status) in enumerate(wrong.items(), 1):
            answer = await ask(server, request)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status), (request[:60], answer)
            assert body.endswith(b"\n")
            assert len(body) > 10
            assert closed(server) == {"protocol_error": number}
        await bystanders.go_on()
        assert server.statistics().requests_refused == len(wrong)


async def test_a_refusal_reaches_who_is_still_writing() -> None:
    """A close with bytes unread is a reset, which can overtake the answer."""
    async with open_server() as server:
        stream = await dial(server)
        head = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 4_000_000
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(head)

            nursery.start_soon(write)
            with trio.fail_after(PATIENCE_SECONDS):
                answer = await drained(stream)
        assert answer.startswith(b"HTTP/1.1 431 ")
        await trio.aclose_forcefully(stream)


async def test_garbage_and_plain_http_on_a_tls_port(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "derp.server")
    async with open_server(relay_config(tls=SELF_SIGNED)) as server, open_bystanders(server) as bystanders:
        for garbage in (b"\x00" * 2000, UPGRADE, b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
            answer = await ask(server, garbage)
            assert b"HTTP" not in answer
        assert closed(server) == {"tls_not_spoken": 2, "tls_failed": 1}
        told = [record.getMessage() for record in caplog.records if "at the door" in record.getMessage()]
        assert ["no TLS came to a port that speaks TLS" in line for line in told] == [True, False]
        await bystanders.go_on()


async def test_a_thousand_connections_that_never_log_in() -> None:
    count = 1000
    config = relay_config(handshake_timeout_seconds=1.0)
    async with open_server(config) as server, open_bystanders(server) as bystanders:
        said = (b"", UPGRADE[:1], UPGRADE[:-2], UPGRADE, UPGRADE + frame(0x02, bytes(20), length=200))
        streams = []
        for number in range(count):
            stream = await dial(server)
            await stream.send_all(said[number % len(said)])
            streams.append(stream)
            if number % 100 == 0:
                await bystanders.go_on(1)
        with trio.fail_after(PATIENCE_SECONDS):
            for stream in streams:
                await drained(stream)
                await trio.aclose_forcefully(stream)
        assert closed(server) == {"handshake_timeout": count}
        assert not server.lobby.waiting
        assert len(server.reactor.wires) == 2


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_tls_handshake_that_never_ends(hello: bytes) -> None:
    config = relay_config(tls=SELF_SIGNED, handshake_timeout_seconds=0.3)
    async with open_server(config) as server:
        assert await ask(server, hello) == b""
        assert closed(server) == {"handshake_timeout": 1}


async def test_a_slow_loris_gets_no_more_time_by_being_busy() -> None:
    async with open_server(relay_config(handshake_timeout_seconds=0.5)) as server:
        stream = await dial(server)

        async def drip() -> None:
            while True:
                await stream.send_all(b"a")
                await trio.sleep(0.01)  # the attack is to be slow

        with pytest.raises(trio.BrokenResourceError), trio.fail_after(PATIENCE_SECONDS):
            await drip()
        await stream.aclose()
        assert closed(server) == {"handshake_timeout": 1}


# --- how many, and how fast


async def test_connections_beyond_the_bound_are_closed_and_counted() -> None:
    async with (
        open_server(relay_config(max_connections=3, debug_allow=())) as server,
        open_bystanders(server) as bystanders,
    ):
        third = await call(server)
        assert await ask(server, UPGRADE) == b""
        assert server.statistics().rejected == {"rate": 0, "connections": 1}
        await bystanders.go_on()
        await third.aclose()
        await bystanders.go_on(1)  # by then the relay has seen that the third left
        fourth = await call(server)
        await fourth.aclose()


async def test_a_full_relay_answers_its_operators() -> None:
    async with open_server(relay_config(max_connections=2)) as server, open_bystanders(server) as bystanders:
        for path in ("/debug/load", "/metrics", "/healthz", "/debug/clients/"):
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert (await ask(server, request.encode())).startswith(b"HTTP/1.1 200 "), path
        assert server.statistics().rejected == {"rate": 0, "connections": 0}
        for request in (UPGRADE, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            answer = await ask(server, request)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert answer.endswith(b"all 2 connections of this server are taken\n")
        assert server.statistics().rejected == {"rate": 0, "connections": 2}
        async with contextlib.AsyncExitStack() as held:
            for _ in range(RESERVE):
                await held.enter_async_context(await dial(server))
            assert await ask(server, b"GET /healthz HTTP/1.0\r\n\r\n") == b"", "nor may operators fill it up"
        await bystanders.go_on()


async def test_a_connection_that_was_kept_for_operators_is_one_as_others_later() -> None:
    async with open_server(relay_config(max_connections=1)) as server:
        first = await call(server)
        async with await dial(server) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            await first.aclose()
        with trio.fail_after(PATIENCE_SECONDS):
            while server.reactor.wires:
                await trio.lowlevel.checkpoint()
        assert not server.lobby.reserved
        again = await call(server)
        await again.aclose()


async def test_accepts_beyond_the_rate_are_closed_and_counted() -> None:
    async with open_server(relay_config(accept_connection_limit=0.001, accept_connection_burst=3)) as server:
        async with open_bystanders(server) as bystanders:
            assert await ask(server, b"GET / HTTP/1.0\r\n\r\n") != b""
            assert await ask(server, b"GET / HTTP/1.0\r\n\r\n") == b""
            await bystanders.go_on(2)
        assert server.statistics().rejected == {"rate": 1, "connections": 0}
        assert server.statistics().accepted == 3


# --- slow readers


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_reader_that_takes_nothing_is_closed_and_nobody_waits_for_it(carrier: Carrier) -> None:
    config = config_for(carrier, tcp_write_timeout_seconds=0.5)
    async with open_server(config) as server, open_bystanders(server) as bystanders:
        stuck, sender = await call(server, carrier), await call(server, carrier)
        with trio.fail_after(PATIENCE_SECONDS):
            while not count_of(server, CloseReason.WRITE_TIMEOUT):
                await sender.send(stuck.key, *[bytes(60_000)] * 20)
                await bystanders.go_on(1)
        counters = server.relay.router.counters
        assert counters.write_timeouts == 1
        assert counters.dropped(DropReason.QUEUE_HEAD) > 0
        assert counters.dropped(DropReason.GONE_DISCONNECTED) > 0
        assert closed(server) == {"write_timeout": 1}
        await sender.aclose()
        await stuck.aclose()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_slow_reader_that_goes_on_reading_stays(carrier: Carrier) -> None:
    config = config_for(carrier, tcp_write_timeout_seconds=1.5)
    async with open_server(config) as server:
        slow, sender = await call(server, carrier), await call(server, carrier)
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                while True:
                    await sender.send(slow.key, *[bytes(8000)] * 20)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(flood)
            got = 0
            while server.relay.router.counters.dropped(DropReason.QUEUE_HEAD) == 0:
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(3.0):  # twice what one that reads nothing is given
                while True:
                    got += isinstance(await slow.receive(), RecvPacket)
                    await trio.sleep(0.005)  # it is slow
            nursery.cancel_scope.cancel()
        assert got > 10
        assert closed(server) == {}
        await slow.aclose()
        await sender.aclose()


async def test_a_half_open_client_keeps_what_it_was_sent_in_order() -> None:
    """A client that has ended its side is gone; what was on its way to it still arrives."""
    async with open_server() as server, open_bystanders(server) as bystanders:
        caller = await call(server)
        await bystanders.one.send(caller.key, b"on its way")
        assert await caller.receive() == RecvPacket(bystanders.one.key, b"on its way")
        await caller.stream.send_eof()
        await caller.wait_closed()
        assert closed(server) == {"closed_by_peer": 1}
        await bystanders.go_on()
        await caller.aclose()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_last_packets_before_a_client_leaves_arrive(carrier: Carrier) -> None:
    async with open_server(config_for(carrier)) as server:
        for _ in range(10):
            one, other = await call(server, carrier), await call(server, carrier)
            one.core.send_packet(other.key, b"last")
            await one.flush()
            await one.stream.aclose()
            assert await other.receive() == RecvPacket(one.key, b"last")
            await other.aclose()


# --- leaving


async def test_drain_tells_stops_accepting_delivers_and_closes() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_relay, relay_config(drain_seconds=5.0))
        port = port_of(server)
        sender, slow = await call(server), await call(server)
        packets = [number.to_bytes(4, "big") * 2000 for number in range(120)]
        await sender.send(slow.key, *packets)  # more than the kernel holds
        await sender.ping()
        nursery.start_soon(server.drain)
        assert await sender.receive_a(Restarting) == Restarting(2000, 60_000)
        assert server.problem() is not None
        with pytest.raises(OSError):
            await trio.open_tcp_stream(HOST, port)
        got = [(await slow.receive_a(RecvPacket)).packet]
        while got[-1] != packets[-1]:
            got.append((await slow.receive_a(RecvPacket)).packet)
        # A machine so busy that packets wait for longer than they may loses some of them, and counts these.
        late = server.relay.router.counters.dropped(DropReason.QUEUE_DELAY)
        assert (got, len(got)) == (sorted(set(got)), len(packets) - late)
        await sender.wait_closed()
        await slow.wait_closed()
        await server.drained.wait()
        assert closed(server) == {"drained": 2}
        await sender.aclose()
        await slow.aclose()


async def test_drain_keeps_its_deadline_when_a_client_reads_nothing() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_relay, relay_config(drain_seconds=0.5, tcp_write_timeout_seconds=60.0))
        sender, stuck = await call(server), await call(server)
        while not server.reactor.blocked:
            await sender.send(stuck.key, *[bytes(60_000)] * 10)
        with trio.fail_after(PATIENCE_SECONDS):
            await server.drain()
    # serve_relay returned by itself, and its last act was to close who was left
    assert closed(server) == {"drained": 1, "stopped": 1}
    await sender.aclose()
    await stuck.aclose()


async def test_a_drain_closes_as_many_as_are_due_oldest_first() -> None:
    async with open_server() as server:
        callers = [await call(server) for _ in range(4)]
        relay = server.relay
        relay.announce_restart(2.0, 60.0)
        assert relay.close_clients(2) == 4, "two wait for the end, two are still to be closed"
        assert [client.key for client in relay.router.clients.values()] == [caller.key for caller in callers[2:]]
        for caller in callers[:2]:
            await caller.wait_closed()
            await caller.aclose()
        while relay.close_clients(0) > 2:
            await callers[2].ping()
        for caller in callers[2:]:
            await caller.aclose()


async def test_what_is_in_the_kernel_survives_a_drain_while_the_client_writes() -> None:
    """A socket closed over unread bytes is reset, and a reset throws away what the other side has not got yet."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_relay, relay_config(drain_seconds=5.0))
        sender = await call(server)
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that our kernel keeps most of it
        await sock.connect((HOST, port_of(server)))
        stream = trio.SocketStream(sock)
        private = NodePrivate.generate()
        fast = UPGRADE.replace(b"\r\n\r\n", b"\r\nDerp-Fast-Start: 1\r\n\r\n")
        await stream.send_all(fast + client_info(private, server.relay.public_key.raw))
        with trio.fail_after(PATIENCE_SECONDS):  # whose turn it is first, if both have one, is nobody's promise
            while private.public().raw not in server.relay.router.members:
                await trio.lowlevel.checkpoint()
        packets = [bytes([number]) * 1000 for number in range(25)]
        await sender.send(private.public().raw, *packets)
        await sender.ping()
        assert not server.reactor.blocked
        server.close()
        server.relay.announce_restart(2.0, 60.0)
        # not by the stream: the relay would have its turn in between, and would have read it
        os.write(sock.fileno(), frame(0x04, sender.key + b"too late?"))
        server.relay.close_clients(10)
        with trio.fail_after(PATIENCE_SECONDS):
            received = await drained(stream)
        assert [packet for packet in packets if packet not in received] == []
        await stream.aclose()
        await sender.aclose()
        nursery.cancel_scope.cancel()


# --- what cannot start, and what stays


async def test_certificates_are_exchanged_under_live_connections(tmp_path: Path) -> None:
    def write(certificate: Issued) -> None:
        (tmp_path / "r.crt").write_bytes(certificate.pem)
        (tmp_path / "r.key").write_bytes(certificate.key_pem)

    async def served() -> str:
        stream = await dial(server, tls=True)
        der = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
        return f"sha256-raw:{hashlib.sha256(der).hexdigest()}"

    old, new = issue(HOST), issue(HOST)
    write(old)
    tls = TlsConfig(tmp_path / "r.crt", tmp_path / "r.key", HOST)
    async with open_server(relay_config(tls=tls)) as server, open_bystanders(server) as bystanders:
        assert server.tls is not None
        assert await served() == old.pin
        write(new)
        later = server.tls.reload_if_changed(time.time() + 60)  # as the tick does, a minute later
        assert later is not None
        assert later.ok
        assert await served() == new.pin
        await bystanders.go_on()
        (tmp_path / "r.crt").write_text("half of a certif")
        broken = server.tls.reload_if_changed(time.time() + 120)
        assert broken is not None
        assert "stays in service" in broken.text
        assert await served() == new.pin
        await bystanders.go_on()


async def test_an_address_in_use_is_one_error_that_names_it_and_leaves_nothing_open() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        free = relay_config(listen=((HOST, 0), (HOST, port)))
        with pytest.raises(ConfigError, match=f"cannot listen on TCP {HOST}:{port}"):
            await serve_relay(free)


async def test_a_second_client_of_the_same_key_and_a_mesh_key_that_is_wrong() -> None:
    async with open_server(relay_config(mesh_key=MeshKey(b"m" * 32))) as server:
        private = NodePrivate.generate()
        first = await call(server, private=private, mesh_key=MeshKey(b"w" * 32))
        second = await call(server, private=private)
        assert server.statistics().duplicate_keys == 1
        # a wrong mesh key makes an ordinary client, which may not ask for what relays may
        await first.write(frame(0x10))
        await first.wait_closed()
        assert closed(server) == {"protocol_error": 1}
        await second.ping()
        await first.aclose()
        await second.aclose()


async def test_one_key_may_not_fill_the_relay_with_connections() -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        private = NodePrivate.generate()
        callers: list[Caller] = [await call(server, private=private) for _ in range(66)]
        for caller in callers[:2]:  # the oldest make room
            await caller.wait_closed()
        assert closed(server) == {"too_many": 2}
        await callers[2].ping()
        await bystanders.go_on()
        for caller in callers:
            await caller.aclose()


def test_a_worker_whose_settings_want_no_authority_any_more_passes_over_proofs() -> None:
    server = RelayServer(relay_config(tls=SELF_SIGNED))
    server.show_proof(b"d" * 32, {"token": b"body"}, 1)
    assert server.tls is not None
    assert server.tls.proof is None
    assert server.statistics().renewal_failures is None
