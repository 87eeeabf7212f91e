"""Peers behind NATs, with the real path finder (tailnet/paths): what goes directly, and what by the relay.

What a node says of its endpoints travels by the coordinators, call-me-maybes by the relays, all else by UDP in virtual
time.  Only some of the schedules with relays have NATs.  Laws: `Nats.quiet`, and those of each datagram.
"""

from functools import partial
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final

from sim.laws import LawBroken
from sim.peers import Peer
from sim.plan import FAULT_SECONDS, SOON_SECONDS, Plan
from sim.ways import LATENCY_SECONDS
from tailnet.coordinator.messages import Kind, Update
from tailnet.paths.core import HEARTBEAT_SECONDS, PING_TIMEOUT_SECONDS, Paths, Source
from tailnet.paths.disco import is_disco
from tailnet.paths.endpoint import Endpoint
from tailnet.paths.peer import DOUBT_SECONDS, MAX_CANDIDATES
from tailnet.types import PeerID

if TYPE_CHECKING:
    from sim.relays import RelayClient, Relays

# One of so many schedules with relays: a disco message is two boxes.
ONE_OF: Final = 3
REGION: Final = 1
STUN: Final = Endpoint("192.0.2.1", 3478)
# Nodes ask STUN again after so long, and say what is new.
STUN_SECONDS: Final = 20.0
PORT: Final = 41641
# Packets a path that died may take: until the next heartbeat, and until that is in doubt.
# What comes as often as this shows a path.
STREAM_SECONDS: Final = 3.0
LEFT_SECONDS: Final = HEARTBEAT_SECONDS + DOUBT_SECONDS + 2 * LATENCY_SECONDS[1]

FORGOTTEN_SECONDS: Final = HEARTBEAT_SECONDS + PING_TIMEOUT_SECONDS + 2 * LATENCY_SECONDS[1]


def has_nats(plan: Plan) -> bool:
    """Whether this schedule, which has relays, has any."""
    return Random(f"nats {plan.seed}").randrange(ONE_OF) == 0


class House:
    """A NAT and who is behind it.  Of mapping and filtering see RFC 4787."""

    def __init__(self, number: int, random: Random) -> None:
        self.outside = f"198.51.{number // 250}.{number % 250 + 1}"
        self.is_open = random.random() < 0.15  # no NAT, and no firewall
        self.is_blocked = not self.is_open and random.random() < 0.1  # no UDP
        self.is_one_port = random.random() < 0.6  # one outside port for an inside one, whatever the destination
        self.filters = random.choice(("nothing", "addresses", "ports", "ports"))
        self.has_hairpin = random.random() < 0.5
        self.mapping_seconds = random.choice((30.0, 60.0, 120.0))
        self.members: dict[str, PathNode] = {}
        self._ports: dict[tuple[str, Endpoint | None], tuple[int, float]] = {}
        self._inside: dict[int, str] = {}
        self._allowed: dict[tuple[int, str, int], float] = {}
        self._next_port = 20_000

    def restart(self) -> None:
        """It forgets all mappings, and takes other ports."""
        self._ports.clear()
        self._inside.clear()
        self._allowed.clear()
        self._next_port += 1000

    def leaves(self, inside: str, destination: Endpoint, now: float) -> Endpoint | None:
        """As whom others see a datagram that goes there; None: it does not leave."""
        if self.is_blocked:
            return None
        key = inside, None if self.is_one_port else destination
        port, used_at = self._ports.get(key, (0, -inf))
        if now - used_at > self.mapping_seconds:
            self._inside.pop(port, None)
            self._next_port += 1
            port = PORT if self.is_open else self._next_port
        self._ports[key] = port, now
        self._inside[port] = inside
        self._allowed[port, destination.host, destination.port] = now
        self._allowed[port, destination.host, 0] = now
        return Endpoint(self.outside, port)

    def enters(self, source: Endpoint, port: int, now: float) -> "PathNode | None":
        """Who gets a datagram that came to this port."""
        if self.is_open:
            return next(iter(self.members.values()), None) if port == PORT else None
        inside = self._inside.get(port)
        if inside is None or self.is_blocked:
            return None
        mapped_at = max(at for (host, _), (each, at) in self._ports.items() if host == inside and each == port)
        wanted = {"addresses": 0, "ports": source.port}.get(self.filters)
        allowed_at = mapped_at if wanted is None else self._allowed.get((port, source.host, wanted), -inf)
        return self.members.get(inside) if now - max(allowed_at, -inf) <= self.mapping_seconds else None

    @property
    def is_easy(self) -> bool:
        """Whether others see one port, whatever the destination."""
        return self.is_open or self.is_one_port

    def lets_in(self, other: "House") -> bool:
        """Whether it takes what comes from there to the endpoint by which it is known."""
        if self.is_open or self.filters == "nothing":
            return True
        # Else what came to the port that STUN saw is let in where it is the port of all that was sent.
        return self.is_one_port and (self.filters == "addresses" or other.is_easy)

    def takes_any_port(self) -> bool:
        """Whether somebody who was sent something may answer from another port."""
        return self.is_open or self.filters != "ports"

    def can_reach(self, other: "House") -> bool:
        """Whether an end here finds a path to one there, when both try."""
        if self is other:
            return True
        if self.is_blocked or other.is_blocked:
            return False
        # To the endpoint by which the other one is known, or to where a ping of the other one came from.
        if other.lets_in(self) and (other.is_easy or self.takes_any_port()):
            return True
        return self.lets_in(other) and (
            self.is_easy or (other.takes_any_port() and (other.is_easy or self.takes_any_port()))
        )


