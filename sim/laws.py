"""What must hold, always and when all is quiet (layer: the judge; it looks and never touches)."""

from collections import Counter
from typing import TYPE_CHECKING, Final

from sim.peers import Connection, Peer
from tailnet.coordinator.core import OVERWRITTEN, REASON_CLOSE, REASON_GRACEFUL, Coordinator
from tailnet.coordinator.messages import Deliver, Kind, Request, Update
from tailnet.types import PeerID

if TYPE_CHECKING:
    from sim.world import World

# A connection ends by a claim of another one, by its peer, or with its replica.
ENDS: Final = {OVERWRITTEN, REASON_GRACEFUL, REASON_CLOSE}


class LawBroken(AssertionError):
    """A law was broken: which, and how."""


class Judge:
    """Sees every update on its way to a peer, and everything when it is quiet."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.met: Counter[str] = Counter()
        self._newest: dict[tuple[Connection, PeerID, int], int] = {}

    def told(self, connection: Connection, update: Update) -> None:
        """A replica says this to one of its own."""
        receiver = connection.peer
        subject = self.world.peer(update.peer_id)
        self.met[f"{update.kind.name} told"] += 1
        if update.kind is Kind.DISCONNECTED and not subject.said_goodbye and subject.id not in receiver.parted:
            raise LawBroken(f"{receiver.name} was told that {subject.name} disconnected, which it did not")
        if update.kind is Kind.NODE:
            assert update.node is not None
            number, node = _numbers(update.node.raw)
            place = (connection, subject.id, number)
            if node < self._newest.get(place, 0):
                raise LawBroken(f"{receiver.name} was told node {node} of {subject.name} after a newer one")
            self._newest[place] = node

    def ended(self, connection: Connection, reason: str) -> None:
        """A replica ends a connection of its own."""
        self.met[f"ended: {reason}"] += 1
        if reason not in ENDS:
            raise LawBroken(f"the connection of {connection.peer.name} was ended: {reason}")
        if reason == OVERWRITTEN and connection.peer.dial_count < 2:
            raise LawBroken(f"{connection.peer.name} dialled once, and was overtaken")

    def quiet(self) -> None:
        """The last fault is long over."""
        world = self.world
        alive = [process for process in world.processes if process.is_alive]
        for process in alive:
            process.cluster.coordinator.check()
        for peer in world.peers:
            holders = [process for process in alive if process.cluster.coordinator.connection_of(peer.id) is not None]
            if peer.is_away:
                if holders:
                    raise LawBroken(f"{peer.name} is away, and {holders[0].name} holds it")
                continue
            if peer.connection is None or not peer.connection.is_served:
                raise LawBroken(f"{peer.name} does not get in")
            if holders != [peer.connection.process]:
                names = [process.name for process in holders]
                raise LawBroken(f"{peer.name} is at {peer.connection.process.name}, and held by {names}")
        for peer, expected in self.as_one_coordinator().items():
            assert peer.connection is not None
            if peer.connection.knows != expected:
                raise LawBroken(f"{peer.name} knows {_shown(peer.connection.knows)}, not {_shown(expected)}")
        sessions = [pair for process in alive for pair in process.cluster.pairs.values() if not pair.is_open]
        if sessions:
            raise LawBroken("replicas that live have no session")

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


def _numbers(raw: bytes) -> tuple[int, int]:
    _, number, node = raw.decode().split(".")
    return int(number), int(node)


def _shown(knows: dict[PeerID, bytes]) -> str:
    return "{" + ", ".join(sorted(raw.decode() for raw in knows.values())) + "}"
