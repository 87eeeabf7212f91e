"""The coordinator's brain: every rule of who is told what (layer L1, no I/O, no clock, no task).

The service hands in what happened; the answer is a list of effects in order (coordinator/messages):
  handle_connect -> handle_request* -> handle_disconnect | handle_overflow | handle_revoke | an EndConnection effect.
A connection that the core ended is forgotten at once: whatever still arrives from it is answered by no effects.
The graph is coordinator/tunnels, rights are coordinator/policy, node checks coordinator/nodes, the debug page's
questions coordinator/explain.  Effects go to services/hub.py.  Spec: coordinator rules.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic

from tailnet.coordinator.messages import C, Deliver, Effect, EndConnection, Kind, Request, SendError, Update, batches
from tailnet.coordinator.nodes import (
    Complaint,
    Limits,
    Node,
    Refusal,
    complain_about_keys,
    complain_about_size,
    same_identity,
)
from tailnet.coordinator.policy import Policy
from tailnet.coordinator.tunnels import OUT, TOLD, Peer, Tunnels
from tailnet.errors import LocalProtocolError
from tailnet.types import PEER_ID_BYTES, PeerID

# Reasons that peers see; the field's tools and users search for some of these words.
REASON_UPDATE: Final = "node update"
REASON_INIT: Final = "init"
REASON_ADD_TUNNEL: Final = "add tunnel"
REASON_REMOVE_TUNNEL: Final = "tunnel removed"
REASON_GRACEFUL: Final = "graceful disconnect"
REASON_LOST: Final = "lost"
REASON_OVERFLOW: Final = "failed update"
REASON_CLOSE: Final = "coordinator close"
REASON_REVOKED: Final = "authorization withdrawn"
OVERWRITTEN: Final = "peer ID overwritten by new connection"
_DEPARTURES: Final = (REASON_GRACEFUL, REASON_LOST, REASON_OVERFLOW, REASON_CLOSE, REASON_REVOKED)
# The last who left, for the question "why is it not here": about 200 bytes each.
MAX_DEPARTURES: Final = 256
# What clients are told as "authorization: <why>"; the rest of the refusals is "malformed request: <why>".
_NOT_AUTHORISED: Final = {Refusal.NODE_ADDRESS, Refusal.TUNNEL, Refusal.READY_FOR_HANDSHAKE}


@dataclass(frozen=True, slots=True)
class Departure:
    """A peer that left, kept for the debug page.  `refusal` is the error it was sent, if any."""

    peer_id: PeerID
    at: float
    kind: Kind
    reason: str
    refusal: str


@dataclass(frozen=True, slots=True)
class Statistics:
    """Plain numbers for the metrics collector; counters unless said otherwise."""

    connected_peers: int  # gauge
    absent_peers: int  # gauge: ids that somebody has a tunnel to and that are not connected
    tunnels: int  # gauge
    connects: int
    overtaken: int
    requests: int
    node_updates: int
    suppressed_updates: int  # the same node again
    deliveries: int  # updates handed out, once per receiver
    ready_for_handshake: int
    departures: dict[str, int]  # by reason
    refusals: dict[Refusal, int]


class _Counters:
    __slots__ = (
        "connects",
        "deliveries",
        "departures",
        "node_updates",
        "overtaken",
        "ready_for_handshake",
        "refusals",
        "requests",
        "suppressed_updates",
    )

    def __init__(self) -> None:
        self.connects = self.overtaken = self.requests = self.node_updates = self.suppressed_updates = 0
        self.deliveries = self.ready_for_handshake = 0
        self.departures = dict.fromkeys(_DEPARTURES, 0)
        self.refusals = dict.fromkeys(Refusal, 0)


class Coordinator(Generic[C]):
    """All peers of one process.

    `C` names a connection: any hashable object but None, best one that hashes by identity; effects give it back.
    `now` is any clock that does not run backwards, in seconds; the core only remembers it for explain().
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.departures: deque[Departure] = deque(maxlen=MAX_DEPARTURES)
        self._tunnels: Tunnels[C] = Tunnels()
        self._connected: dict[C, Peer[C]] = {}
        self._counters = _Counters()
        self._closed = False

    # What happened.

    def handle_connect(self, peer_id: PeerID, policy: Policy, connection: C, now: float) -> list[Effect[C]]:
        """A stream opened.  An older one of the same id is ended, and nobody is told that anything was lost.

        After handle_close the connection is turned away.  Raises LocalProtocolError when `connection` is in use.
        """
        if self._closed:
            return [SendError(connection, REASON_CLOSE), EndConnection(connection, REASON_CLOSE)]
        if connection in self._connected:
            raise LocalProtocolError("this connection is already a peer: each needs an object of its own")
        effects: list[Effect[C]] = []
        peer = self._tunnels.seat(peer_id)
        if peer.connection is not None:
            self._overtake(peer, policy, effects)
        self._counters.connects += 1
        peer.connection, peer.policy = connection, policy
        peer.connected_at = peer.updated_at = now
        self._connected[connection] = peer
        known: list[Update] = []
        for other in peer.links:
            other.audience = None
            if other.node is not None:
                other.links[peer] |= TOLD
                known.append(Update(other.id, Kind.NODE, other.node, REASON_INIT))
        self._send_batches(connection, known, effects)
        return effects

    def handle_request(self, connection: C, request: Request, now: float) -> list[Effect[C]]:
        """One CoordinateRequest.  It is judged whole before any part is applied.

        Refused or malformed: SendError, then EndConnection, and others see LOST.  Three excesses are answered by
        SendError alone, for ending the peer would cut sessions that work: a node too large (that of before stays), a
        tunnel too many, and ready_for_handshake to somebody who shares no tunnel.
        """
        peer = self._connected.get(connection)
        if peer is None:
            return []
        counters = self._counters
        counters.requests += 1
        node = request.node
        # First: what is too large is not worth another look.
        excess = None if node is None else complain_about_size(node, self.limits)
        complaint = self._complain(peer, request, node if excess is None else None)
        if complaint is not None:
            return self._refuse(peer, connection, complaint, now)
        effects: list[Effect[C]] = []
        if excess is not None:
            counters.refusals[excess.reason] += 1
            effects.append(SendError(connection, f"update error: {excess.text}; the last one stays"))
        elif node is not None:
            counters.node_updates += 1
            peer.updated_at = now
            self._take_node(peer, node, effects)
        if request.add_tunnel is not None:
            self._add_tunnel(peer, connection, PeerID(request.add_tunnel), effects)
        if request.remove_tunnel is not None:
            self._remove_tunnel(peer, request.remove_tunnel, effects)
        if request.disconnect:
            # Whoever said goodbye says nothing after it: the rest of the request is dropped.
            self._depart(peer, Kind.DISCONNECTED, REASON_GRACEFUL, now, effects)
            effects.append(EndConnection(connection, REASON_GRACEFUL))
        elif request.ready_for_handshake:
            self._ready_for_handshake(peer, connection, request.ready_for_handshake, effects)
        return effects

    def handle_disconnect(self, connection: C, graceful: bool, now: float) -> list[Effect[C]]:
        """The stream ended from its other side.  `graceful` only when the peer is known to have meant it."""
        effects: list[Effect[C]] = []
        peer = self._connected.get(connection)
        if peer is not None:
            if graceful:
                self._depart(peer, Kind.DISCONNECTED, REASON_GRACEFUL, now, effects)
            else:
                self._depart(peer, Kind.LOST, REASON_LOST, now, effects)
        return effects

    def handle_overflow(self, connection: C, now: float) -> list[Effect[C]]:
        """The connection's response buffer is full: it is removed rather than waited for."""
        effects: list[Effect[C]] = []
        peer = self._connected.get(connection)
        if peer is not None:
            self._depart(peer, Kind.DISCONNECTED, REASON_OVERFLOW, now, effects)
            effects.append(EndConnection(connection, REASON_OVERFLOW))
        return effects

    def handle_revoke(self, connection: C, now: float) -> list[Effect[C]]:
        """Whoever is behind the connection has no business here any more.

        Others drop it at once: LOST would leave a session between the two that works for as long as both use it.
        """
        effects: list[Effect[C]] = []
        peer = self._connected.get(connection)
        if peer is not None:
            effects.append(SendError(connection, f"authorization: {REASON_REVOKED}"))
            self._depart(peer, Kind.DISCONNECTED, REASON_REVOKED, now, effects)
            effects.append(EndConnection(connection, REASON_REVOKED))
        return effects

    def handle_revoke_tunnels(self, connection: C, dst_ids: Iterable[bytes]) -> list[Effect[C]]:
        """The connection may stay, but these tunnels of its may not."""
        effects: list[Effect[C]] = []
        peer = self._connected.get(connection)
        if peer is not None:
            for dst_id in dst_ids:
                other = self._tunnels.shared(peer, dst_id)
                if other is not None:
                    self._part(peer, other, REASON_REVOKED, effects)
        return effects

    def handle_close(self, now: float) -> list[Effect[C]]:
        """The server goes away.  Everyone is LOST, never DISCONNECTED: live sessions go on without us."""
        effects: list[Effect[C]] = []
        self._closed = True
        connected = list(self._connected.items())
        # By receiver, not by who is lost: an agent with a thousand clients gets one response, not a thousand.
        here = (peer for peer in self._tunnels.peers.values() if peer.connection is not None)
        lost = {peer: Update(peer.id, Kind.LOST, None, REASON_CLOSE) for peer in here}
        for connection, peer in connected:
            told = [lost[other] for other in peer.links if other.links[peer] & TOLD]
            self._send_batches(connection, told, effects)
        for connection, peer in connected:
            self._note_departure(peer.id, Kind.LOST, REASON_CLOSE, "", now)
            effects.append(EndConnection(connection, REASON_CLOSE))
        self._connected.clear()
        self._tunnels.clear()
        return effects

    # What is known.

    def node_of(self, peer_id: bytes) -> Node | None:
        """The node that a connected peer sent last."""
        peer = self._tunnels.peers.get(peer_id)
        return None if peer is None else peer.node

    def node_is(self, connection: C, node: Node) -> bool:
        """Whether this very node is what the peer behind a connection said last, and was taken."""
        peer = self._connected.get(connection)
        return peer is not None and peer.node is node

    def nodes(self) -> Iterator[tuple[C, Node]]:
        """Those of all connected peers."""
        return ((each, peer.node) for each, peer in self._connected.items() if peer.node is not None)

    def connection_of(self, peer_id: bytes) -> C | None:
        """The connection that holds this id now."""
        peer = self._tunnels.peers.get(peer_id)
        return None if peer is None else peer.connection

    def policy_of(self, connection: C) -> Policy | None:
        """What this connection may do; None when the core does not know it (any more)."""
        peer = self._connected.get(connection)
        return None if peer is None else peer.policy

    def active_at(self, connection: C) -> float:
        """When the peer last came, said what its node is, or got somebody at the other end of a tunnel."""
        peer = self._connected[connection]
        return max(peer.updated_at, max((other.connected_at for other in peer.links), default=0.0))

    def tunnels_of(self, connection: C) -> list[PeerID]:
        """Where the tunnels lead that this connection opened."""
        peer = self._connected.get(connection)
        return [] if peer is None else [other.id for other, bits in peer.links.items() if bits & OUT]

    @property
    def peers(self) -> dict[bytes, Peer[C]]:
        """The graph, for coordinator/explain and tests: look, do not touch."""
        return self._tunnels.peers

    def statistics(self) -> Statistics:
        """The numbers of this moment."""
        counters, connected = self._counters, len(self._connected)
        return Statistics(
            connected_peers=connected,
            absent_peers=len(self._tunnels.peers) - connected,
            tunnels=self._tunnels.count,
            connects=counters.connects,
            overtaken=counters.overtaken,
            requests=counters.requests,
            node_updates=counters.node_updates,
            suppressed_updates=counters.suppressed_updates,
            deliveries=counters.deliveries,
            ready_for_handshake=counters.ready_for_handshake,
            departures=dict(counters.departures),
            refusals=dict(counters.refusals),
        )

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself.  Slow; for tests."""
        self._tunnels.check()
        assert all(peer.connection == connection for connection, peer in self._connected.items())
        held = sum(peer.connection is not None for peer in self._tunnels.peers.values())
        assert held == len(self._connected), "a peer holds a connection that is not known"

    # Judging a request.

    def _complain(self, peer: Peer[C], request: Request, node: Node | None) -> Complaint | None:
        policy = peer.policy
        assert policy is not None  # connected peers have one
        complaint: Complaint | None = None
        if node is not None and (peer.node is None or not same_identity(node, peer.node)):
            complaint = complain_about_keys(node) or policy.complain_about_addresses(node)
        if complaint is None and request.add_tunnel is not None:
            complaint = _complain_about_id("add_tunnel", request.add_tunnel)
            if complaint is None and request.add_tunnel == peer.id:
                complaint = Complaint(Refusal.TUNNEL, "a peer cannot open a tunnel to itself")
            complaint = complaint or policy.complain_about_tunnel(request.add_tunnel, request.allowed)
        if complaint is None and request.remove_tunnel is not None:
            complaint = _complain_about_id("remove_tunnel", request.remove_tunnel)
        if complaint is None and request.ready_for_handshake:
            complaint = self._complain_about_ready(policy, request)
        return complaint

    def _complain_about_ready(self, policy: Policy, request: Request) -> Complaint | None:
        ready = request.ready_for_handshake
        if not policy.may_be_ready:
            return Complaint(Refusal.READY_FOR_HANDSHAKE, "only agents send ready_for_handshake")
        if len(ready) > self.limits.ready_for_handshake:
            text = f"ready_for_handshake lists {len(ready)} peers, limit {self.limits.ready_for_handshake}"
            return Complaint(Refusal.READY_FOR_HANDSHAKE_COUNT, text)
        complaints = (_complain_about_id("ready_for_handshake", peer_id) for peer_id in ready)
        return next((complaint for complaint in complaints if complaint is not None), None)

    def _refuse(self, peer: Peer[C], connection: C, complaint: Complaint, now: float) -> list[Effect[C]]:
        self._counters.refusals[complaint.reason] += 1
        origin = "authorization" if complaint.reason in _NOT_AUTHORISED else "malformed request"
        text = f"{origin}: {complaint.text}"
        effects: list[Effect[C]] = [SendError(connection, text)]
        self._depart(peer, Kind.LOST, REASON_LOST, now, effects, refusal=text)
        effects.append(EndConnection(connection, text))
        return effects

    # Applying it.

    def _take_node(self, peer: Peer[C], node: Node, effects: list[Effect[C]]) -> None:
        if peer.node is None:
            self._tell_first_node(peer, node, effects)
        elif peer.node.raw == node.raw:
            self._counters.suppressed_updates += 1
        else:
            # The hot path: whoever may be told has been told the node before, so there is nothing to compare or to
            # note for each of them.
            peer.node = node
            receivers = peer.audience
            if receivers is None:
                receivers = self._tunnels.audience(peer)
            if receivers:
                self._counters.deliveries += len(receivers)
                effects.append(Deliver(receivers, (Update(peer.id, Kind.NODE, node, REASON_UPDATE),)))

    def _tell_first_node(self, peer: Peer[C], node: Node, effects: list[Effect[C]]) -> None:
        """The first node of a connection: whoever shares a tunnel has yet to be told, except after a takeover."""
        before, peer.overtaken_node, peer.node = peer.overtaken_node, None, node
        unchanged = before is not None and before.raw == node.raw
        receivers: list[C] = []
        for other, bits in peer.links.items():
            if other.connection is None:
                continue
            if unchanged and bits & TOLD:
                continue
            peer.links[other] = bits | TOLD  # no new key, so this loop may go on
            receivers.append(other.connection)
        if receivers:
            self._counters.deliveries += len(receivers)
            effects.append(Deliver(tuple(receivers), (Update(peer.id, Kind.NODE, node, REASON_UPDATE),)))
        elif unchanged:
            self._counters.suppressed_updates += 1

    def _add_tunnel(self, peer: Peer[C], connection: C, dst_id: PeerID, effects: list[Effect[C]]) -> None:
        if peer.opened_count >= self.limits.tunnels and not self._tunnels.has_tunnel(peer, dst_id):
            self._counters.refusals[Refusal.TUNNEL_COUNT] += 1
            text = f'add tunnel error: no tunnel to "{dst_id}": {self.limits.tunnels} are open, which is the limit'
            effects.append(SendError(connection, text))
            return
        other = self._tunnels.seat(dst_id)
        if self._tunnels.open(peer, other):
            self._introduce(peer, other, effects)

    def _introduce(self, peer: Peer[C], other: Peer[C], effects: list[Effect[C]]) -> None:
        """A tunnel is open: each end is told the other's node, unless it was before."""
        if other.connection is not None:
            self._tell_node(peer, other, effects)
            self._tell_node(other, peer, effects)

    def _tell_node(self, subject: Peer[C], receiver: Peer[C], effects: list[Effect[C]]) -> None:
        if subject.node is not None and not subject.links[receiver] & TOLD:
            subject.links[receiver] |= TOLD
            assert receiver.connection is not None
            self._deliver(receiver.connection, subject.id, Kind.NODE, subject.node, REASON_ADD_TUNNEL, effects)

    def _remove_tunnel(self, peer: Peer[C], dst_id: bytes, effects: list[Effect[C]]) -> None:
        other = self._tunnels.shared(peer, dst_id)
        if other is not None:
            self._part(peer, other, REASON_REMOVE_TUNNEL, effects)

    def _part(
        self,
        src: Peer[C],
        dst: Peer[C],
        reason: str,
        effects: list[Effect[C]],
        kind: Kind = Kind.DISCONNECTED,
    ) -> None:
        """Close one tunnel; when no other joins the two, each loses the other, if it ever knew it."""
        dst_was_told, src_was_told = src.links[dst] & TOLD, dst.links[src] & TOLD
        if not self._tunnels.close(src, dst):
            return
        for receiver, subject, was_told in ((dst, src, dst_was_told), (src, dst, src_was_told)):
            if was_told and receiver.connection is not None:
                self._deliver(receiver.connection, subject.id, kind, None, reason, effects)
        self._tunnels.release(dst)

    def _ready_for_handshake(
        self, peer: Peer[C], connection: C, ready: Sequence[bytes], effects: list[Effect[C]]
    ) -> None:
        stranger = self._tell_ready(peer, ready, effects)
        if stranger is not None:
            # One error for all of them: clients that left a moment ago are no reason to fill the agent's buffer.
            text = f'ready for handshake error: you do not share a tunnel with "{PeerID(stranger)}"'
            effects.append(SendError(connection, text))

    def _tell_ready(self, peer: Peer[C], ready: Iterable[bytes], effects: list[Effect[C]]) -> bytes | None:
        """Each of these is told that the peer is ready for it.  The first that shares no tunnel comes back."""
        stranger: bytes | None = None
        for peer_id in dict.fromkeys(ready):  # a list of ten thousand equal ids shall not drown one receiver
            other = self._tunnels.shared(peer, peer_id)
            if other is None:
                stranger = stranger or peer_id
            elif other.connection is not None:
                self._counters.ready_for_handshake += 1
                self._deliver(other.connection, peer.id, Kind.READY_FOR_HANDSHAKE, None, "", effects)
        return stranger

    def _overtake(self, peer: Peer[C], policy: Policy, effects: list[Effect[C]]) -> None:
        """End the older connection of this id.  Its tunnels pass on, so far as the new one might open them."""
        peer.overtaken_count += 1
        self._end_overtaken(peer, effects)
        self._pass_on(peer, policy, effects)

    def _end_overtaken(self, peer: Peer[C], effects: list[Effect[C]]) -> None:
        old = peer.connection
        assert old is not None
        self._counters.overtaken += 1
        del self._connected[old]
        effects += (SendError(old, OVERWRITTEN), EndConnection(old, OVERWRITTEN))

    def _pass_on(self, peer: Peer[C], policy: Policy, effects: list[Effect[C]]) -> None:
        """Nobody holds the id until its new connection does."""
        if peer.node is not None:
            peer.overtaken_node, peer.node = peer.node, None
        peer.connection = None
        for other, bits in list(peer.links.items()):
            other.links[peer] &= ~TOLD  # the new stream has been told nothing
            if bits & OUT and not policy.keeps_tunnel(other.id):
                self._part(peer, other, REASON_REMOVE_TUNNEL, effects)

    def _depart(
        self, peer: Peer[C], kind: Kind, reason: str, now: float, effects: list[Effect[C]], refusal: str = ""
    ) -> None:
        assert peer.connection is not None
        del self._connected[peer.connection]
        self._unseat(peer, kind, reason, effects)
        self._note_departure(peer.id, kind, reason, refusal, now)

    def _unseat(self, peer: Peer[C], kind: Kind, reason: str, effects: list[Effect[C]]) -> None:
        """Tell whoever knew the peer, and forget it, but for the tunnels that others opened to it."""
        told = tuple(
            [other.connection for other, bits in peer.links.items() if bits & TOLD and other.connection is not None]
        )
        if told:
            self._counters.deliveries += len(told)
            effects.append(Deliver(told, (Update(peer.id, kind, None, reason),)))
        peer.connection = peer.policy = peer.node = peer.overtaken_node = None
        peer.overtaken_count = 0
        for other, bits in list(peer.links.items()):
            other.audience = None
            other.links[peer] &= ~TOLD
            peer.links[other] = bits & ~TOLD
            if bits & OUT and self._tunnels.close(peer, other):
                self._tunnels.release(other)
        self._tunnels.release(peer)

    def _note_departure(self, peer_id: PeerID, kind: Kind, reason: str, refusal: str, now: float) -> None:
        self._counters.departures[reason] += 1
        self.departures.append(Departure(peer_id, now, kind, reason, refusal))

    # Effects.

    def _deliver(
        self, receiver: C, peer_id: PeerID, kind: Kind, node: Node | None, reason: str, effects: list[Effect[C]]
    ) -> None:
        self._counters.deliveries += 1
        effects.append(Deliver((receiver,), (Update(peer_id, kind, node, reason),)))

    def _send_batches(self, receiver: C, updates: list[Update], effects: list[Effect[C]]) -> None:
        self._counters.deliveries += len(updates)
        effects += [Deliver((receiver,), batch) for batch in batches(updates)]


def _complain_about_id(field: str, raw: bytes) -> Complaint | None:
    if len(raw) == PEER_ID_BYTES:
        return None
    return Complaint(Refusal.MALFORMED, f"{field} id has {len(raw)} bytes, a peer id has {PEER_ID_BYTES}")