class PathNode:
    """One peer's paths.  A new process of it has another disco key, and knows nobody."""

    def __init__(self, nats: "Nats", client: "RelayClient") -> None:
        self.nats = nats
        self.client = client
        self.name = client.name
        self.random = Random(f"{nats.relays.world.plan.seed} paths {client.name}")
        self.house: House
        self.inside: str
        self.dead: dict[str, tuple[float, float]] = {}
        """Since when all that went to another one by a trusted path was lost, and when the last packet was."""
        self.moved_at = -inf
        self._due = inf
        self.begin()

    def begin(self) -> None:
        self.paths = Paths(
            self.client.key, self.random.randbytes(32), random=self.random.randbytes, now=self.nats.relays.now
        )
        self.dead.clear()

    @property
    def now(self) -> float:
        return self.nats.relays.now

    def endpoints(self) -> list[Endpoint]:
        """Of its interface, and as STUN sees it."""
        outside = self.house.leaves(self.inside, STUN, self.now)
        return [Endpoint(self.inside, PORT), *([outside] if outside is not None else [])]

    def refresh(self) -> None:
        """A node asks STUN."""
        self.paths.set_local_endpoints(self.endpoints(), self.now)
        self.flush()

    def told(self, update: Update) -> None:
        """By a coordinator."""
        nats = self.nats
        other = nats.by_id[PeerID(update.peer_id)]
        if update.kind is Kind.NODE and update.node is not None:
            disco_key, endpoints = nats.said[update.node.raw]
            self.paths.configure(other.client.key, disco_key, endpoints, REGION, self.now)
            self.flush()
        elif update.kind is Kind.DISCONNECTED:
            self.paths.remove(other.client.key)
            self.dead.pop(other.name, None)

    def send(self, other: "PathNode") -> bool:
        """A packet, as far as it goes directly; whether that is all, and none goes by the relay."""
        peer = self.paths.find(other.client.key)
        if peer is None:
            return False
        route = self.paths.route(peer, self.now)
        self.flush()
        if route.endpoint is not None:
            arrives = self.nats.send(self, route.endpoint, f"{self.name} {other.name}".encode())
            self._look_at_death(other, is_alone=route.region is None, arrives=arrives)
        return route.region is None

    def _look_at_death(self, other: "PathNode", *, is_alone: bool, arrives: bool) -> None:
        if arrives or not is_alone:
            self.dead.pop(other.name, None)
            return
        since, last_at = self.dead.get(other.name, (self.now, self.now))
        if self.now - last_at > STREAM_SECONDS:
            since = self.now
        self.dead[other.name] = since, self.now
        self.nats.relays.world.judge.met["path is dead"] += 1
        if self.now - since > LEFT_SECONDS:
            raise LawBroken(
                f"{self.name} sends to {other.name} by a path that has been dead for {self.now - since:.1f} s"
            )

    def arrive(self, datagram: bytes, source: Endpoint, moved_at: float) -> None:
        """By UDP, at the address that this one had since `moved_at`."""
        if self.moved_at == moved_at:
            self.receive(datagram, source)

    def receive(self, datagram: bytes, source: Source) -> None:
        """From a relay, or by UDP."""
        if self.client.is_away:
            return
        met = self.nats.relays.world.judge.met
        if is_disco(datagram):
            self.paths.receive(datagram, source, self.now)
            self.paths.take_events()
            self.flush()
            return
        sender, receiver = datagram.decode().split()
        met["packet direct"] += 1
        # Whoever has the address next of one who moved gets what is for that one, until a ping there has timed out.
        if receiver != self.name and self.now - self.nats.nodes[receiver].moved_at > FORGOTTEN_SECONDS:
            raise LawBroken(f"{self.name} got a direct packet of {sender} to {receiver}")

    def flush(self) -> None:
        for outgoing in self.paths.datagrams_to_send():
            if outgoing.endpoint is not None:
                self.nats.send(self, outgoing.endpoint, outgoing.datagram)
            else:
                self.client.pass_on(outgoing.node_key, outgoing.datagram)
        due = self.paths.next_timeout()
        if due is not None and due < self._due:
            self._due = due
            self.nats.relays.heap.at(due, partial(self._timer, due))

    def _timer(self, due: float) -> None:
        if self._due == due:
            self._due = inf
            self.paths.handle_timeout(self.now)
            self.flush()


