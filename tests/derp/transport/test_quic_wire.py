"""The relay's UDP port for QUIC, served turn by turn: budgets, room, last words, leaving."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from derp.close_reason import CloseReason
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.quic import DATAGRAM_BYTES, UDP_BYTES
from derp.transport.host import Session
from derp.transport.listen import open_udp
from derp.transport.quic import SLACK_BYTES, Place, QuicLine, dial
from derp.transport.quic_wire import (
    HANDSHAKES_AT_ONCE,
    LINGER_SECONDS,
    MAX_HALF_OPEN_PER_ADDRESS,
    RESETS_PER_SECOND,
    Drop,
    QuicEndpoint,
    QuicWire,
)
from derp.transport.reactor import Reactor
from tests.support.quic import NAME, open_door

HOST = "127.0.0.1"
FULL = encode_frame(FrameType.RECV_PACKET, bytes(DATAGRAM_BYTES - 5))
SENT = encode_frame(FrameType.SEND_PACKET, bytes(40))


class Seen:
    """A session that keeps what it is given."""

    def __init__(self, endpoint: "World") -> None:
        self.world = endpoint
        self.bytes = b""
        self.writable_count = 0
        self.reason: CloseReason | None = None

    def received(self, at: int, end: int) -> int:
        self.bytes += self.world.reactor.view[at:end]
        return end

    def writable(self) -> None:
        self.writable_count += 1

    def ended(self, reason: CloseReason, text: str) -> None:
        self.reason = reason


class World:
    """An endpoint on a reactor that is turned by hand, and its clients."""

    def __init__(self, host: str = HOST) -> None:
        self.time = 1000.0
        self.reactor = Reactor(clock=lambda: self.time)
        self.wires: list[QuicWire] = []
        self.allows = True
        self.sock = open_udp(host, 0)
        self.port = self.sock.getsockname()[1]
        self.endpoint = QuicEndpoint(
            self.sock,
            self.reactor,
            open_door(),
            admits=lambda: self.allows,
            opened=self._opened,
            takes_packets=self._takes,
        )
        self.clients: list[Client] = []

    def _opened(self, wire: QuicWire) -> None:
        wire.session = Seen(self)
        self.wires.append(wire)

    def _takes(self, session: Session | None) -> bool:
        return True

    def client(self, host: str = HOST) -> "Client":
        client = Client(self, host)
        self.clients.append(client)
        return client

    def turn(self, rounds: int = 12) -> None:
        """So many times: what clients have to say, then the reactor's turn."""
        for _ in range(rounds):
            self.time += 0.005
            for client in self.clients:
                client.turn()
            self.reactor.serve_ready()

    def seen(self, number: int = 0) -> Seen:
        session = self.wires[number].session
        assert isinstance(session, Seen)
        return session

    def close(self) -> None:
        self.reactor.end()
        self.endpoint.leave()
        for client in self.clients:
            client.sock.close()


