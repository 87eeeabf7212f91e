"""The client against a relay's value-level twin over memory streams, in virtual time where time matters."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from derp.client import client as client_module
from derp.client.client import (
    DerpClient,
    Identity,
    open_background,
    open_client_over,
    open_derp_client,
    shake_hands,
)
from derp.client.dial import Carrier, Dialled, RelayAddress
from derp.errors import ConnectError, ConnectionClosed, LocalProtocolError, RemoteProtocolError, TransportTimeout
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientIdentified
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.messages import (
    ClosePeer,
    ForwardPacket,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    ServerInfo,
    WatchConns,
    encode,
)
from tests.support.inprocess import map_of, node_of, open_relay_here
from tests.support.twin import TwinRelay

ADDRESS = RelayAddress("relay.example", 443)
ALICE, BOB, CAROL = (NodePrivate(bytes([number]) * 32) for number in (1, 2, 3))
A, B, C = (private.public().raw for private in (ALICE, BOB, CAROL))
MESH_KEY = MeshKey(b"m" * 32)


@asynccontextmanager
async def connected(
    twin: TwinRelay,
    private: NodePrivate = ALICE,
    *,
    mesh_key: MeshKey | None = None,
    twins_nursery: trio.Nursery | None = None,
) -> AsyncIterator[DerpClient]:
    """A client of the twin over a memory stream; the twin's end lives on in its own nursery, if it is given one."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        (twins_nursery or nursery).start_soon(twin.speak, far)
        dialled = Dialled(ADDRESS, near, Carrier.DERP)
        reached = await shake_hands(dialled, Identity(private, mesh_key))
        async with open_client_over(reached) as client:
            yield client
        nursery.cancel_scope.cancel()


async def receive(client: DerpClient) -> object:
    with trio.fail_after(10):  # a hang guard
        return await client.receive()


async def test_packets_both_ways() -> None:
    twin = TwinRelay()
    async with connected(twin, ALICE) as alice, connected(twin, BOB) as bob:
        assert alice.server_key == bob.server_key == twin.key
        assert alice.server_info == ServerInfo()
        await alice.send(B, b"hello")
        assert await receive(bob) == RecvPacket(A, b"hello")
        await bob.send(A, memoryview(b""))
        assert await receive(alice) == RecvPacket(B, b"")
        await alice.send(B, os.urandom(65536))
        packet = await receive(bob)
        assert isinstance(packet, RecvPacket)
        assert len(packet.packet) == 65536
        assert (alice.statistics().packets_sent, alice.statistics().packets_received) == (2, 1)
        assert alice.statistics().packets_lost == 0


async def test_a_batch_is_what_one_read_brought() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        await twin.sessions[A].send(*(RecvPacket(B, bytes([number])) for number in range(5)))
        assert [message.packet for message in await alice.receive_batch()] == [bytes([n]) for n in range(5)]


async def test_what_is_only_noise_is_not_passed_on() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        await twin.sessions[A].send(KeepAlive(), Ping(b"12345678"), PeerGone(B, 1), PeerPresent(C))
        await twin.sessions[A].stream.send_all(encode_frame(0x7F, b"the future"))
        assert await receive(alice) == PeerGone(B, 1)
        assert await receive(alice) == PeerPresent(C)
        assert await twin.wait(Pong) == [(A, Pong(b"12345678"))]
        await twin.sessions[A].send(RecvPacket(B, b"x"))
        await receive(alice)
        assert alice.statistics().skipped_frames == 1


async def test_health_and_restart_are_surfaced() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        assert (alice.health, alice.restarting) == ("", None)
        await twin.sessions[A].send(Health("duplicate key"))
        assert await receive(alice) == Health("duplicate key")
        assert alice.health == "duplicate key"
        await twin.sessions[A].send(Health(""), Restarting(10, 1000))
        await receive(alice)
        assert await receive(alice) == Restarting(10, 1000)
        assert (alice.health, alice.restarting) == ("", Restarting(10, 1000))
        await twin.drop(A)
        with pytest.raises(ConnectionClosed, match=r"relay.example/derp closed the connection after it announced"):
            await receive(alice)


