"""Who shares a tunnel with whom, and who has been told what (layer L1).

A tunnel has a direction, (source, destination), but nodes flow both ways.  Peers are the nodes of a graph; each end of
an edge holds a few bits, so that an update to ten receivers costs no more than one: the tuple of their connections is
kept until the graph around the peer changes.  What always holds, kept by coordinator/core and verified by check():
  - a peer with a node has told it to every connected peer it shares a tunnel with, so that a new node needs no
    comparison per receiver;
  - whoever was told is connected; a peer that is not connected has no node and has told nobody.
"""

from collections import Counter
from typing import Final, Generic

from tailnet.coordinator.messages import C
from tailnet.coordinator.nodes import Node
from tailnet.coordinator.policy import Policy
from tailnet.types import PeerID

# Bits of `peer.links[other]`.
OUT: Final = 1  # peer opened a tunnel to other
IN: Final = 2  # other opened a tunnel to peer
TOLD: Final = 4  # other's present connection has been told a node of peer
TUNNEL: Final = OUT | IN


class Peer(Generic[C]):
    """A peer id that is connected, or that somebody has a tunnel to.  Hashed by identity."""

    __slots__ = (
        "audience",
        "connected_at",
        "connection",
        "epoch",
        "id",
        "links",
        "node",
        "opened_count",
        "overtaken_count",
        "overtaken_node",
        "policy",
        "updated_at",
        "version",
    )

    def __init__(self, peer_id: PeerID) -> None:
        self.id = peer_id
        self.connection: C | None = None
        self.policy: Policy | None = None
        self.node: Node | None = None
        # The node that TOLD bits speak of while a connection that took the id over has sent none of its own.
        self.overtaken_node: Node | None = None
        self.overtaken_count = 0
        self.links: dict[Peer[C], int] = {}
        self.opened_count = 0  # tunnels this peer is the source of
        self.audience: tuple[C, ...] | None = None  # None: to be made again
        self.connected_at = 0.0
        self.updated_at = 0.0
        # Of the connection, when there are other replicas (replica/core.py): when it came by the cluster's time, and
        # how many nodes it has sent.
        self.epoch = self.version = 0


class Tunnels(Generic[C]):
    """The graph.  Called by the core alone; speaks to nobody."""

    __slots__ = ("count", "peers")

    def __init__(self) -> None:
        self.peers: dict[bytes, Peer[C]] = {}
        self.count = 0

    def seat(self, peer_id: PeerID) -> Peer[C]:
        """The peer of this id, made when nobody knew it."""
        peer = self.peers.get(peer_id)
        if peer is None:
            peer = self.peers[peer_id] = Peer(peer_id)
        return peer

    def release(self, peer: Peer[C]) -> None:
        """Forget a peer that is neither connected nor the end of a tunnel."""
        if peer.connection is None and not peer.links:
            del self.peers[peer.id]

    def open(self, src: Peer[C], dst: Peer[C]) -> bool:
        """Add the tunnel; False when it is open already, and nothing changes."""
        mine = src.links.get(dst, 0)
        if mine & OUT:
            return False
        src.links[dst] = mine | OUT
        dst.links[src] = dst.links.get(src, 0) | IN
        src.audience = dst.audience = None
        src.opened_count += 1
        self.count += 1
        return True

    def close(self, src: Peer[C], dst: Peer[C]) -> bool:
        """Remove the tunnel.  True when the two now share none and have forgotten what they were told."""
        mine = src.links.get(dst, 0)
        if not mine & OUT:
            return False
        src.opened_count -= 1
        self.count -= 1
        if mine & IN:
            src.links[dst] = mine & ~OUT
            dst.links[src] &= ~IN
            return False
        del src.links[dst], dst.links[src]
        src.audience = dst.audience = None
        return True

    def shared(self, peer: Peer[C], peer_id: bytes) -> Peer[C] | None:
        """The peer of this id when a tunnel joins the two, in either direction."""
        other = self.peers.get(peer_id)
        return other if other is not None and other in peer.links else None

    def has_tunnel(self, src: Peer[C], dst_id: bytes) -> bool:
        """Whether this very tunnel is open."""
        dst = self.shared(src, dst_id)
        return dst is not None and bool(src.links[dst] & OUT)

    def clear(self) -> None:
        """Forget everything; the links are cut, so that nothing waits for the cycle collector."""
        for peer in self.peers.values():
            peer.links.clear()
        self.peers.clear()
        self.count = 0

    def audience(self, peer: Peer[C]) -> tuple[C, ...]:
        """The connections of all that share a tunnel with the peer."""
        made = peer.audience
        if made is None:
            made = peer.audience = tuple(
                [other.connection for other in peer.links if other.connection is not None],
            )
        return made

    def check(self) -> None:
        """Raise AssertionError when the graph contradicts itself.  Slow; for tests."""
        for key, peer in self.peers.items():
            assert key == peer.id
            assert peer.connection is not None or peer.links, "an absent peer without tunnels is kept"
            if peer.connection is None:
                assert peer.node is None, "an absent peer has a node"
                assert peer.overtaken_node is None
                assert peer.policy is None
            assert peer.audience is None or Counter(peer.audience) == Counter(
                other.connection for other in peer.links if other.connection is not None
            ), "a stale audience"
            for other, bits in peer.links.items():
                assert self.peers.get(other.id) is other, "a tunnel leads to a forgotten peer"
                assert bits & TUNNEL, "a link without a tunnel"
                assert bool(bits & OUT) == bool(other.links[peer] & IN), "one end denies the tunnel"
                if bits & TOLD:
                    assert other.connection is not None, "an absent peer counts as told"
                    assert peer.node is not None or peer.overtaken_node is not None, "told a node that never was"
                elif other.connection is not None:
                    assert peer.node is None, "a connected peer was not told"
            assert peer.opened_count == sum(bits & OUT for bits in peer.links.values())
        assert self.count == sum(peer.opened_count for peer in self.peers.values())
