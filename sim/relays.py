"""The replicas' embedded relays, meshed over the replicas' ways, and the peers as clients of any of them.

Relays are real, on a Host in virtual time (sim/wires.py); who dials them when is what derp/server/mesh.py and
derp/server/drain.py do in tasks.  Each peer sends numbered packets to whom it has a tunnel with.  Only some schedules
have relays, by a number of their own, so that others are what they were.  Laws: sim/packets.py, and `Relays.quiet`.
"""

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from derp.close_reason import CloseReason
from derp.config import RelayConfig
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientConnection
from derp.protocol.frames import PeerGoneReason
from derp.protocol.messages import PeerGone, RecvPacket
from derp.protocol.states import ClientState
from derp.relay.counters import DropReason
from derp.relay.mesh import MeshPeerState, MeshRoute
from derp.server.lobby import Lobby
from derp.server.mesh import MeshSession, begin, greet_kin, retry_seconds
from derp.server.relay import Relay
from derp.server.session import Greeting
from sim.laws import LawBroken
from sim.nats import REGION, Nats, PathNode, has_nats
from sim.packets import Ledger
from sim.peers import NOTICED_SECONDS, Peer
from sim.plan import FAULT_SECONDS, SOON_SECONDS, Plan
from sim.wires import END, Pipe, PipeWire, Server
from tailnet.coordinator.messages import Update
from tailnet.paths.core import RelaySource
from tailnet.paths.disco import is_disco

if TYPE_CHECKING:
    from sim.world import Process, World

# One schedule of so many has relays: a packet costs as much as an update.
ONE_OF: Final = 4
# Between two packets of a peer to one other, on the average; and while some relay leaves, for its round trips.
PACKET_SECONDS: Final = 1.5
LEAVING_PACKET_SECONDS: Final = 0.04
# derp/server/drain.py, for the few clients that there are here.
DRAIN_SECONDS: Final = 8.0
DRAIN_STEP_SECONDS: Final = 0.02
# derp/server/mesh.py and tailnet/services/relay_mesh.py.
CONNECT_SECONDS: Final = 10.0
LEAVE_SECONDS: Final = 2.0
_MAX_KEYS: Final = 1000


def has_relays(plan: Plan) -> bool:
    """Whether this schedule has any."""
    return Random(f"relays {plan.seed}").randrange(ONE_OF) == 0


class RelayServer(Server):
    """One process's relay."""

    def __init__(self, relays: "Relays", process: "Process", name: str, private: NodePrivate) -> None:
        super().__init__(relays.world.heap)
        self.process = process
        self.name = name
        self.place = process.place
        self.is_leaving = False
        self.has_hung_up = False  # the last thing that one does which leaves
        self.random = Random(f"{relays.world.plan.seed} relay {self.name}")
        config = RelayConfig(private, stun_enabled=False, self_check=False, keepalive_jitter_seconds=0.0, open=True)
        self.lobby = Lobby(self.host, config)
        self.relay = Relay(config, self.host, self.lobby, has_kin=True)
        self.links: dict[RelayServer, MeshLink] = {}  # those that this one dialled

    @property
    def is_used(self) -> bool:
        """Whether it has clients, or packets for those that went."""
        router = self.relay.router
        return bool(router.mailboxes) or any(not client.is_mesh_peer for client in router.clients.values())

    def is_meshed_with(self, other: "RelayServer") -> bool:
        """Whether packets pass from here to there."""
        link = self.links.get(other)
        return link is not None and link.is_up


