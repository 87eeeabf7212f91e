"""The client that stays: the back-off as values, and reconnects in virtual time against a twin on loopback."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from derp.client import reconnect as reconnect_module
from derp.client.dial import Carrier, DialOptions
from derp.client.reconnect import (
    MAX_WAITING_PACKETS,
    BackOff,
    Connected,
    Disconnected,
    Phase,
    ReconnectingClient,
    open_reconnecting_client,
)
from derp.errors import ConfigError, ConnectError, ConnectionClosed, LocalProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPRegion
from derp.protocol.messages import (
    ClosePeer,
    ForwardPacket,
    Health,
    NotePreferred,
    PeerPresent,
    RecvPacket,
    RecvPackets,
    Restarting,
    SendPacket,
    WatchConns,
)
from derp.transport.http import Request, ServerHttp
from tests.support.twin import TwinRelay, open_twin

ALICE = NodePrivate(b"a" * 32)
A = ALICE.public().raw
B = bytes(range(32))
MESH_KEY = MeshKey(b"m" * 32)


# Back-off.


def test_the_schedule() -> None:
    back_off = BackOff(first_seconds=0.5, factor=2, limit_seconds=5)
    assert [back_off.delay(failures, 1.0) for failures in (1, 2, 3, 4, 5, 6)] == [0.5, 1, 2, 4, 5, 5]
    assert [back_off.delay(1, fraction) for fraction in (0, 0.5)] == pytest.approx([0.05, 0.275])


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_the_schedule_is_bounded_and_never_zero(failures: int, fraction: float) -> None:
    assert 0 < BackOff().delay(failures, fraction) <= BackOff().limit_seconds


# Connections.


@asynccontextmanager
async def staying(twin: TwinRelay, **arguments: Any) -> AsyncIterator[ReconnectingClient]:
    arguments = {"random_fraction": lambda: 1.0, "options": DialOptions(environment=None)} | arguments
    async with open_reconnecting_client(f"http://127.0.0.1:{twin.port}", ALICE, **arguments) as client:
        yield client


async def hear(client: ReconnectingClient) -> Any:
    with trio.fail_after(300):  # a hang guard; virtual seconds
        return await client.receive()


async def test_it_comes_back_and_says_so(autojump_clock: trio.testing.MockClock) -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        assert client.status.phase is Phase.CONNECTING
        first = await hear(client)
        assert isinstance(first, Connected)
        assert (first.generation, first.server_key, first.carrier) == (1, twin.key, Carrier.DERP)
        await twin.sessions[A].send(RecvPacket(B, b"x"))
        assert await hear(client) == RecvPacket(B, b"x")
        start = trio.current_time()
        await twin.drop(A)
        gone = await hear(client)
        assert gone == Disconnected(1, f"{first.address.label()} closed the connection")
        assert client.status.phase is Phase.WAITING
        assert client.status.reason == gone.reason
        second = await hear(client)
        assert isinstance(second, Connected)
        assert second.generation == 2
        assert trio.current_time() - start == pytest.approx(0.5)
        assert client.status.phase is Phase.CONNECTED
        assert client.statistics().packets_received == 1


async def test_whoever_listens_hears_all_at_once_and_packets_in_runs(autojump_clock: trio.testing.MockClock) -> None:
    heard: list[object] = []
    news = trio.Event()

    def listen(batch: Sequence[object]) -> None:
        heard.extend(batch)
        news.set()

    async with open_twin(TwinRelay()) as twin, staying(twin, hear=listen) as client:
        await client.wait_connected()
        assert isinstance(heard.pop(), Connected)
        news = trio.Event()
        await twin.sessions[A].send(RecvPacket(B, b"x"))
        await news.wait()
        assert heard == [RecvPackets(B, [memoryview(b"x")])]
        await twin.drop(A)
        while client.status.phase is Phase.CONNECTED:
            await client.wait_status_change(client.status)
        await client.wait_connected()
        assert [type(each) for each in heard[1:]] == [Disconnected, Connected]


async def test_back_off_grows_while_it_fails_and_starts_anew_after_a_good_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    arrivals: list[float] = []

    def note(request: Request) -> bytes | None:
        arrivals.append(trio.current_time())
        if len(arrivals) >= 4:
            return None
        return ServerHttp().send_response(503)

    async with open_twin(TwinRelay(answer=note)) as twin, staying(twin) as client:
        status = await client.wait_connected()
        assert (status.generation, status.failures) == (1, 0)
        assert [later - earlier for earlier, later in pairwise(arrivals)] == pytest.approx([0.5, 1.0, 2.0])
        await trio.sleep(reconnect_module.STABLE_SECONDS)
        dropped = trio.current_time()
        await twin.drop(A)
        await client.wait_status_change(status)
        await client.wait_connected()
        assert arrivals[-1] - dropped == pytest.approx(0.5)
        # One that breaks at once counts as a failure, however well it connected.
        for wait in (0.5 * 2, 0.5 * 4):
            dropped = trio.current_time()
            await twin.drop(A)
            while client.status.phase is Phase.CONNECTED:
                await client.wait_status_change(client.status)
            await client.wait_connected()
            assert arrivals[-1] - dropped == pytest.approx(wait)


async def test_home_and_watch_are_told_again(autojump_clock: trio.testing.MockClock) -> None:
    async with open_twin(TwinRelay(mesh_key=MESH_KEY)) as twin, staying(twin, mesh_key=MESH_KEY) as client:
        client.note_preferred(True)  # before the first connection
        client.watch_conns()
        assert isinstance(await hear(client), Connected)
        assert await hear(client) == PeerPresent(A)
        client.note_preferred(False)
        await twin.wait(NotePreferred, 2)
        await twin.drop(A)
        assert isinstance(await hear(client), Disconnected)
        assert isinstance(await hear(client), Connected)
        assert await hear(client) == PeerPresent(A)
        assert [event for _, event in await twin.wait(NotePreferred, 3)] == [
            NotePreferred(True),
            NotePreferred(False),
            NotePreferred(False),
        ]
        assert len(await twin.wait(WatchConns, 2)) == 2


async def test_health_is_surfaced_and_does_not_outlive_its_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        status = await client.wait_connected()
        await hear(client)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def tell() -> None:
                await trio.testing.wait_all_tasks_blocked()
                await twin.sessions[A].send(Health("you share this key with another machine"))

            status = await client.wait_status_change(status)
        assert status.health == "you share this key with another machine"
        assert await hear(client) == Health("you share this key with another machine")
        await twin.drop(A)
        await client.wait_status_change(status)
        assert (await client.wait_connected()).health == ""


@pytest.mark.parametrize(("asked_ms", "waited"), [(3000, 3.0), (10**9, 60.0), (0, 0.5)])
async def test_a_restarting_relay_is_left_alone_as_long_as_it_asks(
    asked_ms: int, waited: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        await hear(client)
        await twin.sessions[A].send(Restarting(asked_ms, 0))
        assert await hear(client) == Restarting(asked_ms, 0)
        start = trio.current_time()
        await twin.drop(A)
        assert "after it announced a restart" in (await hear(client)).reason
        await hear(client)
        assert trio.current_time() - start == pytest.approx(waited)


async def test_while_a_restart_is_announced_delays_do_not_grow(autojump_clock: trio.testing.MockClock) -> None:
    arrivals: list[float] = []

    def note(request: Request) -> bytes | None:
        arrivals.append(trio.current_time())
        return None if len(arrivals) in (1, 5) else ServerHttp().send_response(503)

    async with open_twin(TwinRelay(answer=note)) as twin, staying(twin) as client:
        await hear(client)
        await twin.sessions[A].send(Restarting(1000, 30_000))
        await hear(client)
        start = trio.current_time()
        await twin.drop(A)
        await hear(client)
        assert isinstance(await hear(client), Connected)
        assert [arrival - start for arrival in arrivals[1:]] == pytest.approx([1.0, 1.5, 2.0, 2.5])


async def test_a_websocket_lesson_is_kept_until_it_fails(autojump_clock: trio.testing.MockClock) -> None:
    refused: set[str] = {"derp"}

    def picky(request: Request) -> bytes | None:
        return ServerHttp().send_response(403) if request.headers["upgrade"].lower() in refused else None

    async with open_twin(TwinRelay(answer=picky)) as twin, staying(twin) as client:
        connected = await hear(client)
        assert connected.carrier is Carrier.WEBSOCKET
        assert "status 403" in connected.websocket_reason
        await twin.drop(A)
        await hear(client)
        again = await hear(client)
        assert (again.carrier, again.websocket_reason) == (connected.carrier, connected.websocket_reason)
        assert [request.headers["upgrade"] for request in twin.requests] == ["DERP", "websocket", "websocket"]
        refused = {"websocket"}
        await twin.drop(A)
        await hear(client)
        assert (await hear(client)).carrier is Carrier.DERP


async def test_a_map_that_changes_is_asked_before_each_attempt(autojump_clock: trio.testing.MockClock) -> None:
    async with open_twin(TwinRelay()) as old, open_twin(TwinRelay()) as new:
        targets: list[str | DERPRegion] = [f"http://127.0.0.1:{old.port}", DERPRegion(), f"http://127.0.0.1:{new.port}"]

        def target() -> str | DERPRegion:
            return targets.pop(0)

        async with open_reconnecting_client(target, ALICE, options=DialOptions(environment=None)) as client:
            assert (await hear(client)).server_key == old.key
            await old.drop(A)
            await hear(client)
            assert (await hear(client)).server_key == new.key


async def test_a_url_that_can_never_work_is_refused_at_once() -> None:
    with pytest.raises(ConfigError):
        async with open_reconnecting_client("relay.example", ALICE):
            pass


# Packets.


async def test_packets_wait_for_the_first_connection() -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        client.send_nowait(A, b"early")
        await client.send(A, memoryview(b"birds"))
        with trio.fail_after(5):
            assert isinstance(await client.receive(), Connected)
            assert await client.receive() == RecvPacket(A, b"early")
            assert await client.receive() == RecvPacket(A, b"birds")


async def test_a_batch_comes_in_its_order_connected_or_not() -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        client.send_batch_nowait(A, [b"1", b"2"])
        with trio.fail_after(5):
            assert isinstance(await client.receive(), Connected)
            client.send_batch_nowait(A, [b"3", b"4"])
            assert [(await hear(client)).packet for _ in range(4)] == [b"1", b"2", b"3", b"4"]
        assert client.statistics().packets_sent == 4
        with pytest.raises(LocalProtocolError):
            client.send_batch_nowait(A, [b"fine", bytes(65537)])


async def test_of_a_batch_without_room_the_oldest_go_and_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with unreachable() as (client, twin):
        client.send_batch_nowait(A, [number.to_bytes(2, "big") for number in range(MAX_WAITING_PACKETS + 3)])
        assert client.statistics().packets_dropped == 3
        async with open_twin(twin):
            await hear(client)
            assert (await hear(client)).packet == (3).to_bytes(2, "big")


@asynccontextmanager
async def unreachable(**arguments: Any) -> AsyncIterator[tuple[ReconnectingClient, TwinRelay]]:
    """A client that waits for a relay which is not there, and the relay, for `open_twin`."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    twin = TwinRelay(port=listener.socket.getsockname()[1])
    await listener.aclose()
    async with staying(twin, **arguments) as client:
        while client.status.phase is not Phase.WAITING:
            await client.wait_status_change(client.status)
        yield client, twin


