"""Nodes behind NATs, relays between them, and a clock: what a path finder meets, in virtual time.

Kinds of hosts: `open` (an address of its own), `easy` (one outside port per socket, answers only from where it sent),
`hard` (another outside port for each destination), `blocked` (no UDP).
"""

import heapq
from collections.abc import Iterator
from random import Random

from tailnet.paths.core import Event, Outgoing, Paths, RelaySource, Source
from tailnet.paths.disco import is_disco
from tailnet.paths.endpoint import Endpoint
from tailnet.paths.peer import PathPeer
from tailnet.sodium import public_of

START = 1000.0
RELAY_SECONDS = 0.02
UDP_SECONDS = 0.005
MAPPING_SECONDS = 30.0  # what routers keep a mapping that is not used
STUN = Endpoint("192.0.2.1", 3478)
LAN_SECONDS = 0.0005


class Node:
    """Paths, the NAT in front of it, and what arrived."""

    def __init__(self, world: "World", number: int, kind: str) -> None:
        self.world, self.number, self.kind = world, number, kind
        self.key = bytes((number,)) * 32
        self.random = Random(number)
        self.disco_private = self.random.randbytes(32)
        self.paths = Paths(self.key, self.disco_private, random=self.random.randbytes, now=START)
        self.outside = f"198.51.100.{number}"
        self.inside = Endpoint(self.outside if kind == "open" else f"10.{number}.0.2", 41641)
        self.region = 1
        self.mappings: dict[Endpoint | None, int] = {}
        self.allowed: dict[tuple[int, Endpoint], float] = {}
        self.inbox: list[tuple[float, int, bool]] = []
        """When which packet came, and whether by UDP; copies are left out."""
        self.seen: set[tuple[int, int]] = set()
        self.events: list[Event] = []
        self.sent = 0
        self.disco_sent: list[tuple[float, Outgoing]] = []

    @property
    def disco_key(self) -> bytes:
        return public_of(self.disco_private)

    def mapped(self, destination: Endpoint) -> Endpoint:
        """What others see when this node sends there."""
        if self.kind == "open":
            return self.inside
        key = destination if self.kind == "hard" else None
        port = self.mappings.setdefault(key, 20_000 + 1000 * self.number + len(self.mappings))
        return Endpoint(self.outside, port)

    def lets_in(self, source: Endpoint, destination: Endpoint) -> bool:
        if self.kind == "open":
            return destination == self.inside
        allowed = self.allowed.get((destination.port, source))
        return allowed is not None and self.world.now - allowed <= MAPPING_SECONDS

    def endpoints(self) -> list[Endpoint]:
        """Of its interface, and as STUN sees it."""
        return [self.inside] if self.kind in ("open", "blocked") else [self.inside, self.mapped(STUN)]

    def peer(self, other: "Node") -> PathPeer:
        found = self.paths.find(other.key)
        assert found is not None
        return found

    def send(self, other: "Node") -> None:
        """One numbered packet, wherever the route says."""
        self.sent += 1
        packet = b"D" + self.number.to_bytes(2, "big") + self.sent.to_bytes(4, "big")
        endpoint, region = self.paths.route(self.peer(other), self.world.now)
        self.flush()
        if endpoint is not None:
            self.world.send_udp(self, endpoint, packet)
        if region is not None:
            self.world.send_relay(self, region, other.key, packet)

    def receive(self, datagram: bytes, source: Source) -> None:
        if is_disco(datagram):
            self.paths.receive(datagram, source, self.world.now)
            self.events += self.paths.take_events()
            self.flush()
            return
        sender, number = int.from_bytes(datagram[1:3], "big"), int.from_bytes(datagram[3:], "big")
        if (sender, number) not in self.seen:
            self.seen.add((sender, number))
            self.inbox.append((self.world.now - START, number, isinstance(source, Endpoint)))

    def next_timeout(self) -> float | None:
        return self.paths.next_timeout()

    def handle_timeout(self) -> None:
        self.events += self.paths.handle_timeout(self.world.now)
        self.flush()

    def receive_all(self, now: float) -> None:
        """Everything that is on its way to this node, at once."""
        for datagram, source in self.world.take_for(self):
            self.paths.receive(datagram, source, now)
        self.flush()

    def flush(self) -> None:
        for outgoing in self.paths.datagrams_to_send():
            self.disco_sent.append((self.world.now - START, outgoing))
            if outgoing.endpoint is not None:
                self.world.send_udp(self, outgoing.endpoint, outgoing.datagram)
            else:
                assert outgoing.region is not None
                self.world.send_relay(self, outgoing.region, outgoing.node_key, outgoing.datagram)

    def refresh(self) -> None:
        """What a node does every 20 s: asks STUN, and tells."""
        self.paths.set_local_endpoints(self.endpoints(), self.world.now)
        self.flush()