async def test_preferred_watch_close_and_forward() -> None:
    twin = TwinRelay(mesh_key=MESH_KEY)
    async with connected(twin, BOB) as bob, connected(twin, ALICE, mesh_key=MESH_KEY) as mesh:
        mesh.note_preferred(True)
        mesh.watch_conns()
        assert {await receive(mesh), await receive(mesh)} == {PeerPresent(A), PeerPresent(B)}
        await mesh.forward(C, B, b"from afar")
        assert await receive(bob) == RecvPacket(C, b"from afar")
        await mesh.close_peer(B)
        assert await receive(mesh) == PeerGone(B)
        assert [event for _, event in await twin.wait(ClosePeer)] == [ClosePeer(B)]
        said = [type(event) for key, event in twin.events if key == A][1:]
        assert said == [NotePreferred, WatchConns, ForwardPacket, ClosePeer]


async def test_without_mesh_key_mesh_calls_are_refused_here() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        with pytest.raises(LocalProtocolError, match="mesh key"):
            await alice.forward(C, B, b"x")
        with pytest.raises(LocalProtocolError):
            await alice.send(b"short", b"x")
        await alice.send(A, b"still alive")
        assert await receive(alice) == RecvPacket(A, b"still alive")


async def test_a_prober_says_who_it_is() -> None:
    twin = TwinRelay()
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(twin.speak, far)
        await shake_hands(Dialled(ADDRESS, near, Carrier.DERP), Identity(ALICE, is_prober=True, app_name="probe"))
        nursery.cancel_scope.cancel()
    ((_, identified),) = await twin.wait(ClientIdentified)
    assert identified.info.is_prober
    assert (identified.info.app_name, identified.info.can_ack_pings) == ("probe", True)


# Pings.


async def test_ping_with_and_without_a_receiver() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        assert 0 <= await alice.ping() < 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.receive)
            await trio.testing.wait_all_tasks_blocked()
            assert 0 <= await alice.ping() < 5
            nursery.cancel_scope.cancel()
        await alice.send(A, b"x")
        assert await receive(alice) == RecvPacket(A, b"x")


async def test_without_quic_nobody_tells_our_address() -> None:
    async with connected(TwinRelay()) as alice:
        assert await alice.observed_address() is None


async def test_packets_that_come_during_a_ping_are_kept() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        await alice.send(A, b"one")
        await alice.ping()
        assert await receive(alice) == RecvPacket(A, b"one")


async def test_pings_are_one_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    twin = TwinRelay()
    async with connected(twin) as alice, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(alice.ping)
    assert len(await twin.wait(Ping)) == 20
    async with connected_to_the_deaf() as (alice, _), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(alice.ping)
        await trio.testing.wait_all_tasks_blocked()
        assert len(alice._in_flight) + len(alice._outbox) == 1
        nursery.cancel_scope.cancel()


