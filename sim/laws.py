"""What must hold, always and when all is quiet (layer: the judge; it looks and never touches)."""

from collections import Counter
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Final

from sim.peers import Connection, Peer
from sim.store import BEAT_SECONDS, DEAD, FAILURE_SECONDS, SIGN_OF_LIFE_SECONDS, Row
from sim.ways import DEAF_SECONDS, ONE_WAY_SECONDS
from tailnet.coordinator.core import OVERWRITTEN, REASON_CLOSE, REASON_GRACEFUL, Coordinator
from tailnet.coordinator.messages import Deliver, Kind, Request, Update
from tailnet.replica.messages import ReplicaID
from tailnet.replica.pair import SILENCE_SECONDS
from tailnet.store.outbox import WRITE_SECONDS
from tailnet.store.rows import PresenceChange
from tailnet.types import PeerID

if TYPE_CHECKING:
    from sim.world import Process, World

# A connection ends by a claim of another one, by its peer, or with its replica.
ENDS: Final = {OVERWRITTEN, REASON_GRACEFUL, REASON_CLOSE}
# Of two connections at once either may win: a dial and what replicas tell each other take 50 ms each, and clocks that
# are as much apart count as equal.
AT_ONCE_SECONDS: Final = 0.2
# A removed tunnel is told as late as a frozen replica wakes.
UNDER_WAY_SECONDS: Final = 26.0
# Rows of a server that died are free by then: wall clocks are 4 s apart at the most.
SWEPT_SECONDS: Final = DEAD.total_seconds() + BEAT_SECONDS + 4.0
# Nobody is told LOST of a peer that was sent away and is back by then.
BACK_SECONDS: Final = 6.0
# Clocks with an offset round.
LATE_SECONDS: Final = 0.001


class LawBroken(AssertionError):
    """A law was broken: which, and how."""


