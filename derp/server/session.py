"""DERP on a host: the handshake, the frames of a registered client, and the flush to all of them.  Layer L3.

Packets: host -> ClientSession.received -> relay/inbound.py -> the router's gather lists -> Sessions.flush -> kernel.
What the kernel does not take waits in the client's queue until ClientSession.writable.  server/upgrade.py makes a
Greeting for each upgrade; the Greeting makes the ClientSession.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from derp.close_reason import CloseReason
from derp.keys import NodePrivate, short_key
from derp.log import Rarely, and_more, fields
from derp.protocol.connection import ClientIdentified, ServerHandshake
from derp.protocol.frames import HEADER, HEADER_BYTES, FrameType
from derp.protocol.handshake import server_key_frame
from derp.protocol.messages import ServerInfo
from derp.relay.clients import Client
from derp.relay.counters import DropReason
from derp.relay.inbound import handle_frames
from derp.relay.limits import DEFAULT_TENANT, Limits, Rate
from derp.relay.mailbox import HOLD_SECONDS
from derp.relay.pace import Pace
from derp.relay.queue import count_lost, frame_starts
from derp.relay.router import Route, Router
from derp.server.admission import ADMITTED, Admission, Question, Verdict
from derp.server.advisor import REFUSED_TEXT, Advisor, health_frame
from derp.server.decisions import DecisionLog
from derp.server.explain import Departures
from derp.server.guests import Guests
from derp.server.leaving import Leaving
from derp.server.limiter import Limiter
from derp.server.lobby import Lobby
from derp.transport.alarm import Alarm
from derp.transport.host import Host, Piece, Wire, WireEnded

_log = logging.getLogger("derp.server")

# How long a refused client may wait before it is closed: as long as genuine clients wait at most before they try anew.
_REFUSED_SECONDS: Final = 5.0
# Between two looks at how many frames clients get in one flush.
_SAMPLE_SECONDS: Final = 0.5
# Strangers can cause such lines: the log gets one a minute of each kind, with the number of the others.
_TELL_SECONDS: Final = 60.0
# Connections of one key: a laptop with a stale connection has two or three.  The router walks over all of them when one
# comes or goes.
_MAX_CONNECTIONS_PER_KEY: Final = 64


class Sessions:
    """What all DERP sessions of one relay share.  It joins the router to the host, whose thread calls its methods."""

    def __init__(
        self,
        router: Router,
        host: Host,
        lobby: Lobby,
        private: NodePrivate,
        admission: Admission,
        *,
        random_bytes: Callable[[int], bytes],
        mesh_write_seconds: float = 0.0,
        server_info: ServerInfo | None = None,
        decisions: DecisionLog | None = None,
    ) -> None:
        self.router = router
        self.host = host
        self.lobby = lobby
        self.private = private
        self.kin_private = NodePrivate.generate()
        """Of this process, for relays whose ways to us prove who is there: all processes of a relay have `private`, and
        a relay does not mesh with itself."""
        self.admission = admission
        self.random_bytes = random_bytes
        self.greeting = server_key_frame(private.public().raw)
        self.server_info = server_info or ServerInfo()
        self.own_key = b""
        """The key of the client with which the server checks itself (selfcheck.py): nobody hears of it."""
        self.departures = Departures()
        self.advisor = Advisor(router, host)
        self.leaving = Leaving(host)
        self.decisions = decisions
        self.guests = Guests(host, self.advisor, self.leaving, decisions)
        self._rarely = Rarely(_TELL_SECONDS)
        self.mesh_write_seconds = mesh_write_seconds
        self._is_sampling = self.router.counts_flush = True
        self.limiter = Limiter(host, self.advisor, router.counters)
        self.judges: list[Callable[[bytes, str], Verdict | None]] = []
        """Each is asked about a key that is admitted, and its tenant, and may refuse it all the same."""
        self.on_tenant: list[Callable[[Client], None]] = []
        """Each hears of a client that is about to become another tenant's."""
        self.on_register: list[Callable[[Client], None]] = []
        self.on_adopt: list[Callable[[Client], None]] = []
        """Each hears of a client that came from another process (moving.py), before anything is done with it here."""
        self.on_end: list[Callable[[Client], None]] = []
        host.flushers.append(self.flush)
        self._changed_holds = router.mailboxes.changed
        self.mail_alarm = Alarm(host, self._close_mailboxes, router.mailboxes)

    def flush(self) -> None:
        """Send every gather list, and end the connections the router wants ended, until nothing is left to do."""
        router = self.router
        if router.counts_flush:
            self._count_flush()
        if self._changed_holds:
            self._look_at_holds()
        while router.dirty or router.closing:
            dirty, router.dirty = router.dirty, []
            for route in dirty:
                route.is_dirty = False
                pieces, size = route.pending, route.pending_bytes
                if not size:
                    continue  # its session ended meanwhile, and took the pieces along
                route.pending_bytes = 0
                if route.queue is None:
                    wire: Wire = route.wire
                    try:
                        sent = wire.send(pieces, size)
                    except WireEnded as error:
                        self.count_lost(route, b"".join(pieces))
                        pieces.clear()
                        self.host.fail(wire, error)
                        continue
                    if sent < size or wire.blocked:
                        self._queue_rest(route, pieces, sent)
                else:
                    self._queue(route, pieces)
                pieces.clear()
            closing, router.closing = router.closing, []
            for client, reason in closing:
                if client.member is not None:
                    self.host.close(client.wire, reason)

    def _look_at_holds(self) -> None:
        """Packets wait for another relay's answer, or no longer."""
        changed, host = self._changed_holds, self.host
        while changed:
            hold = changed.pop(0)
            if hold.wire is None:
                for wire in hold.wires:
                    host.call_at(host.now, partial(host.resume, wire))
            elif hold.is_full:
                self.router.close_mailbox(hold)
            else:
                self.router.mailboxes.keep_until(hold, host.now + HOLD_SECONDS)
        self.mail_alarm.look()

    def read_in_order(self, client: Client) -> None:
        """Read a client that has been registered; what it sent to a relay from which it comes goes first.  Other relays
        come from none."""
        if client.member is not None and client.member.mailbox is not None and not client.is_mesh_peer:
            self.host.pause(client.wire)
        elif client.wire is not None:  # it is still there
            self.host.resume(client.wire)

    def _close_mailboxes(self, now: float) -> None:
        for mailbox in self.router.mailboxes.handle_timeout(now):
            self.router.close_mailbox(mailbox)

    def _sample_flush(self) -> None:
        """Look how many frames each client gets in the next flush, twice a second at most: derper's histogram keeps
        its shape and its mean that way, where counting every write took 0.15 us of 4.6."""
        self._is_sampling = self.router.counts_flush = True

    def _count_flush(self) -> None:
        router = self.router
        router.count_announcements()
        if self._is_sampling and router.dirty:
            self._is_sampling = False
            self.host.call_at(self.host.now + _SAMPLE_SECONDS, self._sample_flush)
            for route in router.dirty:
                if route.pending_bytes and route.queue is None and not route.is_forwarder:
                    frames = frame_starts(memoryview(b"".join(route.pending)))
                    router.counters.written_frames.observe(sum(1 for _ in frames))
        router.counts_flush = self._is_sampling

    def _queue_rest(self, route: Route, pieces: Sequence[Piece], sent: int) -> None:
        """The kernel is full: finish the frame it has the beginning of, queue the others."""
        wire: Wire = route.wire
        if wire not in self.host.wires:
            self.count_lost(route, b"".join(pieces))
            return
        route.queue = self.router.new_queue(route)
        _pace_of(wire).begin(self.host.now)
        pieces = _of_whole_frames(route, pieces)
        for number, piece in enumerate(pieces):
            if sent < len(piece):
                # A frame of which the kernel has nothing queues like the rest.
                view = memoryview(piece)
                rest = next(start for start, end in frame_starts(view) if start >= sent or end > sent)
                if rest < sent:
                    rest += HEADER_BYTES + int.from_bytes(view[rest + 1 : rest + HEADER_BYTES], "big")
                    wire.push(view[sent:rest])
                self._queue(route, [view[rest:], *pieces[number + 1 :]])
                break
            sent -= len(piece)
        self.host.await_room(wire)

    def _queue(self, route: Route, pieces: Sequence[Piece]) -> None:
        assert route.queue is not None
        for piece in _of_whole_frames(route, pieces):
            if not route.queue.push_frames(piece, self.host.now, of_one_source=not route.is_forwarder):
                self.router.note_lost_notice(route)

    def note_wrong_mesh_key(self, key: bytes, address: tuple[str, int]) -> None:
        """A client showed a mesh key that is not ours.  We treat it as an ordinary client, as derper does."""
        self.router.counters.wrong_mesh_keys += 1
        more = self._rarely.held_back("wrong_mesh_key", self.host.now)
        if more is not None:
            told = fields(event="wrong_mesh_key", key=key, address=address[0], port=address[1], more_count=more)
            what = "another mesh key than this relay" if self.admission.mesh_key else "a mesh key, and this relay none"
            text = "! %s:%d %s has %s; relays of one region need the same --mesh-psk-file%s"
            _log.warning(text, *address[:2], short_key(key), what, and_more(more), extra=told)

    def count_lost(self, route: Route, frames: bytes) -> None:
        """Count packets that were handed to a socket that failed."""
        owner = route if isinstance(route, Client) else None
        count_lost(frames, DropReason.WRITE_ERROR, self.router.counters, owner)

    def keep_alive(self, client: Client) -> None:
        """Send an empty frame: clients give a silent relay up after two minutes."""
        self.router.send(client, _KEEP_ALIVE)

    def tenant_of(self, key: bytes, named: str) -> str:
        """Whose client a key is: as the operator's file says, else whoever let it in (`named`), else who knows it."""
        limits = self.limiter.limits
        return limits.tenant_by_key.get(key) or named or self.admission.tenant_of(key) or DEFAULT_TENANT

    def settle_tenant(self, client: Client) -> None:
        """What `tenant_of` follows from may have changed.  A flush has to follow."""
        if self._take_tenant(client):
            self._renew_sender(client)

    def _take_tenant(self, client: Client) -> bool:
        """Whether it has another tenant now."""
        tenant = self.tenant_of(client.key, client.named_tenant)
        if tenant == client.tenant:
            return False
        for notify in self.on_tenant:
            notify(client)
        client.tenant = tenant
        return True

    def set_limits(self, rate: Rate, by_key: Mapping[bytes, Rate], limits: Limits) -> None:
        """Limit what clients may send, those connected already included."""
        paused = self.limiter.configure(rate, by_key, limits)
        clients = tuple(self.router.clients.values())  # one that changes its tenant may be sent away at once
        for client in clients:
            if isinstance(client.wire.session, ClientSession):
                client.wire.session.sender = None  # it was one of the old limits
        for client in clients:
            if client.member is not None:
                self._take_tenant(client)
                self._renew_sender(client)
        self.limiter.resume(paused)
        self.host.flush()

    def set_floor(self, key: bytes, rate: Rate | None) -> None:
        """Have a key send no more than this, or, with None, what it may otherwise.  A flush has to follow."""
        if rate is None:
            self.limiter.floors.pop(key, None)
        else:
            self.limiter.floors[key] = rate
        member = self.router.members.get(key)
        for client in tuple(member.connections) if member is not None else ():
            self._renew_sender(client)

    def _renew_sender(self, client: Client) -> None:
        """What it may send is different now; if it waits, no longer."""
        session = client.wire.session if client.wire is not None else None
        if isinstance(session, ClientSession):
            before, session.sender = session.sender, self.limiter.sender(client)
            if before is not None:
                self.limiter.forget(before)
                self.host.resume(client.wire)

    def judged(self, key: bytes, verdict: Verdict) -> Verdict:
        """The verdict, unless it lets somebody in whom one of the judges refuses; none judges the relay itself."""
        if verdict.allowed and key != self.own_key:
            tenant = self.tenant_of(key, verdict.tenant)
            return next(filter(None, (judge(key, tenant) for judge in self.judges)), verdict)
        return verdict