class World:
    """All nodes know each other, and are connected to their home relay."""

    def __init__(self, *kinds: str, lan: bool = False, make: "type[Node]" = Node) -> None:
        self.now = START
        self.lan = lan
        self.nodes = [make(self, number, kind) for number, kind in enumerate(kinds, 1)]
        self.cut: set[tuple[int, int]] = set()
        """Pairs between which no UDP passes."""
        self.regions = {1, 2}
        self._coming: list[tuple[float, int, Node, bytes, Source]] = []
        self._number = 0
        for node in self.nodes:
            node.paths.region_up(node.region)
        for node in self.nodes:
            node.refresh()
            self.tell(node)

    def tell(self, node: Node) -> None:
        """Coordination: everybody hears what a node says of itself."""
        for other in self.nodes:
            if other is not node:
                other.paths.configure(node.key, node.disco_key, node.endpoints(), node.region, self.now)

    def send_udp(self, sender: Node, destination: Endpoint, datagram: bytes) -> None:
        if sender.kind == "blocked":
            return
        if self.lan and destination.host.startswith("10."):
            for node in self.nodes:
                if node.inside == destination and (sender.number, node.number) not in self.cut:
                    self._carry(LAN_SECONDS, node, datagram, sender.inside)
            return
        source = sender.mapped(destination)
        sender.allowed[source.port, destination] = self.now
        for node in self.nodes:
            if (
                node.outside == destination.host
                and node.kind != "blocked"
                and (sender.number, node.number) not in self.cut
                and node.lets_in(source, destination)
            ):
                self._carry(UDP_SECONDS, node, datagram, source)

    def send_relay(self, sender: Node, region: int, key: bytes, datagram: bytes) -> None:
        for node in self.nodes:
            if node.key == key and region in self.regions and region in (node.region, *node.paths._regions):
                self._carry(RELAY_SECONDS, node, datagram, RelaySource(region, sender.key))

    def _carry(self, delay: float, node: Node, datagram: bytes, source: Source) -> None:
        self._number += 1
        heapq.heappush(self._coming, (self.now + delay, self._number, node, datagram, source))

    def take_for(self, node: Node) -> list[tuple[bytes, Source]]:
        mine = [each for each in self._coming if each[2] is node]
        self._coming = [each for each in self._coming if each[2] is not node]
        return [(datagram, source) for _, _, _, datagram, source in mine if is_disco(datagram)]

    def run(self, until: float) -> None:
        end = START + until
        while True:
            times = [at for node in self.nodes if (at := node.next_timeout()) is not None]
            if self._coming:
                times.append(self._coming[0][0])
            if not times or min(times) > end:
                break
            self.now = max(self.now, min(times))
            while self._coming and self._coming[0][0] <= self.now:
                _, _, node, datagram, source = heapq.heappop(self._coming)
                node.receive(datagram, source)
            for node in self.nodes:
                node.handle_timeout()
        self.now = max(self.now, end)

    def talk(self, start: float, end: float, every: float = 0.1) -> Iterator[float]:
        """Let the first two nodes send to each other; gives the time of each step."""
        a, b = self.nodes[:2]
        steps = round((end - start) / every)
        for step in range(steps):
            self.run(start + step * every)
            if step % round(20 / every) == 0:
                for node in self.nodes:
                    node.refresh()
            a.send(b)
            b.send(a)
            yield start + step * every
        self.run(end)
