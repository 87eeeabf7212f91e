"""Answers for the debug page: who is here, and why one peer does not know another (layer L1).

Reads the core's graph and changes nothing.  Sentences are for the person on call: what is so, and where to look next.
Ages are seconds before `now`, which must come from the clock that the core was given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tailnet.coordinator.core import Coordinator, Departure
from tailnet.coordinator.messages import Kind
from tailnet.coordinator.nodes import KEY_PREFIX
from tailnet.coordinator.tunnels import IN, OUT, TOLD, TUNNEL, Peer
from tailnet.types import PeerID


@dataclass(frozen=True, slots=True)
class PeerView:
    """One line of the debug page.  Ages are None for a peer that is not connected."""

    peer_id: PeerID
    connected: bool
    policy: str  # "agent", "client", "client of many", "" when absent
    connected_seconds: float | None
    updated_seconds: float | None  # since its last node; None before the first
    preferred_derp: int | None
    node_bytes: int
    overtaken_count: int  # how often a newer connection took this id over; more than a few: two machines share a token
    tunnels_to: tuple[PeerID, ...]
    tunnels_from: tuple[PeerID, ...]
    told: tuple[PeerID, ...]  # who has been told this peer's node


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole page.  `departures` are the last who left, newest first."""

    peers: tuple[PeerView, ...]
    departures: tuple[Departure, ...]


def snapshot(coordinator: Coordinator[Any], now: float) -> Snapshot:
    """Everything the core holds at this moment."""
    peers = tuple(_view(peer, now) for peer in coordinator.peers.values())
    return Snapshot(peers, tuple(reversed(coordinator.departures)))


def explain(coordinator: Coordinator[Any], a: PeerID, b: PeerID, now: float) -> list[str]:
    """Why A does, or does not, know B's node: one sentence per fact, the verdict last."""
    return list(_explain(coordinator, a, b, now))


def explain_peer(coordinator: Coordinator[Any], peer_id: PeerID, now: float) -> list[str]:
    """What is known of one peer: one sentence per fact."""
    peer = coordinator.peers.get(peer_id)
    lines = list(_presence(coordinator, peer_id, peer, now))
    if peer is None or peer.connection is None:
        return lines
    seen = _view(peer, now)
    lines.append(f"It has {len(seen.tunnels_to)} tunnels to others, {len(seen.tunnels_from)} have one to it.")
    if seen.updated_seconds is None:
        lines.append("It has sent no node yet, so nobody is told of it.")
    else:
        lines.append(
            f"It sent its node {seen.updated_seconds:.0f} s ago, with relay region {seen.preferred_derp} as its home; "
            f"{len(seen.told)} peers have been told."
        )
    return lines


def view_of(coordinator: Coordinator[Any], peer_id: PeerID, now: float) -> PeerView | None:
    """One line of the page; None for a peer that the core does not hold."""
    peer = coordinator.peers.get(peer_id)
    return None if peer is None else _view(peer, now)


def node_key(coordinator: Coordinator[Any], peer_id: PeerID) -> bytes | None:
    """The raw 32 bytes of the key in a peer's last node; None if it is not known or has sent none."""
    peer = coordinator.peers.get(peer_id)
    return peer.node.key[len(KEY_PREFIX) :] if peer is not None and peer.node is not None else None


def peers_with_key(coordinator: Coordinator[Any], digits: str) -> list[PeerID]:
    """Peers whose last node has a key that begins with these hex digits."""
    return [
        peer.id
        for peer in coordinator.peers.values()
        if peer.node is not None and peer.node.key[len(KEY_PREFIX) :].hex().startswith(digits)
    ]


def last_node(coordinator: Coordinator[Any], peer_id: PeerID) -> bytes | None:
    """The Node message that a peer sent last, serialized; None if it is not known or has sent none."""
    node = coordinator.node_of(peer_id)
    return None if node is None else node.raw