class Judge:
    """Sees every update on its way to a peer, and everything when it is quiet."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.met: Counter[str] = Counter()
        # What each connection was told last of each peer: of which connection, and the how many-th node.
        self._told: dict[tuple[Connection, PeerID], tuple[int, int]] = {}
        # Who was told LOST of a connection that had been sent away a moment before.
        self._too_early: dict[Connection, str] = {}

    def told(self, connection: Connection, update: Update) -> None:
        """A replica says this to one of its own."""
        receiver, kind = connection.peer, update.kind
        self.met[f"{kind.name} told"] += 1
        if kind is Kind.READY_FOR_HANDSHAKE:
            return
        subject = self.world.peer(update.peer_id)
        place = (connection, subject.id)
        if kind is Kind.NODE:
            assert update.node is not None
            told = _numbers(update.node.raw)
            number, node = self._told.get(place, (0, 0))
            if told[0] == number and told[1] < node:
                raise LawBroken(f"{receiver.name} was told {update.node.raw.decode()} after a newer one")
            if told[0] < number and subject.apart(told[0], number) > AT_ONCE_SECONDS:
                raise LawBroken(f"{receiver.name} was told {update.node.raw.decode()} after one of a newer connection")
            self._told[place] = told
            return
        number, _ = self._told.pop(place, (0, 0))
        if number == 0:
            raise LawBroken(f"{receiver.name} was told {kind.name} of {subject.name}, of whom it knew nothing")
        if kind is Kind.LOST and update.reason != REASON_CLOSE:  # else the receiver's own replica ends now
            self._lost(receiver, subject, subject.connections[number - 1])
        if kind is Kind.DISCONNECTED and not subject.said_goodbye(number):
            parted_at = receiver.parted_at.get(subject.id)
            if parted_at is None or self.world.heap.now > parted_at + UNDER_WAY_SECONDS:
                raise LawBroken(f"{receiver.name} was told that {subject.name} disconnected, which it did not")

    def _lost(self, receiver: Peer, subject: Peer, known: Connection) -> None:
        """A receiver is told LOST of the peer, which it knew by that connection."""
        now, later = self.world.heap.now, subject.connection
        is_wanted = receiver.id in subject.wants or subject.id in receiver.wants
        if known.moved_at > now or not is_wanted or not self.world.is_calm_since(known.moved_at):
            return
        if later is None or not later.is_taken:
            if now < known.moved_at + BACK_SECONDS:
                self._too_early[known] = receiver.name
        elif later.is_served and subject.connections[known.number].taken_at < known.moved_at + BACK_SECONDS:
            raise LawBroken(f"{receiver.name} was told LOST of {subject.name}, who came back from one that left")

    def came(self, connection: Connection) -> None:
        """A replica takes a connection."""
        if connection.number == 1:
            return
        before = connection.peer.connections[connection.number - 2]
        if before.moved_at != inf and self.world.is_calm_since(before.moved_at):
            self.met["sent away, and back"] += 1
            early = self._too_early.get(before)
            if early is not None and self.world.heap.now < before.moved_at + BACK_SECONDS:
                raise LawBroken(f"{early} was told LOST of {connection.peer.name}, who was on the way to another one")

    def ended(self, connection: Connection, reason: str) -> None:
        """A replica ends a connection of its own."""
        self.met[f"ended: {reason}"] += 1
        peer = connection.peer
        if reason not in ENDS:
            raise LawBroken(f"the connection of {peer.name} was ended: {reason}")
        numbers = [one.number for one in peer.connections if one.is_taken and one is not connection]
        if reason == OVERWRITTEN and all(peer.apart(one, connection.number) > AT_ONCE_SECONDS for one in numbers):
            raise LawBroken(f"the newest connection of {peer.name} was ended by an older one")

    def silenced(self, process: "Process", other: ReplicaID) -> None:
        """A replica judges that another one is gone."""
        self.met["silenced"] += 1
        now, lost_at = self.world.heap.now, self.world.bus_lost_at.get(process.place)
        if now < process.woke_at + SILENCE_SECONDS - LATE_SECONDS:
            raise LawBroken(f"{process.name} judged another one {now - process.woke_at:.1f} s after it had slept")
        # Whoever was frozen when it would have noticed learns it when it wakes, perhaps behind its deadlines.
        if lost_at is not None and now > max(lost_at + DEAF_SECONDS, process.awake_since) + LATE_SECONDS:
            raise LawBroken(f"{process.name} judged another one by a bus that does not bring back its own beat")

    def one_way(self, sender: "Process", receiver: "Process") -> None:
        """Nothing has passed from one to the other for long."""
        now, back = self.world.heap.now, self.world.ways[receiver.place, sender.place]
        hears, deaf = sender.cluster.pairs.get(receiver.id), receiver.cluster.pairs.get(sender.id)
        if hears is None or deaf is None:
            return  # they have not met
        for process, other, pair in ((receiver, sender, deaf), (sender, receiver, hears)):
            awake_since = max(process.awake_since, process.heard_self_at)
            if process.is_frozen or process.place in self.world.bus_lost_at or awake_since > now - ONE_WAY_SECONDS:
                return  # it could not judge
            if pair.is_open:
                raise LawBroken(f"{process.name} believes in a session with {other.name}; one direction is cut")
        if self.world.plan.is_bus and back.is_up and back.up_at < now - SILENCE_SECONDS:
            self.met["one way for long"] += 1
            if sender.now - hears.heard_at > SILENCE_SECONDS or receiver.now - deaf.heard_at < SILENCE_SECONDS:
                raise LawBroken(f"{sender.name} and {receiver.name} do not know which direction is cut")

    def written(self, process: "Process", change: PresenceChange, before: Row, after: Row) -> None:
        """A replica's word of an agent is in the store, and it has no newer one."""
        agent, name = self.world.peer(change.agent_id), process.name
        self.met["presence written"] += 1
        if change.left_at is None:
            return
        if change.came_at is None and before.holder not in (name, None):
            self.met["left, and somebody else's"] += 1
            if after.holder != before.holder:
                raise LawBroken(f"{name} wrote that {agent.name} left, which {before.holder} holds")
        if any(each.is_served and each.process is process for each in agent.connections):
            raise LawBroken(f"{name} wrote that {agent.name} left, which is connected to it")

    def _store_is_right(self, is_last: bool) -> None:
        """Whoever has an open channel is connected in the store, when signs of life had their time."""
        world = self.world
        now = datetime.fromtimestamp(1e9 + world.heap.now, UTC)
        known_since = world.heap.now - SIGN_OF_LIFE_SECONDS - 2 * WRITE_SECONDS - FAILURE_SECONDS
        for peer in world.peers:
            is_connected = peer.is_agent and world.store.row(peer.id).is_connected(now, world.store.beats)
            connection = peer.connection
            if peer.is_agent and connection is not None and not is_connected:
                # An earlier server, which died, may have written a later time than this one: its row has to be swept.
                is_older = any(_was_ahead(each, connection) for each in peer.connections)
                if connection.taken_at < known_since - is_older * SWEPT_SECONDS:
                    raise LawBroken(f"{peer.name} is connected, and not so in the store")
            if peer.is_away and is_connected and is_last:
                raise LawBroken(f"{peer.name} is away, and connected in the store")

    def quiet(self, is_last: bool) -> None:
        """The last fault is long over; whether unconfirmed tunnels are, too."""
        world = self.world
        alive = [process for process in world.processes if process.is_alive]
        owners: dict[PeerID, ReplicaID | None] = {}
        for peer in world.peers:
            holders = [process for process in alive if process.cluster.coordinator.connection_of(peer.id) is not None]
            if peer.is_away:
                owners[peer.id] = None
                if holders:
                    raise LawBroken(f"{peer.name} is away, and {holders[0].name} holds it")
                continue
            if peer.connection is None or not peer.connection.is_served:
                raise LawBroken(f"{peer.name} does not get in")
            if holders != [peer.connection.process]:
                names = [process.name for process in holders]
                raise LawBroken(f"{peer.name} is at {peer.connection.process.name}, and held by {names}")
            owners[peer.id] = peer.connection.process.id
        for process in alive:
            core = process.cluster.coordinator
            core.check()
            self.met["swept in the store"] += process.reporter.swept_count * is_last
            for peer_id in list(core.peers):
                if core.owner_of(peer_id) != owners[PeerID(peer_id)]:
                    raise LawBroken(f"{process.name} does not know where {world.peer(peer_id).name} is")
            if not all(pair.is_open for pair in process.cluster.pairs.values()):
                raise LawBroken("replicas that live have no session")
        self._store_is_right(is_last)
        for peer, expected in self.as_one_coordinator().items():
            assert peer.connection is not None
            knows = peer.connection.knows
            if not is_last:
                knows = {each: raw for each, raw in knows.items() if each in expected or owners[each] is None}
            if knows != expected:
                raise LawBroken(f"{peer.name} knows {_shown(knows)}, not {_shown(expected)}")

    def as_one_coordinator(self) -> dict[Peer, dict[PeerID, bytes]]:
        """What everybody would know if one coordinator held all peers: the model."""
        one: Coordinator[Peer] = Coordinator()
        knows: dict[Peer, dict[PeerID, bytes]] = {}
        here = [peer for peer in self.world.peers if not peer.is_away]
        effects = []
        for peer in here:
            knows[peer] = {}
            effects += one.handle_connect(peer.id, peer.policy, peer, 0.0)
        for peer in here:
            assert peer.connection is not None
            effects += one.handle_request(peer, Request(node=peer.last_node(peer.connection)), 0.0)
            for want in peer.wants:
                effects += one.handle_request(peer, Request(add_tunnel=want, allowed=peer.wants), 0.0)
        for effect in effects:
            assert isinstance(effect, Deliver)
            for receiver in effect.receivers:
                for update in effect.updates:
                    assert update.node is not None
                    knows[receiver][update.peer_id] = update.node.raw
        return knows


def _was_ahead(earlier: Connection, connection: Connection) -> bool:
    """Whether it was at a process that died, and whose wall clock is ahead of that of the other one's process."""
    one, two = earlier.process, connection.process
    return not one.is_alive and one.reporter.now() > two.reporter.now()


def _numbers(raw: bytes) -> tuple[int, int]:
    _, number, node = raw.decode().split(".")
    return int(number), int(node)


def _shown(knows: dict[PeerID, bytes]) -> str:
    return "{" + ", ".join(sorted(raw.decode() for raw in knows.values())) + "}"
