"""A tailnet channel on a Host in memory: calls both ways, a peer that does not read, silence, and farewells."""

import os
from typing import Any

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode, Opcode, WebSocketDecoder, encode_masked
from derp.transport.host import Wire
from tailnet.rpc.connection import ClientConnection, ConnectionEvent
from tailnet.rpc.yamux import SessionLimits
from tailnet.transport.channel import Channel, Channels, Connected
from tests.support.memory_host import ROOM_BYTES, FarEnd, MemoryHost
from tests.support.wires import WebSocketWire

LIMITS = SessionLimits(ping_seconds=15.0, pong_seconds=30.0)


class World:
    def __init__(self) -> None:
        self.host = MemoryHost()
        self.events: list[tuple[str, Any]] = []
        self.ended: list[CloseReason] = []
        self.channels = Channels(self.host, self._serve, self._ended, LIMITS)
        self.plain: FarEnd = self.host.connect(self._begin)
        self.far = WebSocketWire(self.plain)
        self.client: ClientConnection = ClientConnection(now=self.host.now)

    def _begin(self, wire: Wire) -> None:
        wire.codec = WebSocketDecoder(True, 1 << 20)
        self.channel = Channel(self.channels, wire, {"/x": "the rpc"}, "the caller")
        wire.session = self.channel

    def _serve(self, channel: Channel, event: ConnectionEvent, call_id: int, value: Any) -> None:
        self.events.append((event.name, bytes(value) if event is ConnectionEvent.MESSAGE else value))
        if event is ConnectionEvent.HALF_CLOSED:
            channel.connection.reply(call_id, b"answer" * 20_000)
            channel.touch()

    def _ended(self, channel: Connected, reason: CloseReason, text: str) -> None:
        self.ended.append(reason)

    def turn(self) -> None:
        data = b"".join(self.client.data_to_send())
        if data:
            self.plain.write(encode_masked(Opcode.BINARY, data, os.urandom(4)))
        self.host.serve()


def test_a_call_and_an_answer_that_does_not_fit_at_once() -> None:
    world = World()
    world.client.call("/x", b"question")
    world.turn()
    assert world.events == [("CALLED", "the rpc"), ("MESSAGE", b"question"), ("HALF_CLOSED", None)]
    assert world.host.blocked, "the answer has more bytes than there is room"
    answers: list[bytes] = []
    while data := world.far.read():
        assert len(data) <= ROOM_BYTES
        for event, _, value in world.client.receive_data(data):
            if event is ConnectionEvent.MESSAGE:
                answers.append(bytes(value))
        world.turn()
    assert answers == [b"answer" * 20_000]
    assert not world.host.blocked


def test_a_peer_that_falls_silent_is_ended() -> None:
    world = World()
    for _ in range(5):
        world.host.wait(10)
    assert world.ended == [CloseReason.PROTOCOL_ERROR]
    assert world.channels.open == set()


def test_a_farewell() -> None:
    world = World()
    world.channel.close(CloseCode.GOING_AWAY, "over", CloseReason.DRAINED)
    world.host.serve()
    assert world.ended == [CloseReason.DRAINED]
    world.far.read()
    assert [opcode for opcode, _ in world.far.control] == [Opcode.CLOSE]
    assert world.plain.ended


def test_a_peer_that_leaves() -> None:
    world = World()
    world.plain.close()
    world.host.serve()
    assert world.ended == [CloseReason.CLOSED_BY_PEER]
