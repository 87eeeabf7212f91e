"""What a relay that is none, or one gone mad, can do to a region: each with the answer it gets.

`open_bystanders` talk before, during and after: whatever the other does, their packets go on.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.protocol.frames import HEADER, NONCE_BYTES, FrameType, PeerGoneReason
from derp.protocol.handshake import seal_client_info
from derp.protocol.messages import (
    ClientInfo,
    ClosePeer,
    ForwardPacket,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    WatchConns,
    encode,
)
from derp.relay.counters import DropReason
from tests.derp.server.mesh_world import (
    MESH_KEY,
    OTHER_KEY,
    Node,
    hears_nothing,
    open_impostor,
    open_nodes,
    until,
)
from tests.derp.server.world import DISCO, HOST, count_of, dial, drained, open_bystanders

FAR = b"f" * 32


def present(*keys: bytes) -> bytes:
    return b"".join(encode(PeerPresent(key)) for key in keys)


# --- those who dial us


@pytest.mark.parametrize("message", [WatchConns(), ForwardPacket(FAR, FAR, b""), ClosePeer(FAR)])
async def test_with_the_wrong_key_nothing_of_a_mesh_is_allowed(
    message: WatchConns | ForwardPacket | ClosePeer,
) -> None:
    async with open_nodes(alpha := Node("alpha.test")), open_bystanders(alpha.server) as pair:
        stranger = await alpha.call(mesh_key=OTHER_KEY)
        await pair.one.send(stranger.key, b"an ordinary client")
        assert await stranger.receive() == RecvPacket(pair.one.key, b"an ordinary client")
        await stranger.write(encode(message))
        await stranger.wait_closed()
        assert count_of(alpha.server, CloseReason.PROTOCOL_ERROR) == 1


async def test_a_login_that_was_heard_before_opens_nothing() -> None:
    # On a plain link, behind somebody's TLS proxy, a listener can record the frame that proves the mesh key.
    async with open_nodes(alpha := Node("alpha.test")), open_bystanders(alpha.server) as pair:
        info = ClientInfo(MESH_KEY)
        upgrade = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
        relay = NodePrivate.generate()
        recorded = seal_client_info(relay, alpha.key, info, os.urandom(NONCE_BYTES))

        honest = await dial(alpha.server, tls=True)
        await honest.send_all(upgrade + recorded)
        await until(pair.one, lambda: relay.public().raw in alpha.router.members)
        replayed = await dial(alpha.server, tls=True)
        await replayed.send_all(upgrade + recorded + encode(ForwardPacket(FAR, pair.one.key, b"forged")))
        await drained(replayed)
        assert count_of(alpha.server, CloseReason.NOT_ADMITTED) == 1
        assert len(alpha.router.members[relay.public().raw].connections) == 1
        await hears_nothing(pair.one)  # least of all the forged packet

        fresh = seal_client_info(relay, alpha.key, info, os.urandom(NONCE_BYTES))
        again = await dial(alpha.server, tls=True)
        await again.send_all(upgrade + fresh)
        await until(pair.one, lambda: len(alpha.router.members[relay.public().raw].connections) == 2)
        for stream in (honest, replayed, again):
            await trio.aclose_forcefully(stream)


async def test_an_ordinary_login_may_be_repeated() -> None:
    # Whoever sends the same frame twice without the mesh key gains what anybody has; nothing is remembered for it.
    async with open_nodes(alpha := Node("alpha.test")), open_bystanders(alpha.server) as pair:
        upgrade = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
        private = NodePrivate.generate()
        frame = seal_client_info(private, alpha.key, ClientInfo(None), b"n" * NONCE_BYTES)
        streams = [await dial(alpha.server, tls=True) for _ in range(2)]
        for stream in streams:
            await stream.send_all(upgrade + frame)
        key = private.public().raw
        await until(pair.one, lambda: key in alpha.router.members and len(alpha.router.members[key].connections) == 2)
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_forwards_to_nobody_are_dropped_and_counted() -> None:
    async with open_nodes(alpha := Node("alpha.test")), open_bystanders(alpha.server) as pair:
        other = await alpha.call(mesh_key=MESH_KEY)
        for _ in range(500):
            other.core.send_forward_packet(FAR, os.urandom(32), DISCO)
            other.core.send_forward_packet(FAR, os.urandom(32), bytes(1200))
        other.core.send_forward_packet(FAR, pair.one.key, b"to somebody")
        await other.flush()
        assert await pair.one.receive() == RecvPacket(FAR, b"to somebody")
        counters = alpha.router.counters
        assert counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == 1000
        assert counters.packets_forwarded_in == 1001
        await other.ping()
        assert len(alpha.router.members) == 3  # it made up 1,500 keys, and none of them stays
        # told of the first few, and then not more often than any client
        assert 3 <= counters.peer_gone_not_here_frames < 10


WRONG_FORWARDS = {
    "without keys": (0, b""),
    "without a destination": (32, bytes(32)),
    "one byte short of two keys": (63, bytes(63)),
    "one byte too long": (64 + 65536 + 1, b""),
    "of four gigabytes": (0xFFFFFFFF, b""),
    "a close of half a key": (-16, b""),
}


@pytest.mark.parametrize("name", WRONG_FORWARDS)
async def test_a_frame_of_the_wrong_length_ends_its_sender(name: str) -> None:
    length, payload = WRONG_FORWARDS[name]
    kind = FrameType.CLOSE_PEER if length < 0 else FrameType.FORWARD_PACKET
    async with open_nodes(alpha := Node("alpha.test")), open_bystanders(alpha.server) as pair:
        other = await alpha.call(mesh_key=MESH_KEY)
        good = encode(ForwardPacket(FAR, pair.one.key, b"before"))
        await other.write(good + HEADER.pack(kind, abs(length)) + (payload or bytes(16)) + good)
        await other.wait_closed()
        assert await pair.one.receive() == RecvPacket(FAR, b"before")  # and nothing of what came behind
        assert count_of(alpha.server, CloseReason.PROTOCOL_ERROR) == 1


async def test_asking_a_thousand_times_for_the_clients_is_answered_once() -> None:
    async with open_nodes(alpha := Node("alpha.test")), open_bystanders(alpha.server) as pair:
        other = await alpha.call(mesh_key=MESH_KEY)
        await other.write(1000 * encode(WatchConns()) + encode(Ping(b"how many")))
        seen = [await other.receive_a(PeerPresent) for _ in range(3)]
        assert {one.key for one in seen} == {other.key, pair.one.key, pair.other.key}
        assert await other.receive() == Pong(b"how many")


async def test_a_mesh_peer_that_reads_nothing_is_cut_off() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test", mesh_write_timeout_seconds=0.5, tcp_write_timeout_seconds=0)),
        open_bystanders(alpha.server) as pair,
    ):
        other = await alpha.call(mesh_key=MESH_KEY)
        other.core.send_watch_conns()
        await other.flush()
        member = alpha.router.members[other.key]
        while member.connections and member.connections[0].queue is None:
            await pair.one.send(other.key, *(bytes(60_000) for _ in range(8)))
            await pair.one.ping()
        await pair.go_on()
        await until(pair.one, lambda: other.key not in alpha.router.members)
        assert count_of(alpha.server, CloseReason.WRITE_TIMEOUT) == 1
        assert alpha.router.watchers == set()


# --- those whom we dial


async def test_a_large_relay_that_is_lost_is_forgotten_while_packets_go_on() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test", max_keys=20_000)),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        large = await host.accept()
        keys = [number.to_bytes(32, "big") for number in range(1, 10_001)]
        await large.write(present(*keys))
        await until(pair.one, lambda: len(alpha.router.members) == 10_002)
        await large.stream.aclose()
        await until(pair.one, lambda: not alpha.mesh.sessions)
        await pair.go_on()
        assert len(alpha.router.members) == len(alpha.router.routes) == 2
        # What was sent there meanwhile is counted, and what is sent now is for nobody.
        await pair.one.send(keys[0], b"gone")
        await pair.one.ping()
        assert alpha.router.counters.dropped(DropReason.UNKNOWN_DEST) == 1


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_nothing_is_left_of_a_large_relay_that_is_of_the_region_no_more(is_replaced: bool) -> None:
    """Its host died, for example: its connection stands, and whoever keeps it is cancelled."""
    async with (
        open_nodes(alpha := Node("alpha.test", max_keys=20_000)),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(alpha.mesh.keep, host.peer, "beta", partial(alpha.mesh._dial, host.peer))
        large = await host.accept()
        await large.write(present(*(number.to_bytes(32, "big") for number in range(1, 10_001))))
        await until(pair.one, lambda: len(alpha.router.members) == 10_002)
        if is_replaced:
            await large.write(encode(Restarting(0, 0)))
            await host.accept()
            await until(pair.one, lambda: alpha.mesh.states[host.peer].route is not None)
        nursery.cancel_scope.cancel()
        await alpha.mesh.forget(host.peer)
        assert len(alpha.router.members) == len(alpha.router.routes) == 2
        assert (alpha.mesh.sessions, alpha.mesh.states) == ({}, {})


async def test_more_keys_than_allowed_end_the_connection_and_all_are_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        open_nodes(alpha := Node("alpha.test", max_keys=1000)),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        flood = await host.accept()
        keys = [number.to_bytes(32, "big") for number in range(1, 5001)]
        await flood.write(present(*keys[:1000], keys[0]))  # the last is no news
        await until(pair.one, lambda: keys[999] in alpha.router.routes)
        assert len(alpha.router.members) == 1002
        await flood.write_until_closed(present(*keys))
        await until(pair.one, lambda: len(alpha.router.members) == 2)
        assert count_of(alpha.server, CloseReason.PROTOCOL_ERROR) == 1
        await until(pair.one, lambda: "it announced more than 1000 keys" in caplog.text)
        # One that comes to its senses is a relay like others.
        sane = await host.accept()
        await sane.write(present(FAR))
        await until(pair.one, lambda: FAR in alpha.router.routes)
        await pair.one.send(FAR, b"to the far side")
        assert await sane.receive() == ForwardPacket(pair.one.key, FAR, b"to the far side")


async def test_nobody_takes_the_keys_of_the_relay_itself_or_of_clients_that_are_here() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test")),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        thief = await host.accept()
        own, its = alpha.key, host.private.public().raw
        await thief.write(present(own, its, pair.one.key, FAR))
        await until(pair.one, lambda: FAR in alpha.router.routes)
        assert own not in alpha.router.routes
        assert its not in alpha.router.routes
        await pair.go_on()  # packets for `one` still go to `one`
        await thief.write(encode(PeerGone(pair.one.key, PeerGoneReason.DISCONNECTED)) + present(b"g" * 32))
        await until(pair.one, lambda: b"g" * 32 in alpha.router.routes)
        await pair.go_on()
        # A packet for the relay itself goes nowhere, least of all round in a circle.
        await pair.one.send(own, DISCO)
        assert await pair.one.receive() == PeerGone(own, PeerGoneReason.NOT_HERE)


async def test_announcements_repeated_or_recalled_twice_change_nothing() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test")),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        far = await host.accept()
        gone = encode(PeerGone(FAR, PeerGoneReason.DISCONNECTED))
        await far.write(50 * present(FAR) + present(b"1" * 32))
        await until(pair.one, lambda: b"1" * 32 in alpha.router.routes)
        assert len(alpha.router.members[FAR].forwarders) == 1
        await far.write(50 * gone + present(b"2" * 32))
        await until(pair.one, lambda: b"2" * 32 in alpha.router.routes)
        assert FAR not in alpha.router.members
        await far.write(30 * (present(FAR) + gone) + present(FAR, b"3" * 32))
        await until(pair.one, lambda: b"3" * 32 in alpha.router.routes)
        await pair.one.send(FAR, b"once")
        assert await far.receive() == ForwardPacket(pair.one.key, FAR, b"once")


async def test_nobody_can_take_back_what_another_relay_announced() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test")),
        open_bystanders(alpha.server) as pair,
        open_impostor() as honest_host,
        open_impostor() as host,
    ):
        alpha.join(honest_host.peer, host.peer)
        honest, liar = await honest_host.accept(), await host.accept()
        await honest.write(present(FAR))
        await until(pair.one, lambda: FAR in alpha.router.routes)
        await liar.write(encode(PeerGone(FAR, PeerGoneReason.DISCONNECTED)) + present(b"x" * 32))
        await until(pair.one, lambda: b"x" * 32 in alpha.router.routes)
        await pair.one.send(FAR, b"still there")
        assert await honest.receive() == ForwardPacket(pair.one.key, FAR, b"still there")


GARBAGE = {
    "a frame of 1 MiB and a byte": HEADER.pack(FrameType.RECV_PACKET, (1 << 20) + 1),
    "a frame of four gigabytes": HEADER.pack(0x77, 0xFFFFFFFF),
    "text": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "noise": bytes(range(255, 0, -1)) * 100,
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_the_connection_and_what_it_announced(name: str) -> None:
    async with (
        open_nodes(alpha := Node("alpha.test")),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        mad = await host.accept()
        await mad.write(present(FAR))
        await until(pair.one, lambda: FAR in alpha.router.routes)
        await mad.write(GARBAGE[name])
        await mad.wait_closed()
        await until(pair.one, lambda: FAR not in alpha.router.members)
        assert count_of(alpha.server, CloseReason.PROTOCOL_ERROR) == 1


async def test_frames_too_short_or_of_the_future_are_passed_over() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test")),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        far = await host.accept()
        odd = [(FrameType.PEER_PRESENT, 31), (FrameType.PEER_GONE, 0), (FrameType.PING, 3), (0x77, 9), (0x0A, 70)]
        await far.write(b"".join(HEADER.pack(kind, size) + bytes(size) for kind, size in odd))
        longer = HEADER.pack(FrameType.PEER_PRESENT, 80) + FAR + bytes(48)
        await far.write(longer)
        await until(pair.one, lambda: FAR in alpha.router.routes)
        assert len(alpha.mesh.sessions) == 1


async def test_a_flood_of_pings_is_answered_no_further_than_it_is_read() -> None:
    async with (
        open_nodes(alpha := Node("alpha.test", mesh_write_timeout_seconds=3.0, tcp_write_timeout_seconds=0)),
        open_bystanders(alpha.server) as pair,
        open_impostor() as host,
    ):
        alpha.join(host.peer)
        mad = await host.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mad.write_until_closed, 5000 * encode(Ping(b"12345678")), True)
            await until(pair.one, lambda: count_of(alpha.server, CloseReason.WRITE_TIMEOUT) == 1)
            await pair.go_on(5)
        assert alpha.router.counters.notices_dropped > 0


Answer = Callable[[trio.SocketStream], Awaitable[None]]


async def _hang_up(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)


async def _no_tls(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    await stream.send_all(b"SSH-2.0-OpenSSH_9.6\r\n")
    await stream.receive_some(65536)


@pytest.mark.parametrize("answer", [_hang_up, _no_tls])
async def test_what_is_no_relay_at_all_is_said_once(answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "derp.mesh")
    attempts, enough = 0, trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            enough.set()
        await answer(stream)

    async with (
        open_nodes(alpha := Node("alpha.test")),
        open_bystanders(alpha.server),
        trio.open_nursery() as nursery,
    ):
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        alpha.join(type(alpha.peer)("beta.test", port, HOST))
        with trio.fail_after(60):
            await enough.wait()
        assert caplog.text.count("x mesh: beta.test") == 1
        assert alpha.mesh.sessions == {}
        nursery.cancel_scope.cancel()
