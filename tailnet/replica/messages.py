"""What replicas tell each other: values only (layer L1).

Every message that names a peer carries the epoch of its connection, and is a claim on the peer before it is anything
else (the core gives and takes them).  replica/codec.py puts messages on the wire, replica/pair.py numbers
the frames that carry them.  A peer's node crosses as what its owner judged: nobody judges it again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from tailnet.coordinator.messages import Kind, Outward
from tailnet.coordinator.nodes import Node
from tailnet.errors import MalformedField
from tailnet.types import PeerID

REPLICA_ID_BYTES: Final = 8
# One node must fit into a frame of 64 KiB with whatever stands beside it.  A genuine node has 300 to 900 bytes, so this
# one has a thousand endpoints; whoever has replicas tells its peers so (Limits.node_bytes), as a larger one would be
# known here and nowhere else.
MAX_NODE_BYTES: Final = 32 * 1024

Item = TypeVar("Item")


class ReplicaID(bytes):
    """8 random bytes for each start of a process.  Raises MalformedField for any other length."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> "ReplicaID":
        if len(raw) != REPLICA_ID_BYTES:
            raise MalformedField(f"a replica id has {REPLICA_ID_BYTES} bytes, got {len(raw)}")
        return super().__new__(cls, raw)

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"ReplicaID({self})"


class Claim(NamedTuple):
    """A connection that a replica holds: the larger (epoch, replica id) owns the peer, everywhere."""

    peer_id: PeerID
    epoch: int


class Want(NamedTuple):
    """A tunnel from one of the sender's peers to one of the receiver's, and what the sender knows of that one."""

    src: PeerID
    epoch: int
    dst: PeerID
    known_epoch: int
    known_version: int
    version: int  # how many nodes src's connection has sent: the receiver asks for the last when it knows fewer


class Known(NamedTuple):
    """What the sender knows of one of the receiver's peers."""

    peer_id: PeerID
    epoch: int
    version: int


@dataclass(slots=True)
class Sync:
    """What the sender holds of the receiver's peers: each is answered by NodeIs or Gone.

    Behind the last part the receiver forgets tunnels of the sender's peers that no part named, and says Synced.
    """

    wants: tuple[Want, ...] = ()
    known: tuple[Known, ...] = ()  # peers that opened tunnels to the sender's
    last: bool = False


@dataclass(slots=True)
class Synced:
    """Every part of a Sync has been answered: what is still unconfirmed is not there any more."""


@dataclass(slots=True)
class Came:
    """These connections are the sender's."""

    claims: tuple[Claim, ...]


@dataclass(slots=True)
class Who:
    """Who owns these?  Only the owner answers, by Came."""

    peer_ids: tuple[PeerID, ...]


@dataclass(slots=True)
class Open:
    """A tunnel from the sender's peer to the receiver's; always answered, by NodeIs or by a Gone of epoch 0."""

    src: PeerID
    epoch: int
    dst: PeerID
    version: int
    node: Node | None


@dataclass(slots=True)
class Shut:
    """The tunnel is no more: each side works out by itself who is told so, and tells it as DISCONNECTED or as LOST."""

    src: PeerID
    epoch: int
    dst: PeerID
    kind: Kind


@dataclass(slots=True)
class NodeIs:
    """The peer's node; without one: it is as you know, or there is none yet."""

    peer_id: PeerID
    epoch: int
    version: int
    node: Node | None


@dataclass(slots=True)
class Gone:
    """The connection ended, and its replica lives.  Epoch 0: the peer is not here."""

    peer_id: PeerID
    epoch: int
    kind: Kind
    reason: str


@dataclass(slots=True)
class Ready:
    """ready_for_handshake of the sender's peer to peers of the receiver's."""

    src: PeerID
    epoch: int
    dsts: tuple[PeerID, ...]


@dataclass(slots=True)
class Hello:
    """Begins a session, on both sides.  `echo` is the nonce of the other's Hello that this one answers, or empty."""

    lowest_version: int
    highest_version: int
    cluster: str
    replica: ReplicaID
    name: str
    clock: int
    peer_count: int
    capabilities: int
    nonce: bytes
    echo: bytes
    program: str = ""  # the sender's release, for people; empty: not said


@dataclass(slots=True)
class Beat:
    """The sign of life of each second."""

    clock: int
    sent_seq: int
    heard_seq: int
    peer_count: int
    load: int  # thousandths of a core
    map_digest: bytes
    wall: int = 0  # the sender's wall clock, Unix milliseconds; 0: not said


@dataclass(slots=True)
class Tell:
    """A hint: what is true stands in the store."""

    topic: str
    payload: bytes


@dataclass(slots=True)
class Bye:
    """The sender drains, and ends in so many seconds."""

    seconds: int


PeerMessage = Sync | Synced | Came | Who | Open | Shut | NodeIs | Gone | Ready
Message = PeerMessage | Hello | Beat | Tell | Bye


# What a coordinator with replicas says beside the effects for its own connections.


@dataclass(slots=True)
class Publish(Outward):
    """Send these messages, in this order, to each of the replicas."""

    replicas: tuple[ReplicaID, ...]
    messages: tuple[PeerMessage, ...]


@dataclass(slots=True)
class Announce(Outward):
    """Tell all replicas that these connections are ours."""

    claims: tuple[Claim, ...]


@dataclass(slots=True)
class Withdraw(Outward):
    """Tell all that a connection is gone: some may have tunnels of the one before it, and heard its claim alone."""

    gone: Gone


@dataclass(slots=True)
class Ask(Outward):
    """Ask all replicas who owns these."""

    peer_ids: tuple[PeerID, ...]


def portions(items: Sequence[Item], count: int) -> Iterator[tuple[Item, ...]]:
    """Cut a list that has no bound into messages that have one."""
    for at in range(0, len(items), count):
        yield tuple(items[at : at + count])
