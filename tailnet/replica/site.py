"""Another replica in the graph of a coordinator (layer L1): what replica/core.py knows of it beside the links."""

from typing import Generic

from tailnet.coordinator.messages import C
from tailnet.coordinator.tunnels import Peer
from tailnet.replica.messages import ReplicaID


class Site(Generic[C]):
    """Another replica, as the graph sees it: the connection of all its peers.  Hashed by identity."""

    __slots__ = ("has_asked", "has_told", "named", "peers", "replica", "unconfirmed")

    def __init__(self, replica: ReplicaID) -> None:
        self.replica = replica
        self.peers: dict[Peer[C], None] = {}
        # Peers that it has not spoken of since we sent our last Sync.
        self.unconfirmed: dict[Peer[C], None] = {}
        # Tunnels that its own Sync has named so far.
        self.named: set[tuple[Peer[C], Peer[C]]] = set()
        # Whether, in this session, its Sync and ours were answered: what a later one finds went wrong unseen.
        self.has_asked = self.has_told = False