class Client:
    """A connection of a client on a socket of its own."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.place = Place((host, world.port))
        self.line: QuicLine = dial(self.place, NAME, world.time)
        self.sock = open_udp(host, 0)

    def turn(self) -> None:
        now = self.world.time
        while True:
            try:
                self.line.receive(self.sock.recv(4096), self.place, now)
            except BlockingIOError:
                break
        self.line.handle_timeout(now)
        for datagram, _ in self.line.datagrams_to_send(now):
            self.sock.sendto(datagram, self.place.source)


@contextmanager
def open_world(host: str = HOST) -> Iterator[World]:
    world = World(host)
    try:
        yield world
    finally:
        world.close()


@contextmanager
def open_connected() -> Iterator[tuple[World, Client]]:
    with open_world() as world:
        client = world.client()
        client.line.send_stream(b"hello")
        world.turn()
        assert world.seen().bytes == b"hello"
        yield world, client


@pytest.mark.parametrize(("listen", "caller"), [("", HOST), ("", "::1"), ("::1", "::1")])
def test_both_families_are_served(listen: str, caller: str) -> None:
    with open_world(listen) as world:
        client = world.client(caller)
        client.line.send_stream(b"hello")
        world.turn()
        assert world.seen().bytes == b"hello"
        assert world.wires[0].address == (caller, client.sock.getsockname()[1])
        assert world.wires[0].version() == "TLSv1.3"
        assert world.wires[0].rtt_microseconds() > 0


def test_a_datagram_that_is_no_packet_ends_the_connection_in_quic_s_own_words() -> None:
    with open_connected() as (world, client):
        client.line.send_datagram(b"no packet")
        world.turn()
        assert client.line.ended is not None
        assert client.line.ended.reason is CloseReason.PROTOCOL_ERROR
        assert "no packet" in str(client.line.ended)


def move_to(client: "Client", world: World) -> None:
    """The relay of another start is there now, with the same key."""
    client.world.clients.remove(client)
    world.time = client.world.time
    client.world, client.place = world, Place((HOST, world.port))
    world.clients.append(client)


def test_a_client_of_the_process_before_us_is_told_that_its_connection_is_no_more() -> None:
    with open_connected() as (_, client), open_world() as world:
        move_to(client, world)
        client.line.send_frames(SENT)
        world.turn()
        assert client.line.ended is not None
        assert client.line.ended.reason is CloseReason.SOCKET_FAILED
        assert world.endpoint.reset_count == world.endpoint.dropped[Drop.UNKNOWN] >= 1


def test_after_a_move_too() -> None:
    with open_connected() as (before, client), open_world() as world:
        client.line.change_address()
        before.turn()
        move_to(client, world)
        client.line.send_frames(SENT)
        world.turn()
        assert client.line.ended is not None


def test_nobody_else_is_told_so() -> None:
    with open_connected() as (_, client), open_world() as world:
        move_to(client, world)
        world.endpoint.resets_from = world.time + 1.0  # the process before us goes on for a while
        client.line.send_frames(SENT)
        world.turn()
        assert (client.line.ended, world.endpoint.reset_count) == (None, 0)
        stranger = open_udp(HOST, 0)
        for data in (b"\x40" + bytes(20), b"\x00" * 50, b"\xc0" * 50):  # too short, no QUIC, a long packet
            stranger.sendto(data, (HOST, world.port))
        world.endpoint.resets_from = 0.0
        world.reactor.serve_ready()
        with pytest.raises(BlockingIOError):
            stranger.recv(100)
        for _ in range(600):
            stranger.sendto(b"\x40" + bytes(50), (HOST, world.port))
            world.reactor.serve_ready()
        assert world.endpoint.reset_count == RESETS_PER_SECOND
        stranger.close()


def test_nobody_gets_the_token_of_a_connection_that_lives_at_another_port_of_ours() -> None:
    with open_connected() as (world, client), open_world() as other:
        other.endpoint._is_elsewhere = world.endpoint.knows
        client.place = Place((HOST, other.port))
        client.line.send_frames(SENT)
        client.turn()
        other.reactor.serve_ready()
        world.turn()
        assert (client.line.ended, other.endpoint.reset_count) == (None, 0)
        assert other.endpoint.dropped[Drop.UNKNOWN] >= 1


def test_packets_reach_the_session_as_whole_frames() -> None:
    with open_connected() as (world, client):
        for _ in range(3):
            client.line.send_frames(SENT)
        world.turn()
        assert world.seen().bytes == b"hello" + 3 * SENT


def test_a_paused_wire_waits_and_goes_on() -> None:
    with open_connected() as (world, client):
        world.reactor.pause(world.wires[0])
        client.line.send_frames(SENT)
        client.line.send_stream(b"more")
        world.turn()
        assert world.seen().bytes == b"hello"
        world.reactor.resume(world.wires[0])
        world.turn()
        assert world.seen().bytes == b"hello" + b"more" + SENT


def test_a_full_path_blocks_and_tells_when_there_is_room() -> None:
    with open_connected() as (world, client):
        wire = world.wires[0]
        frames = FULL * 200
        sent = wire.send([frames], len(frames))
        assert 0 < sent < len(frames)
        assert wire.blocked
        assert sent % len(FULL) == 0
        assert wire.send([FULL], len(FULL)) == 0
        world.reactor.await_room(wire)
        world.reactor.flush()
        world.turn(60)
        assert world.seen().writable_count == 1
        assert not wire.blocked
        assert client.line.packets == [FULL] * (sent // len(FULL))


@pytest.mark.parametrize("pieces", [[FULL] * 200, [FULL * 200], [FULL, FULL * 199]])
def test_a_large_send_ends_at_the_frame_that_fills_the_path(pieces: list[bytes]) -> None:
    with open_connected() as (world, client):
        wire = world.wires[0]
        sent = wire.send(pieces, len(FULL) * 200)
        assert 0 < sent < len(FULL) * 200
        assert sent % len(FULL) == 0
        # the first window of ten packets, what more the handshake has shown of the path, and the slack
        assert sent < SLACK_BYTES + 20 * UDP_BYTES
        wire.push(FULL * 3)  # what a queue has taken out, and nobody takes back
        world.reactor.flush()
        world.turn(60)
        assert client.line.packets == [FULL] * (sent // len(FULL) + 3)
        assert not client.line.has_stream


def test_last_words_are_delivered_behind_a_close() -> None:
    with open_connected() as (world, client):
        wire, seen = world.wires[0], world.seen()
        wire.push(b"you are not wanted here")
        world.reactor.close(wire, CloseReason.NOT_ADMITTED)
        world.reactor.flush()
        assert seen.reason is CloseReason.NOT_ADMITTED
        world.turn()
        assert client.line.take_stream(100) == b"you are not wanted here"
        assert client.line.has_peer_ended
        assert client.line.ended is not None


def test_whoever_does_not_take_the_last_words_is_forgotten_soon() -> None:
    with open_connected() as (world, client):
        wire = world.wires[0]
        world.clients.clear()  # it says and hears nothing any more
        wire.push(b"you are not wanted here")
        world.reactor.close(wire, CloseReason.NOT_ADMITTED)
        world.reactor.flush()
        assert world.endpoint._by_name
        world.time += LINGER_SECONDS
        world.turn(2)
        assert not world.endpoint._by_name
        client.sock.close()


def test_the_peer_s_end_is_seen() -> None:
    with open_connected() as (world, client):
        seen = world.seen()
        client.line.send_stream(b"bye")
        client.line.end_output()
        world.turn()
        assert (seen.bytes, seen.reason) == (b"hellobye", CloseReason.CLOSED_BY_PEER)
        assert not world.endpoint._by_name


def test_a_closed_connection_is_seen() -> None:
    with open_connected() as (world, client):
        seen = world.seen()
        client.line.close(CloseReason.STOPPED)
        world.turn(2)
        assert seen.reason is CloseReason.CLOSED_BY_PEER
        assert not world.endpoint._by_name


def test_handshakes_beyond_the_budget_are_asked_to_come_again_and_come_in() -> None:
    with open_world() as world:
        count = int(HANDSHAKES_AT_ONCE) + 4
        for _ in range(count):
            world.client()
        for client in world.clients:
            client.turn()
        world.reactor.serve_ready()
        assert world.endpoint.retry_count >= 4
        world.turn(400)
        assert [client.line.is_open for client in world.clients] == [True] * count
        assert world.endpoint.accepted_count == count


def test_one_address_holds_so_many_handshakes_and_no_more() -> None:
    with open_world() as world:
        for _ in range(2 * MAX_HALF_OPEN_PER_ADDRESS):
            client = world.client()
            client.turn()
            world.clients.clear()  # it says no more
            world.time += 0.02
            world.reactor.serve_ready()
            client.sock.close()
        assert world.endpoint.accepted_count == MAX_HALF_OPEN_PER_ADDRESS
        assert world.endpoint.dropped[Drop.HALF_OPEN] == MAX_HALF_OPEN_PER_ADDRESS
        for wire in tuple(world.wires):
            world.reactor.close(wire, CloseReason.HANDSHAKE_TIMEOUT)
        world.reactor.flush()
        client = world.client()
        world.turn()
        assert client.line.is_open


def test_whom_the_server_does_not_allow_is_dropped() -> None:
    with open_world() as world:
        world.allows = False
        world.client()
        world.turn(2)
        assert world.wires == []
        assert world.endpoint.dropped[Drop.REFUSED] > 0


def test_a_token_that_is_not_ours_begins_nothing() -> None:
    with open_world() as world:
        client = world.client()
        client.line._connection._peer_token = b"a token of somebody else's"
        world.turn(2)
        assert world.wires == []
        assert world.endpoint.dropped[Drop.TOKEN] > 0


def test_leaving_begins_nothing_and_keeps_who_is_there() -> None:
    with open_connected() as (world, client):
        world.endpoint.leave()
        late = world.client()
        client.line.send_stream(b" again")
        world.turn()
        assert world.seen().bytes == b"hello again"
        assert not late.line.is_open
        assert world.endpoint.dropped[Drop.LEAVING] > 0
        assert world.sock.fileno() >= 0
        world.reactor.close(world.wires[0], CloseReason.DRAINED)
        client.turn()
        assert client.line.ended is not None
        assert world.sock.fileno() == -1


def test_a_port_that_another_process_has_too_is_left_at_once() -> None:
    with open_connected() as (world, client):
        seen = world.seen()
        world.endpoint.leave(is_replaced=True)
        assert (seen.reason, world.sock.fileno()) == (CloseReason.DRAINED, -1)
        client.turn()
        assert client.line.ended is not None


def test_a_defect_of_the_library_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_connected() as (world, client):
        other = world.client()
        other.line.send_stream(b"hello")
        world.turn()

        def fail(*arguments: object) -> None:
            raise IndexError

        monkeypatch.setattr(world.wires[0].line._connection, "receive_datagram", fail)
        seen = world.seen(0)
        client.line.send_stream(b"x")
        other.line.send_stream(b" again")
        world.turn()
        assert seen.reason is CloseReason.INTERNAL_ERROR
        assert world.seen(1).bytes == b"hello again"
