"""Router, sessions and reactor on real sockets in virtual time, without HTTP: links begin with the DERP handshake.

`serve` serves what is ready, synchronously; a peer that does not `read` is a slow reader.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import cast

from derp.close_reason import CloseReason
from derp.keys import MeshKey, NodePrivate
from derp.metrics import routed_totals
from derp.protocol.connection import ClientConnection
from derp.protocol.messages import Message, PlainMessage, RecvPacket, SendPacket, ServerInfo, encode
from derp.protocol.states import ClientState
from derp.protocol.websocket import WebSocketDecoder
from derp.relay.clients import Client
from derp.relay.router import Router
from derp.relay.siblings import Place, WorkerRouter
from derp.server.admission import Admission, Question, Verdict
from derp.server.lobby import Lobby
from derp.server.session import Greeting, Sessions
from derp.transport.framing import RECEIVE_BYTES
from derp.transport.links import Link, TlsLink
from derp.transport.reactor import Reactor
from tests.derp.server.world import relay_config
from tests.support.wires import PlainWire, TlsWire, WebSocketWire, Wire, socket_pair, tcp_pair, tls_contexts

MESH_KEY = MeshKey(b"m" * 32)
KINDS = ("plain", "tls", "websocket", "websocket over tls")


class SlowVerifier:
    """Somebody else decides, when the test says so."""

    problem = ""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.at_once: Verdict | None = None  # what is said when too many wait
        self.questions: list[tuple[bytes, str, Callable[[bool], None]]] = []

    def cached(self, key: bytes, address: str) -> Verdict | None:
        return None

    def ask(self, question: Question) -> Verdict | None:
        self.asked.append(question)
        self.questions.append((question.key, question.address, lambda allowed: question.answer(Verdict(allowed))))
        return self.at_once


class Peer:
    """A client of the bare relay.  `core` is its connection, `near` the relay's link."""

    def __init__(
        self,
        bare: "BareRelay",
        near: Link,
        wire: Wire,
        plain: PlainWire,
        private: NodePrivate,
        mesh_key: MeshKey | None,
    ) -> None:
        self.bare = bare
        self.key = private.public().raw
        self.near = near
        self.wire = wire
        self.plain = plain
        self.core = ClientConnection(private, random_bytes=os.urandom, mesh_key=mesh_key)

    @property
    def client(self) -> Client:
        """What the relay has of it."""
        return next(client for client in self.bare.router.clients.values() if client.wire is self.near)

    def write(self, data: bytes) -> None:
        """Any bytes, as far as the kernel takes them now; `bare.serve` moves on."""
        self.wire.write(data)

    def send(self, *messages: PlainMessage) -> None:
        self.write(b"".join(map(encode, messages)))

    def send_packets(self, to: "Peer", *packets: bytes) -> None:
        self.send(*(SendPacket(to.key, packet) for packet in packets))

    def read(self) -> Sequence[Message]:
        """Everything that has arrived, as messages."""
        messages = self.core.receive_data(self.wire.read())
        self.wire.write(b"".join(self.core.data_to_send()))
        return messages

    def read_packets(self) -> list[bytes]:
        """The same, for who gets nothing but packets."""
        messages = self.read()
        assert all(isinstance(message, RecvPacket) for message in messages), messages
        return [message.packet for message in cast(Sequence[RecvPacket], messages)]

    @property
    def ended(self) -> bool:
        """Whether the relay closed the connection, as far as was read."""
        return self.wire.ended