def _of_whole_frames(route: Route, pieces: Sequence[Piece]) -> Sequence[Piece]:
    """A frame for another relay is two pieces (relay/forward.py), of which the queue wants one."""
    return [b"".join(pieces)] if route.is_forwarder else pieces


def drain_queue(route: Route, now: float) -> None:
    """Send what waits for a route, as far as the kernel takes it; its queue goes when it is empty."""
    wire: Wire = route.wire
    queue = route.queue
    if queue is None:
        return
    size = 0
    # A step is half of what the kernel should hold: with less a fast destination costs a call for little; with more a
    # slow one has more before it, as the last step is taken whole, and 16 KiB are 13 ms at 10 Mbit/s.
    pace = _pace_of(wire)
    step = pace.unsent_bytes // 2
    while not wire.blocked:
        pieces = queue.take(step, now)
        if not pieces:
            route.queue = None
            break
        total = sum(map(len, pieces))
        try:
            sent = wire.send(pieces, total)
        except WireEnded:
            queue.count_lost(b"".join(pieces))
            raise
        if sent < total:
            wire.push(memoryview(b"".join(pieces))[sent:])
        size += total
    if pace.note_taken(size, now):
        wire.limit_unsent(pace.unsent_bytes)
    if route.queue is None:
        pace.end()