async def test_without_room_the_oldest_go_and_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with unreachable() as (client, twin):
        for number in range(MAX_WAITING_PACKETS + 3):
            client.send_nowait(A, number.to_bytes(2, "big"))
        assert client.statistics().packets_dropped == 3
        with trio.move_on_after(1) as waited:
            await client.send(A, b"no room for me")
        assert waited.cancelled_caught
        assert client.statistics().packets_dropped == 3
        async with open_twin(twin):
            await hear(client)
            packets = [(await hear(client)).packet for _ in range(MAX_WAITING_PACKETS)]
            assert packets == [number.to_bytes(2, "big") for number in range(3, MAX_WAITING_PACKETS + 3)]


async def test_a_waiting_sender_gets_room_after_the_reconnect(autojump_clock: trio.testing.MockClock) -> None:
    async with unreachable() as (client, twin), trio.open_nursery() as nursery:
        for _ in range(MAX_WAITING_PACKETS):
            client.send_nowait(A, b"first")
        nursery.start_soon(client.send, A, b"last")
        await trio.testing.wait_all_tasks_blocked()
        async with open_twin(twin):
            await hear(client)
            packets = [(await hear(client)).packet for _ in range(MAX_WAITING_PACKETS + 1)]
            assert packets[-1] == b"last"