def _view(peer: Peer[Any], now: float) -> PeerView:
    links = peer.links.items()
    connected = peer.connection is not None
    return PeerView(
        peer_id=peer.id,
        connected=connected,
        policy=peer.policy.name if peer.policy is not None else "",
        connected_seconds=now - peer.connected_at if connected else None,
        updated_seconds=now - peer.updated_at if peer.node is not None else None,
        preferred_derp=peer.node.preferred_derp if peer.node is not None else None,
        node_bytes=len(peer.node.raw) if peer.node is not None else 0,
        overtaken_count=peer.overtaken_count,
        tunnels_to=tuple(other.id for other, bits in links if bits & OUT),
        tunnels_from=tuple(other.id for other, bits in links if bits & IN),
        told=tuple(other.id for other, bits in links if bits & TOLD),
    )


def _explain(coordinator: Coordinator[Any], a: PeerID, b: PeerID, now: float) -> Iterator[str]:
    if a == b:
        yield f"{a} is asked about itself: a peer is never told its own node."
        return
    peers = coordinator.peers
    first, second = peers.get(a), peers.get(b)
    yield from _presence(coordinator, a, first, now)
    yield from _presence(coordinator, b, second, now)
    bits = first.links.get(second, 0) if first is not None and second is not None else 0
    yield _tunnel_sentence(a, b, bits)
    if first is None or first.connection is None:
        yield f"So {a} has been told nothing: it has no connection here."
    elif second is None or second.connection is None:
        yield f"So {a} does not know {b}: nobody of that id is connected here" + (
            "; it will be told when that peer returns and sends its node." if bits else "."
        )
    elif not bits & TUNNEL:
        yield f"So {a} does not know {b}: nodes flow only along tunnels."
    elif second.node is None:
        yield from _waiting(b, second, first, now)
    else:
        yield f"So {a} has been told {b}'s node of {now - second.updated_at:.0f} s ago."
        if second.node.preferred_derp == 0:
            yield f"That node names no home relay (preferred_derp 0), so {a} ignores it: can {b} reach any relay?"
        else:
            yield (
                f"If they still do not speak, look at the data path: {b}'s home is relay region "
                f"{second.node.preferred_derp}; can {a} reach it?"
            )


def _presence(coordinator: Coordinator[Any], peer_id: PeerID, peer: Peer[Any] | None, now: float) -> Iterator[str]:
    if peer is not None and peer.connection is not None and peer.policy is None:
        yield f"{peer_id} is connected to another replica, which says why it knows whom."
        return
    if peer is not None and peer.connection is not None:
        kind = peer.policy.name if peer.policy is not None else "peer"
        yield f"{peer_id} is connected as {kind} since {now - peer.connected_at:.0f} s."
        if peer.overtaken_count:
            yield (
                f"Its id was taken over {peer.overtaken_count} times since it first came: if that goes on, two "
                "machines use the same token."
            )
        return
    yield f"{peer_id} is not connected here."
    for left in reversed(coordinator.departures):
        if left.peer_id == peer_id:
            how = "said goodbye" if left.kind is Kind.DISCONNECTED and not left.refusal else "left"
            yield f"It {how} {now - left.at:.0f} s ago: {left.refusal or left.reason}."
            return
    yield f"It is not among the last {len(coordinator.departures)} that left either: has it ever dialled this server?"


def _tunnel_sentence(a: PeerID, b: PeerID, bits: int) -> str:
    if bits & TUNNEL == TUNNEL:
        return "Each has a tunnel to the other."
    if bits & OUT:
        return f"{a} has a tunnel to {b}."
    if bits & IN:
        return f"{b} has a tunnel to {a}."
    return "No tunnel joins the two: the client of them has to open one (agents cannot)."


def _waiting(b: PeerID, second: Peer[Any], first: Peer[Any], now: float) -> Iterator[str]:
    waited = now - second.connected_at
    if second.links[first] & TOLD:
        yield (
            f"So {first.id} knows the node of {b}'s earlier connection; the present one has sent none in "
            f"{waited:.0f} s."
        )
    else:
        yield f"So {first.id} does not know {b}: it has sent no node in the {waited:.0f} s of its connection."
    yield f"Look at {b}'s own log: it sends a node once it has a DERP map and its network engine is up."