class MeshLink:
    """A connection that one relay dialled to another one, from its first byte to the last."""

    def __init__(self, relays: "Relays", one: RelayServer, two: RelayServer) -> None:
        world = relays.world
        self.one, self.two = one, two
        self.near, self.far = PipeWire(one, 1), PipeWire(two, 2)
        there, back = world.ways[one.place, two.place], world.ways[two.place, one.place]
        self.near.out = Pipe(world.heap, one.random, self.far.arrive, there)
        self.far.out = Pipe(world.heap, one.random, self.near.arrive, back)
        self._relays = relays
        self.session: KinSession | None = None
        self.is_over = False
        # As log_in_as_kin: a key of this login, and a mesh key at which nobody looks.
        self.private = NodePrivate(one.random.randbytes(32))
        self.connection = ClientConnection(
            self.private, random_bytes=one.random.randbytes, mesh_key=MeshKey(one.random.randbytes(32))
        )

    @property
    def is_up(self) -> bool:
        return self.session is not None and self.session.route.is_accepted

    def dial(self) -> None:
        """Of the one that dials."""
        self.near.session = KinLogin(self)
        self.one.host.add(self.near)
        self.two.do(lambda: greet_kin(self.two.relay.sessions, self.far, CONNECT_SECONDS))

    def logged_in(self) -> None:
        """ServerInfo has come."""
        relay = self.one.relay
        assert relay.mesh is not None
        self.connection.send_watch_conns()
        self.near.push(b"".join(self.connection.data_to_send()))
        route = MeshRoute(relay.router, self.private.public().raw, self.near, _MAX_KEYS)
        self.session = KinSession(relay.sessions, self.near, self.connection, route, self.two.name)
        self.session.link = self
        relay.mesh.sessions[self.two] = self.session
        state = relay.mesh.states.setdefault(self.two, MeshPeerState(self.two.name))
        state.route = route
        begin(relay.sessions, self.session, b"")

    def ended(self) -> None:
        relay = self.one.relay
        assert relay.mesh is not None
        relay.mesh.sessions.pop(self.two, None)
        if self.two in relay.mesh.states:
            relay.mesh.states[self.two].route = None
        self.is_over = True
        self._relays.link_ended(self)

    def came_up(self) -> None:
        self._relays.look()

    def break_off(self) -> None:
        """The way broke: both ends see it, and what was on its way is lost."""
        for wire in (self.near, self.far):
            wire.out.break_off()
            wire.arrive(END)


class KinLogin:
    """The dialler's side of a login, as a session of its wire."""

    def __init__(self, link: MeshLink) -> None:
        self._link = link

    def received(self, at: int, end: int) -> int:
        link = self._link
        link.connection.receive_data(link.one.host.view[at:end])
        if link.connection.state is ClientState.OPEN:
            link.logged_in()
        else:
            link.near.push(b"".join(link.connection.data_to_send()))
        return end

    def writable(self) -> None:
        """Nothing waits here."""

    def ended(self, reason: CloseReason, text: str) -> None:
        self._link.ended()


class KinSession(MeshSession):
    """A mesh connection that tells of its beginning and its end."""

    __slots__ = ("link",)

    link: MeshLink

    def received(self, at: int, end: int) -> int:
        was_accepted = self.route.is_accepted
        rest = super().received(at, end)
        if self.route.is_accepted and not was_accepted:
            self.link.came_up()
        return rest

    def ended(self, reason: CloseReason, text: str) -> None:
        super().ended(reason, text)
        self.link.ended()


class RelayConnection:
    """One dial of a client."""

    def __init__(self, client: "RelayClient", server: RelayServer) -> None:
        heap = server.heap
        self.client = client
        self.server = server
        self.wire = PipeWire(server, client.dial_count)
        self.up = Pipe(heap, client.random, self.wire.arrive)
        self.wire.out = Pipe(heap, client.random, self._come)
        self.core = ClientConnection(client.private, random_bytes=client.random.randbytes)
        self.is_open = True  # the client believes in it

    def greet(self) -> None:
        """Of the relay: somebody connects."""
        server, sessions = self.server, self.server.relay.sessions
        if server.is_leaving:  # its ports are closed
            self.wire.out.end()
            return
        greeting = self.wire.session = Greeting(sessions, self.wire, is_ideal=True)
        server.lobby.enter(self.wire)
        server.host.add(self.wire)
        self.wire.push(greeting.hello())

    def _come(self, data: bytes) -> None:
        if not self.is_open:
            return
        if data == END:
            self.client.lost(self)
            return
        was_open = self.core.state is ClientState.OPEN
        for message in self.core.receive_data(data):
            if isinstance(message, RecvPacket):
                self.client.take(message)
            elif isinstance(message, PeerGone):
                self.client.relays.world.judge.met[f"told that a key is {PeerGoneReason(message.reason).name}"] += 1
        self.flush()
        if self.core.state is ClientState.OPEN and not was_open:
            self.client.came(self)

    def flush(self) -> None:
        if said := b"".join(self.core.data_to_send()):
            self.up.send(said)