async def test_order_is_kept_when_the_connection_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3000
    async with open_twin(TwinRelay()) as twin, staying(twin) as client, trio.open_nursery() as nursery:
        await client.wait_connected()

        @nursery.start_soon
        async def send() -> None:
            for number in range(count):
                await client.send(A, number.to_bytes(2, "big") * 600)

        got: list[bytes] = []
        with trio.fail_after(20):
            while len(got) < count:
                got += [item.packet for item in await client.receive_batch() if isinstance(item, RecvPacket)]
        assert got == [number.to_bytes(2, "big") * 600 for number in range(count)]
        totals = client.statistics()
        assert (totals.packets_sent, totals.packets_lost, totals.packets_dropped) == (count, 0, 0)


async def test_every_packet_is_sent_lost_or_dropped_and_counted_as_such(autojump_clock: trio.testing.MockClock) -> None:
    class Stuck(TwinRelay):
        async def speak(self, stream: trio.abc.Stream, received: bytes = b"") -> None:
            await super().speak(stream, received)

        async def _act(self, session: Any, mine: bytes, event: Any) -> None:
            if isinstance(event, SendPacket):
                await gate.wait()  # reads no more

    gate = trio.Event()
    async with open_twin(Stuck()) as twin, staying(twin) as client:
        await client.wait_connected()
        queued = 0
        while client.statistics().packets_dropped == 0:
            for _ in range(50):
                client.send_nowait(A, bytes(60_000))
                queued += 1
            await trio.testing.wait_all_tasks_blocked()
        status = client.status
        assert client.statistics().packets_lost == 0
        await twin.drop(A)
        await client.wait_status_change(status)
        totals = client.statistics()
        assert totals.packets_lost > 0
        assert totals.packets_sent + totals.packets_lost + totals.packets_dropped + MAX_WAITING_PACKETS == queued
        gate.set()