def _pace_of(wire: Wire) -> Pace:
    if wire.pace is None:
        wire.pace = Pace()
    return wire.pace


_KEEP_ALIVE: Final = HEADER.pack(FrameType.KEEP_ALIVE, 0)


class Greeting:
    """Between the upgrade and ServerInfo: it drives the core of the handshake, and asks admission who comes in.

    Whoever makes a Greeting sends its `hello` first.
    """

    __slots__ = ("_handshake", "_is_ideal", "_is_kin", "_refusal", "_sessions", "_shown", "_wire")

    def __init__(
        self, sessions: Sessions, wire: Wire, *, is_ideal: bool, shown: str = "", is_kin: bool = False
    ) -> None:
        """`shown`: what the client showed for its admission: its ticket, or the name by which it asked for us.
        `is_kin`: it is a process of this relay, which its wire proves (succession.py): a mesh peer without a key."""
        self._sessions = sessions
        self._is_kin = is_kin
        self._shown = shown
        self._wire = wire
        self._is_ideal = is_ideal
        self._refusal: str | None = None  # why it is not let in, once that was decided
        self._handshake = ServerHandshake(
            sessions.private,
            random_bytes=sessions.random_bytes,
            mesh_key=sessions.admission.mesh_key,
            greeting=sessions.greeting,
        )

    def hello(self) -> bytes:
        """The first bytes of the relay: its ServerKey."""
        return b"".join(self._handshake.data_to_send())

    def received(self, at: int, end: int) -> int:
        handshake, sessions = self._handshake, self._sessions
        if self._refusal is not None:
            return end
        for identified in handshake.receive_data(sessions.host.view[at:end]):
            self._decide(identified)
            return end if self._refusal is not None else end - len(handshake.trailing_data())
        return end

    def _decide(self, client: ClientIdentified) -> None:
        sessions, wire, key = self._sessions, self._wire, client.key
        if self._is_kin:
            self._admit(ADMITTED, is_mesh_peer=True)
            return
        if client.is_mesh_peer:
            if sessions.admission.is_replayed(self._handshake.nonce):
                raise WireEnded(CloseReason.NOT_ADMITTED, f"{short_key(key)}: a mesh peer's login, replayed")
            self._admit(ADMITTED, is_mesh_peer=True)
            return
        if client.info.mesh_key is not None:
            sessions.note_wrong_mesh_key(key, wire.address)
        verdict = sessions.admission.decide(key, wire.address[0], self._shown)
        if verdict is None:
            # Somebody else decides.  The host reads no more of this client until then; the kernel keeps what it sends.
            sessions.host.pause(wire)
            verdict = sessions.admission.ask(Question(key, wire.address[0], self._decided, self._is_waiting))
        if verdict is None:
            return
        verdict = sessions.judged(key, verdict)
        if verdict.allowed:
            self._admit(verdict)
        else:
            self._refuse(verdict)

    def _refuse(self, verdict: Verdict) -> None:
        """Say so, and let the client wait.  A genuine client shows the text to its user, and takes any frame for a sign
        that all is well: closed at once it would come back a hundred times a second."""
        sessions, wire, client = self._sessions, self._wire, self._handshake.client
        assert client is not None
        self._refusal = _refusal(client.key, verdict)
        if sessions.decisions is not None:
            sessions.decisions.note("refused", client.key, wire.address[0], verdict.because)
        self._tell_end(CloseReason.NOT_ADMITTED, self._refusal)
        sessions.lobby.enter(wire, _REFUSED_SECONDS)
        sessions.host.resume(wire)  # or nobody would see it leave
        with suppress(WireEnded):  # it has left, which its next event shows
            wire.push(health_frame(verdict.told or REFUSED_TEXT))

    def _is_waiting(self) -> bool:
        """Whether the client is still there.  The host does not read it, so nobody else sees it leave."""
        wire = self._wire
        if wire.session is not self:
            return False  # its deadline passed
        if wire.peer_left():
            self._sessions.host.close(wire, CloseReason.CLOSED_BY_PEER)
            return False
        return True

    def _decided(self, verdict: Verdict) -> None:
        wire, host = self._wire, self._sessions.host
        if wire.session is not self:
            return  # it left, or its deadline passed, before the answer came
        client = self._handshake.client
        assert client is not None
        verdict = self._sessions.judged(client.key, verdict)
        if not verdict.allowed:
            self._refuse(verdict)
            host.flush()
            return
        try:
            self._admit(verdict)
        except WireEnded as error:  # the client's connection failed, which is no matter of whoever answered
            host.fail(wire, error)
            return
        host.flush()

    def _admit(self, verdict: Verdict, *, is_mesh_peer: bool = False) -> None:
        sessions, wire, opened = self._sessions, self._wire, self._handshake.client
        assert opened is not None
        router = sessions.router
        member = router.members.get(opened.key)
        if member is not None and len(member.connections) >= _MAX_CONNECTIONS_PER_KEY:
            # Closed at once and not with the flush: hundreds of connections may come in one batch.
            sessions.host.close(member.connections[0].wire, CloseReason.TOO_MANY)
        client = Client(
            opened.key,
            router.next_number(),
            wire,
            sessions.host.now,
            address=wire.address[0],
            port=wire.address[1],
            is_mesh_peer=is_mesh_peer,
            is_prober=opened.info.is_prober,
            is_ideal=self._is_ideal,
            can_ack_pings=opened.info.can_ack_pings,
            app_name=opened.info.app_name[:64],  # shown on the debug page; a stranger chose its length
            is_own=opened.key == sessions.own_key,
            named_tenant=verdict.tenant,
        )
        client.tenant = sessions.tenant_of(client.key, client.named_tenant)
        terms = verdict.terms
        is_counted = terms is not None and terms.account is not None
        wire.session = (CountedSession if is_counted else ClientSession)(sessions, client)
        if is_mesh_peer:
            wire.write_seconds = sessions.mesh_write_seconds
        sessions.lobby.leave(wire)
        # ServerInfo has to be the first frame that a client sees, so it leaves before anybody can reach the client.
        self._handshake.accept(sessions.server_info)
        wire.push(b"".join(self._handshake.data_to_send()))
        if wire.blocked:
            client.queue = router.new_queue(client)
            sessions.host.await_room(wire)
        router.register(client)
        sessions.advisor.note_arrival(client)
        if terms is not None:
            sessions.guests.arrive(client, terms)
        if sessions.decisions is not None and not client.is_own:
            why = "the mesh's key" if is_mesh_peer else terms.what if terms is not None else verdict.because
            sessions.decisions.note("admitted", client.key, client.address, why)
        for notify in sessions.on_register:
            notify(client)
        sessions.read_in_order(client)
        if _log.isEnabledFor(logging.INFO) and not client.is_own:
            _log.info(
                "> client %d %s from %s:%d",
                client.number,
                short_key(client.key),
                *wire.address[:2],
                extra=fields(
                    event="connected",
                    client=client.number,
                    key=client.key,
                    address=wire.address[0],
                    port=wire.address[1],
                    is_mesh_peer=client.is_mesh_peer,
                    app_name=client.app_name,
                ),
            )

    def writable(self) -> None:
        """Nothing waits here: the few bytes of a greeting are the wire's tail."""

    def ended(self, reason: CloseReason, text: str) -> None:
        self._sessions.lobby.leave(self._wire)
        self._sessions.lobby.count_closed(reason if self._refusal is None else CloseReason.NOT_ADMITTED)
        if self._refusal is None:
            self._tell_end(reason, text)

    def _tell_end(self, reason: CloseReason, text: str) -> None:
        # People whose clients were turned away ask the operator why; everybody else here is a scanner or a probe.
        level = logging.INFO if reason is CloseReason.NOT_ADMITTED else logging.DEBUG
        opened = self._handshake.client
        if opened is not None:
            was_refused = reason is CloseReason.NOT_ADMITTED
            why = text if was_refused else f"{reason.value} before it was let in"
            self._sessions.departures.note(opened.key, self._sessions.host.now, why, was_refused=was_refused)
        if _log.isEnabledFor(level):
            _log.log(
                level,
                "x %s:%d before it was a client: %s %s",
                *self._wire.address[:2],
                reason.value,
                text,
                extra=fields(
                    event="refused",
                    key=opened.key if opened is not None else None,
                    address=self._wire.address[0],
                    port=self._wire.address[1],
                    reason=reason.value,
                    detail=text,
                ),
            )


