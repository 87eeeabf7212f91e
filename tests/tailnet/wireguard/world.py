"""Devices over virtual links in virtual time: what is sent arrives late, twice, in another order or never."""

import heapq
from collections.abc import Callable
from random import Random

from derp.keys import NodePrivate
from tailnet.wireguard.device import Device, Event
from tailnet.wireguard.messages import COOKIE_REPLY, INITIATION, RESPONSE, TRANSPORT
from tailnet.wireguard.peer import Peer

KINDS = {INITIATION: "initiation", RESPONSE: "response", COOKIE_REPLY: "cookie reply", TRANSPORT: "data"}
START = 1000.0
UNIX = 946_684_810.0

# What becomes of a datagram: after how many seconds each copy of it arrives.
Fate = Callable[["Node", "Node", bytes], list[float]]


def address(number: int) -> bytes:
    return bytes.fromhex("fd7a115ca1e0") + bytes(8) + number.to_bytes(2, "big")


def packet(source: int, destination: int, body: bytes = b"") -> bytes:
    """A whole IPv6 packet between two nodes by their numbers."""
    head = b"\x60\0\0\0" + len(body).to_bytes(2, "big") + b";\x40"
    return head + address(source) + address(destination) + body


class Node:
    """A device, what it received, and what it said when."""

    def __init__(self, world: "World", number: int, name: str) -> None:
        self.number, self.name = number, name
        self.random = Random(number)
        private = NodePrivate(self.random.randbytes(32))
        self.device = Device(private, random=self.random.randbytes, now=START, unix_seconds=UNIX)
        self.world = world
        self.inbox: list[tuple[float, bytes]] = []
        self.events: list[Event] = []

    @property
    def source(self) -> bytes:
        return self.name.encode()

    def peer(self, other: "Node") -> Peer:
        found = self.device.find(other.device.public)
        assert found is not None
        return found

    def send(self, other: "Node", *bodies: bytes) -> None:
        packets = [packet(self.number, other.number, body) for body in bodies]
        for datagram in self.device.seal(self.peer(other), packets, self.world.now):
            self.world.carry(self, other, datagram)
        self.flush()

    def receive(self, *datagrams: bytes, source: bytes) -> None:
        for _, packets in self.device.open(datagrams, source, self.world.now):
            self.inbox += ((self.world.now, bytes(each[40:])) for each in packets)
        self.events += self.device.take_events()
        self.flush()

    def flush(self) -> None:
        for outgoing in self.device.datagrams_to_send():
            if outgoing.peer is not None:
                to = self.world.by_key[outgoing.peer.public]
            else:
                assert outgoing.source is not None
                to = self.world.by_source[outgoing.source]
            self.world.carry(self, to, outgoing.datagram)

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.inbox]


class World:
    """Nodes that all know each other, a clock, and what is on its way."""

    def __init__(self, names: str = "AB", fate: Fate = lambda *_: [0.0]) -> None:
        self.now = START
        self.fate = fate
        self.nodes = [Node(self, number, name) for number, name in enumerate(names)]
        self.by_key = {node.device.public: node for node in self.nodes}
        self.by_source = {node.source: node for node in self.nodes}
        self.trace: list[tuple[float, str, str]] = []
        self.wire: list[tuple[Node, Node, bytes]] = []
        """Everything that was ever sent."""
        self._coming: list[tuple[float, int, Node, Node, bytes]] = []
        self._number = 0
        for node in self.nodes:
            for other in self.nodes:
                if node is not other:
                    node.device.configure(other.device.public, [address(other.number)], START)

    def carry(self, sender: Node, receiver: Node, datagram: bytes) -> None:
        kind = "keepalive" if len(datagram) == 32 else KINDS[datagram[0]]
        self.trace.append((round(self.now - START, 3), sender.name, kind))
        self.wire.append((sender, receiver, datagram))
        for delay in self.fate(sender, receiver, datagram):
            self._number += 1
            heapq.heappush(self._coming, (self.now + delay, self._number, sender, receiver, datagram))

    def settle(self) -> None:
        """Until nothing is on its way that arrives now."""
        while self._coming and self._coming[0][0] <= self.now:
            _, _, sender, receiver, datagram = heapq.heappop(self._coming)
            receiver.receive(datagram, source=sender.source)

    def run(self, until: float) -> None:
        """Let time pass until so many seconds after the start."""
        end = START + until
        while True:
            self.settle()
            times = [at for node in self.nodes if (at := node.device.next_timeout()) is not None]
            if self._coming:
                times.append(self._coming[0][0])
            if not times or min(times) > end:
                break
            self.now = max(self.now, min(times))
            self.settle()
            for node in self.nodes:
                node.events += node.device.handle_timeout(self.now)
                node.flush()
        self.now = max(self.now, end)