async def test_mistakes_are_told_to_their_maker() -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        mistakes: list[Callable[[], None]] = [
            lambda: client.send_nowait(B[:31], b"x"),
            lambda: client.send_nowait(B, bytes(65537)),
            lambda: client.forward_nowait(B, B, b"x"),
            client.watch_conns,
        ]
        for mistake in mistakes:
            with pytest.raises(LocalProtocolError):
                mistake()
        with pytest.raises(LocalProtocolError):
            await client.forward(B, B, b"x")
        with pytest.raises(LocalProtocolError):
            await client.close_peer(B)


async def test_mesh_calls_and_pings() -> None:
    async with open_twin(TwinRelay(mesh_key=MESH_KEY)) as twin, staying(twin, mesh_key=MESH_KEY) as client:
        with pytest.raises(ConnectionClosed, match="first attempt is under way"):
            await client.ping()
        await client.wait_connected()
        assert 0 <= await client.ping() < 5
        await client.forward(B, A, b"from afar")
        client.forward_nowait(B, A, b"again")
        assert isinstance(await hear(client), Connected)
        assert [await hear(client) for _ in range(2)] == [RecvPacket(B, b"from afar"), RecvPacket(B, b"again")]
        assert len(await twin.wait(ForwardPacket, 2)) == 2
        await client.close_peer(B)
        assert (await twin.wait(ClosePeer))[0][1] == ClosePeer(B)


async def test_leaving_sends_what_waits() -> None:
    async with open_twin(TwinRelay()) as twin:
        async with staying(twin) as client:
            await client.wait_connected()
            for number in range(300):
                client.send_nowait(B, bytes([number % 256]) * 1000)
            sent_or_dropped = 300 - client.statistics().packets_dropped
        assert len(await twin.wait(SendPacket, sent_or_dropped)) == sent_or_dropped
        assert client.statistics().packets_lost == 0


# Being a good citizen.


async def test_who_never_receives_gathers_no_news(autojump_clock: trio.testing.MockClock) -> None:
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        for _ in range(20):
            await client.wait_connected()
            status = client.status
            await twin.drop(A)
            await client.wait_status_change(status)
        await client.wait_connected()
        assert len(client._inbox) <= 2
        assert client.status.generation == 21


async def test_who_does_not_receive_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect_module, "MAX_INBOX_MESSAGES", 10)
    async with open_twin(TwinRelay()) as twin, staying(twin) as client:
        await client.wait_connected()
        for number in range(50):
            await twin.sessions[A].send(RecvPacket(B, bytes([number])))
            await trio.testing.wait_all_tasks_blocked()
        assert len(client._inbox) <= 11
        await client.receive()
        with trio.fail_after(5):
            packets = [(await client.receive()).packet for _ in range(50)]
        assert packets == [bytes([number]) for number in range(50)]


async def test_an_outage_is_logged_once_per_reason(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "derp.client")
    async with unreachable() as (client, twin):
        await trio.sleep(60)
        assert client.status.failures > 10
        assert len(caplog.records) == 1
        assert "nothing listens" in caplog.records[0].message
        async with open_twin(twin):
            await client.wait_connected()
            assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
            assert caplog.records[1].message.endswith("/derp by derp")


async def test_the_error_of_the_body_comes_out_bare() -> None:
    with pytest.raises(KeyError):
        async with unreachable():
            raise KeyError


async def test_a_failing_target_function_is_a_failed_attempt(autojump_clock: trio.testing.MockClock) -> None:
    def target() -> str:
        raise ConnectError("no map yet")

    async with open_reconnecting_client(target, ALICE) as client:
        while client.status.failures < 3:
            await client.wait_status_change(client.status)
        assert client.status.reason == "no map yet"
