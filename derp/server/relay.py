"""One relay without its sockets: brain, sessions, mesh and deadlines, on a host that somebody else runs.  Layer L3.

server.py gives it listeners; a control plane embeds it behind its own front door.  Its deadlines are timers of the
host; what has to wait (admission, names, other relays) are tasks of `run`.
"""

import logging
import math
import random
import secrets
import ssl
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from derp.admission.trials import Trials
from derp.config import RelayConfig, RelayRules
from derp.protocol.messages import Restarting, ServerInfo, encode
from derp.relay.clients import Client
from derp.relay.keepalive import KeepAliveWheel
from derp.relay.load import LoadMeter
from derp.relay.mailbox import HOLD_SECONDS
from derp.relay.mesh import MeshPeerState
from derp.relay.rounds import Round
from derp.relay.router import Router
from derp.relay.rtt import ERROR_BUCKET, NON_TCP_BUCKET, rtt_bucket
from derp.relay.siblings import Place, WorkerRouter
from derp.server.admission import Admission, KnownKeys, Verdict
from derp.server.advisor import LOOK_SECONDS, WITHDRAWN_TEXT, health_frame
from derp.server.bootstrap import BootstrapDns
from derp.server.decisions import DecisionLog
from derp.server.ledger import Ledger
from derp.server.lobby import Lobby
from derp.server.memory import memory_bytes
from derp.server.merged import Other
from derp.server.mesh import Mesh
from derp.server.quotas import QuotaKeeper
from derp.server.session import ClientSession, Sessions
from derp.server.siblings import Siblings
from derp.server.succession import Succession
from derp.server.upgrade import DerpUpgrades
from derp.text import some_of
from derp.transport.alarm import Alarm
from derp.transport.host import Host

if TYPE_CHECKING:
    from derp.server.invitations import Invitation, Invitations
    from derp.server.keysets import KeySetFollower
    from derp.server.verify import Verifier

_log = logging.getLogger("derp.server")

# How often the kernel is asked about each client's round-trip time.
_RTT_ROUND_SECONDS: Final = 10.0
# A stock node keeps a silent relay as its home if it heard a frame from the relay in the last 8 s, and it notes one
# frame in 5 s.  So a client that we close later than this after the announcement gets the announcement again.
_ANNOUNCED_SECONDS: Final = 1.0
# The least that the frame can say but 0, which tells other relays of the process that takes our place.
_AT_ONCE_SECONDS: Final = 0.001
# Others send packets here for a client that has gone until they hear of its new place, from there.
_NEWS_SECONDS: Final = HOLD_SECONDS
# A relay that is restarted is back in about a second: only what lasts is worth a word to everybody.
_AWAY_SECONDS: Final = 3.0


