"""A channel on a reactor over a socket pair, in virtual time: calls, deadlines, full sockets and all its ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode, Opcode, WebSocketDecoder, encode_header, encode_masked, parse_close
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from tailnet.rpc.connection import ClientConnection, ConnectionEvent
from tailnet.rpc.yamux import SessionLimits
from tailnet.transport.accounts import DEFAULT_ACCOUNT_LIMITS, AccountLimits, Accounts
from tailnet.transport.channel import Channel, Channels, Connected

LIMITS = SessionLimits(ping_seconds=15.0, pong_seconds=30.0)
RPCS = {"/x": "the rpc"}


@dataclass
class Client:
    """The genuine end: our own client connection under a hand-driven websocket."""

    sock: socket.socket
    connection: ClientConnection = field(default_factory=lambda: ClientConnection(now=0.0))
    decoder: WebSocketDecoder = field(default_factory=lambda: WebSocketDecoder(False, 1 << 30))
    close: tuple[int, str] | None = None
    is_at_end: bool = False

    def flush(self) -> None:
        data = b"".join(self.connection.data_to_send())
        if data:
            with suppress(BrokenPipeError):  # the server has gone already
                self.sock.sendall(encode_masked(Opcode.BINARY, data, os.urandom(4)))

    def read(self) -> bytes:
        """Payload that has arrived."""
        out = bytearray(1 << 24)
        end = 0
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                self.is_at_end = True
                break
            end = self.decoder.receive_into(memoryview(data), out, end)
            for opcode, payload in self.decoder.control:
                if opcode == Opcode.CLOSE:
                    self.close = parse_close(payload)
            self.decoder.control.clear()
        return bytes(out[:end])


class World:
    """One channel; everything it reports is in `events` and `ended`."""

    def __init__(self, limits: SessionLimits = LIMITS, allowed: AccountLimits = DEFAULT_ACCOUNT_LIMITS) -> None:
        self.now = 1000.0
        self.accounts = Accounts(allowed)
        self.reactor = Reactor(clock=lambda: self.now)
        self.events: list[tuple[ConnectionEvent, int, Any]] = []
        self.ended: list[tuple[CloseReason, str]] = []
        self.channels = Channels(self.reactor, self._serve, self._ended, limits, self.accounts)
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        self.client = Client(theirs)
        link = Link(ours, ("192.0.2.1", 1))
        link.codec = WebSocketDecoder(True, 1 << 20)
        account = self.accounts.open("the caller", self.now)
        self.channel = link.session = Channel(self.channels, link, RPCS, "the caller", account)
        self.reactor.add(link)

    def _serve(self, channel: Channel, event: ConnectionEvent, call_id: int, value: Any) -> None:
        assert channel is self.channel
        self.events.append((event, call_id, bytes(value) if event is ConnectionEvent.MESSAGE else value))

    def _ended(self, channel: Connected, reason: CloseReason, text: str) -> None:
        assert channel.caller == "the caller"
        self.ended.append((reason, text))

    def turn(self) -> None:
        self.client.flush()
        while self.reactor.serve_ready():
            pass

    def at(self, now: float) -> None:
        self.now = now
        self.turn()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for link in tuple(world.reactor.wires):
        world.reactor.close(link, CloseReason.STOPPED)
    world.client.sock.close()
    world.reactor._poller.close()


def test_calls_come_in_and_answers_leave_with_the_flush(world: World) -> None:
    call_id = world.client.connection.call("/x", b"question")
    world.turn()
    assert [(event.name, value) for event, _, value in world.events] == [
        ("CALLED", "the rpc"),
        ("MESSAGE", b"question"),
        ("HALF_CLOSED", None),
    ]
    assert {each for _, each, _ in world.events} == {call_id}
    before = world.client.read()
    world.channel.connection.reply(call_id, b"answer")
    assert not world.client.read()
    world.channel.touch()
    world.channel.touch()
    assert len(world.channels.dirty) == 1
    world.reactor.flush()
    events = world.client.connection.receive_data(before + world.client.read())
    assert (ConnectionEvent.MESSAGE, call_id, b"answer") in events


def test_unknown_calls_are_answered_without_the_service(world: World) -> None:
    world.client.connection.call("/nowhere", b"")
    world.turn()
    assert world.events == []
    [(event, _, error)] = world.client.connection.receive_data(world.client.read())
    assert (event, error.code) == (ConnectionEvent.ENDED, 12)


def test_bytes_one_by_one(world: World) -> None:
    call_id = world.client.connection.call("/x", b"question")
    for byte in b"".join(world.client.connection.data_to_send()):
        world.client.sock.sendall(encode_masked(Opcode.BINARY, bytes([byte]), b"mask"))
        world.turn()
    assert (ConnectionEvent.MESSAGE, call_id, b"question") in world.events


def test_pings_and_an_end_of_silence(world: World) -> None:
    world.at(1014.0)
    assert not world.client.read()
    world.at(1015.0)
    assert world.client.connection.receive_data(world.client.read()) == []
    world.client.flush()  # the pong
    world.turn()
    assert world.channels.deadlines.at(world.channel) == 1030.0
    world.at(1030.0)
    assert world.client.read()
    world.at(1059.0)
    assert world.channel.is_open
    world.at(1060.0)
    world.client.read()
    assert world.client.close is not None
    assert world.client.close[0] == CloseCode.GOING_AWAY
    assert world.client.is_at_end
    [(reason, text)] = world.ended
    assert (reason, "no answer to a ping" in text) == (CloseReason.PROTOCOL_ERROR, True)
    assert not world.channels.open


def test_the_peers_end_ends_its_calls(world: World) -> None:
    call_id = world.client.connection.open_call("/x")
    world.turn()
    world.events.clear()
    world.client.read()
    world.client.sock.close()
    world.turn()
    assert world.events == [(ConnectionEvent.ENDED, call_id, "cancelled")]
    assert world.ended == [(CloseReason.CLOSED_BY_PEER, "closed_by_peer")]
    assert not world.channels.open
    assert not world.channel.is_open
    world.channel.touch()
    world.channel.close(CloseCode.NORMAL, "", CloseReason.DRAINED)
    world.reactor.flush()  # nothing more happens to it
    assert len(world.ended) == 1


def test_a_fault_is_answered_with_everything_before_it_and_its_name(world: World) -> None:
    world.client.connection.ping(77)
    good = b"".join(world.client.connection.data_to_send())
    world.client.sock.sendall(encode_masked(Opcode.BINARY, good + b"\x01" * 12, b"mask"))
    world.turn()
    received = world.client.read()
    assert received == bytes.fromhex("00020002000000000000004d" + "000300000000000000000001")
    assert world.client.close == (CloseCode.PROTOCOL_ERROR, "yamux version 1, expected 0")
    assert world.ended == [(CloseReason.PROTOCOL_ERROR, "yamux version 1, expected 0")]


@pytest.mark.parametrize("how", ["silence", "fault", "websocket", "closed by us"])
def test_whatever_ends_a_session_ends_its_calls(world: World, how: str) -> None:
    call_id = world.client.connection.open_call("/x")
    world.turn()
    world.events.clear()
    match how:
        case "silence":
            world.at(1015.0)
            world.at(1046.0)
        case "fault":
            world.client.sock.sendall(encode_masked(Opcode.BINARY, b"\x01" * 12, b"mask"))
        case "websocket":
            world.client.sock.sendall(b"\x82\x05hello")
        case _:
            world.channel.close(CloseCode.GOING_AWAY, "bye", CloseReason.DRAINED)
    world.turn()
    assert world.events == [(ConnectionEvent.ENDED, call_id, "cancelled")]
    assert len(world.ended) == 1
    assert not world.channels.open


def test_calls_are_over_while_the_kernel_still_has_last_words(world: World) -> None:
    call_id = world.client.connection.open_call("/x")
    world.turn()
    world.events.clear()
    assert fill(world.channel.wire.sock)
    world.channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
    assert world.events == [(ConnectionEvent.ENDED, call_id, "cancelled")]
    assert world.ended == []
    assert world.channel not in world.channels.deadlines
    world.client.connection.send_message(call_id, b"to nobody")
    world.turn()
    assert len(world.events) == 1
    world.channel.handle_timeout(1e9)
    assert world.ended == []


def test_closing_says_why_behind_all_that_waits(world: World) -> None:
    call_id = world.client.connection.open_call("/x")
    world.turn()
    world.client.read()
    world.channel.connection.send_message(call_id, b"last words")
    world.channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
    assert b"last words" in world.client.read()
    assert world.client.close == (CloseCode.GOING_AWAY, "server is restarting")
    assert world.client.is_at_end
    assert world.ended == [(CloseReason.DRAINED, "server is restarting")]


def test_a_full_socket_keeps_order_and_the_close_frame_last(world: World) -> None:
    client, connection = world.client, world.channel.connection
    calls = [client.connection.open_call("/x") for _ in range(8)]
    world.turn()
    payload = os.urandom(200 * 1024)
    for call_id in calls:
        assert connection.send_message(call_id, payload)
    world.channel.touch()
    world.reactor.flush()
    assert world.channel.wire.blocked
    world.channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
    assert not world.channel.is_open
    assert world.ended == []
    messages = []
    while not client.is_at_end:
        data = client.read()
        messages += [value for event, _, value in client.connection.receive_data(data) if event.name == "MESSAGE"]
        world.turn()
    assert messages == [payload] * len(calls)
    assert client.close == (CloseCode.GOING_AWAY, "server is restarting")
    assert world.ended == [(CloseReason.DRAINED, "server is restarting")]


def fill(sock: socket.socket) -> int:
    """Put pings into the kernel, past the link, until it takes no more; how many they are."""
    count = 0
    with suppress(BlockingIOError):
        while sock.send(encode_header(Opcode.PING, 0)):
            count += 1
    return count


def test_a_close_frame_that_finds_no_room_is_waited_for(world: World) -> None:
    assert fill(world.channel.wire.sock)
    world.channel.close(CloseCode.GOING_AWAY, "server is restarting", CloseReason.DRAINED)
    assert world.ended == []
    while not world.client.is_at_end:
        world.client.read()
        world.turn()
    assert world.client.close == (CloseCode.GOING_AWAY, "server is restarting")
    assert world.ended == [(CloseReason.DRAINED, "server is restarting")]


def test_a_silent_peer_with_a_full_socket_is_not_waited_for(world: World) -> None:
    assert fill(world.channel.wire.sock)
    world.at(1015.0)
    assert world.channel.wire.blocked
    world.at(1045.0)
    [(reason, text)] = world.ended
    assert (reason, "no answer to a ping" in text) == (CloseReason.PROTOCOL_ERROR, True)


def test_closing_a_socket_that_has_just_failed_raises_nothing(world: World) -> None:
    world.channel.wire.sock.shutdown(socket.SHUT_WR)
    world.channel.close(CloseCode.GOING_AWAY, "", CloseReason.DRAINED)
    [(reason, _)] = world.ended
    assert reason is CloseReason.SOCKET_FAILED


def test_a_call_that_nobody_reads_is_refused_and_the_rest_goes_on(world: World) -> None:
    client, connection = world.client, world.channel.connection
    deaf, good = client.connection.open_call("/x"), client.connection.open_call("/x")
    world.turn()
    size = 0
    while connection.send_message(deaf, bytes(60_000)):
        size += 60_000
        world.channel.touch()
        world.reactor.flush()
        client.read()  # the socket, but no window for the stream
    assert size < 5 * 1024 * 1024
    assert connection.send_message(good, b"fine")
    world.channel.touch()
    world.reactor.flush()
    assert b"fine" in client.read()


def test_output_is_bounded_when_nobody_reads_the_socket(world: World) -> None:
    connection = world.channel.connection
    call_id = world.client.connection.open_call("/x")
    world.turn()
    grant = b"\x00\x01\x00\x00" + call_id.to_bytes(4, "big") + b"\xf0\x00\x00\x00"
    world.client.sock.sendall(encode_masked(Opcode.BINARY, grant, b"mask"))
    world.turn()
    size = 0
    while connection.send_message(call_id, bytes(60_000)):
        size += 60_000
        world.channel.touch()
        world.reactor.flush()
    assert LIMITS.max_output_bytes < size < LIMITS.max_output_bytes + 4 * 1024 * 1024


# --- what is in memory for one caller


def test_what_a_peer_makes_us_hold_is_counted_and_given_back(world: World) -> None:
    client, accounts = world.client, world.accounts
    assert accounts.held_bytes == 0
    call_id = client.connection.open_call("/x")
    world.turn()
    # The beginning of a message of 100 kB, of which 60 kB come.
    begun = bytes([4, 1, 2, 0xA0, 0x8D, 6]) + bytes(60_000)
    client.sock.sendall(encode_masked(Opcode.BINARY, yamux_data(call_id, begun), b"mask"))
    world.turn()
    assert accounts.held_bytes == len(begun)
    world.channel.take_in_hand(1000)
    assert accounts.held_bytes == len(begun) + 1000
    client.connection.cancel(call_id)
    world.turn()
    assert accounts.held_bytes == 1000
    world.channel.take_in_hand(-1000)
    assert accounts.held_bytes == 0


def test_what_is_not_read_is_counted(world: World) -> None:
    call_id = world.client.connection.open_call("/x")
    world.turn()
    for _ in range(20):
        world.channel.connection.send_message(call_id, bytes(60_000))
    world.channel.touch()
    world.reactor.flush()
    held = world.accounts.held_bytes
    assert 700_000 < held <= 20 * 60_100
    while not world.client.is_at_end and world.accounts.held_bytes:
        world.client.connection.receive_data(world.client.read())
        world.turn()
    assert world.accounts.held_bytes == 0


@pytest.mark.parametrize("whose", ["its caller's", "all"])
def test_who_makes_us_hold_too_much_is_closed(whose: str) -> None:
    limit = {"held_bytes": 50_000} if whose != "all" else {"total_held_bytes": 50_000}
    world = World(allowed=AccountLimits(**limit))
    try:
        call_id = world.client.connection.open_call("/x")
        world.turn()
        begun = bytes([4, 1, 2, 0xA0, 0x8D, 6]) + bytes(60_000)
        world.client.sock.sendall(encode_masked(Opcode.BINARY, yamux_data(call_id, begun), b"mask"))
        world.turn()
        [(reason, text)] = world.ended
        assert reason is CloseReason.TOO_SLOW
        assert text.startswith(whose)
        assert "50,000 bytes together" in text
        world.client.read()
        assert world.client.close is not None
        assert (world.channels.shed_count, world.accounts.held_bytes, len(world.accounts)) == (1, 0, 0)
    finally:
        world.client.sock.close()
        world.reactor._poller.close()


def test_who_is_gone_holds_nothing(world: World) -> None:
    world.channel.take_in_hand(1000)
    world.client.sock.close()
    world.turn()
    assert (world.accounts.held_bytes, len(world.accounts)) == (0, 0)
    world.channel.take_in_hand(-1000)  # the task ends a moment later
    assert world.accounts.held_bytes == 0


def yamux_data(stream_id: int, body: bytes) -> bytes:
    return bytes(4) + stream_id.to_bytes(4, "big") + len(body).to_bytes(4, "big") + body
