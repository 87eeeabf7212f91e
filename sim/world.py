"""The world of one run: replicas as processes with clocks of their own, the ways between them, and their peers.

Everything that happens is a call on the heap.  A process that is frozen has what arrives waiting for it; one that is
killed takes it along.  Peers reach replicas over connections that keep their order and take their time.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from math import inf
from random import Random

from sim.heap import Heap
from sim.laws import Judge
from sim.leaving import Leaving
from sim.peers import NOTICED_SECONDS, Connection, Peer
from sim.plan import FAULT_SECONDS, FAULTS, PEERS, Plan, Step
from sim.relays import Relays, has_relays
from sim.seal import SimulatedKey
from sim.store import Reporter, Row, Store
from sim.ways import BUS_BEAT_SECONDS, DEAF_SECONDS, LATENCY_SECONDS, ONE_WAY_SECONDS, Way
from tailnet.coordinator.messages import Deliver, Effect, EndConnection, Kind, Request, SendError, Update
from tailnet.replica.cluster import SLEPT_SECONDS, Cluster, SessionEnded, SessionOpened, Silenced
from tailnet.replica.messages import Bye, ReplicaID, Tell
from tailnet.replica.pair import BEAT_SECONDS, End
from tailnet.store.rows import PresenceChange
from tailnet.types import PeerID

KEY = SimulatedKey("sim", bytes(32))
# A record of a replica that died is gone by then, and the others forget it.
LEASE_SECONDS = 8.0
# Behind a fault: links are dialled anew, and a silence that began in it is told.
CALM_SECONDS = 10.0


class Process:
    """One start of one replica."""

    def __init__(self, world: "World", place: int, start: int) -> None:
        self.world = world
        self.heap = world.heap
        self.place = place
        self.name = f"r{place}.{start}"
        self.random = Random(f"{world.plan.seed} what happens to {self.name}")
        random = Random(f"{world.plan.seed} {self.name}")
        self.id = ReplicaID(random.randbytes(8))
        self.cluster: Cluster[Connection] = Cluster(self.id, self.name, KEY, random.randbytes)
        self.is_alive = True
        self.is_ready = True  # the balancer sends it peers
        self.is_accepting = True
        self.is_frozen = False
        self.backlog: list[Callable[[], object]] = []
        self.frozen_at = self.awake_since = -inf
        self.had_link = False  # when it was frozen
        self.woke_at = -inf  # from a sleep that was too long to judge others
        self.heard_self_at = -inf  # its own beat by a bus that had been away
        self._clock_ahead = random.uniform(0, 5)  # monotonic clocks begin anywhere
        wall_ahead = self.random.uniform(-2, 2)
        self.reporter = Reporter(self.name, self.heap, world.store, wall_ahead, self.do, self._written)
        self._due = inf  # by its own clock

    def _written(self, change: PresenceChange, before: Row, after: Row) -> None:
        self.world.judge.written(self, change, before, after)

    @property
    def now(self) -> float:
        return self.heap.now + self._clock_ahead

    def do(self, call: Callable[[], object]) -> None:
        """Something arrives: now, when the process wakes, or never."""
        if not self.is_alive:
            return
        if self.is_frozen:
            self.backlog.append(call)
            return
        call()
        self.flush()

    def flush(self) -> None:
        """The end of a step: frames go, and the next deadline is known."""
        world, cluster = self.world, self.cluster
        for other, frames in cluster.frames_to_send():
            for frame in frames:
                world.carry(self, other, frame)
        due = cluster.next_timeout()
        if due is not None and due < self._due:
            self._due = due
            self.heap.at(due - self._clock_ahead, partial(self._timer, due))

    def _timer(self, due: float) -> None:
        if self._due == due:
            self.do(self._timeout)

    def _timeout(self) -> None:
        now, due = self.now, self._due
        # Two clocks with an offset round: a deadline that has come by one may be a hair away by the other.
        if now < due < now + 1e-6:
            now = due
        self._due = inf
        effects = self.cluster.handle_timeout(now)
        if effects:
            self.take(effects)

    def arrive(self, other: ReplicaID, frame: bytes) -> None:
        """A frame from another one: as `do`, without a call of its own for each."""
        if not self.is_alive:
            return
        if self.is_frozen:
            self.backlog.append(partial(self._hear, other, frame))
            return
        self._hear(other, frame)
        self.flush()

    def _hear(self, other: ReplicaID, frame: bytes) -> None:
        cluster = self.cluster
        pair = cluster.pairs.get(other)
        if pair is not None and pair.has_link:
            effects = cluster.receive_frame(other, frame, self.heap.now + self._clock_ahead)
            if effects:
                self.take(effects)

    def take(self, effects: list[Effect[Connection]]) -> None:
        """What the cluster says to own connections."""
        judge = self.world.judge
        for effect in effects:
            if isinstance(effect, Deliver):
                for connection in effect.receivers:
                    for update in effect.updates:
                        self.world.say_told(self, connection, update)
                        judge.told(connection, update)
                    self.world.tell_peer(connection, effect.updates)
            elif isinstance(effect, EndConnection):
                judge.ended(effect.connection, effect.reason)
                self.lose(effect.connection)
                self.world.say(f"{self.name} ends the connection of {effect.connection.peer.name}: {effect.reason}")
                self.heap.after(0.01, partial(self.world.hang_up, effect.connection))
            elif isinstance(effect, SendError):
                judge.met["error told"] += 1
            elif isinstance(effect, Silenced):
                self.world.say_of_two(self, effect.replica, False)
                judge.silenced(self, effect.replica)
            elif isinstance(effect, SessionOpened):
                self.world.say_of_two(self, effect.replica, True)
            elif isinstance(effect, SessionEnded) and effect.end not in (End.LINK, End.REPLACED):
                self.world.relink(self, effect.replica)

    def lose(self, connection: Connection) -> None:
        """A connection is over."""
        connection.is_served = False
        self.reporter.left(connection)

    def move(self, connection: Connection) -> None:
        """We leave, and the peer is to dial another one."""
        self.world.say(f"{self.name} sends {connection.peer.name} away")
        self.cluster.coordinator.handle_move(connection, self.now)
        connection.moved_at = self.heap.now
        self.lose(connection)
        self.heap.after(0.01, partial(self.world.hang_up, connection))

    def tell(self, hint: Tell | Bye) -> None:
        """Others hear of it, and nothing follows here: what it means stands in the store, or in discovery."""
        self.take(self.cluster.tell(hint, self.now))

    def core(self, effects: list[Effect[Connection]]) -> None:
        """What the coordinator says about an own connection."""
        self.take(self.cluster.carry_out(effects, self.now))


class World:
    """One run of a plan."""

    def __init__(self, plan: Plan, record: bool = False) -> None:
        self.plan = plan
        self.heap = Heap()
        self.judge = Judge(self)
        self.store = Store()
        self.story: list[str] | None = [] if record else None
        self.processes: list[Process] = []
        self.places: list[Process | None] = [None] * plan.replicas
        self._alive: dict[ReplicaID, Process] = {}
        self.bus_lost_at: dict[int, float] = {}
        self.ways: dict[tuple[int, int], Way] = {
            (one, two): Way(Random(f"{plan.seed} way {one} {two}"))
            for one in range(plan.replicas)
            for two in range(plan.replicas)
        }
        self.say(f"{plan.replicas} replicas r0, r1 ... by {'a bus' if plan.is_bus else 'links'}; r1.2: the 2nd process")
        self._starts = 0
        names = [f"a{n}" for n in range(plan.agents)] + [f"c{n}" for n in range(plan.clients)]
        self.peers = [Peer(name, name[0] == "a", Random(f"{plan.seed} {name}")) for name in names]
        self._peers = {peer.id: peer for peer in self.peers}
        self.relays = Relays(self) if has_relays(plan) else None
        for place in range(plan.replicas):
            self.start(place)
        for number, peer in enumerate(self.peers):
            if not peer.is_agent:
                peer.wants.add(self.peers[number % plan.agents].id)
            self.heap.after(peer.random.uniform(0, 3), partial(self.dial, peer))
        for step in plan.steps:
            self.heap.at(step.at, partial(self.step, step))
        self.heap.at(FAULT_SECONDS, self.heal)
        # When something else than an end in good order may keep replicas from hearing each other.
        self._storms = [(0.0, plan.apart_seconds)] + [
            (step.at, step.at + step.seconds + CALM_SECONDS)
            for step in plan.steps
            if step.what in FAULTS and step.what not in ("stop", "store away")
        ]

    def is_calm_since(self, at: float) -> bool:
        """Whether all replicas that live could hear each other from then on."""
        now = self.heap.now
        return all(end < at or begin > now for begin, end in self._storms)

    def say(self, text: str) -> None:
        if self.story is not None:
            self.story.append(f"{self.heap.now:7.3f}  {text}")

    def say_told(self, process: Process, connection: Connection, update: Update) -> None:
        if self.story is not None and update.kind is not Kind.READY_FOR_HANDSHAKE:
            what = update.node.raw.decode() if update.node is not None else f"of {self.peer(update.peer_id).name}"
            self.say(f"{process.name} tells {connection.peer.name}: {update.kind.name} {what}")

    def say_of_two(self, process: Process, other_id: ReplicaID, is_session: bool) -> None:
        if self.story is None:
            return
        other = next(each for each in self.processes if each.id == other_id)
        if not is_session:
            self.say(f"to {process.name}, {other.name} is silent")
        elif other.cluster.pair(process.id).is_open:  # else it says so, when it has heard the answer
            self.say(f"{process.name} and {other.name} have a session")

    def peer(self, peer_id: bytes) -> Peer:
        return self._peers[PeerID(peer_id)]

    # Replicas and the ways between them.

    def start(self, place: int) -> None:
        """A process begins, unless another one was faster; the others find its record within two seconds."""
        if self.places[place] is not None:
            return
        self._starts += 1
        process = Process(self, place, self._starts)
        self.places[place] = self._alive[process.id] = process
        self.processes.append(process)
        if place in self.bus_lost_at:
            self.heap.after(DEAF_SECONDS, partial(self._note_deaf, place, self.bus_lost_at[place]))
        if self.relays is not None:
            self.relays.started(process)
        for other in self.places:
            if other is not None and other is not process:
                found = process.random.uniform(0, 2)
                self.heap.at(max(self.heap.now, self.plan.apart_seconds) + found, partial(self.join, process, other))

    def join(self, one: Process, two: Process) -> None:
        """Two replicas know of each other, and there is a way between them, or will be."""
        for process, other in ((one, two), (two, one)):
            if process.is_alive and other.is_alive:
                process.do(partial(self._open_way, process, other))
        if self.relays is not None:
            self.relays.met(one, two)

    def _open_way(self, process: Process, other: Process) -> None:
        there, back = self.ways[process.place, other.place], self.ways[other.place, process.place]
        has_way = self.plan.is_bus or (there.is_up and back.is_up)
        if has_way and not process.cluster.pair(other.id).has_link:
            process.cluster.link_opened(other.id, process.now)

    def carry(self, sender: Process, receiver_id: ReplicaID, frame: bytes) -> None:
        receiver = self._alive.get(receiver_id)
        if receiver is None:
            return
        way = self.ways[sender.place, receiver.place]
        arrive = partial(receiver.arrive, sender.id, frame)
        heap, is_bus = self.heap, self.plan.is_bus
        if not is_bus and way.down_at != inf:
            way.held.append(arrive)
            return
        for at in way.arrivals(heap.now, is_bus):
            heap.at(at, arrive)

    def cut(self, one: int, two: int) -> None:
        """Nothing passes from one to two any more."""
        way = self.ways[one, two]
        if way.is_up:
            way.down_at = self.heap.now
            self.heap.after(ONE_WAY_SECONDS, partial(self._look_at_one_way, one, two, way.down_at))
            if self.relays is not None:
                self.relays.look()

    def part(self, one: int, two: int) -> None:
        """Nothing passes between the two, and links break."""
        self.cut(one, two)
        self.cut(two, one)
        if not self.plan.is_bus:
            self._break_links(one, two)
            if self.relays is not None:
                self.relays.broken(one, two)

    def _break_links(self, one: int, two: int) -> None:
        for here, there in ((one, two), (two, one)):
            process, other = self.places[here], self.places[there]
            self.ways[here, there].held.clear()
            if process is not None and other is not None:
                process.do(partial(self._close_way, process, other))

    def relink(self, process: Process, other_id: ReplicaID) -> None:
        """A link whose session ended is closed, and dialled anew; a bus stays."""
        other = self._alive.get(other_id)
        if other is not None and not self.plan.is_bus:
            self.heap.after(0.0, partial(self._break_links, process.place, other.place))
            self.heap.after(process.random.uniform(0.25, 1), partial(self.join, process, other))

    def _look_at_one_way(self, one: int, two: int, down_at: float) -> None:
        sender, receiver = self.places[one], self.places[two]
        if sender is not None and receiver is not None and self.ways[one, two].down_at == down_at:
            self.judge.one_way(sender, receiver)

    def lose_bus(self, place: int) -> None:
        """Nothing passes between a replica and the bus, its own beat neither."""
        for other in range(self.plan.replicas):
            self.cut(place, other)
            self.cut(other, place)
        lost_at = self.bus_lost_at[place] = self.heap.now
        self.heap.after(DEAF_SECONDS, partial(self._note_deaf, place, lost_at))

    def _note_deaf(self, place: int, lost_at: float) -> None:
        process = self.places[place]
        if process is not None and self.bus_lost_at.get(place) == lost_at:
            process.do(partial(setattr, process.cluster, "is_deaf", True))

    def find_bus(self, place: int) -> None:
        """The bus is there again: a replica knows by its own beat."""
        if self.bus_lost_at.pop(place, None) is None:
            return
        for other in range(self.plan.replicas):
            if other != place and other not in self.bus_lost_at:
                self.mend(place, other)
        process = self.places[place]
        if process is not None:
            process.heard_self_at = self.heap.now
            beat = process.random.uniform(0, BUS_BEAT_SECONDS)
            self.heap.after(beat, partial(process.do, partial(setattr, process.cluster, "is_deaf", False)))

    def _close_way(self, process: Process, other: Process) -> None:
        if process.cluster.pair(other.id).has_link:
            process.take(process.cluster.link_closed(other.id, process.now))

    def mend(self, one: int, two: int) -> None:
        if one in self.bus_lost_at or two in self.bus_lost_at:
            return
        for way in (self.ways[one, two], self.ways[two, one]):
            if not way.is_up:
                way.down_at, way.up_at = inf, self.heap.now
            held, way.held = way.held, []
            for arrive in held:
                for at in way.arrivals(self.heap.now, self.plan.is_bus):
                    self.heap.at(at, arrive)
        if self.relays is not None:
            self.relays.mended(one, two)
        process, other = self.places[one], self.places[two]
        if process is not None and other is not None:
            self.join(process, other)

    def die(self, process: Process) -> None:
        """The process is gone; its record some seconds later."""
        if not process.is_alive:
            return
        process.is_alive = False
        del self._alive[process.id]
        if self.places[process.place] is process:
            self.places[process.place] = None
        if self.relays is not None:
            self.relays.died(process)
        for other in self.processes:
            if other.is_alive:
                if not self.plan.is_bus:
                    other.do(partial(self._close_way, other, process))
                self.heap.after(LEASE_SECONDS, partial(other.do, partial(self._forget, other, process)))
        for peer in self.peers:
            connection = peer.connection
            if connection is not None and connection.process is process:
                connection.is_served = False
                self.heap.after(
                    peer.random.uniform(0.01, 1),
                    partial(self.hang_up, connection),
                )

    def _forget(self, process: Process, other: Process) -> None:
        process.take(process.cluster.forget(other.id, process.now))

    def wake(self, process: Process) -> None:
        """What waited comes first, or the timers do."""
        if not process.is_frozen:
            return
        process.is_frozen = False
        # A deadline of a link is a second away at the most, so one was missed for too long.
        if process.had_link and self.heap.now - process.frozen_at > SLEPT_SECONDS + BEAT_SECONDS:
            process.woke_at = self.heap.now
        process.awake_since = self.heap.now
        backlog, process.backlog = process.backlog, []
        timers_first = process.random.random() < 0.5
        if timers_first:
            process.do(process._timeout)
        for call in backlog:
            process.do(call)
        process.do(process._timeout)
        if self.relays is not None:
            self.relays.woke(process)

    # Peers.

    def dial(self, peer: Peer) -> None:
        """Some replica that takes peers; the balancer knows which do."""
        if peer.is_away or peer.connection is not None:
            return
        open_places = [one for one in self.places if one is not None and one.is_ready and not one.is_frozen]
        if not open_places:
            self.heap.after(peer.random.uniform(0.1, 1), lambda: self.dial(peer))
            return
        process = peer.random.choice(open_places)
        peer.dial_count += 1
        connection = peer.connection = Connection(peer, process, peer.dial_count)
        peer.connections.append(connection)
        self.say(f"{peer.name} dials {process.name}")
        self.to_replica(connection, lambda: self._connect(connection))
        for request in peer.greeting(connection):
            self.request(connection, request)

    def _connect(self, connection: Connection) -> None:
        process, peer = connection.process, connection.peer
        if not process.is_accepting:
            self.heap.after(0.01, lambda: self.hang_up(connection))
            return
        connection.is_served, connection.taken_at = True, self.heap.now
        self.judge.came(connection)
        if peer.is_agent:
            process.reporter.came(connection)
        process.core(process.cluster.coordinator.handle_connect(peer.id, peer.policy, connection, process.now))

    def request(self, connection: Connection, request: Request) -> None:
        core = connection.process.cluster.coordinator
        if self.relays is not None and request.node is not None:
            self.relays.noted(connection.peer, request.node.raw)
        self.to_replica(
            connection,
            lambda: connection.process.core(core.handle_request(connection, request, connection.process.now)),
        )

    def to_replica(self, connection: Connection, call: Callable[[], object]) -> None:
        """In order: each of a connection's messages takes as long as the first."""
        latency = LATENCY_SECONDS[1] * ((connection.number * 7 + len(connection.peer.name)) % 5 + 1) / 5
        self.heap.after(latency, lambda: connection.process.do(call))

    def tell_peer(self, connection: Connection, updates: tuple[Update, ...]) -> None:
        def arrive() -> None:
            if connection.is_open:
                if self.relays is not None:
                    self.relays.told(connection.peer, updates)
                for request in connection.peer.take(connection, updates):
                    self.request(connection, request)

        self.heap.after(0.01, arrive)

    def hang_up(self, connection: Connection) -> None:
        """The peer learns that its connection is gone, and dials again."""
        peer = connection.peer
        connection.is_open = False
        if peer.connection is connection:
            peer.connection = None
            self.heap.after(peer.random.uniform(0.1, 2), lambda: self.dial(peer))

    def leave(self, connection: Connection, graceful: bool) -> None:
        """The replica learns that the peer is gone."""
        core = connection.process.cluster.coordinator

        def gone() -> None:
            connection.process.lose(connection)
            connection.process.core(core.handle_disconnect(connection, graceful, connection.process.now))

        self.to_replica(connection, gone)

    # What a plan says.

    def step(self, step: Step) -> None:
        self.judge.met[step.what] += 1
        if self.story is not None:
            self.say(f"-- {self._describe(step)}")
        if step.what in FAULTS:
            self._fault(step)
        else:
            self._act(self.peers[step.who % len(self.peers)], step)

    def _describe(self, step: Step) -> str:
        """For the story: who does what, or what happens to which replicas, and for how long."""
        if step.what in PEERS:
            peer = self.peers[step.who % len(self.peers)]
            tunnel = f" a tunnel to a{step.other % self.plan.agents}" if step.what in ("open", "shut") else ""
            away = f", for {step.seconds:.1f} s" if step.what in ("goodbye", "vanish") else ""
            return f"{step.what}: {peer.name}{tunnel}{away}"
        one, two = (self.places[each % self.plan.replicas] for each in (step.who, step.other))
        names = [process.name if process is not None else "a replica that is down" for process in (one, two)]
        who = {"cut": " and ".join(names), "one way": " to ".join(names)}.get(step.what, names[0])
        everywhere = step.what in ("blackout", "lossy", "store away")
        return f"{step.what}{'' if everywhere else f': {who}'}, for {step.seconds:.1f} s"

    def _act(self, peer: Peer, step: Step) -> None:
        connection = peer.connection
        if step.what in ("open", "shut") and not peer.is_agent:
            agent = self.peers[step.other % self.plan.agents]
            wanted = step.what == "open"
            if (agent.id in peer.wants) == wanted:
                return
            if not wanted and connection is None:
                return  # what an older connection opened passes on to the next one, here as with stock coordinators
            if wanted:
                peer.wants.add(agent.id)
            else:
                peer.wants.discard(agent.id)
                peer.parted_at[agent.id] = agent.parted_at[peer.id] = self.heap.now
            if connection is not None:
                allowed = set(peer.wants)
                if not wanted:
                    connection.process.do(partial(connection.process.tell, Tell("rights", b"")))
                self.request(
                    connection,
                    Request(add_tunnel=agent.id, allowed=allowed) if wanted else Request(remove_tunnel=agent.id),
                )
            return
        if connection is None:
            return
        if self.relays is not None:
            self.relays.acted(peer, step.what)
        match step.what:
            case "node":
                self.request(connection, Request(node=peer.node(connection)))
            case "redial":
                self.leave(connection, graceful=False)
                self.hang_up(connection)
            case "roam":  # its network changed: the old replica notices much later
                peer.connection = None
                connection.is_open = False
                self.dial(peer)
                self.heap.after(NOTICED_SECONDS, lambda: self.leave(connection, graceful=False))
            case "blink":  # it comes anew, and goes before everybody has heard of that
                self.leave(connection, graceful=False)
                connection.is_open, peer.connection = False, None
                self.dial(peer)
                self.heap.after(step.seconds / 100, lambda: self._act(peer, step._replace(what="goodbye")))
            case "goodbye":
                peer.goodbye = connection.number
                self.request(connection, Request(disconnect=True))
                self._go_away(peer, connection, step.seconds)
            case "vanish":
                self.heap.after(NOTICED_SECONDS, lambda: self.leave(connection, graceful=False))
                self._go_away(peer, connection, step.seconds)

    def _go_away(self, peer: Peer, connection: Connection, seconds: float) -> None:
        peer.is_away, peer.connection = True, None
        connection.is_open = False
        if seconds < 9:  # else it stays away
            self.heap.after(seconds, lambda: self._return(peer))

    def _return(self, peer: Peer) -> None:
        peer.is_away = False
        if self.relays is not None:
            self.relays.returned(peer)
        self.dial(peer)

    def _fault(self, step: Step) -> None:
        one, two = step.who % self.plan.replicas, step.other % self.plan.replicas
        process = self.places[one]
        match step.what:
            case "cut":
                self.part(one, two)
                self.heap.after(step.seconds, lambda: self.mend(one, two))
            case "one way":
                self.cut(one, two)
                self.heap.after(step.seconds, lambda: self.mend(one, two))
            case "deaf" if self.plan.is_bus:
                self.lose_bus(one)
                self.heap.after(step.seconds, lambda: self.find_bus(one))
            case "blackout" if self.plan.is_bus:
                for place in range(self.plan.replicas):
                    self.lose_bus(place)
                    self.heap.after(step.seconds, partial(self.find_bus, place))
            case "lossy":
                for way in self.ways.values():
                    way.lossy_until = self.heap.now + step.seconds
            case "blackout":
                for here, there in combinations(range(self.plan.replicas), 2):
                    self.part(here, there)
                    self.heap.after(step.seconds, partial(self.mend, here, there))
            case "store away":
                self.store.is_away = True
                self.heap.after(step.seconds, partial(setattr, self.store, "is_away", False))
            case "kill" if process is not None:
                self.die(process)
                self.heap.after(min(step.seconds, 8), lambda: self.start(one))
            case "stop" if process is not None and process.is_ready and not process.is_frozen:
                Leaving(process, step.seconds if step.seconds >= 1 else 0.0)
            case "freeze" if process is not None and not process.is_frozen:
                process.is_frozen, process.frozen_at = True, self.heap.now
                if self.relays is not None:
                    self.relays.frozen(process)
                process.had_link = any(pair.has_link for pair in process.cluster.pairs.values())
                self.heap.after(step.seconds, lambda: self.wake(process))

    def heal(self) -> None:
        """The last fault is over."""
        for place in range(self.plan.replicas):
            self.find_bus(place)
        for one, two in combinations(range(self.plan.replicas), 2):
            self.mend(one, two)
        for way in self.ways.values():
            way.lossy_until = 0.0
        self.store.is_away = False
        for process in self.processes:
            if process.is_alive:
                self.wake(process)
        for peer in self.peers:
            self.dial(peer)