class DeafStream(trio.abc.Stream):
    """After its first bytes the peer neither speaks nor reads."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.is_deaf = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_deaf:
            await trio.sleep_forever()
        await self.stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.is_deaf:
            await trio.sleep_forever()
        return await self.stream.receive_some(max_bytes)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def connected_to_the_deaf() -> AsyncIterator[tuple[DerpClient, DeafStream]]:
    twin = TwinRelay()
    near, far = trio.testing.memory_stream_pair()
    deaf = DeafStream(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(twin.speak, far)
        dialled = Dialled(ADDRESS, deaf, Carrier.DERP)
        reached = await shake_hands(dialled, Identity(ALICE))
        async with open_client_over(reached) as client:
            deaf.is_deaf = True
            yield client, deaf
        nursery.cancel_scope.cancel()


async def test_a_ping_gives_up_after_five_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with connected_to_the_deaf() as (alice, _):
        start = trio.current_time()
        with pytest.raises(TransportTimeout, match=r"no pong within 5 s$"):
            await alice.ping()
        assert trio.current_time() - start == pytest.approx(5)


async def test_a_ping_behind_messages_that_nobody_takes_says_so(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_INBOX_MESSAGES", 3)
    twin = TwinRelay()
    async with connected(twin) as alice:
        for number in range(4):
            await twin.sessions[A].send(RecvPacket(B, bytes([number])))
        alice._inbox.extend([RecvPacket(B, b"")] * 3)
        with pytest.raises(TransportTimeout, match="nobody receives them"):
            await alice.ping()
        assert len(await alice.receive_batch()) == 3  # no more was read
        assert len(await alice.receive_batch()) == 5  # the packets, and the late pong
        assert 0 <= await alice.ping() < 5


async def test_two_silent_minutes_end_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        await trio.sleep(100)
        await twin.sessions[A].send(KeepAlive())
        start = trio.current_time()
        with pytest.raises(TransportTimeout, match="sent nothing for 120 s"):
            await alice.receive()
        assert trio.current_time() - start == pytest.approx(120)
        with pytest.raises(TransportTimeout, match="sent nothing"):
            alice.send_nowait(B, b"x")


# The queue.


def fill(client: DerpClient, size: int) -> int:
    """Queue packets until there is no room; how many went in."""
    for count in range(10_000):
        try:
            client.send_nowait(B, bytes(size))
        except trio.WouldBlock:
            return count
    raise AssertionError("no bound")


async def test_a_batch_is_queued_whole_or_not_at_all() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        alice.send_batch_nowait(A, [b"1", b"2", b"3"])
        with pytest.raises(LocalProtocolError, match="65537 bytes"):
            alice.send_batch_nowait(A, [b"fine", bytes(65537)])
        alice.send_batch_nowait(A, [bytes(60_000)] * 3)  # one batch beyond the bound
        with pytest.raises(trio.WouldBlock):
            alice.send_batch_nowait(A, [b"4", b"5"])
        with trio.fail_after(5):
            packets = [await alice.receive() for _ in range(6)]
        assert packets == [RecvPacket(A, data) for data in (b"1", b"2", b"3", *[bytes(60_000)] * 3)]


async def test_the_queue_is_bounded_and_a_failure_counts_what_was_in_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected_to_the_deaf() as (alice, deaf):
        queued = fill(alice, 1280)
        assert 100 <= queued <= 101
        await trio.testing.wait_all_tasks_blocked()  # the writer took its first batch
        with trio.move_on_after(1) as waited:
            while True:
                await alice.send(B, bytes(1280))
                queued += 1
        assert waited.cancelled_caught
        assert alice.statistics().packets_lost == 0
        deaf.is_deaf = False
        await deaf.aclose()
        with pytest.raises(ConnectionClosed):
            await alice.receive()
        assert alice.statistics().packets_lost == queued
        assert alice.statistics().packets_sent == 0
        with pytest.raises(ConnectionClosed):
            await alice.send(B, b"x")


async def test_a_sender_that_waits_for_room_hears_of_the_end() -> None:
    async with connected_to_the_deaf() as (alice, deaf):
        fill(alice, 60_000)
        await trio.testing.wait_all_tasks_blocked()
        fill(alice, 60_000)
        failures = []

        async def send() -> None:
            try:
                await alice.send(B, b"late")
            except ConnectionClosed as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            deaf.is_deaf = False
            await deaf.aclose()
            with pytest.raises(ConnectionClosed):
                await alice.receive()
        assert len(failures) == 1


async def test_a_cancelled_send_never_cuts_a_frame() -> None:
    twin = TwinRelay()
    near, far = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(twin.speak, far)
        dialled = Dialled(ADDRESS, near, Carrier.DERP)
        reached = await shake_hands(dialled, Identity(ALICE))
        async with open_client_over(reached) as alice:
            with trio.CancelScope() as scope:
                scope.cancel()
                await alice.send(A, bytes(1000))
            alice.send_nowait(A, bytes(1000))
            with trio.CancelScope() as scope:
                scope.cancel()
                await alice.flush()
            await alice.send(A, b"whole")
            assert await receive(alice) == RecvPacket(A, bytes(1000))
            assert await receive(alice) == RecvPacket(A, b"whole")
        nursery.cancel_scope.cancel()


async def test_room_comes_back_as_packets_leave() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        first = fill(alice, 1280)
        await alice.flush()
        assert fill(alice, 1280) == first
        await alice.flush()
        assert len(await twin.wait(SendPacket, 2 * first)) == alice.statistics().packets_sent == 2 * first


async def test_many_sends_share_a_write() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        writes = []
        stream = alice._stream
        send_all = stream.send_all

        async def counting(data: bytes) -> None:
            writes.append(len(data))
            await send_all(data)

        stream.send_all = counting
        for number in range(20):
            alice.send_nowait(A, bytes([number]))
        await alice.flush()
        assert len(writes) == 1
        packets = [(await receive(alice)).packet for _ in range(20)]
        assert packets == [bytes([number]) for number in range(20)]


async def test_leaving_writes_what_is_queued() -> None:
    twin = TwinRelay()
    async with connected(twin, BOB) as bob, trio.open_nursery() as nursery:
        async with connected(twin, ALICE, twins_nursery=nursery) as alice:
            for _ in range(3):
                alice.send_nowait(B, b"last words")
        assert [await receive(bob) for _ in range(3)] == [RecvPacket(A, b"last words")] * 3
        with pytest.raises(ConnectionClosed, match="this client was closed"):
            alice.send_nowait(B, b"later")


async def test_leaving_does_not_wait_for_the_deaf(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    async with connected_to_the_deaf() as (alice, _):
        alice.send_nowait(B, b"x")
    assert trio.current_time() - start == pytest.approx(2)
    assert alice.statistics().packets_lost == 1


async def test_an_error_of_the_body_comes_out_bare_and_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async def leave() -> None:
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TwinRelay().speak, far)
            dialled = Dialled(ADDRESS, near, Carrier.DERP)
            reached = await shake_hands(dialled, Identity(ALICE))
            try:
                async with open_client_over(reached) as alice:
                    alice.send_nowait(B, b"x")
                    raise KeyError("the body's own")
            except KeyError as error:
                caught.append(error)
            nursery.cancel_scope.cancel()

    caught: list[KeyError] = []
    start = trio.current_time()
    await leave()
    assert [error.args for error in caught] == [("the body's own",)]
    assert trio.current_time() == start


async def test_a_cancellation_beside_the_bodys_error_does_not_wrap_it() -> None:
    async def fail_while_cancelled() -> None:
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            raise KeyError

    with trio.CancelScope() as scope:
        with pytest.raises(KeyError):
            await fail_while_cancelled()
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_broken_task_is_not_hidden() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_background() as nursery:
            nursery.start_soon(broken)
            await trio.sleep_forever()


async def test_a_relay_that_pings_without_reading_gets_no_memory(autojump_clock: trio.testing.MockClock) -> None:
    async with connected_to_the_deaf() as (alice, _):
        fill(alice, 60_000)
        await trio.testing.wait_all_tasks_blocked()
        fill(alice, 60_000)
        before = alice._outbox_bytes
        alice._core.receive_data(encode(Ping(b"12345678")) * 10_000)
        alice._collect()
        assert alice._outbox_bytes == before


async def test_a_token_bucket_paces_instead_of_dropping(autojump_clock: trio.testing.MockClock) -> None:
    twin = TwinRelay(info=ServerInfo(2, token_bucket_bytes_per_second=100_000, token_bucket_bytes_burst=50_000))
    async with connected(twin) as alice:
        start = trio.current_time()
        size = 10_000 - 37
        for _ in range(25):
            await alice.send(A, bytes(size))
        await alice.flush()
        assert trio.current_time() - start == pytest.approx((250_000 - 50_000) / 100_000)
        assert len([await receive(alice) for _ in range(25)]) == 25


# The handshake, and ends of connections.


async def hands_with(*answers: bytes) -> None:
    near, far = trio.testing.memory_stream_pair()
    for answer in answers:
        await far.send_all(answer)
    await far.send_stream.aclose()
    try:
        await shake_hands(Dialled(ADDRESS, near, Carrier.DERP), Identity(ALICE))
    finally:
        with pytest.raises(trio.ClosedResourceError):  # nothing stays open
            await near.send_all(b"x")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed the connection during the handshake"),
        (encode(KeepAlive()), "is it a DERP relay"),
        (b"SSH-2.0-OpenSSH_9.6 and so on", "announces"),
        (encode_frame(FrameType.SERVER_KEY, b"not the magic bytes" * 3), "not a DERP ServerKey"),
    ],
)
async def test_what_is_no_relay(answer: bytes, said: str) -> None:
    with pytest.raises(ConnectError, match=f"^DERP handshake with https://relay.example/derp: .*{said}"):
        await hands_with(answer)


async def test_a_key_that_is_not_admitted_hears_it() -> None:
    twin = TwinRelay(refused={A})
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConnectError, match="may not admit this client's key"), flatten_subgroups=True
    ):
        async with connected(twin):
            pass


async def test_bytes_behind_the_upgrade_are_read_first() -> None:
    twin = TwinRelay()
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(twin.speak, far)
        greeting = await near.receive_some()
        dialled = Dialled(ADDRESS, near, Carrier.DERP, received=bytes(greeting))
        reached = await shake_hands(dialled, Identity(ALICE))
        assert reached.core.server_key == twin.key
        nursery.cancel_scope.cancel()


async def test_fast_start_speaks_first_and_skips_the_greeting() -> None:
    twin = TwinRelay()
    near, far = trio.testing.memory_stream_pair()
    dialled = Dialled(ADDRESS, near, Carrier.DERP_FAST_START, unsent=b"GET...", server_key=twin.key)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            first = bytes(await far.receive_some())
            assert first.startswith(b"GET...\x02")  # one write with the ClientInfo
            await twin.speak(far, first[6:])

        reached = await shake_hands(dialled, Identity(ALICE))
        async with open_client_over(reached) as alice:
            await alice.send(A, b"x")
            assert await receive(alice) == RecvPacket(A, b"x")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (encode_frame(FrameType.RECV_PACKET, bytes(40))[:20], RemoteProtocolError),
        (b"\x05\xff\xff\xff\xff", RemoteProtocolError),
        (b"", ConnectionClosed),
    ],
)
async def test_ends_are_told_to_every_caller(raw: bytes, error: type[Exception]) -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        await twin.sessions[A].send(RecvPacket(B, b"before the end"))
        assert await receive(alice) == RecvPacket(B, b"before the end")
        await twin.sessions[A].stream.send_all(raw)
        await twin.drop(A)
        for _ in range(2):
            with pytest.raises(error):
                await receive(alice)
        with pytest.raises(error):
            await alice.ping()
        with pytest.raises(error):
            alice.note_preferred(True)
        with pytest.raises(error):
            await alice.flush()


async def test_the_end_wakes_a_ping() -> None:
    twin = TwinRelay()
    async with connected_to_the_deaf() as (alice, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await alice._fail(ConnectionClosed("gone"))

        with pytest.raises(ConnectionClosed, match="gone"), trio.fail_after(4):
            await alice.ping()
    assert twin.events == []


async def test_sends_reach_the_twin_in_order() -> None:
    twin = TwinRelay()
    async with connected(twin) as alice:
        for number in range(100):
            await alice.send(B, number.to_bytes(2, "big"))
        sent = await twin.wait(SendPacket, 100)
        assert [event.packet for _, event in sent] == [number.to_bytes(2, "big") for number in range(100)]


@pytest.mark.parametrize("tls", [False, True])
async def test_a_batch_on_a_socket_leaves_at_once_and_what_the_kernel_does_not_take_follows(tls: bool) -> None:
    packets = [bytes((number,)) * 1300 for number in range(90)]
    with trio.fail_after(60):
        async with open_relay_here(tls=tls, stun_enabled=False) as relay:
            region = map_of(node_of(relay, 901)).regions[901]
            async with open_derp_client(region, BOB) as bob, open_derp_client(region, ALICE) as alice:
                assert alice.server_info.queue_depth == relay.config.queue_depth > 0
                alice.send_batch_nowait(BOB.public().raw, packets[:2])
                assert (alice.statistics().packets_sent, alice._outbox_bytes) == (2, 0), "no task had its turn"
                for _ in range(3):
                    alice.send_batch_nowait(BOB.public().raw, packets)
                assert alice.statistics().packets_sent < 2 + 3 * len(packets), "more than the kernel takes"
                await alice.flush()
                assert alice.statistics().packets_sent == 2 + 3 * len(packets)
                came = [await bob.receive() for _ in range(2 + 3 * len(packets))]
                assert [each.packet for each in came] == packets[:2] + 3 * packets
