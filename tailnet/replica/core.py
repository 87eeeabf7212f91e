"""A coordinator that shares its peers with those of other replicas (layer L1, timed).

A peer elsewhere is a peer of the graph whose connection is its replica's Site: every rule of coordinator/core holds for
it, and what the core delivers to a Site becomes messages to that replica.  Each link of the graph has an end that is
connected here.  Wants are such links and nothing else: a tunnel that a peer of ours opened to one that is elsewhere, or
nowhere.  Who owns a peer: the larger claim, (epoch, replica).  replica/cluster.py calls it, and carries its Outward
effects out.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, cast

from derp.relay.deadlines import Deadlines
from tailnet.coordinator.core import (
    REASON_CLOSE,
    REASON_LOST,
    REASON_REMOVE_TUNNEL,
    Coordinator,
    Statistics,
)
from tailnet.coordinator.messages import C, Deliver, Effect, Kind, Request
from tailnet.coordinator.nodes import Limits, Node
from tailnet.coordinator.policy import Policy
from tailnet.coordinator.tunnels import IN, OUT, TOLD, Peer
from tailnet.errors import LocalProtocolError
from tailnet.replica.cluster_time import ClusterTime
from tailnet.replica.messages import (
    MAX_NODE_BYTES,
    Announce,
    Ask,
    Came,
    Claim,
    Gone,
    Known,
    NodeIs,
    Open,
    PeerMessage,
    Publish,
    Ready,
    ReplicaID,
    Shut,
    Sync,
    Synced,
    Want,
    Who,
    Withdraw,
    portions,
)
from tailnet.replica.site import Site
from tailnet.types import PeerID

# A peer whose replica says that it is not there, though we knew it there: its new owner is heard of within a link's
# latency, and nobody has to be told LOST meanwhile.  As long as a silent replica is waited for.
DOUBT_SECONDS: Final = 6.0
# A tunnel whose source has a new owner is there until then, or until somebody names it: stock clients open theirs again
# when they dial, and dial within 10 s.
UNCONFIRMED_SECONDS: Final = 30.0
# Whom somebody waits for, all replicas are asked again for, now and then; the range keeps them apart.
ASK_SECONDS: Final = (22.5, 37.5)
# What fits into a frame of 64 KiB: a claim has 24 bytes, an id 16, a want 65 at the most, what is known 33.
MAX_CLAIMS: Final = 2000
MAX_IDS: Final = 3000
MAX_WANTS: Final = 800
MAX_KNOWN: Final = 1500


class SharedCoordinator(Coordinator[C]):
    """The peers of one replica, and those elsewhere that share tunnels with them.

    Events of own connections are Coordinator's; `handle_remote_*` and `handle_replica_*` say what others told.  Effects
    for own connections come mixed with Outward ones, which are carried out in the same order.
    """

    def __init__(
        self,
        replica: ReplicaID,
        time: ClusterTime,
        random: Callable[[], float],
        limits: Limits | None = None,
    ) -> None:
        """`random` gives numbers from 0 to 1."""
        super().__init__(limits or Limits(node_bytes=MAX_NODE_BYTES))
        if self.limits.node_bytes > MAX_NODE_BYTES:
            raise LocalProtocolError(f"replicas tell each other nodes of up to {MAX_NODE_BYTES} bytes")
        self.replica = replica
        self._time = time
        self._random = random
        self._sites: dict[ReplicaID, Site[C]] = {}
        self._doubted: Deadlines[Peer[C]] = Deadlines()
        self._unconfirmed: Deadlines[tuple[Peer[C], Peer[C]]] = Deadlines()
        self._ask_at: float | None = None
        self._restamped_at = float("-inf")
        # What others claimed of peers that are known here: it is theirs now, was before, or somebody's claim is larger.
        self.claims = {"taken": 0, "known": 0, "older": 0}
        # What comparisons in the midst of a session put right: stays 0 as long as nothing is lost unseen.
        self.mended = {"node": 0, "tunnel": 0, "peer": 0}
        self._has_met = False  # any other replica, be it silent now

    # What happened to own connections.

    def handle_connect(self, peer_id: PeerID, policy: Policy, connection: C, now: float) -> list[Effect[C]]:
        effects: list[Effect[C]] = []
        peer = self._tunnels.peers.get(peer_id)
        site = None if peer is None or self._closed else _site_of(peer)
        if peer is not None and site is not None:
            # It was elsewhere, and is here now: as if its older connection had been ours.
            self._leave(peer, site)
            peer.connection = None
            self._pass_on(peer, policy, effects)
        effects += super().handle_connect(peer_id, policy, connection, now)
        peer = self._connected.get(connection)
        if peer is not None:
            peer.epoch, peer.version = self._time.stamp(now), 0
            effects.append(Announce((Claim(peer.id, peer.epoch),)))
            for other, bits in peer.links.items():
                owner = _site_of(other)
                if bits & OUT:
                    # It may have removed this one at a replica that died, or that we have not heard since, or ever.
                    self._unconfirmed.set((peer, other), now + UNCONFIRMED_SECONDS)
                if owner is not None:
                    peer.links[other] = bits & ~TOLD
                    if bits & OUT:
                        self._open(peer, other, owner, effects)
        return self._outward(effects, now)

    def handle_request(self, connection: C, request: Request, now: float) -> list[Effect[C]]:
        return self._outward(super().handle_request(connection, request, now), now)

    def handle_disconnect(self, connection: C, graceful: bool, now: float) -> list[Effect[C]]:
        return self._outward(super().handle_disconnect(connection, graceful, now), now)

    def handle_overflow(self, connection: C, now: float) -> list[Effect[C]]:
        return self._outward(super().handle_overflow(connection, now), now)

    def handle_revoke(self, connection: C, now: float) -> list[Effect[C]]:
        return self._outward(super().handle_revoke(connection, now), now)

    def handle_revoke_tunnels(self, connection: C, dst_ids: Iterable[bytes]) -> list[Effect[C]]:
        # Nobody is asked for when a tunnel goes, so no time is needed.
        return self._outward(super().handle_revoke_tunnels(connection, dst_ids), 0.0)

    def handle_move(self, connection: C, now: float) -> None:
        """We are about to end this connection, whose peer comes back at another replica: nobody is told, here or there.

        If nobody claims it within DOUBT_SECONDS, it is lost to those who are here.
        """
        peer = self._connected.pop(connection, None)
        if peer is not None:
            self._note_departure(peer.id, Kind.LOST, REASON_CLOSE, "", now)
            peer.connection = peer.policy = None
            # Until then it is as if it were at another replica: ours, with which nobody has a session.
            self._adopt(self._site(self.replica), peer, peer.epoch, now, [])
            self._doubted.set(peer, now + DOUBT_SECONDS)
            self._forget_if_idle(peer)

    def handle_close(self, now: float) -> list[Effect[C]]:
        """No replica is told: others keep our peers for as long as we may be silent, so most come back unnoticed."""
        effects = super().handle_close(now)
        self._sites.clear()
        self._doubted, self._unconfirmed = Deadlines(), Deadlines()
        self._ask_at = None
        return effects

    # What other replicas say of peers.  Every message is a claim first.

    def handle_message(self, replica: ReplicaID, message: PeerMessage, now: float) -> list[Effect[C]]:
        """One message of a session, in its order."""
        match message:
            case NodeIs():
                return self.handle_remote_node(replica, message, now)
            case Came(claims):
                return self.handle_remote_came(replica, claims, now)
            case Who(peer_ids):
                return self.handle_remote_who(replica, peer_ids)
            case Open():
                return self.handle_remote_open(replica, message, now)
            case Shut():
                return self.handle_remote_shut(replica, message, now)
            case Gone():
                return self.handle_remote_gone(replica, message, now)
            case Ready():
                return self.handle_remote_ready(replica, message, now)
            case Sync():
                return self.handle_replica_sync(replica, message, now)
            case Synced():
                return self.handle_replica_synced(replica, now)

    def handle_remote_came(self, replica: ReplicaID, claims: Iterable[Claim], now: float) -> list[Effect[C]]:
        """These connections are the replica's: of interest where a peer here shares a tunnel with one, or is one."""
        effects: list[Effect[C]] = []
        site, peers = self._site(replica), self._tunnels.peers
        for peer_id, epoch in claims:
            peer = peers.get(peer_id)
            if peer is not None and self._claim(site, peer, epoch, now, effects):
                self._forget_if_idle(peer)
        return self._outward(effects, now)

    def handle_remote_who(self, replica: ReplicaID, peer_ids: Iterable[PeerID]) -> list[Effect[C]]:
        """Only the owner answers."""
        peers = self._tunnels.peers
        held = [peer for each in peer_ids if (peer := peers.get(each)) is not None and _is_here(peer)]
        return [
            Publish((replica,), (Came(part),))
            for part in portions([Claim(peer.id, peer.epoch) for peer in held], MAX_CLAIMS)
        ]

    def handle_remote_open(self, replica: ReplicaID, opened: Open, now: float) -> list[Effect[C]]:
        """A tunnel to a peer of ours, and the node of its source."""
        effects: list[Effect[C]] = []
        site = self._site(replica)
        ends = self._tunnel_from(site, opened.src, opened.epoch, opened.dst, now, effects)
        if ends is not None:
            src, dst = ends
            self._take_remote_node(src, opened.version, opened.node, effects)
            self._answer(site, dst, None, effects)
        return self._outward(effects, now)

    def handle_remote_shut(self, replica: ReplicaID, shut: Shut, now: float) -> list[Effect[C]]:
        """The source removed the tunnel."""
        effects: list[Effect[C]] = []
        src, dst = self._tunnels.peers.get(shut.src), self._tunnels.peers.get(shut.dst)
        if src is not None and self._claim(self._site(replica), src, shut.epoch, now, effects):
            if dst is not None and dst in src.links:
                reason = REASON_LOST if shut.kind is Kind.LOST else REASON_REMOVE_TUNNEL
                self._part(src, dst, reason, effects, shut.kind)
            self._forget_if_idle(src)
        return self._outward(effects, now)

    def handle_remote_node(self, replica: ReplicaID, told: NodeIs, now: float) -> list[Effect[C]]:
        """The owner's peer sent a node, or the owner says that we know the last."""
        effects: list[Effect[C]] = []
        peer = self._tunnels.peers.get(told.peer_id)
        if peer is not None and self._claim(self._site(replica), peer, told.epoch, now, effects):
            self._take_remote_node(peer, told.version, told.node, effects)
            self._forget_if_idle(peer)
        return self._outward(effects, now)

    def handle_remote_gone(self, replica: ReplicaID, gone: Gone, now: float) -> list[Effect[C]]:
        """The connection ended; or the peer is not there, and somebody else may hold it."""
        effects: list[Effect[C]] = []
        site = self._site(replica)
        peer = self._tunnels.peers.get(gone.peer_id)
        if peer is None:
            return []
        if gone.epoch == 0:
            if _site_of(peer) is site:
                effects.append(Ask((peer.id,)))
                self.mended["peer"] += site.has_told and peer in site.unconfirmed
                site.unconfirmed.pop(peer, None)
                if peer not in self._doubted:
                    self._doubted.set(peer, now + DOUBT_SECONDS)
        elif peer.connection is not None and self._claim(site, peer, gone.epoch, now, effects):
            self._lose(peer, site, gone.kind, gone.reason, effects)
        return self._outward(effects, now)

    def handle_remote_ready(self, replica: ReplicaID, ready: Ready, now: float) -> list[Effect[C]]:
        """Its agent has programmed these peers of ours; whoever does not share a tunnel its own replica told so."""
        effects: list[Effect[C]] = []
        peer = self._tunnels.peers.get(ready.src)
        if peer is not None and self._claim(self._site(replica), peer, ready.epoch, now, effects):
            self._tell_ready(peer, ready.dsts, effects)
            self._forget_if_idle(peer)
        return self._outward(effects, now)

    # Sessions with other replicas.

    def handle_replica_up(self, replica: ReplicaID, since: float | None, now: float) -> list[Effect[C]]:
        """A session begins; what we announced before `since` the replica has heard."""
        site = self._site(replica)
        everything = since is None or self._restamped_at >= since
        claims = [
            Claim(peer.id, peer.epoch)
            for peer in self._connected.values()
            if everything or peer.connected_at >= cast(float, since)
        ]
        site.named.clear()  # of a Sync that the last session did not end
        site.has_asked = site.has_told = False
        messages: list[PeerMessage] = [Came(part) for part in portions(claims, MAX_CLAIMS)]
        messages += self._compare(site)
        elsewhere = [
            peer.id
            for peer in self._tunnels.peers.values()
            if not _is_here(peer) and _site_of(peer) is not site and _is_wanted(peer)
        ]
        messages += [Who(part) for part in portions(elsewhere, MAX_IDS)]
        return [Publish((replica,), tuple(messages))]

    def handle_sync_due(self, replica: ReplicaID) -> list[Effect[C]]:
        """Compare again in the midst of a session: whatever went wrong unseen is right afterwards."""
        return [Publish((replica,), tuple(self._compare(self._site(replica))))]

    def handle_replica_sync(self, replica: ReplicaID, sync: Sync, now: float) -> list[Effect[C]]:
        """What the replica holds of ours: each is answered; behind the last part, what was not named is forgotten."""
        effects: list[Effect[C]] = []
        site = self._site(replica)
        unknown: list[Known] = []
        for want in sync.wants:
            ends = self._tunnel_from(site, want.src, want.epoch, want.dst, now, effects)
            if ends is not None:
                src, dst = ends
                site.named.add(ends)
                if src.version < want.version:
                    unknown.append(Known(src.id, src.epoch, src.version))
                self._note_missed(site, dst, want.known_epoch, want.known_version, now)
                self._answer(site, dst, (want.known_epoch, want.known_version), effects)
        for known in sync.known:
            peer = self._tunnels.peers.get(known.peer_id)
            if peer is not None and _is_here(peer):
                self._note_missed(site, peer, known.epoch, known.version, now)
                self._answer(site, peer, (known.epoch, known.version), effects)
            else:
                effects.append(_not_here(site, known.peer_id))
        if unknown:
            effects += [Publish((replica,), (Sync((), part),)) for part in portions(unknown, MAX_KNOWN)]
        if sync.last:
            for src in list(site.peers):
                for dst, bits in list(src.links.items()):
                    tunnel = (src, dst)
                    if bits & OUT and tunnel not in site.named and tunnel not in self._unconfirmed:
                        self.mended["tunnel"] += site.has_asked
                        self._part(src, dst, REASON_LOST, effects, Kind.LOST)
            site.named.clear()
            site.has_asked = True
            effects.append(Publish((replica,), (Synced(),)))
        return self._outward(effects, now)

    def handle_replica_synced(self, replica: ReplicaID, now: float) -> list[Effect[C]]:
        """All our questions were answered: of whom it said nothing, it knows nothing."""
        effects: list[Effect[C]] = []
        site = self._site(replica)
        for peer in list(site.unconfirmed):
            self.mended["peer"] += site.has_told
            self._lose(peer, site, Kind.LOST, REASON_LOST, effects)
        site.has_told = True
        return self._outward(effects, now)

    def handle_replica_down(self, replica: ReplicaID, now: float) -> list[Effect[C]]:
        """It is silent.  LOST costs a live session nothing; DISCONNECTED would cut it."""
        effects: list[Effect[C]] = []
        site = self._sites.pop(replica, None)
        if site is not None:
            for peer in list(site.peers):
                self._lose(peer, site, Kind.LOST, REASON_LOST, effects)
        return self._outward(effects, now)

    def handle_clock_jump(self, now: float) -> list[Effect[C]]:
        """The cluster's time is ahead of what our stamps were made with: they are made anew, and told."""
        self._time.restamp()
        self._restamped_at = now
        claims: list[Claim] = []
        for peer in self._connected.values():  # the oldest first
            peer.epoch = self._time.stamp(peer.connected_at)
            claims.append(Claim(peer.id, peer.epoch))
        effects: list[Effect[C]] = [Announce(part) for part in portions(claims, MAX_CLAIMS)]
        effects += [Publish((site.replica,), tuple(self._compare(site))) for site in self._sites.values()]
        return effects

    # Time.

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        due, doubted, unconfirmed = self._ask_at, self._doubted.next_timeout(), self._unconfirmed.next_timeout()
        if doubted is not None and (due is None or doubted < due):
            due = doubted
        return unconfirmed if unconfirmed is not None and (due is None or unconfirmed < due) else due

    def handle_timeout(self, now: float) -> list[Effect[C]]:
        """Nobody claimed a doubted peer, or confirmed a tunnel; or it is time to ask again."""
        effects: list[Effect[C]] = []
        for peer in self._doubted.handle_timeout(now):
            site = _site_of(peer)
            if site is not None:
                self._lose(peer, site, Kind.LOST, REASON_LOST, effects)
        for src, dst in self._unconfirmed.handle_timeout(now):
            if src.links.get(dst, 0) & OUT and self._has_met:
                self._part(src, dst, REASON_LOST, effects, Kind.LOST)
            elif src.links.get(dst, 0) & OUT:  # only who is met later can have ended it
                self._unconfirmed.set((src, dst), now + UNCONFIRMED_SECONDS)
        if self._ask_at is not None and self._ask_at <= now:
            self._ask_at = None
            absent = [peer.id for peer in self._tunnels.peers.values() if peer.connection is None]
            effects += [Ask(part) for part in portions(absent, MAX_IDS)]
        return self._outward(effects, now)

    # What is known.

    def connection_of(self, peer_id: bytes) -> C | None:
        peer = self._tunnels.peers.get(peer_id)
        return peer.connection if peer is not None and _is_here(peer) else None

    @property
    def connected_count(self) -> int:
        """Own connections."""
        return len(self._connected)

    def owner_of(self, peer_id: bytes) -> ReplicaID | None:
        """Where a peer is, as far as it is known here: of peers elsewhere only those that share a tunnel with ours."""
        peer = self._tunnels.peers.get(peer_id)
        if peer is None or peer.connection is None:
            return None
        site = _site_of(peer)
        if site is None:
            return self.replica
        return site.replica if site.replica != self.replica else None  # it has left us, and is nowhere yet

    def statistics(self) -> Statistics:
        numbers = super().statistics()
        return replace(
            numbers, absent_peers=numbers.absent_peers - sum(len(site.peers) for site in self._sites.values())
        )

    def check(self) -> None:
        self._tunnels.check()
        peers = self._tunnels.peers.values()
        here = {peer for peer in peers if _is_here(peer)}
        assert here == set(self._connected.values())
        assert all(peer.connection == connection for connection, peer in self._connected.items())
        for peer in peers:
            site = _site_of(peer)
            assert site is None or (self._sites.get(site.replica) is site and peer in site.peers)
            if peer not in here:
                assert peer.policy is None
                assert peer.links, "a peer elsewhere that nobody here shares a tunnel with"
                assert here.issuperset(peer.links), "a tunnel between two that are elsewhere"
            assert (peer.epoch > 0) == (peer.connection is not None), "an epoch is a connection's"
        for site in self._sites.values():
            assert all(_site_of(peer) is site for peer in site.peers)
            assert site.peers.keys() >= site.unconfirmed.keys()
        assert all(_site_of(peer) is not None for peer in self._doubted)

    # Hooks of the core.

    def _take_node(self, peer: Peer[C], node: Node, effects: list[Effect[C]]) -> None:
        before = peer.node
        super()._take_node(peer, node, effects)
        if peer.node is not before:
            peer.version += 1

    def _add_tunnel(self, peer: Peer[C], connection: C, dst_id: PeerID, effects: list[Effect[C]]) -> None:
        super()._add_tunnel(peer, connection, dst_id, effects)
        other = self._tunnels.shared(peer, dst_id)
        if other is not None:
            self._unconfirmed.clear((peer, other))

    def _introduce(self, peer: Peer[C], other: Peer[C], effects: list[Effect[C]]) -> None:
        site = _site_of(other)
        if site is None:
            super()._introduce(peer, other, effects)
            if other.connection is None:
                effects.append(Ask((other.id,)))
            return
        self._open(peer, other, site, effects)
        self._tell_node(other, peer, effects)

    def _part(
        self,
        src: Peer[C],
        dst: Peer[C],
        reason: str,
        effects: list[Effect[C]],
        kind: Kind = Kind.DISCONNECTED,
    ) -> None:
        site = _site_of(dst)
        if site is not None and src.links[dst] & OUT:
            effects.append(Publish((site.replica,), (Shut(src.id, src.epoch, dst.id, kind),)))
        super()._part(src, dst, reason, effects, kind)
        for end in (src, dst):
            self._forget_if_idle(end)

    def _depart(
        self, peer: Peer[C], kind: Kind, reason: str, now: float, effects: list[Effect[C]], refusal: str = ""
    ) -> None:
        elsewhere = [other for other in peer.links if _site_of(other) is not None]
        replicas = tuple(dict.fromkeys(cast("Site[C]", other.connection).replica for other in elsewhere))
        epoch = peer.epoch
        for other in elsewhere:
            # Where the peer comes back, its replica is told of this tunnel again.
            self._tunnels.close(other, peer)
        super()._depart(peer, kind, reason, now, effects, refusal)
        peer.epoch = peer.version = 0
        for other in elsewhere:
            self._forget_if_idle(other)
        gone = Gone(peer.id, epoch, kind, reason)
        if replicas:
            effects.append(Publish(replicas, (gone,)))
        # As long as tunnels of the connection before may stand elsewhere, unconfirmed.
        if len(replicas) < len(self._sites) and now < peer.connected_at + UNCONFIRMED_SECONDS:
            effects.append(Withdraw(gone))
        if peer.links:
            effects.append(Ask((peer.id,)))

    def _ready_for_handshake(
        self, peer: Peer[C], connection: C, ready: Iterable[bytes], effects: list[Effect[C]]
    ) -> None:
        here: list[bytes] = []
        away: dict[ReplicaID, list[PeerID]] = {}
        for peer_id in dict.fromkeys(ready):
            other = self._tunnels.shared(peer, peer_id)
            site = None if other is None else _site_of(other)
            if other is None or site is None:
                here.append(peer_id)
            else:
                away.setdefault(site.replica, []).append(other.id)
        super()._ready_for_handshake(peer, connection, here, effects)
        for replica, dsts in away.items():
            effects += [Publish((replica,), (Ready(peer.id, peer.epoch, part),)) for part in portions(dsts, MAX_IDS)]

    # Owners.

    def _site(self, replica: ReplicaID) -> Site[C]:
        site = self._sites.get(replica)
        if site is None:
            site = self._sites[replica] = Site(replica)
            self._has_met = True
        return site

    def _claim(self, site: Site[C], peer: Peer[C], epoch: int, now: float, effects: list[Effect[C]]) -> bool:
        """Whether the replica owns this peer by what it says; if so, it does from now on."""
        owner = _site_of(peer)
        if peer.connection is not None:
            known = (peer.epoch, self.replica if owner is None else owner.replica)
            if (epoch, site.replica) < known:
                self.claims["older"] += 1
                if owner is None:
                    effects.append(Publish((site.replica,), (Came((Claim(peer.id, peer.epoch),)),)))
                return False
            if (epoch, site.replica) == known:
                self.claims["known"] += 1
                site.unconfirmed.pop(peer, None)
                self._doubted.clear(peer)
                return True
        elif epoch == 0:
            return False
        self.claims["taken"] += 1
        self._adopt(site, peer, epoch, now, effects)
        return True

    def _adopt(self, site: Site[C], peer: Peer[C], epoch: int, now: float, effects: list[Effect[C]]) -> None:
        """The replica owns the peer now, and nobody is told that anything was lost: its node stays until a new one."""
        before = _site_of(peer)
        if before is not None:
            self._leave(peer, before)
        elif peer.connection is not None:
            self._end_overtaken(peer, effects)
            peer.policy = None
            # Whoever cannot hear the new owner would believe in this connection for as long as the two are apart; so
            # would the new owner, if that connection went before it heard of this one.
            sites = dict.fromkeys(third for other in peer.links if (third := _site_of(other)) is not None)
            effects += [_not_here(third, peer.id) for third in sites]
        if peer.node is not None:
            peer.overtaken_node, peer.node = peer.node, None
        peer.connection = cast(C, site)
        peer.epoch, peer.version, peer.audience = epoch, 0, None
        site.peers[peer] = None
        for other, bits in list(peer.links.items()):
            other.audience = None
            if not _is_here(other):
                # The peer was ours: its replica opens this one anew, or the other's does.
                self._tunnels.close(peer, other)
                self._tunnels.close(other, peer)
                self._forget_if_idle(other)
                continue
            if bits & OUT:
                self._unconfirmed.set((peer, other), now + UNCONFIRMED_SECONDS)
                # The new owner hears our node when it opens the tunnel, for every Open is answered.
                other.links[peer] = other.links[peer] & ~TOLD | (TOLD if other.node is not None else 0)
            if bits & IN:
                other.links[peer] &= ~TOLD
                self._open(other, peer, site, effects)

    def _leave(self, peer: Peer[C], site: Site[C]) -> None:
        """The replica does not own the peer any more."""
        del site.peers[peer]
        site.unconfirmed.pop(peer, None)
        self._doubted.clear(peer)

    def _lose(self, peer: Peer[C], site: Site[C], kind: Kind, reason: str, effects: list[Effect[C]]) -> None:
        """The peer is nowhere, as far as we know; whoever wants it asks for it once more."""
        self._leave(peer, site)
        self._unseat(peer, kind, reason, effects)
        peer.epoch = peer.version = 0
        if peer.links:
            effects.append(Ask((peer.id,)))

    def _forget_if_idle(self, peer: Peer[C]) -> None:
        """Nobody here shares a tunnel with a peer elsewhere: what becomes of it is not our matter."""
        site = _site_of(peer)
        if not peer.links and (site is not None or peer.connection is None):
            if site is not None:
                self._leave(peer, site)
                peer.connection = None
            self._tunnels.peers.pop(peer.id, None)

    # Tunnels and nodes across replicas.

    def _open(self, src: Peer[C], dst: Peer[C], site: Site[C], effects: list[Effect[C]]) -> None:
        if src.node is not None:
            src.links[dst] |= TOLD
        effects.append(Publish((site.replica,), (Open(src.id, src.epoch, dst.id, src.version, src.node),)))

    def _tunnel_from(
        self, site: Site[C], src_id: PeerID, epoch: int, dst_id: PeerID, now: float, effects: list[Effect[C]]
    ) -> tuple[Peer[C], Peer[C]] | None:
        """The ends of a tunnel that the replica's peer has to one of ours; None when it is none, which is answered."""
        peers = self._tunnels.peers
        dst = peers.get(dst_id)
        if dst is None or not _is_here(dst) or src_id == dst_id:
            effects.append(_not_here(site, dst_id))
            src = peers.get(src_id)
            if src is not None and self._claim(site, src, epoch, now, effects):
                self._forget_if_idle(src)
            return None
        src = self._tunnels.seat(src_id)
        if not self._claim(site, src, epoch, now, effects):
            return None
        if self._tunnels.open(src, dst):
            self._tell_node(src, dst, effects)
        self._unconfirmed.clear((src, dst))
        return src, dst

    def _take_remote_node(self, peer: Peer[C], version: int, node: Node | None, effects: list[Effect[C]]) -> None:
        if node is not None and version > peer.version:
            peer.version = version
            super()._take_node(peer, node, effects)

    def _answer(self, site: Site[C], peer: Peer[C], known: tuple[int, int] | None, effects: list[Effect[C]]) -> None:
        """Say what our peer's node is, unless the replica knows it."""
        if peer.node is not None:
            for other in peer.links:
                if _site_of(other) is site:
                    peer.links[other] |= TOLD
        node = peer.node if known is None or known < (peer.epoch, peer.version) else None
        effects.append(Publish((site.replica,), (NodeIs(peer.id, peer.epoch, peer.version, node),)))

    def _note_missed(self, site: Site[C], peer: Peer[C], epoch: int, version: int, now: float) -> None:
        """Count a node that the replica does not know in the midst of a session, though it was told some time ago."""
        if site.has_asked and epoch == peer.epoch and 0 < version < peer.version:
            self.mended["node"] += now - peer.updated_at > DOUBT_SECONDS

    def _compare(self, site: Site[C]) -> list[PeerMessage]:
        """The parts of a Sync: all that we hold of the replica's peers."""
        site.unconfirmed = dict.fromkeys(site.peers)
        wants: list[Want] = []
        known: list[Known] = []
        for peer in site.peers:
            sources = [other for other, bits in peer.links.items() if bits & IN]
            if not sources:
                known.append(Known(peer.id, peer.epoch, peer.version))
            for src in sources:
                wants.append(Want(src.id, src.epoch, peer.id, peer.epoch, peer.version, src.version))
        parts: list[PeerMessage] = [Sync(wants=part) for part in portions(wants, MAX_WANTS)]
        parts += [Sync(known=part) for part in portions(known, MAX_KNOWN)]
        # Whom we sent away is named by nobody until he is claimed, and would be swept where this one ends.
        return parts if self._closed or self.replica in self._sites else [*parts, Sync(last=True)]

    # Effects.

    def _outward(self, effects: list[Effect[C]], now: float) -> list[Effect[C]]:
        """What was delivered to Sites goes to their replicas, once to each however many of its peers are told.

        A replica alone has no Sites, so it does not look for one among its receivers.
        """
        out: list[Effect[C]] = []
        for effect in effects:
            if type(effect) is Deliver and self._sites:
                sites = [receiver for receiver in effect.receivers if isinstance(receiver, Site)]
                if sites:
                    here = tuple([receiver for receiver in effect.receivers if not isinstance(receiver, Site)])
                    if here:
                        out.append(Deliver(here, effect.updates))
                    (update,) = effect.updates  # several go to one connection only
                    peer = self._tunnels.peers.get(update.peer_id)
                    # That it left, or that a tunnel is gone, has messages of its own.
                    if update.kind is Kind.NODE and peer is not None and peer.epoch:
                        replicas = tuple(dict.fromkeys([site.replica for site in sites]))
                        out.append(Publish(replicas, (NodeIs(peer.id, peer.epoch, peer.version, update.node),)))
                    continue
            elif self._ask_at is None and type(effect) is Ask:
                low, high = ASK_SECONDS
                self._ask_at = now + low + (high - low) * self._random()
            out.append(effect)
        return out


def _site_of(peer: Peer[C]) -> Site[C] | None:
    connection = peer.connection
    return connection if isinstance(connection, Site) else None


def _is_here(peer: Peer[C]) -> bool:
    return peer.policy is not None


def _is_wanted(peer: Peer[C]) -> bool:
    return any(bits & IN for bits in peer.links.values())


def _not_here(site: Site[C], peer_id: PeerID) -> Publish:
    return Publish((site.replica,), (Gone(peer_id, 0, Kind.LOST, REASON_LOST),))