class Nats:
    """All houses, and what goes between them."""

    def __init__(self, relays: "Relays") -> None:
        self.relays = relays
        self.random = Random(f"{relays.world.plan.seed} nats")
        self.houses: dict[str, House] = {}
        self.said: dict[bytes, tuple[bytes, list[Endpoint]]] = {}
        """What each node's bytes stand for: a disco key, and endpoints."""
        self.nodes = {client.name: PathNode(self, client) for client in relays.clients.values()}
        self.by_id = {node.client.peer.id: node for node in self.nodes.values()}
        for node in self.nodes.values():
            self._move_in(node)
            relays.heap.after(self.random.uniform(0, 1), partial(self._refresh, node))
        for _ in range(self.random.randint(0, 2)):
            relays.heap.at(self.random.uniform(5, FAULT_SECONDS), self._restart_router)

    def _move_in(self, node: PathNode) -> None:
        """A house of its own, or another one's.  Addresses inside are the same everywhere."""
        houses = [house for house in self.houses.values() if not house.is_open]
        if houses and self.random.random() < 0.25:
            house = self.random.choice(houses)
        else:
            house = House(len(self.houses), self.random)
            self.houses[house.outside] = house
        node.house = house
        free = (f"192.168.1.{number}" for number in range(2, 250))
        node.inside = house.outside if house.is_open else next(each for each in free if each not in house.members)
        house.members[node.inside] = node

    def _restart_router(self) -> None:
        self.relays.world.judge.met["router restarts"] += 1
        self.random.choice(list(self.houses.values())).restart()

    def _refresh(self, node: PathNode) -> None:
        if self.relays.now > FAULT_SECONDS + SOON_SECONDS:
            return
        node.refresh()
        self.relays.heap.after(STUN_SECONDS, partial(self._refresh, node))

    def note(self, peer: Peer, raw: bytes) -> None:
        """It says a node to its coordinator."""
        node = self.nodes[peer.name]
        self.said[raw] = node.paths.disco_key, node.endpoints()

    def moved(self, peer: Peer) -> None:
        """Its network is another one."""
        node = self.nodes[peer.name]
        del node.house.members[node.inside]
        self._move_in(node)
        node.moved_at = self.relays.now
        node.dead.clear()
        self.relays.world.judge.met["address changes"] += 1
        node.refresh()
        node.paths.network_changed(self.relays.now)
        node.flush()

    def send(self, sender: PathNode, destination: Endpoint, datagram: bytes) -> bool:
        """By UDP; whether it arrives."""
        now = self.relays.now
        receiver, source = self._way(sender, destination, now)
        if receiver is None or source is None or receiver.client.is_away:
            return False
        latency = LATENCY_SECONDS[0] + (LATENCY_SECONDS[1] - LATENCY_SECONDS[0]) * self.random.random()
        self.relays.heap.after(latency, partial(receiver.arrive, datagram, source, receiver.moved_at))
        return True

    def _way(self, sender: PathNode, destination: Endpoint, now: float) -> tuple[PathNode | None, Endpoint | None]:
        house = sender.house
        if destination.host.startswith("192.168."):
            is_here = not house.is_open and destination.port == PORT
            return house.members.get(destination.host) if is_here else None, Endpoint(sender.inside, PORT)
        source = house.leaves(sender.inside, destination, now)
        there = self.houses.get(destination.host)
        if source is None or there is None or (there is house and not house.has_hairpin):
            return None, None
        return there.enters(source, destination.port, now), source

    def quiet(self) -> None:
        """Whoever can has a direct path, and nobody else believes in one."""
        met, now = self.relays.world.judge.met, self.relays.now
        for node in self.nodes.values():
            for other in (self.nodes[peer.name] for peer in node.client.partners()):
                peer = node.paths.find(other.client.key)
                if peer is None or other is node or node.client.is_away or other.client.is_away:
                    continue
                can = node.house.can_reach(other.house)
                is_direct = peer.is_trusted(now)
                met[f"{'direct' if is_direct else 'relayed'} in the end"] += 1
                if is_direct and not can:
                    raise LawBroken(f"{node.name} believes in a path to {other.name}, which no NAT permits")
                # One who knows of as many addresses as it may takes another one when some were silent for 45 s: a NAT
                # that maps each destination anew, and asks from many ports, leaves so many when its end moves.
                if can and not is_direct and len(peer.candidates) < MAX_CANDIDATES:
                    raise LawBroken(f"{node.name} has no direct path to {other.name}")
                if is_direct and not (node.send(other) and other.name not in node.dead):
                    raise LawBroken(f"no packet of {node.name} to {other.name} goes directly")
