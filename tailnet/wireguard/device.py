"""All WireGuard sessions of one node key (layer L1): datagrams in, packets out, and the other way round.

    configure, remove            who may talk to us, and with which addresses
    seal(peer, packets, now)     packets to datagrams; without a session they wait, and one is asked for
    open(datagrams, source, now) datagrams to packets by peer; handshakes are answered
    datagrams_to_send()          what came of both besides: handshakes, keepalives, packets that waited
    next_timeout, handle_timeout, take_events   as every timed core

Which path a datagram takes is not decided here: tailnet/paths does.  Next hop: keypair.py, noise.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple, TypeAlias

from derp.keys import NodePrivate, short_key
from derp.relay.deadlines import Deadlines
from tailnet.errors import LocalProtocolError
from tailnet.wireguard.admission import Admission, Verdict
from tailnet.wireguard.counters import Counters, Drop
from tailnet.wireguard.keypair import REJECT_AFTER_MESSAGES
from tailnet.wireguard.messages import (
    COOKIE_REPLY,
    COOKIE_REPLY_HEAD,
    INITIATION,
    INITIATION_BYTES,
    INITIATION_HEAD,
    LENGTHS,
    OVERHEAD_BYTES,
    RESPONSE,
    RESPONSE_HEAD,
    TRANSPORT,
    TRANSPORT_HEAD,
    Payload,
    fresh_index,
)
from tailnet.wireguard.noise import NO_PRESHARED_KEY, Identity, Remote, TransportKeys, make_initiation, open_static
from tailnet.wireguard.peer import Pair, Peer
from tailnet.wireguard.tai64n import next_stamp
from tailnet.wireguard.timers import (
    MAX_RETRIES,
    REJECT_AFTER_SECONDS,
    REKEY_AFTER_MESSAGES,
    REKEY_BEFORE_REJECT_SECONDS,
    Due,
)

# The MTU inside every tailnet: IPv6's smallest.
MTU: Final = 1280

# A coordinator that goes mad fills no memory: a peer without a session takes 2 KiB, with one 5 KiB.
MAX_PEERS: Final = 16_384

# What waits for sessions in all: 25 peers with full queues, and more than TCP's first windows of a thousand.
MAX_STAGED_BYTES: Final = 4 * 1024 * 1024

# Two initiations of a peer within this are a flood, however right they are.
MIN_INITIATION_GAP_SECONDS: Final = 0.02

_JITTER_MILLISECONDS: Final = 334
_NANOSECONDS: Final = 1_000_000_000

# Two initiators of one pair of nodes ask for new keys up to 5 s apart: more than any round trip.
_SPREAD: Final = 15


class Outgoing(NamedTuple):
    """A datagram to be sent.  `peer`: to it, by its best path; None: to `source` and nowhere else.

    `source` is where the message came from that this one answers; None if it answers none.
    """

    peer: Peer | None
    source: bytes | None
    datagram: bytes


@dataclass(frozen=True, slots=True)
class SessionBegun:
    """There are new keys, and the peer has them too."""

    peer: Peer
    is_initiator: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The peer answered no initiation for 97 s.  The next packet begins anew."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class KeysForgotten:
    """No new session for 540 s: the old keys are gone."""

    peer: Peer


Event: TypeAlias = SessionBegun | GaveUp | KeysForgotten


class Device:
    """The sessions of one node.  Whoever moves datagrams calls it; nobody closes it.

    `random` gives so many random bytes; `unix_seconds` is the wall clock at `now`, and later times are counted from it,
    so that a clock which is set back makes no time stamp older.  Methods raise LocalProtocolError for what we should
    not have asked; what others send raises nothing and is counted.
    """

    def __init__(
        self,
        private: NodePrivate,
        *,
        random: Callable[[int], bytes],
        now: float,
        unix_seconds: float,
        mtu: int = MTU,
    ) -> None:
        self.counters = Counters()
        self.mtu = mtu
        self._identity = Identity(private.raw)
        self._random = random
        self._unix_offset = int((unix_seconds - now) * _NANOSECONDS)
        self._admission = Admission(self._identity.public, random, now)
        self._peers: dict[bytes, Peer] = {}
        self._owners: dict[bytes, Peer] = {}
        # Whoever a receiver index means: a session, or the peer with whom we have begun one.
        self._pairs: dict[int, Pair] = {}
        self._initiators: dict[int, Peer] = {}
        self._staged_bytes = 0
        self._wakes = Deadlines[Peer]()
        self._outgoing: list[Outgoing] = []
        self._events: list[SessionBegun] = []

    @property
    def public(self) -> bytes:
        """Our public key, 32 bytes."""
        return self._identity.public

    @property
    def peers(self) -> Iterable[Peer]:
        """Everybody who is configured."""
        return self._peers.values()

    def is_under_load(self, now: float) -> bool:
        """Whether handshakes need cookies now."""
        return self._admission.is_under_load(now)

    def find(self, public: bytes) -> Peer | None:
        """The peer with this key."""
        return self._peers.get(public)

    def owner_of(self, address: bytes) -> Peer | None:
        """Whom a packet to this address (16 bytes) is for."""
        return self._owners.get(address)

    def owns(self, datagram: Payload) -> bool:
        """Whether a datagram is for this device: asked where several share a socket.  Proves nothing."""
        if len(datagram) < OVERHEAD_BYTES:
            return False
        kind, first, _ = TRANSPORT_HEAD.unpack_from(datagram)
        if kind == INITIATION:
            return len(datagram) == INITIATION_BYTES and self._admission.cookies.has_mac1(bytes(datagram))
        index = RESPONSE_HEAD.unpack_from(datagram)[2] if kind == RESPONSE else first
        return index in self._pairs or index in self._initiators

    def configure(
        self,
        public: bytes,
        addresses: Iterable[bytes],
        now: float,
        *,
        preshared: bytes = NO_PRESHARED_KEY,
        persistent_keepalive_seconds: float | None = None,
    ) -> Peer:
        """Make a peer known, or give a known one other addresses: its session goes on.

        An address that two peers claim belongs to the one configured last.  Another preshared key ends the session.
        LocalProtocolError: the key is our own or none, or there are MAX_PEERS.
        """
        peer = self._peers.get(public)
        if peer is None or peer.remote.preshared != preshared:
            remote = self._make_remote(public, preshared)
            if peer is not None:
                self.remove(public)
            elif len(self._peers) >= MAX_PEERS:
                raise LocalProtocolError(f"{MAX_PEERS} peers are configured, and no more are taken")
            peer = self._peers[public] = Peer(remote)
        self._disown(peer)
        peer.addresses = tuple(addresses)
        for address in peer.addresses:
            self._owners[address] = peer
        if peer.timers.persistent_seconds != persistent_keepalive_seconds:
            peer.timers.keep_alive(now, persistent_keepalive_seconds)
            self._schedule(peer)
        return peer

    def remove(self, public: bytes) -> None:
        """Forget a peer, its keys and what waits for it; it need not be known."""
        peer = self._peers.pop(public, None)
        if peer is None:
            return
        self._disown(peer)
        self._forget(peer)
        self._wakes.clear(peer)

    def begin_session(self, peer: Peer, now: float) -> None:
        """Ask for a session before there is anything to send; nothing happens if there is one."""
        if not self._may_send(peer.current, now):
            self._initiate(peer, now)
        self._schedule(peer)

    # --- packets ---

    def seal(self, peer: Peer, packets: Sequence[Payload], now: float) -> list[bytes]:
        """The datagrams for whole IPv6 packets, in their order.

        Empty while there is no session: copies of the packets then come out of `datagrams_to_send` once there is one.
        """
        pair = peer.current
        if pair is None or not self._may_send(pair, now, len(packets)):
            if packets:
                self._stage(peer, packets)
                self._initiate(peer, now)
                self._schedule(peer)
            return []
        sealed = pair.seal(packets, self.mtu)
        if sealed:
            self.counters.packets_sent += len(sealed)
            if not peer.timers.expects_answer:
                peer.timers.data_sent(now, self._jitter())
            peer.timers.packet_sent(now)
            self._keep_fresh(peer, pair, now)
        return sealed

    def open(self, datagrams: Sequence[Payload], source: bytes, now: float) -> list[tuple[Peer, list[bytes]]]:
        """The packets in datagrams that came one after the other from one source, by peer.

        `source` is any stable form of the path (address and port; region and key): cookies are bound to it.
        """
        received: list[tuple[Peer, list[bytes]]] = []
        at = 0
        while at < len(datagrams):
            datagram = datagrams[at]
            if len(datagram) < OVERHEAD_BYTES:
                self._drop(Drop.MALFORMED)
                at += 1
                continue
            kind, index, _ = TRANSPORT_HEAD.unpack_from(datagram)
            if kind != TRANSPORT:
                self._open_handshake(kind, bytes(datagram), source, now)
                at += 1
                continue
            pair = self._pairs.get(index)
            if pair is None or now - pair.born > REJECT_AFTER_SECONDS:
                self._drop(Drop.UNKNOWN_INDEX if pair is None else Drop.EXPIRED)
                at += 1
                continue
            at = self._open_packets(pair, datagrams, at, received, now)
        return received

    def datagrams_to_send(self) -> list[Outgoing]:
        """What is to be sent besides, in its order; handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    # --- time ---

    def take_events(self) -> list[SessionBegun]:
        """The sessions that began since the last call, in `open`."""
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None: not before something else happens."""
        return self._wakes.next_timeout()

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due by `now`, and tell what is over; then look at `datagrams_to_send`."""
        over: list[Event] = []
        for peer in self._wakes.handle_timeout(now):
            peer.wake_at = inf
            while (due := peer.timers.pop_due(now)) is not None:
                self._handle_due(peer, due, now, over)
            self._schedule(peer)
        return over

    def _handle_due(self, peer: Peer, due: Due, now: float, over: list[Event]) -> None:
        match due:
            case Due.RETRY if peer.timers.retries > MAX_RETRIES:
                self._abandon(peer)
                peer.timers.gave_up(now)
                over.append(GaveUp(peer))
            case Due.RETRY:
                peer.timers.retries += 1
                self._initiate(peer, now, is_retry=True)
            case Due.NEW_HANDSHAKE:
                self._initiate(peer, now)
            case Due.KEEPALIVE:
                self._keep_alive(peer, now, is_due=True)
            case Due.PERSISTENT_KEEPALIVE:
                self._keep_alive(peer, now)
                peer.timers.keep_alive(now, peer.timers.persistent_seconds)
            case Due.FORGET:
                self._forget(peer)
                over.append(KeysForgotten(peer))

    def _schedule(self, peer: Peer) -> None:
        # Only ever earlier: a timer that was stopped or moved on costs one idle look, not a heap operation per batch.
        due = peer.timers.next_due()
        if due < peer.wake_at and peer.public in self._peers:
            peer.wake_at = due
            self._wakes.set(peer, due)

    def _jitter(self) -> float:
        return int.from_bytes(self._random(2), "little") % _JITTER_MILLISECONDS / 1000

    # --- sending ---

    def _may_send(self, pair: Pair | None, now: float, count: int = 1) -> bool:
        return (
            pair is not None and now - pair.born < REJECT_AFTER_SECONDS and pair.sent + count <= REJECT_AFTER_MESSAGES
        )

    def _keep_fresh(self, peer: Peer, pair: Pair, now: float) -> None:
        """Something was sealed: new keys are asked for in time, by the initiator alone."""
        if pair.sent > REKEY_AFTER_MESSAGES or (pair.is_initiator and now - pair.born > pair.rekey_seconds):
            self._initiate(peer, now)
        self._schedule(peer)

    def _stage(self, peer: Peer, packets: Iterable[Payload]) -> None:
        before = peer.staged_bytes
        dropped = peer.stage(packets)
        self._staged_bytes += peer.staged_bytes - before
        while self._staged_bytes > MAX_STAGED_BYTES and peer.staged:
            self._staged_bytes -= len(peer.staged[0])
            peer.drop_oldest()
            dropped += 1
        self._drop(Drop.STAGED, dropped)

    def _take_staged(self, peer: Peer) -> list[bytes]:
        self._staged_bytes -= peer.staged_bytes
        return peer.take_staged()

    def _send_staged(self, peer: Peer, now: float, *, or_keepalive: bool = False) -> None:
        packets = self._take_staged(peer)
        if packets:
            self._outgoing += (Outgoing(peer, None, datagram) for datagram in self.seal(peer, packets, now))
        elif or_keepalive:
            self._keep_alive(peer, now)

    def _keep_alive(self, peer: Peer, now: float, *, is_due: bool = False) -> None:
        pair = peer.current
        if pair is None or not self._may_send(pair, now):
            self._initiate(peer, now)
            return
        self._outgoing += (Outgoing(peer, None, datagram) for datagram in pair.seal((b"",), self.mtu))
        self.counters.keepalives_sent += 1
        peer.timers.packet_sent(now)
        if is_due:
            peer.timers.keepalive_sent(now)
        self._keep_fresh(peer, pair, now)

    # --- handshakes that we begin ---

    def _initiate(self, peer: Peer, now: float, *, is_retry: bool = False) -> None:
        if not is_retry:
            peer.timers.retries = 0
        if peer.timers.initiation_must_wait(now):
            return
        self._drop_initiation(peer)
        index = self._fresh_index()
        wall = int(now * _NANOSECONDS) + self._unix_offset
        peer.sent_stamp, _ = next_stamp(wall, peer.sent_stamp)
        message, peer.initiation = make_initiation(
            self._identity, peer.remote, index, self._random(32), peer.sent_stamp
        )
        self._initiators[index] = peer
        self._outgoing.append(Outgoing(peer, None, peer.cookies.add_macs(message, now)))
        self.counters.initiations_sent += 1
        peer.timers.initiation_sent(now, self._jitter())

    def _receive_response(self, message: bytes, now: float) -> None:
        _, sender, receiver = RESPONSE_HEAD.unpack_from(message)
        peer = self._initiators.get(receiver)
        if peer is None or peer.initiation is None:
            self._drop(Drop.UNEXPECTED_RESPONSE)
            return
        keys = peer.initiation.open_response(message)
        if keys is None:
            self._drop(Drop.FORGED_HANDSHAKE)
            return
        self.counters.responses_received += 1
        self._drop_initiation(peer)
        pair = self._make_pair(peer, keys, receiver, sender, now, is_initiator=True)
        if peer.next is not None:
            # Both began at once, and would do so again each time the keys get old: one will be first then.
            pair.rekey_seconds += self._jitter() * _SPREAD
        self._end(peer.take_response(pair))
        peer.timers.packet_received(now)
        peer.timers.session_begun(now)
        self._begun(peer, now, is_initiator=True)
        self._send_staged(peer, now, or_keepalive=True)  # the responder may not speak before it has heard us
        self._schedule(peer)

    def _drop_initiation(self, peer: Peer) -> None:
        if peer.initiation is not None:
            del self._initiators[peer.initiation.index]
            peer.initiation = None

    # --- handshakes that others begin ---

    def _open_handshake(self, kind: int, message: bytes, source: bytes, now: float) -> None:
        if len(message) != LENGTHS.get(kind):
            self._drop(Drop.MALFORMED)
            return
        if kind == COOKIE_REPLY:
            self._receive_cookie(message, now)
            return
        if not self._admission.cookies.has_mac1(message):
            self._drop(Drop.WRONG_MAC1)
            return
        if kind == RESPONSE and RESPONSE_HEAD.unpack_from(message)[2] not in self._initiators:
            self._drop(Drop.UNEXPECTED_RESPONSE)  # before it costs somebody's budget
            return
        verdict = self._admission.judge(message, source, now)
        if verdict is not Verdict.TAKE:
            self._drop(Drop.UNDER_LOAD)
            if verdict is Verdict.ASK:
                _, sender = INITIATION_HEAD.unpack_from(message)  # of both kinds
                reply = self._admission.cookies.make_reply(message, sender, source, now)
                self._outgoing.append(Outgoing(None, source, reply))
                self.counters.cookie_replies_sent += 1
        elif kind == RESPONSE:
            self._receive_response(message, now)
        else:
            self._receive_initiation(message, source, now)

    def _receive_initiation(self, message: bytes, source: bytes, now: float) -> None:
        received = open_static(self._identity, message)
        if received is None:
            self._drop(Drop.FORGED_HANDSHAKE)
            return
        peer = self._peers.get(received.public)
        if peer is None:
            self._drop(Drop.UNKNOWN_PEER)
            return
        stamp = received.open_stamp(peer.remote.static_static)
        if stamp is None:
            self._drop(Drop.FORGED_HANDSHAKE)
        elif stamp <= peer.last_stamp:
            self._drop(Drop.OLD_INITIATION)
        elif now - peer.last_initiation_at <= MIN_INITIATION_GAP_SECONDS:
            self._drop(Drop.TOO_SOON)
        else:
            peer.last_stamp, peer.last_initiation_at = stamp, now
            self.counters.initiations_received += 1
            peer.timers.packet_received(now)
            index = self._fresh_index()
            response, keys = received.respond(peer.remote, index, self._random(32))
            pair = self._make_pair(peer, keys, index, received.sender, now, is_initiator=False)
            self._end(peer.take_initiation(pair))
            peer.timers.response_sent(now)
            self._outgoing.append(Outgoing(peer, source, peer.cookies.add_macs(response, now)))
            self.counters.responses_sent += 1
            self._schedule(peer)

    def _receive_cookie(self, message: bytes, now: float) -> None:
        _, receiver = COOKIE_REPLY_HEAD.unpack_from(message)
        pair = self._pairs.get(receiver)
        peer = self._initiators.get(receiver) or (pair.owner if pair is not None else None)
        if peer is None:
            self._drop(Drop.UNKNOWN_INDEX)
        elif not peer.cookies.receive(message, now):
            self._drop(Drop.WRONG_COOKIE)
        else:
            self.counters.cookie_replies_received += 1  # the next retry carries it

    # --- sessions ---

    def _open_packets(
        self,
        pair: Pair,
        datagrams: Sequence[Payload],
        at: int,
        received: list[tuple[Peer, list[bytes]]],
        now: float,
    ) -> int:
        peer, data = pair.owner, pair.data
        # Runs of one peer follow each other: its two sessions while keys change.
        opened = received[-1][1] if received and received[-1][0] is peer else []
        at, authentic = pair.open(datagrams, at, self._owners, opened, self.counters.drops)
        if not authentic:
            return at
        if opened and (not received or received[-1][1] is not opened):
            received.append((peer, opened))
        timers = peer.timers
        timers.packet_received(now)
        if pair is peer.next:
            self._end(peer.take_first_packet())
            self._begun(peer, now, is_initiator=False)
            self._send_staged(peer, now)
        current = peer.current
        if (
            current is not None
            and current.is_initiator
            and not timers.rekeyed_late
            and now - current.born > REKEY_BEFORE_REJECT_SECONDS
        ):
            timers.rekeyed_late = True
            self._initiate(peer, now)
        if pair.data != data:
            self.counters.packets_received += pair.data - data
            timers.data_received(now)
        self._schedule(peer)
        return at

    def _begun(self, peer: Peer, now: float, *, is_initiator: bool) -> None:
        peer.timers.handshake_done()
        peer.last_handshake_at = now
        self._events.append(SessionBegun(peer, is_initiator))

    def _make_pair(
        self, peer: Peer, keys: TransportKeys, local: int, remote: int, now: float, *, is_initiator: bool
    ) -> Pair:
        pair = Pair(peer, keys, local, remote, now, is_initiator=is_initiator)
        self._pairs[local] = pair
        return pair

    def _end(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            del self._pairs[pair.local_index]

    def _forget(self, peer: Peer) -> None:
        """Keys, the handshake and what waits for one."""
        self._end(peer.drop_pairs())
        self._abandon(peer)
        peer.timers.stop()

    def _abandon(self, peer: Peer) -> None:
        """The handshake that we began, and what waits for it."""
        self._drop_initiation(peer)
        self._drop(Drop.STAGED, len(self._take_staged(peer)))

    def _make_remote(self, public: bytes, preshared: bytes) -> Remote:
        if public == self.public:
            raise LocalProtocolError("a peer has our own key: two nodes must not share a private key")
        static_static = self._identity.agree(public) if len(public) == len(self.public) else None
        if static_static is None:
            raise LocalProtocolError(f"key {short_key(public)} is not a usable curve25519 public key")
        return Remote(public, static_static, preshared)

    def _disown(self, peer: Peer) -> None:
        for address in peer.addresses:
            if self._owners.get(address) is peer:
                del self._owners[address]
        peer.addresses = ()

    def _fresh_index(self) -> int:
        return fresh_index(self._random, self._pairs, self._initiators)

    def _drop(self, reason: Drop, count: int = 1) -> None:
        self.counters.drops[reason] += count