class Relay:
    """Create on a host, put `upgrades` and pages behind a front door, and `run` it.  After `drain_clients`, or when
    `run` was cancelled, forget it."""

    def __init__(
        self,
        config: RelayConfig,
        host: Host,
        lobby: Lobby,
        *,
        mesh_context: ssl.SSLContext | None = None,
        registry: KnownKeys | None = None,
        place: Place | None = None,
        has_kin: bool = False,
    ) -> None:
        """`mesh_context`: how other relays are trusted; None: as this machine trusts everybody.  `registry`: the keys
        that whoever embeds this relay has heard of; others then have a minute to be announced, unless `open`.
        `place`: which of several workers we are; None: this process is the whole relay.  `has_kin`: whoever embeds this
        relay has `mesh` keep connections to others of the region, also where it has no mesh key."""
        self.config = config
        self.host = host
        self.public_key = config.private_key.public()
        self.router = _open_router(config, self.public_key.raw, place)
        self.siblings = Siblings(self.router, host) if isinstance(self.router, WorkerRouter) else None
        self.others: tuple[Other, ...] = ()
        """What the other workers have for the page that is being made (together.py)."""
        self.verifier = _open_verifier(config)
        self.key_sets = _open_key_sets(config)
        has_registry = registry is not None and not config.open
        known = [one for one in (registry if has_registry else None, self.key_sets) if one is not None]
        self.invitations = _open_invitations(config)
        self.decisions = DecisionLog(config.admission_log) if config.admission_log is not None else None
        if self.decisions is not None:
            self.decisions.open()
        self.sessions = Sessions(
            self.router,
            host,
            lobby,
            config.private_key,
            Admission(
                config,
                self.verifier,
                known=known,
                invitations=self.invitations,
                trials=Trials() if has_registry else None,
            ),
            random_bytes=secrets.token_bytes,
            mesh_write_seconds=config.mesh_write_timeout_seconds,
            decisions=self.decisions,
            server_info=ServerInfo(queue_depth=config.queue_depth),
        )
        if self.siblings is not None and self.verifier is not None:
            _share_verdicts(self.siblings, self.verifier)
        self.upgrades = DerpUpgrades(self.sessions)
        self.bootstrap = BootstrapDns(config.bootstrap_dns_names, config.unpublished_bootstrap_dns_names)
        self.mesh: Mesh | None = None
        if config.mesh_key is not None or has_kin:
            # A peer may announce as many clients as it may have, twice that for a larger machine than ours.
            max_keys = 2 * config.max_connections
            self.mesh = Mesh(
                self.sessions, config.private_key, config.mesh_key, max_keys=max_keys, context=mesh_context
            )
        self.is_draining = False
        self.siblings_stay = False
        """While we drain: other workers of this relay go on, and clients that we send away come to them."""
        self.kin_here: Callable[[], set[bytes]] = set  # keys of relays that are connected, and not by `--mesh-with`
        self.succession: Succession | None = None
        """The mesh with the process that takes this one's place, or the other way round."""
        self.started_at = host.now
        self.meter = LoadMeter()
        self._wheel = KeepAliveWheel(config.keepalive_seconds, config.keepalive_jitter_seconds, host.now)
        self._rtt_round = Round(self.router.clients, _RTT_ROUND_SECONDS)
        self._alarm = Alarm(host, self._handle_timeout, self._wheel, self._rtt_round)
        if self.key_sets is not None:
            self.key_sets.on_change.append(self.recheck)
        if self.invitations is not None:
            self.invitations.on_revoked.append(self._end_invitation)
        self.sessions.on_register += [self._keep_alive, self._count_carrier, self._tell_newcomer]
        self.quotas: QuotaKeeper | None = None
        self.ledger = self._open_ledger(config)
        self.sessions.set_limits(config.rate, config.rate_by_key, config.limits)
        self._away_since: dict[str, float] = {}
        self._announcement, self._announced_at, self._news_of_leaving = b"", 0.0, b""
        self._emptied_at = math.inf  # since when it has no clients any more, as it leaves

    def _open_ledger(self, config: RelayRules) -> Ledger | None:
        if config.ledger is None:
            return None
        self.quotas = QuotaKeeper(self.sessions)
        self.quotas.configure(config.limits)
        if self.siblings is not None:
            share_use(self.siblings, self.quotas)
        ledger = Ledger(config.ledger, config.ledger_days, self.router.clients, self.quotas)
        self.sessions.on_tenant += [ledger.note, self.quotas.lift]
        self.sessions.on_adopt.append(ledger.note_adoption)
        self.sessions.on_end.append(ledger.note_end)
        return ledger

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do all that a relay has to wait for, until cancelled.  Started when clients may come."""
        async with trio.open_nursery() as nursery:
            # First: admission may have to know about a client that already waits in the backlog.
            if self.key_sets is not None:
                await nursery.start(self.key_sets.run)
            if self.invitations is not None:
                await nursery.start(self.invitations.run)
            if self.verifier is not None:
                await nursery.start(self.verifier.run)
            if self.ledger is not None:
                await nursery.start(self.ledger.run)
            if self.decisions is not None:
                nursery.start_soon(self.decisions.run)
            nursery.start_soon(self.bootstrap.refresh_forever)
            if self.mesh is not None:
                nursery.start_soon(self.mesh.run, self.config.mesh_with)
            self.host.call_at(self.host.tick() + LOOK_SECONDS, self._look)
            task_status.started()

    def configure(self, rules: RelayRules) -> None:
        """Take from settings that were read again what a running relay can: rates, lists of keys, write time-outs."""
        sessions = self.sessions
        sessions.set_limits(rules.rate, rules.rate_by_key, rules.limits)
        if self.quotas is not None:
            self.quotas.configure(rules.limits)
        sessions.mesh_write_seconds = rules.mesh_write_timeout_seconds
        sessions.admission.configure(rules)
        self.recheck()

    def recheck(self, keys: Collection[bytes] | None = None) -> None:
        """Send away who may not stay any more, at once: of these keys, or of all.  A client that somebody else would
        have to be asked about stays."""
        sessions = self.sessions
        self.host.tick()
        for client in tuple(self._connected(keys)):
            if client.is_mesh_peer or client.is_own or client.member is None:
                continue
            if sessions.guests.terms_of(client) is not None:
                verdict = sessions.admission.refused_always(client.key)
            elif keys is None:
                verdict = sessions.admission.refused_by_list(client.key)
            else:
                verdict = sessions.admission.decide(client.key, client.address)
            if verdict is not None and not verdict.allowed:
                sessions.guests.send_away(client, verdict.because, WITHDRAWN_TEXT)
            else:
                sessions.settle_tenant(client)
        self.host.flush()

    def welcome(self, key: bytes) -> None:
        """A key has become known, or is another tenant's: its connections may stay."""
        sessions = self.sessions
        sessions.admission.settle(key)
        for client in self._connected((key,)):
            terms = sessions.guests.terms_of(client)
            if terms is not None and terms.is_trial:
                sessions.guests.depart(client)
            # Not now: whoever heard of the key is in the middle of what came over another connection.
            self.host.call_at(self.host.now, partial(self._settle_tenant, client))

    def _settle_tenant(self, client: Client) -> None:
        if client.member is not None:
            self.sessions.settle_tenant(client)

    def _end_invitation(self, invitation: "Invitation") -> None:
        self.host.tick()
        self.sessions.guests.end_account(invitation, "was revoked")
        self.host.flush()

    def _connected(self, keys: Collection[bytes] | None) -> Iterable[Client]:
        if keys is None:
            return self.router.clients.values()
        members = (self.router.members.get(key) for key in keys)
        return (client for member in members if member is not None for client in tuple(member.connections))

    def _keep_alive(self, client: Client) -> None:
        # Spreads keep-alives over time; nobody gains from guessing it.
        # The alarm is told the second in which the wheel is due: to look at all its slots would cost each login 8 us.
        self._alarm.by(float(int(self._wheel.add(client, self.host.now, random.random()))))
        first_turn = self._rtt_round.begin(self.host.now)
        if first_turn is not None:
            self._alarm.by(first_turn)

    def _count_carrier(self, client: Client) -> None:
        self.router.counters.tcp_rtt[NON_TCP_BUCKET] += client.wire.codec is not None

    def _handle_timeout(self, now: float) -> None:
        for client in self._wheel.handle_timeout(now):
            self.sessions.keep_alive(client)
        for client in self._rtt_round.handle_timeout(now):
            self._count_rtt(client)

    def _count_rtt(self, client: Client) -> None:
        """Ask the kernel about one client."""
        if client.member is None:
            return
        counters = self.router.counters
        try:
            microseconds = client.wire.rtt_microseconds()
        except OSError:
            counters.tcp_rtt[ERROR_BUCKET] += 1
        else:
            counters.tcp_rtt[rtt_bucket(microseconds)] += 1
            counters.tcp_rtt_seconds += microseconds / 1e6

    # --- leaving

    def announce_restart(self, reconnect_in_seconds: float, try_for_seconds: float) -> None:
        """Tell every client that this relay goes down and when to come back: where another one serves in its place, at
        once, as it is we who pace them then."""
        self.is_draining = True
        self.router.is_leaving = self.has_neighbours()
        if self.router.is_leaving:
            reconnect_in_seconds = _AT_ONCE_SECONDS
        frame = encode(Restarting(int(reconnect_in_seconds * 1000), int(try_for_seconds * 1000)))
        frame += health_frame("this relay is about to stop or to be restarted: this machine connects anew by itself")
        self._announcement, self._announced_at = frame, self.host.tick()
        self._news_of_leaving = frame
        self._announce(self.router.clients.values())

    def _announce(self, clients: Iterable[Client]) -> None:
        for client in clients:
            self.router.send(client, self._announcement)
        self.host.flush()

    def tell_neighbours(self) -> None:
        """Tell the other relays of the region that another process serves in our place."""
        self.is_draining = self.router.is_leaving = True
        frame = self._news_of_leaving = encode(Restarting(0, 0))
        for client in self.router.clients.values():
            if client.is_mesh_peer:
                self.router.send(client, frame)
        self.host.flush()

    def _tell_newcomer(self, client: Client) -> None:
        """A relay that meshes with us while we leave has to know: it keeps packets in order for whom we send away."""
        if client.is_mesh_peer and self._news_of_leaving:
            self.router.send(client, self._news_of_leaving)

    def has_neighbours(self) -> bool:
        """Whether there is another relay that clients which we send away can go to, and that tells us so."""
        return self.siblings_stay or self.has_successor() or any(state.is_up for state in self.mesh_states())

    def has_successor(self) -> bool:
        """Whether another process has taken this one's place, and is meshed with it."""
        return self.is_draining and self.other_process() is not None

    def other_process(self) -> Succession | None:
        """The process that takes this one's place, or from which this one takes it, while the two are meshed."""
        return self.succession if self.succession is not None and self.succession.is_up else None

    def neighbours_to_move(self) -> int:
        """How many relays of the region are connected with us and not yet with our successor."""
        succession = self.succession
        if self.mesh is None or succession is None or not self.has_successor():
            return 0
        meshed = {session.route.key for session in self.mesh.sessions.values() if session.is_ours}
        here = {client.key for client in self.router.clients.values() if client.is_mesh_peer}
        others = (meshed & here | self.kin_here()) - succession.keys()
        return sum(not succession.has(key) for key in others)

    def is_meshed(self) -> bool:
        """Whether every relay that we are to mesh with is connected."""
        states = self.mesh_states()
        return all(state.is_up or state.is_ourselves for state in states)

    async def leave_mesh(self) -> None:
        """When all clients have gone: no packet is on its way to another relay any more."""
        if self.mesh is not None:
            await self.mesh.leave()
        if self.succession is not None:
            await self.succession.leave()

    def close_clients(self, count: int) -> int:
        """Close up to `count` clients for which no packets wait, oldest first; return for how many there still is
        something to do.

        Called until that is none.  A client is told that nothing more comes; what it still sends is relayed until it
        hangs up, and what comes for it waits until another relay has it.
        """
        now = self.host.tick()
        self.host.flush()
        router, leaving = self.router, self.sessions.leaving
        clients = tuple(router.clients.values())
        turn = [client for client in clients if not client.is_mesh_peer]
        is_empty = not (turn or leaving or router.mailboxes)
        self._emptied_at = min(self._emptied_at, now) if is_empty else math.inf
        if now >= self._emptied_at + _NEWS_SECONDS:
            # Other relays are closed last, and all at once: they forward packets for clients that are still here.
            turn, count = list(clients), len(clients)
        ready = list(islice((client for client in turn if _may_go(client)), count))
        if self._announcement and now - self._announced_at > _ANNOUNCED_SECONDS:
            self._announce(ready)
        for client in ready:
            member = client.member
            if member is None or not _may_go(client):
                continue  # its connection broke meanwhile, or its kernel takes nothing any more
            router.send_off(client, now)
            self.sessions.advisor.note_departure(client, member)
            leaving.see_off(client.wire)
            self.host.flush()  # others are told that this client has gone, also those that we close next
        self.sessions.mail_alarm.look()
        return len(router.clients) + len(leaving) + len(router.mailboxes)

    def mesh_states(self) -> tuple[MeshPeerState, ...]:
        """What is known of each relay that we are to mesh with."""
        return tuple(self.mesh.states.values()) if self.mesh is not None else ()

    # --- what clients are told

    def _look(self) -> None:
        """Look for what is the matter with clients, every second."""
        host, router, advisor = self.host, self.router, self.sessions.advisor
        host.call_at(host.now + LOOK_SECONDS, self._look)
        counters = router.counters
        # Of this thread, which relays: others wait for names, disks and the store without its lock, mostly.
        self.meter.note(time.thread_time(), counters.bytes_received, counters.packets_received, host.now)
        for wire in host.blocked:
            if isinstance(wire.session, ClientSession) and (queue := wire.session.client.queue) is not None:
                advisor.note_slow(wire.session.client, queue.oldest_seconds(host.now))
        self.sessions.guests.look()
        lost, router.lost_by = router.lost_by, {}
        advisor.note_lost(lost.items())
        advisor.tell_all(self._mesh_trouble(host.now))

    def _mesh_trouble(self, now: float) -> str:
        """The relays that have been away for a while, in a sentence for users."""
        down = [state.name for state in self.mesh_states() if not (state.is_up or state.is_ourselves)]
        self._away_since = {name: self._away_since.get(name, now) for name in down}
        away = [name for name, since in self._away_since.items() if now - since >= _AWAY_SECONDS]
        if not away:
            return ""
        names = some_of(away, 3)
        return f"this relay is cut off from {names} of its region: machines that are connected there are out of reach"


