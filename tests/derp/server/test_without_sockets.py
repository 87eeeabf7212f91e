"""A whole relay on a Host in memory: from the front door to the farewell, without a reactor and without a socket."""

import os
from collections.abc import Iterator

import pytest

from derp.close_reason import CloseReason
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientConnection
from derp.protocol.messages import KeepAlive, Message, PeerGone, Pong, RecvPacket, ServerInfo
from derp.relay.counters import DropReason
from derp.server.door import FrontDoor
from derp.server.lobby import Lobby
from derp.server.mesh import greet_kin
from derp.server.relay import Relay
from derp.transport.host import Wire
from tests.derp.server.world import relay_config
from tests.support.memory_host import ROOM_BYTES, MemoryHost
from tests.support.wires import WebSocketWire
from tests.support.wires import Wire as FarWire

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
WEBSOCKET = (
    b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
)


class World:
    def __init__(self) -> None:
        self.host = MemoryHost()
        self.host.write_seconds = 2.0
        config = relay_config(keepalive_seconds=60.0, keepalive_jitter_seconds=5.0)
        self.lobby = Lobby(self.host, config)
        self.relay = Relay(config, self.host, self.lobby)
        self.door = FrontDoor(self.lobby, [self.relay.upgrades.route()])

    def connect(self, number: int, request: bytes = UPGRADE) -> "Caller":
        """A client that is logged in."""
        caller = Caller(self, NodePrivate(number.to_bytes(32, "big")), request)
        assert [type(message) for message in caller.read()] == [ServerInfo]
        return caller

    @property
    def closed(self) -> dict[CloseReason, int]:
        return {reason: count for reason, count in self.lobby.closed_count.items() if count}


class Caller:
    """The far end, as a client of the relay."""

    def __init__(self, world: World, private: NodePrivate, request: bytes) -> None:
        self._host = world.host
        self.key = private.public().raw
        self.core = ClientConnection(private, random_bytes=os.urandom)
        plain = world.host.connect(world.door.open)
        self.near: Wire = plain.near
        plain.write(request)
        world.host.serve()
        self.far: FarWire = plain
        answer, _, rest = plain.read().partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        if request is WEBSOCKET:
            plain.near.outbox += rest
            self.far = WebSocketWire(plain)
            rest = self.far.read()
        self.core.receive_data(rest)

    def send(self) -> None:
        """What the core has to say."""
        self.far.write(b"".join(self.core.data_to_send()))
        self._host.serve()

    def read(self) -> list[Message]:
        """What has come, while the relay can send more."""
        self.send()
        messages: list[Message] = []
        while data := self.far.read():
            messages += self.core.receive_data(data)
            self._host.serve()
        return messages


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.host.blocked <= set(world.host.wires)


@pytest.mark.parametrize("request_of_one", [UPGRADE, WEBSOCKET], ids=["derp", "websocket"])
@pytest.mark.parametrize("request_of_other", [UPGRADE, WEBSOCKET], ids=["derp", "websocket"])
def test_packets_are_relayed(world: World, request_of_one: bytes, request_of_other: bytes) -> None:
    one, other = world.connect(1, request_of_one), world.connect(2, request_of_other)
    packets = [bytes([number]) * (100 * number + 1) for number in range(100)]
    for packet in packets:
        one.core.send_packet(other.key, packet)
    one.send()
    assert other.read() == [RecvPacket(one.key, packet) for packet in packets]
    other.core.send_ping(b"12345678")
    assert other.read() == [Pong(b"12345678")]


def test_a_slow_reader_is_queued_for_and_then_ended_by_its_deadline(world: World) -> None:
    one, slow = world.connect(1), world.connect(2)
    for number in range(400):
        one.core.send_packet(slow.key, number.to_bytes(2, "big") * 500)
    one.send()
    assert world.host.blocked == {slow.near}
    got = slow.read()
    assert got == [RecvPacket(one.key, number.to_bytes(2, "big") * 500) for number in range(400)]
    assert world.host.blocked == set()
    for _ in range(2 * ROOM_BYTES // 1000):
        one.core.send_packet(slow.key, bytes(1000))
    one.send()
    world.host.wait(1.9)
    assert world.closed == {}
    world.host.wait(0.2)
    assert world.closed == {CloseReason.WRITE_TIMEOUT: 1}
    assert slow.near not in world.host.wires


def test_keep_alives_come_and_who_leaves_is_told_of(world: World) -> None:
    one, other = world.connect(1), world.connect(2)
    one.core.send_packet(other.key, b"hello")
    one.send()
    other.read()
    world.host.wait(66)
    assert [type(message) for message in other.read()] == [KeepAlive]
    one.far.close()
    world.host.serve()
    assert [message.key for message in other.read() if isinstance(message, PeerGone)] == [one.key]
    assert world.closed == {CloseReason.CLOSED_BY_PEER: 1}
    other.core.send_packet(one.key, b"too late")
    other.send()
    assert world.relay.router.counters.packets_dropped[DropReason.UNKNOWN_DEST] == 1


def test_who_says_nothing_is_ended_and_who_says_nonsense_is_answered(world: World) -> None:
    silent = world.host.connect(world.door.open)
    wrong = world.host.connect(world.door.open)
    wrong.write(b"nonsense\r\n\r\n")
    world.host.serve()
    assert wrong.read().startswith(b"HTTP/1.1 400 ")
    wrong.close()
    world.host.wait(11)
    assert silent.ended
    assert world.closed == {CloseReason.HANDSHAKE_TIMEOUT: 1, CloseReason.PROTOCOL_ERROR: 1}


def test_other_relays_are_closed_when_the_news_of_clients_had_its_time(world: World) -> None:
    """Until they hear where a client has gone they send here what is for it."""
    caller = world.connect(1)
    far = world.host.connect(lambda near: greet_kin(world.relay.sessions, near, 10.0))
    core = ClientConnection(NodePrivate(b"k" * 32), random_bytes=os.urandom, mesh_key=MeshKey(b"m" * 32))
    for _ in range(2):
        core.receive_data(far.read())
        far.write(b"".join(core.data_to_send()))
        world.host.serve()
    world.relay.announce_restart(1.0, 2.0)
    assert world.relay.close_clients(1) == 2
    caller.far.close()
    world.host.serve()
    for _ in range(5):
        assert world.relay.close_clients(1) == 1
        far.read()
        assert not far.ended
        world.host.wait(0.05)
    world.host.wait(0.01)
    world.relay.close_clients(1)
    far.read()
    assert far.ended
    far.close()
    world.host.serve()
    assert world.relay.close_clients(1) == 0


def test_the_relay_says_goodbye(world: World) -> None:
    callers = [world.connect(number) for number in range(1, 4)]
    world.relay.announce_restart(1.0, 2.0)
    while world.relay.close_clients(1):
        world.host.serve()
        for caller in callers:
            caller.read()
            if caller.far.ended:
                caller.far.close()
        world.host.wait(0.1)
    assert world.closed == {CloseReason.DRAINED: 3}
