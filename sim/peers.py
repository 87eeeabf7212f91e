"""Agents and clients as the stock ones coordinate: they dial, say everything anew, and believe what they are told.

A node's bytes say whose it is, of which of its connections, and which of that one's nodes: the laws read them.
"""

from dataclasses import dataclass, field
from functools import cache
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from tailnet.coordinator.messages import Kind, Request, Update
from tailnet.coordinator.nodes import Node
from tailnet.coordinator.policy import AgentPolicy, ManyAgentsPolicy, Policy
from tailnet.store.rows import AgentIdentity
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID

if TYPE_CHECKING:
    from sim.world import Process

_DISCO: Final = "discokey:" + "0" * 64
_NOBODY: Final = UUID(int=0)
# A replica, or a relay, notices that a peer without a network is gone.
NOTICED_SECONDS: Final = 15.0


@cache  # of each name once, in however many schedules
def _address(peer_id: PeerID) -> str:
    return f"{peer_id.address(TAILSCALE_SERVICE_PREFIX).exploded}/128"


class Caller(NamedTuple):
    """Whose channel it is."""

    identity: AgentIdentity
    peer_id: PeerID


@dataclass(eq=False, slots=True)
class Connection:
    """One dial.  `is_open`: the peer believes in it; `is_served`: the replica does."""

    peer: "Peer"
    process: "Process"
    number: int
    is_open: bool = True
    is_served: bool = False
    taken_at: float = inf  # when the replica took it
    moved_at: float = inf  # when the replica, which leaves, sent it away
    knows: dict[PeerID, bytes] = field(default_factory=dict)

    @property
    def is_taken(self) -> bool:
        return self.taken_at != inf

    @property
    def caller(self) -> Caller:
        """Of a channel, as the services know it."""
        identity = AgentIdentity(self.peer.id, self.peer.name, None, _NOBODY, "", _NOBODY, "")
        return Caller(identity, self.peer.id)


class Peer:
    """An agent or a client."""

    def __init__(self, name: str, is_agent: bool, random: Random) -> None:
        self.name = name
        self.id = PeerID(name.encode().ljust(16, b"\0"))
        self.is_agent = is_agent
        self.random = random
        self.connection: Connection | None = None
        self.is_away = False  # it means to be: nobody knows it when all is quiet
        self.dial_count = 0
        self.node_count = 0
        self.wants: set[PeerID] = set()
        self.connections: list[Connection] = []
        # Whom others may be told to drop at once: whoever said goodbye on this connection or a later one than they know
        # of, and with whom a tunnel was removed a moment ago.
        self.goodbye = 0
        self.parted_at: dict[PeerID, float] = {}
        # The address is the same for all of one's nodes, so that the core's checks of identity are met too.
        self.address = _address(self.id)
        self.policy: Policy = AgentPolicy(self.id) if is_agent else ManyAgentsPolicy()

    def apart(self, one: int, two: int) -> float:
        """How long after the one connection a replica took the other; less than nothing when it did so before."""
        return self.connections[two - 1].taken_at - self.connections[one - 1].taken_at

    def said_goodbye(self, number: int) -> bool:
        """On that connection, on a later one, or on one that its replica, which was frozen, took later."""
        if not 0 < self.goodbye < number:
            return self.goodbye > 0
        return self.connections[self.goodbye - 1].is_taken and self.apart(number, self.goodbye) > 0

    def node(self, connection: Connection) -> Node:
        """The next one."""
        self.node_count += 1
        return self.last_node(connection)

    def last_node(self, connection: Connection) -> Node:
        raw = f"{self.name}.{connection.number}.{self.node_count}".encode()
        return Node(raw, b"np" + bytes(32), _DISCO, 1, (self.address,), (self.address,))

    def greeting(self, connection: Connection) -> list[Request]:
        """What is said on a new connection."""
        wants = sorted(self.wants)
        first = Request(node=self.node(connection), add_tunnel=wants[0] if wants else None, allowed=wants)
        return [first, *(Request(add_tunnel=want, allowed=wants) for want in wants[1:])]

    def take(self, connection: Connection, updates: tuple[Update, ...]) -> list[Request]:
        """What the coordinator says; an agent answers nodes of clients."""
        ready: list[bytes] = []
        for update in updates:
            if update.kind is Kind.NODE:
                assert update.node is not None
                connection.knows[update.peer_id] = update.node.raw
                ready.append(update.peer_id)
            elif update.kind is not Kind.READY_FOR_HANDSHAKE:
                connection.knows.pop(update.peer_id, None)
        return [Request(ready_for_handshake=ready)] if ready and self.is_agent else []