class RelayClient:
    """A peer, as relays know it."""

    def __init__(self, relays: "Relays", peer: Peer) -> None:
        self.relays = relays
        self.peer = peer
        self.name = peer.name
        self.random = Random(f"{relays.world.plan.seed} relay client {peer.name}")
        self.private = NodePrivate(self.random.randbytes(32))
        self.key = self.private.public().raw
        self.connection: RelayConnection | None = None
        self.is_away = False
        self.dial_count = 0
        self.lingering: set[RelayConnection] = set()
        """Earlier ones of which their relays have not noticed that they are gone."""
        self.node: PathNode | None = None  # where there are NATs
        self.troubles = relays.ledger.of[peer.name]
        self.troubles.begin(0.0)

    def dial(self) -> None:
        """Any relay that takes clients."""
        if self.connection is not None or self.is_away:
            return
        server = self.relays.choose(self.random)
        if server is None:
            self.troubles.begin(self.relays.now)
            self.relays.heap.after(self.random.uniform(0.1, 0.5), self.dial)
            return
        self.dial_count += 1
        connection = self.connection = RelayConnection(self, server)
        self.relays.say(f"{self.name} dials the relay of {server.name}")
        if server.is_alive:
            server.do(connection.greet)
        else:
            self.relays.heap.after(0.01, partial(self.lost, connection))

    def came(self, connection: RelayConnection) -> None:
        """It is logged in."""
        self.relays.say(f"{self.name} is at the relay of {connection.server.name}")
        self._look()
        self.relays.look()
        if self.node is not None:
            self.node.paths.region_up(REGION)
        self.write(connection)

    def _look(self) -> None:
        """Whether it is where relays think it is: of two connections at one relay the later one counts."""
        connection = self.connection
        if connection is None or connection.core.state is not ClientState.OPEN:
            return
        if all(each.server is connection.server for each in self.lingering):
            self.troubles.end(self.relays.now)

    def lost(self, connection: RelayConnection) -> None:
        """The relay has ended it: the peer hangs up, and dials another one."""
        if not connection.is_open:
            return
        if connection.core.state is not ClientState.OPEN:
            self.troubles.begin(self.relays.now)
        elif connection.server.is_leaving:
            self.write(connection)  # a moment before it hears of the end
        connection.is_open = False
        connection.up.end()
        if self.connection is connection:
            self.connection = None
            self._note_down()
            self.relays.heap.after(self.random.uniform(0.02, 0.1), self.dial)

    def leave(self, *, in_silence: bool) -> None:
        """Its network changed, or it goes."""
        connection, self.connection = self.connection, None
        self._note_down()
        self.troubles.begin(self.relays.now)
        if connection is None:
            return
        connection.is_open = False
        if not in_silence:
            connection.up.end()
            return
        self.lingering.add(connection)
        self.relays.heap.after(NOTICED_SECONDS, partial(self._noticed, connection))

    def _note_down(self) -> None:
        if self.node is not None:
            self.node.paths.region_down(REGION)

    def _noticed(self, connection: RelayConnection) -> None:
        connection.up.end()
        self.lingering.discard(connection)
        self._look()

    def partners(self) -> list[Peer]:
        """Whom it has a tunnel with."""
        peer, world = self.peer, self.relays.world
        if peer.is_agent:
            return [other for other in world.peers if peer.id in other.wants]
        return [other for other in world.peers if other.id in peer.wants]

    def talk(self) -> None:
        """Now, and some time again."""
        relays = self.relays
        if relays.now > FAULT_SECONDS + SOON_SECONDS:
            return
        mean = LEAVING_PACKET_SECONDS if relays.is_any_leaving else PACKET_SECONDS
        relays.heap.after(self.random.expovariate(1 / mean), self.talk)
        if self.connection is not None and self.connection.core.state is ClientState.OPEN:
            self.write(self.connection)

    def write(self, connection: RelayConnection) -> None:
        """A packet or two to each of them."""
        relays = self.relays
        for other in self.partners():
            if self.node is not None and self.node.send(relays.nodes[other.name]):
                continue
            key = relays.clients[other.name].key
            for _ in range(self.random.choice((1, 1, 2))):
                connection.core.send_packet(key, relays.ledger.write(self.name, other.name, relays.now))
        connection.flush()

    def pass_on(self, key: bytes, datagram: bytes) -> None:
        """A disco message goes by the relay, if there is one."""
        connection = self.connection
        if connection is not None and connection.core.state is ClientState.OPEN:
            connection.core.send_packet(key, datagram)
            connection.flush()

    def take(self, message: RecvPacket) -> None:
        if self.node is not None and is_disco(message.packet):
            self.node.receive(bytes(message.packet), RelaySource(REGION, message.src))
            return
        self.relays.ledger.take(self.name, self.relays.names[message.src], bytes(message.packet))


