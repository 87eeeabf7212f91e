"""Which way to each peer (layer L1): disco messages in and out, and a route for every batch of packets.

    configure, remove, set_local_endpoints, network_changed, region_up, region_down   what the node knows
    route(peer, now)               where packets go now; that something is sent keeps the paths awake
    receive(datagram, source, now) a disco message
    datagrams_to_send()            disco messages, each with its way
    next_timeout, handle_timeout, take_events   as every timed core

A new peer is reached by the relay at once and directly when a pong proves an endpoint.  Rules and times are those of
genuine nodes: docs/disco.md.  Next hop: peer.py (what is known of one), disco.py (the wire).
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Final, NamedTuple, TypeAlias

from derp.keys import short_key
from derp.relay.deadlines import Deadlines
from derp.relay.limits import TokenBucket
from tailnet.errors import LocalProtocolError
from tailnet.paths.counters import Counters, Drop
from tailnet.paths.disco import (
    MAX_CALLED_ENDPOINTS,
    NONCE_BYTES,
    TXID_BYTES,
    CallMeMaybe,
    Payload,
    Ping,
    Pong,
    encode_call_me_maybe,
    encode_ping,
    encode_pong,
    open_message,
    parse_message,
    seal_message,
    sender_of,
)
from tailnet.paths.endpoint import Endpoint, make_endpoint, relay_endpoint
from tailnet.paths.peer import Candidate, PathPeer, Route
from tailnet.sodium import agree, public_of

HEARTBEAT_SECONDS: Final = 3.0

# No heartbeats to a peer to whom nothing was sent for so long.
IDLE_SECONDS: Final = 45.0

# How long a ping waits for its pong, and the least time between two discoveries of one peer, or pings of one endpoint.
PING_TIMEOUT_SECONDS: Final = 5.0
DISCOVERY_GAP_SECONDS: Final = 5.0

# A path that works is compared with the other candidates again after so long, unless there is nothing to gain.
UPGRADE_SECONDS: Final = 60.0
GOOD_ENOUGH_SECONDS: Final = 0.005

# Pings for discovery, of all peers together; heartbeats, one per active peer in 3 s, are not counted.  The burst is
# what 60 agents with a dozen addresses need at once when a server's network changes.
ALL_PINGS_PER_SECOND: Final = 250.0
ALL_PINGS_BURST: Final = 750.0

MAX_PEERS: Final = 16_384


class RelaySource(NamedTuple):
    """A disco message came by the relay of a region, from a node that the relay knows by this key."""

    region: int
    node_key: bytes


Source: TypeAlias = Endpoint | RelaySource


class Outgoing(NamedTuple):
    """A disco message: by UDP to `endpoint`, or, if that is None, to `node_key` by the relay of `region`."""

    endpoint: Endpoint | None
    region: int | None
    node_key: bytes
    datagram: bytes


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Packets take another way: to an endpoint, or None: by the relay."""

    peer: PathPeer
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class Ponged:
    """An answer to `Paths.ping`: by UDP from an endpoint, or by the relay of a region."""

    peer: PathPeer
    seconds: float
    endpoint: Endpoint | None
    region: int | None


Event: TypeAlias = PathChanged | Ponged


class _Sent(NamedTuple):
    """A ping that waits for its pong."""

    peer: PathPeer
    endpoint: Endpoint | None
    region: int | None
    at: float
    is_asked: bool