def _may_go(client: Client) -> bool:
    """Whether nothing waits for it.  Newer packets do so, for HOLD_SECONDS at the most, while older ones are on their
    way here from a relay that leaves too: whoever goes on meanwhile gets them in the wrong order."""
    return client.member is not None and client.member.mailbox is None and client.queue is None


def _open_router(config: RelayConfig, own_key: bytes, place: Place | None) -> Router:
    queues = {
        "queue_depth": config.queue_depth,
        "queue_bytes": config.queue_bytes,
        "queue_total": config.queue_total_bytes or memory_bytes() // 4,
    }
    delay = config.queue_delay_seconds
    if place is not None:
        return WorkerRouter(own_key, place, **queues, queue_delay_seconds=delay)
    return Router(own_key, **queues, queue_delay_seconds=delay)


def _share_verdicts(siblings: Siblings, verifier: "Verifier") -> None:
    """What one worker was answered about a key, no other asks."""
    verifier.on_answer.append(
        lambda key, address, verdict: siblings.tell(
            "verdict", key, address, verdict.allowed, verdict.because, verdict.tenant
        )
    )
    siblings.told["verdict"] = lambda key, address, allowed, because, tenant="": verifier.keep(
        key, address, Verdict(allowed, because, tenant=tenant)
    )


def share_use(siblings: Siblings, quotas: QuotaKeeper) -> None:
    """What a client has used with one worker counts with all: it may come back to any of them."""
    quotas.on_spent.append(lambda key, tenant, count: siblings.tell("used", key, tenant, count))
    siblings.told["used"] = quotas.spent_elsewhere


def _open_verifier(config: RelayConfig) -> "Verifier | None":
    if not (config.verify_client_url or config.verify_clients):
        return None
    # Imported here: an HTTP client takes a tenth of a restart to load, for which clients wait.
    from derp.server.verify import open_verifier

    return open_verifier(config)


def _open_key_sets(config: RelayConfig) -> "KeySetFollower | None":
    if not config.key_set:
        return None
    from derp.server.keysets import KeySetFollower  # as above

    return KeySetFollower(config)


def _open_invitations(config: RelayConfig) -> "Invitations | None":
    if config.invitations is None:
        return None
    from derp.server.invitations import Invitations  # as above

    return Invitations(config.invitations)