def _refusal(key: bytes, verdict: Verdict) -> str:
    return f"{short_key(key)} is not admitted: {verdict.because}"


class ClientSession:
    """A registered client's frames."""

    __slots__ = ("_sessions", "client", "sender")

    def __init__(self, sessions: Sessions, client: Client) -> None:
        self._sessions = sessions
        self.client = client
        self.sender = sessions.limiter.sender(client)

    def received(self, at: int, end: int) -> int:
        sessions, client, sender = self._sessions, self.client, self.sender
        host = sessions.host
        if sender is None:
            return handle_frames(host.arena, host.view, at, end, client, sessions.router, host.now)
        before = client.packets_in
        rest = handle_frames(host.arena, host.view, at, end, client, sessions.router, host.now)
        packets = client.packets_in - before
        # Genuine relays charge the length field of each frame, so heads are free.
        sessions.limiter.charge(sender, max(rest - at - HEADER_BYTES * packets, 0), packets)
        return rest

    def writable(self) -> None:
        drain_queue(self.client, self._sessions.host.now)

    def ended(self, reason: CloseReason, text: str) -> None:
        sessions, client = self._sessions, self.client
        if self.sender is not None:
            sessions.limiter.forget(self.sender)
        member = client.member
        sessions.router.unregister(client)
        sessions.guests.depart(client)
        sessions.advisor.note_departure(client, member)
        sessions.lobby.count_closed(reason)
        sessions.router.counters.write_timeouts += reason is CloseReason.WRITE_TIMEOUT
        why = reason.told(text)
        if not client.is_own:
            sessions.departures.note(client.key, sessions.host.now, why)
        if client.pending:
            count_lost(b"".join(client.pending), DropReason.GONE_DISCONNECTED, sessions.router.counters, client)
            client.pending = []
            client.pending_bytes = 0
        for notify in sessions.on_end:
            notify(client)
        if _log.isEnabledFor(logging.INFO) and not client.is_own:
            _log.info(
                "x client %d %s: %s; %d packets in, %d out, %.0f s",
                client.number,
                short_key(client.key),
                why,
                client.packets_in,
                client.packets_out,
                sessions.host.now - client.connected_at,
                extra=fields(
                    event="disconnected",
                    client=client.number,
                    key=client.key,
                    address=client.address,
                    port=client.port,
                    reason=reason.value,
                    detail=text,
                    packets_in=client.packets_in,
                    packets_out=client.packets_out,
                    bytes_in=client.bytes_in,
                    bytes_out=client.bytes_out,
                    seconds=sessions.host.now - client.connected_at,
                ),
            )


class CountedSession(ClientSession):
    """One whose bytes are counted, because it may have only so many."""

    __slots__ = ()

    def received(self, at: int, end: int) -> int:
        rest = super().received(at, end)
        if rest > at:
            self._sessions.guests.charge_sent(self.client, rest - at)
        return rest