class Paths:
    """The ways of one node to its peers.  Whoever moves datagrams calls it; nobody closes it.

    `is_direct` False: no UDP, everything by relays.  What others send raises nothing and is counted.
    """

    def __init__(
        self,
        node_key: bytes,
        disco_private: bytes,
        *,
        random: Callable[[int], bytes],
        now: float,
        is_direct: bool = True,
    ) -> None:
        self.counters = Counters()
        self.disco_key: Final = public_of(disco_private)
        self._node_key = node_key
        self._disco_private = disco_private
        self._random = random
        self._is_direct = is_direct
        self._local: tuple[Endpoint, ...] = ()
        self._regions: set[int] = set()
        self._peers: dict[bytes, PathPeer] = {}
        self._by_disco: dict[bytes, list[PathPeer]] = {}
        self._shared: dict[bytes, bytes] = {}
        self._pings = TokenBucket(ALL_PINGS_PER_SECOND, ALL_PINGS_BURST, now)
        self._heartbeats = Deadlines[PathPeer]()
        self._sent: dict[bytes, _Sent] = {}
        self._sent_order: deque[bytes] = deque()  # all wait equally long
        self._outgoing: list[Outgoing] = []
        self._events: list[Event] = []

    # --- what the node knows ---

    def find(self, node_key: bytes) -> PathPeer | None:
        """The peer with this node key."""
        return self._peers.get(node_key)

    def configure(
        self,
        node_key: bytes,
        disco_key: bytes | None,
        endpoints: Iterable[Endpoint],
        home_region: int | None,
        now: float,
    ) -> PathPeer:
        """Make a peer known, or take what coordination says of it now.  Another disco key: all its ways are forgotten.

        LocalProtocolError: there are MAX_PEERS, or the disco key is of no use.
        """
        peer = self._peers.get(node_key)
        if peer is None and len(self._peers) >= MAX_PEERS:
            raise LocalProtocolError(f"{MAX_PEERS} peers are configured, and no more are taken")
        shared = self._agree(disco_key) if disco_key is not None else None
        if peer is None:
            peer = self._peers[node_key] = PathPeer(node_key, now)
        if peer.disco_key != disco_key:
            self._forget_disco(peer)
            peer.reset()
            if disco_key is not None and shared is not None:
                self._learn_disco(peer, disco_key, shared)
        peer.home_region = home_region or None
        if self._is_direct:
            peer.tell(endpoints, now)
        return peer

    def remove(self, node_key: bytes) -> None:
        """Forget a peer; it need not be known."""
        peer = self._peers.pop(node_key, None)
        if peer is not None:
            self._forget_disco(peer)
            self._heartbeats.clear(peer)

    def set_local_endpoints(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Where this node may be reached: its interfaces' addresses, and what STUN saw."""
        before, self._local = self._local, tuple(islice(endpoints, MAX_CALLED_ENDPOINTS)) if self._is_direct else ()
        for peer in self._peers.values() if self._local != before else ():
            # With no endpoint it makes peers forget those they have.
            is_wanted = not self._local or not peer.is_trusted(now)
            if is_wanted and self._is_active(peer, now) and now - peer.called_at >= DISCOVERY_GAP_SECONDS:
                self._call(peer, now)

    def network_changed(self, now: float) -> None:
        """Our addresses or routes are others: no way is trusted, and all are tried again."""
        for peer in self._peers.values():
            peer.reset()
            if self._is_active(peer, now):
                self._discover(peer, now)
            self._show(peer, now)

    def region_up(self, region: int) -> None:
        """There is a connection to a relay of this region."""
        self._regions.add(region)

    def region_down(self, region: int) -> None:
        """The connection to a region is gone, and with it what was heard there."""
        self._regions.discard(region)
        for peer in self._peers.values():
            self.peer_gone(peer, region)

    def peer_gone(self, peer: PathPeer, region: int) -> None:
        """A relay says that the peer is not there."""
        if peer.heard_region == region:
            peer.heard_region = None

    def heard(self, peer: PathPeer, region: int) -> None:
        """Something of the peer came by the relay of a region."""
        peer.heard_region = region

    def send_failed(self, peer: PathPeer, endpoint: Endpoint, now: float) -> None:
        """The system cannot send there."""
        peer.drop(endpoint)
        self._show(peer, now)

    # --- packets ---

    def route(self, peer: PathPeer, now: float) -> Route:
        """Where a batch of packets for a peer goes.  Asked for each batch: that keeps the path awake."""
        peer.routed_at = now
        if peer.disco_key is not None and self._is_direct:
            if peer not in self._heartbeats:
                self._plan_beat(peer, now)
            if peer.is_trusted(now):
                return Route(peer.best, None)
            if now - peer.round_at >= DISCOVERY_GAP_SECONDS:
                self._discover(peer, now)
        return Route(peer.best, self.region_of(peer))

    def region_of(self, peer: PathPeer) -> int | None:
        """By which region's relay a peer is reached."""
        if peer.home_region in self._regions:
            return peer.home_region
        if peer.heard_region in self._regions:
            return peer.heard_region
        return peer.home_region or peer.heard_region

    def ping(self, peer: PathPeer, now: float) -> None:
        """Ask a peer for a sign of life: each answer is a `Ponged`, the first tells which way packets go."""
        if peer.disco_key is None:
            return
        if peer.best is not None and peer.is_trusted(now):
            self._send_ping(peer, peer.best, now, is_asked=True)
            return
        if (region := self.region_of(peer)) is not None:
            self._send_ping(peer, None, now, region=region, is_asked=True)
        for endpoint, candidate in peer.candidates.items():
            self._explore(peer, endpoint, candidate, now, is_asked=True)

    # --- disco ---

    def receive(self, datagram: Payload, source: Source, now: float) -> None:
        """Take a datagram for which `is_disco` is true."""
        sender = sender_of(datagram)
        peers = self._by_disco.get(sender)
        if peers is None:
            self._drop(Drop.UNKNOWN_SENDER)
            return
        text = open_message(datagram, self._shared[sender])
        if text is None:
            self._drop(Drop.FORGED)
            return
        match parse_message(text):
            case Ping(txid, node_key):
                self._receive_ping(peers, txid, node_key, source, now)
            case Pong(txid):
                self._receive_pong(peers, txid, source, now)
            case CallMeMaybe(endpoints):
                self._receive_call(peers, endpoints, source, now)
            case None:
                self._drop(Drop.MALFORMED)

    def datagrams_to_send(self) -> list[Outgoing]:
        """Disco messages, to be sent before any packet; handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_events(self) -> list[Event]:
        """What happened since the last call, except in `handle_timeout`."""
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None: not before something else happens."""
        while self._sent_order and self._sent_order[0] not in self._sent:
            self._sent_order.popleft()
        expires = self._sent[self._sent_order[0]].at + PING_TIMEOUT_SECONDS if self._sent_order else inf
        beats = self._heartbeats.next_timeout()
        first = expires if beats is None else min(beats, expires)
        return None if first == inf else first

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due by `now`; then look at `datagrams_to_send`."""
        before, self._events = self._events, []
        for peer in self._heartbeats.handle_timeout(now):
            self._beat(peer, now)
        while self._sent_order:
            sent = self._sent.get(self._sent_order[0])
            if sent is not None and sent.at + PING_TIMEOUT_SECONDS > now:
                break
            self._sent.pop(self._sent_order.popleft(), None)
            if sent is not None and sent.endpoint == sent.peer.best and not sent.peer.is_trusted(now):
                sent.peer.drop_best()  # no more packets there that nobody gets
        events, self._events = self._events, before
        return events

    def _beat(self, peer: PathPeer, now: float) -> None:
        peer.drop_idle(now)
        if self._is_active(peer, peer.beat_at):
            if peer.best is not None:
                self._send_ping(peer, peer.best, now)
                peer.pinged_best(now)
            since = now - peer.round_at
            if since >= (DISCOVERY_GAP_SECONDS if not peer.is_trusted(now) else UPGRADE_SECONDS) and (
                not peer.is_trusted(now) or peer.best_seconds > GOOD_ENOUGH_SECONDS
            ):
                self._discover(peer, now)
            self._plan_beat(peer, now)
        self._show(peer, now)

    def _plan_beat(self, peer: PathPeer, now: float) -> None:
        peer.beat_at = now + HEARTBEAT_SECONDS
        self._heartbeats.set(peer, peer.beat_at)

    def is_active(self, now: float) -> bool:
        """Whether something was sent to any peer of late."""
        return any(self._is_active(peer, now) for peer in self._peers.values())

    def _is_active(self, peer: PathPeer, now: float) -> bool:
        return now - peer.routed_at <= IDLE_SECONDS and peer.disco_key is not None

    def _show(self, peer: PathPeer, now: float) -> None:
        path = peer.best if peer.is_trusted(now) else None
        if path != peer.shown:
            peer.shown = path
            self._events.append(PathChanged(peer, path))

    # --- what we say ---

    def _discover(self, peer: PathPeer, now: float) -> None:
        """Ping every candidate, and have the peer do the same from its side."""
        peer.round_at = now
        peer.drop_idle(now)
        for endpoint, candidate in peer.candidates.items():
            if now - candidate.pinged_at >= DISCOVERY_GAP_SECONDS:
                self._explore(peer, endpoint, candidate, now)
        if self._local and now - peer.called_at >= DISCOVERY_GAP_SECONDS:
            self._call(peer, now)

    def _call(self, peer: PathPeer, now: float) -> None:
        if (region := self.region_of(peer)) is not None:
            peer.called_at = now
            self.counters.calls_sent += 1
            self._say(peer, None, region, encode_call_me_maybe(self._local))

    def _explore(
        self, peer: PathPeer, endpoint: Endpoint, candidate: Candidate, now: float, *, is_asked: bool = False
    ) -> None:
        """Ping a candidate, as far as its peer and all together may have us do so."""
        if peer.pings.take(now) and self._pings.take(now):
            candidate.pinged_at = now
            self._send_ping(peer, endpoint, now, is_asked=is_asked)
        else:
            self.counters.pings_saved += 1

    def _send_ping(
        self,
        peer: PathPeer,
        endpoint: Endpoint | None,
        now: float,
        *,
        region: int | None = None,
        is_asked: bool = False,
    ) -> None:
        txid = self._random(TXID_BYTES)
        self._sent[txid] = _Sent(peer, endpoint, region, now, is_asked)
        self._sent_order.append(txid)
        self.counters.pings_sent += 1
        self._say(peer, endpoint, region, encode_ping(txid, self._node_key))

    def _say(self, peer: PathPeer, endpoint: Endpoint | None, region: int | None, message: bytes) -> None:
        assert peer.disco_key is not None
        shared = self._shared[peer.disco_key]
        datagram = seal_message(self.disco_key, shared, self._random(NONCE_BYTES), message)
        self._outgoing.append(Outgoing(endpoint, region, peer.node_key, datagram))

    # --- what we are told ---

    def _receive_ping(
        self, peers: list[PathPeer], txid: bytes, node_key: bytes | None, source: Source, now: float
    ) -> None:
        peer = _which(peers, node_key, source)
        if peer is None:
            return self._drop(Drop.WRONG_NODE)
        self.counters.pings_received += 1
        candidate: Candidate | None = None
        if isinstance(source, RelaySource):
            peer.heard_region = source.region
        elif make_endpoint(*source) != source:
            return self._drop(Drop.UNUSABLE_SOURCE)
        elif self._is_direct:
            candidate = peer.add(source)
        if candidate is not None:
            if candidate.last_txid == txid:
                return self._drop(Drop.DUPLICATE)
            candidate.last_txid, candidate.heard_at = txid, now
        if not peer.pongs.take(now):
            return self._drop(Drop.BUDGET)
        self.counters.pongs_sent += 1
        if isinstance(source, RelaySource):
            self._say(peer, None, source.region, encode_pong(txid, relay_endpoint(source.region)))
            return None
        self._say(peer, source, None, encode_pong(txid, source))
        # That it can reach us says nothing of the way back: only our own ping does.
        if (
            candidate is not None
            and self._is_active(peer, now)
            and now - candidate.pinged_at >= DISCOVERY_GAP_SECONDS
            and source != peer.best
        ):
            self._explore(peer, source, candidate, now)
        return None

    def _receive_pong(self, peers: list[PathPeer], txid: bytes, source: Source, now: float) -> None:
        sent = self._sent.get(txid)
        if sent is None or sent.peer not in peers or now - sent.at > PING_TIMEOUT_SECONDS:
            return self._drop(Drop.UNEXPECTED_PONG)
        if isinstance(source, RelaySource) and source.node_key != sent.peer.node_key:
            return self._drop(Drop.WRONG_NODE)
        del self._sent[txid]
        self.counters.pongs_received += 1
        peer, seconds = sent.peer, now - sent.at
        # A pong that took the relay says nothing of the way to an endpoint.
        if sent.endpoint is not None and isinstance(source, Endpoint):
            peer.answered(sent.endpoint, seconds, now)
            self._show(peer, now)
        if sent.is_asked:
            endpoint = sent.endpoint if isinstance(source, Endpoint) else None
            region = source.region if isinstance(source, RelaySource) else None
            self._events.append(Ponged(peer, seconds, endpoint, region))
        return None

    def _receive_call(self, peers: list[PathPeer], endpoints: tuple[Endpoint, ...], source: Source, now: float) -> None:
        if not isinstance(source, RelaySource):
            return self._drop(Drop.WRONG_WAY)
        peer = _which(peers, None, source)
        if peer is None:
            return self._drop(Drop.WRONG_NODE)
        self.counters.calls_received += 1
        peer.heard_region = source.region
        if self._is_direct:
            peer.call(endpoints, now)
            peer.round_at = now
            for endpoint, candidate in peer.candidates.items():
                self._explore(peer, endpoint, candidate, now)
        return None

    # --- keys ---

    def _agree(self, disco_key: bytes) -> bytes:
        shared = self._shared.get(disco_key)
        if shared is None and len(disco_key) == len(self.disco_key):
            shared = agree(self._disco_private, disco_key)
        if shared is None:
            raise LocalProtocolError(f"disco key {short_key(disco_key)} is not a usable curve25519 public key")
        return shared

    def _learn_disco(self, peer: PathPeer, disco_key: bytes, shared: bytes) -> None:
        peer.disco_key = disco_key
        self._shared[disco_key] = shared
        self._by_disco.setdefault(disco_key, []).append(peer)

    def _forget_disco(self, peer: PathPeer) -> None:
        key, peer.disco_key = peer.disco_key, None
        if key is None:
            return
        peers = self._by_disco[key]
        peers.remove(peer)
        if not peers:
            del self._by_disco[key], self._shared[key]
        self._sent = {txid: sent for txid, sent in self._sent.items() if sent.peer is not peer}

    def _drop(self, reason: Drop) -> None:
        self.counters.drops[reason] += 1


def _which(peers: list[PathPeer], node_key: bytes | None, source: Source) -> PathPeer | None:
    """Whose message it is, of those who have its disco key: a relay knows, else the message may say it."""
    if isinstance(source, RelaySource):
        if node_key is not None and node_key != source.node_key:
            return None
        node_key = source.node_key
    if node_key is None:
        return peers[0] if len(peers) == 1 else None
    return next((peer for peer in peers if peer.node_key == node_key), None)