class BareRelay:
    """One relay without a door.  Close it with `end`."""

    def __init__(
        self,
        *,
        queue_depth: int = 512,
        queue_bytes: int = 2 * 1024 * 1024,
        verifier: SlowVerifier | None = None,
        deny_keys: frozenset[bytes] = frozenset(),
        mesh_key: MeshKey | None = MESH_KEY,
        place: Place | None = None,
    ) -> None:
        """`place`: of a relay with several workers."""
        self.time = 1000.0
        self.private = NodePrivate(b"R" * 32)
        self.reactor = Reactor(clock=lambda: self.time)
        queues = {"queue_depth": queue_depth, "queue_bytes": queue_bytes}
        own_key = self.private.public().raw
        self.router = Router(own_key, **queues) if place is None else WorkerRouter(own_key, place, **queues)
        config = relay_config(private_key=self.private, mesh_key=mesh_key, deny_keys=deny_keys)
        self.lobby = Lobby(self.reactor, config)
        self.sessions = Sessions(
            self.router, self.reactor, self.lobby, self.private, Admission(config, verifier), random_bytes=os.urandom
        )
        self.peers: list[Peer] = []
        self._numbers = itertools.count(1)

    def open(
        self,
        kind: str = "plain",
        *,
        private: NodePrivate | None = None,
        buffer_bytes: int | None = None,
        tcp: bool = False,
        mesh_key: MeshKey | None = None,
        is_ideal: bool = True,
    ) -> Peer:
        """A connection right after its upgrade; ServerKey is on its way."""
        near, far = tcp_pair(buffer_bytes) if tcp else socket_pair(buffer_bytes)
        number = next(self._numbers)
        plain = PlainWire(far)
        wire: Wire = plain
        address = ("127.0.0.1", 40_000 + number)
        if "tls" in kind:
            server, client = tls_contexts()
            link: Link = TlsLink(near, address, server)
            wire = TlsWire(plain, client)
            _shake_hands(link, wire)
        else:
            link = Link(near, address)
        if "websocket" in kind:
            wire = WebSocketWire(wire)
            link.codec = WebSocketDecoder(True, 128 * 1024)
        link.appetite = RECEIVE_BYTES  # as of one that has sent for a while
        private = private or NodePrivate(number.to_bytes(32, "big"))
        greeting = link.session = Greeting(self.sessions, link, is_ideal=is_ideal)
        self.lobby.enter(link)
        link.push(greeting.hello())
        self.reactor.add(link)
        peer = Peer(self, link, wire, plain, private, mesh_key)
        self.peers.append(peer)
        return peer

    def connect(
        self,
        kind: str = "plain",
        *,
        private: NodePrivate | None = None,
        buffer_bytes: int | None = None,
        tcp: bool = False,
        mesh_key: MeshKey | None = None,
        is_ideal: bool = True,
    ) -> Peer:
        """The same, logged in."""
        peer = self.open(
            kind, private=private, buffer_bytes=buffer_bytes, tcp=tcp, mesh_key=mesh_key, is_ideal=is_ideal
        )
        assert peer.read() == []
        self.serve()
        assert [type(message) for message in peer.read()] == [ServerInfo]
        assert peer.core.state is ClientState.OPEN
        return peer

    def serve(self) -> None:
        """Until nothing is ready; peers hand on what the kernel had not taken."""
        waiting = 0
        for _ in range(10_000):
            before, waiting = waiting, 0
            for peer in self.peers:
                peer.wire.flush()
                waiting += len(peer.plain.waiting)
            if not self.reactor.serve_ready() and waiting == before:
                return
        raise AssertionError("the reactor is busy with nothing")

    def serve_reading(self, *readers: Peer) -> dict[Peer, list[Message]]:
        """The same, while these peers read, until they have everything."""
        got: dict[Peer, list[Message]] = {peer: [] for peer in readers}
        while True:
            before = sum(peer.plain.received_bytes for peer in readers)
            self.serve()
            for peer in readers:
                got[peer] += peer.read()
            still_blocked = self.reactor.blocked & {peer.near for peer in readers}
            if before == sum(peer.plain.received_bytes for peer in readers) and not still_blocked:
                return got

    def closed(self) -> dict[CloseReason, int]:
        """The counted reasons that are not zero."""
        return {reason: count for reason, count in self.lobby.closed_count.items() if count}

    def totals(self) -> tuple[int, int]:
        """Packets and bytes that left for clients, by the relay's own counts."""
        queues = [client.queue for client in self.router.clients.values() if client.queue is not None]
        held = sum(queue.packets for queue in queues)
        return routed_totals(self.router, held, sum(queue.packet_bytes for queue in queues))

    def __enter__(self) -> "BareRelay":
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()

    def end(self) -> None:
        for link in tuple(self.reactor.wires):
            self.reactor.close(link, CloseReason.STOPPED)
        for peer in self.peers:
            peer.wire.close()


def _shake_hands(link: Link, wire: Wire) -> None:
    assert isinstance(link, TlsLink)
    view, scratch = memoryview(bytearray(RECEIVE_BYTES + 32_768)), memoryview(bytearray(RECEIVE_BYTES))
    while not link.is_open:
        assert link.receive(view, 0, scratch, scratch) == 0
        assert wire.read() == b""