class Relays:
    """The relays' part of a world, which tells it what happens to its processes, ways and peers."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.heap = world.heap
        self.say = world.say
        self.ledger = Ledger(world.judge.met)
        self.random = Random(f"{world.plan.seed} relays")
        # Replicas with one PostgreSQL have one relay key, others have one each.
        self._shared_key = NodePrivate(self.random.randbytes(32)) if self.random.random() < 0.5 else None
        self.servers: list[RelayServer] = []
        self.clients = {peer.name: RelayClient(self, peer) for peer in world.peers}
        self.nats = Nats(self) if has_nats(world.plan) else None
        self.nodes = self.nats.nodes if self.nats is not None else {}
        for name, node in self.nodes.items():
            self.clients[name].node = node
        self.names = {client.key: client.name for client in self.clients.values()}
        self.is_any_leaving = False
        self._failures: dict[tuple[RelayServer, RelayServer], int] = {}
        self.ledger.everywhere.begin(0.0)
        for _ in range(self.random.randint(0, 2)):
            self.heap.at(self.random.uniform(4, FAULT_SECONDS - 3), self._replace)
        for client in self.clients.values():
            self.heap.after(client.random.uniform(0, 3), client.dial)
            self.heap.after(client.random.uniform(0, 3), client.talk)

    @property
    def now(self) -> float:
        return self.heap.now

    @property
    def alive(self) -> list[RelayServer]:
        return [server for server in self.servers if server.is_alive]

    def _of(self, process: "Process") -> list[RelayServer]:
        return [server for server in self.alive if server.process is process]

    def choose(self, random: Random) -> RelayServer | None:
        """Where a client that dials ends up: at one that takes clients, and is meshed with the others."""
        serving = [server for server in self.alive if not (server.is_leaving or server.is_frozen)]
        meshed = [one for one in serving if all(self._are_meshed(one, two) for two in self.alive if two is not one)]
        return random.choice(meshed or serving) if serving else None

    def _are_meshed(self, one: RelayServer, two: RelayServer) -> bool:
        return one.is_meshed_with(two) and two.is_meshed_with(one)

    # What happens to processes and ways.

    def started(self, process: "Process") -> None:
        count = sum(server.process is process for server in self.servers)
        name = process.name + "abcd"[count - 1] * (count > 0)
        server = RelayServer(self, process, name, self._shared_key or NodePrivate(self.random.randbytes(32)))
        others, self.servers = self.alive, [*self.servers, server]
        for other in others:
            # Who leaves is not found by others any more, and finds them.
            if count or other.is_leaving:
                self.heap.after(self.random.uniform(0, 2), partial(self._meet, server, other))

    def met(self, one: "Process", two: "Process") -> None:
        """Two replicas know of each other, and a way stands."""
        for server in self._of(one) if one is not two else ():
            for other in self._of(two):
                self._meet(server, other)

    def _meet(self, one: RelayServer, two: RelayServer) -> None:
        self._keep(one, two)
        self._keep(two, one)

    def _keep(self, server: RelayServer, other: RelayServer) -> None:
        if other not in server.links and not server.has_hung_up and other.is_alive and not other.has_hung_up:
            server.do(partial(self._dial, server, other))

    def _dial(self, server: RelayServer, other: RelayServer) -> None:
        ways = self.world.ways
        if other in server.links or not (other.is_alive and server.is_alive):
            return
        if not (ways[server.place, other.place].is_up and ways[other.place, server.place].is_up):
            self._dial_later(server, other)
            return
        link = server.links[other] = MeshLink(self, server, other)
        link.dial()
        self.heap.after(CONNECT_SECONDS, lambda: None if link.session is not None or link.is_over else link.break_off())

    def _dial_later(self, server: RelayServer, other: RelayServer) -> None:
        if not (server.is_alive and other.is_alive):
            return
        failures = self._failures.get((server, other), 0)
        self._failures[server, other] = failures + 1
        seconds = retry_seconds(failures, self.now) * (0.5 + server.random.random())
        self.heap.after(seconds, lambda: self._keep(server, other))

    def link_ended(self, link: MeshLink) -> None:
        if link.one.links.get(link.two) is link:
            del link.one.links[link.two]
        if link.is_up:
            self._failures[link.one, link.two] = 0
        self.look()
        self._dial_later(link.one, link.two)

    def broken(self, one: int, two: int) -> None:
        for server in self.alive:
            for other, link in list(server.links.items()):
                if {server.place, other.place} == {one, two}:
                    link.break_off()
        self.look()

    def mended(self, one: int, two: int) -> None:
        for server in self.servers:
            for other, link in list(server.links.items()):
                if {server.place, other.place} == {one, two}:
                    link.near.out.release()
                    link.far.out.release()
        self.look()

    def frozen(self, process: "Process") -> None:
        for server in self._of(process):
            server.is_frozen = True
        self.look()

    def woke(self, process: "Process") -> None:
        for server in self._of(process):
            server.wake()
        self.look()

    def died(self, process: "Process") -> None:
        """A relay that leaves ends when its clients have gone."""
        for server in self._of(process):
            if not server.is_leaving:
                self._end(server)

    def _end(self, server: RelayServer) -> None:
        """The process is gone: its connections break."""
        if not server.is_alive:
            return
        self._count(server)
        if not server.has_hung_up:
            self.ledger.everywhere.begin(self.now)
        server.is_alive = False
        for link in [*server.links.values(), *(each.links[server] for each in self.alive if server in each.links)]:
            link.near.out.break_off()
            link.far.out.break_off()
            for wire, owner in ((link.near, link.one), (link.far, link.two)):
                if owner is not server:
                    self.heap.after(self.random.uniform(0.001, 0.05), partial(wire.arrive, END))
        for client in self.clients.values():
            connection = client.connection
            if connection is not None and connection.server is server:
                connection.wire.out.break_off()
                client.troubles.begin(self.now)
                self.heap.after(self.random.uniform(0.01, 1), partial(client.lost, connection))
        self.heap.after(0.1, self.look)

    # A relay leaves.

    def _replace(self) -> None:
        """One leaves in good order and another one comes, as relays do that are no part of a coordinator."""
        alive = [server for server in self.alive if not (server.is_leaving or server.is_frozen)]
        if not alive:
            return
        server = self.random.choice(alive)
        come, go = self.random.choice(((0.0, 3.0), (0.0, 0.0), (1.0, 0.0)))
        self.heap.after(come, lambda: self.started(server.process) if server.process.is_alive else None)
        self.heap.after(go, lambda: self._leave(server))

    def left(self, process: "Process") -> None:
        """It stops in good order."""
        for server in self._of(process):
            self._leave(server)

    def _leave(self, server: RelayServer) -> None:
        if server.is_leaving or not server.is_alive:
            return
        self.world.judge.met["relay leaves"] += 1
        server.is_leaving = True
        self.is_any_leaving = True
        if not server.relay.has_neighbours():
            self.ledger.everywhere.begin(self.now)
        self.say(f"the relay of {server.name} leaves")
        total = len(server.relay.router.clients)
        server.do(lambda: server.relay.announce_restart(2.0, 60.0))
        server.do(partial(self._send_away, server, max(total, 1.0), 1.0, self.now + DRAIN_SECONDS))

    def _send_away(self, server: RelayServer, per_second: float, due: float, until: float) -> None:
        """As drain_clients."""
        relay = server.relay
        before = len(relay.router.clients)
        left = relay.close_clients(int(due))
        self.world.judge.met["packet in a mailbox"] += sum(
            len(mailbox.frames) for member in relay.router.members.values() if (mailbox := member.mailbox) is not None
        )
        if not left or self.now >= until:
            self._hang_up(server)
            return
        due = min(max(due - (before - len(relay.router.clients)), 0.0), per_second * DRAIN_STEP_SECONDS + 1.0)
        seconds = DRAIN_STEP_SECONDS * (0.5 + server.random.random())
        step = partial(self._send_away, server, per_second, due + per_second * seconds, until)
        self.heap.after(seconds, lambda: server.do(step))

    def _hang_up(self, server: RelayServer) -> None:
        """As Mesh.leave."""
        server.has_hung_up = True
        for link in server.links.values():
            link.near.out.end()
        self.heap.after(LEAVE_SECONDS, lambda: self._end_left(server))

    def _end_left(self, server: RelayServer) -> None:
        self.world.judge.met["relay left"] += 1
        self._end(server)
        self.is_any_leaving = any(each.is_leaving for each in self.alive)

    # What happens to peers.

    def acted(self, peer: Peer, what: str) -> None:
        client = self.clients[peer.name]
        if what == "roam" and self.nats is not None:
            self.nats.moved(peer)
        if what in ("redial", "roam", "blink"):
            client.leave(in_silence=what == "roam")
            client.dial()
        elif what in ("goodbye", "vanish"):
            client.is_away = True
            client.leave(in_silence=what == "vanish")

    def returned(self, peer: Peer) -> None:
        client = self.clients[peer.name]
        client.is_away = False
        if client.node is not None:
            client.node.begin()
        client.dial()

    def noted(self, peer: Peer, raw: bytes) -> None:
        """It says a node to its coordinator."""
        if self.nats is not None:
            self.nats.note(peer, raw)

    def told(self, peer: Peer, updates: tuple[Update, ...]) -> None:
        """Its coordinator says this."""
        for update in updates if peer.name in self.nodes else ():
            self.nodes[peer.name].told(update)

    # What must hold.

    def look(self) -> None:
        """Whether all is well with the relays from now on."""
        if self._is_calm():
            self.ledger.everywhere.end(self.now)
        else:
            self.ledger.everywhere.begin(self.now)

    def _is_calm(self) -> bool:
        alive = self.alive
        at = {each.connection.server for each in self.clients.values() if each.connection is not None}
        if any(server.is_frozen or not server.is_alive for server in {*alive, *at}):
            return False
        used = [server for server in alive if server in at or server.is_used]
        ways = self.world.ways
        # Also of one that no client is at any more: what it has to say of those who left is under way.
        return all(ways[one.place, two.place].is_up for one in alive for two in alive if one is not two) and all(
            one.is_meshed_with(two) for one in used for two in used if one is not two
        )

    def quiet(self) -> None:
        """The last fault is long over."""
        self.ledger.check(self.now)
        if self.nats is not None:
            self.nats.quiet()
        alive = self.alive
        for server in alive:
            self._count(server)
            for other in alive:
                if other is not server and not server.is_meshed_with(other):
                    raise LawBroken(f"the relay of {server.name} has no connection to that of {other.name}")
        for client in self.clients.values():
            connection = client.connection
            if client.is_away != (connection is None):
                raise LawBroken(f"{client.name} does not get to a relay")
            for server in alive:
                self._knows_where(server, client, connection.server if connection is not None else None)

    def _knows_where(self, server: RelayServer, client: RelayClient, at: RelayServer | None) -> None:
        router = server.relay.router
        member, route = router.members.get(client.key), router.routes.get(client.key)
        if at is None:
            if member is not None or route is not None:
                raise LawBroken(f"{client.name} is away, and the relay of {server.name} keeps its key")
            return
        if at is server:
            wire = route.wire if route is not None else None
            if client.connection is None or wire is not client.connection.wire:
                raise LawBroken(f"{client.name} is at the relay of {server.name}, which does not write to it")
        elif route is not server.links[at].session.route:  # type: ignore[union-attr]  # they are meshed
            raise LawBroken(f"the relay of {server.name} does not know that {client.name} is at that of {at.name}")

    def _count(self, server: RelayServer) -> None:
        counters, met = server.relay.router.counters, self.world.judge.met
        met["packet by the mesh"] += counters.packets_forwarded_in
        met["packet relayed"] += counters.packets_received
        met["packet to nobody"] += counters.dropped(DropReason.UNKNOWN_DEST)
        broken = server.lobby.closed_count[CloseReason.INTERNAL_ERROR] + server.lobby.closed_count[CloseReason.FLOOD]
        if broken:
            raise LawBroken(f"a session of the relay of {server.name} failed")
