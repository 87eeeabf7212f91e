"""From an HTTP request to a channel: authenticates RPC sockets while the reactor keeps the connection.  Layer L3.

A route of the front door (server/server.py).  api/rpc_admission.py decides: refusals and known callers from memory,
strangers by asking the store.  Who has to wait is in one of the lines of coordinator/arrivals.py.  An accepted
connection becomes a websocket on the reactor: transport/channel.py, or services/legacy.py for version 1.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from derp.close_reason import CloseReason
from derp.errors import ProtocolError
from derp.log import Rarely, and_more, fields
from derp.protocol.upgrade import Refusal, judge_websocket_request
from derp.protocol.websocket import WebSocketDecoder
from derp.relay.limits import TokenBucket
from derp.server.address import address_group
from derp.server.door import HttpSession
from derp.server.lobby import Lobby
from derp.text import host_port
from derp.transport.alarm import Alarm
from derp.transport.host import Host, Wire, WireEnded
from derp.transport.http import Request, last_answer
from tailnet.api.rpc_admission import Accepted, PeerKind, RefusedPeer, RpcAdmission
from tailnet.coordinator.arrivals import (
    KNOWN_BYTES,
    MAX_REQUEST_BYTES,
    PATIENCE_SECONDS,
    WAITER_BYTES,
    Fights,
    Line,
    Room,
    Strangers,
)
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy, ManyAgentsPolicy, Policy
from tailnet.metrics import EntranceReading
from tailnet.proto.services import TAILNET, TAILNET_AND_AGENT
from tailnet.services.hub import CoordinateCall, Hub, Receiver
from tailnet.services.legacy import LegacyChannel
from tailnet.services.presence import AgentPresence
from tailnet.services.tailnet_rpc import Caller
from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.transport.channel import MAX_MESSAGE_BYTES, Channel, Channels
from tailnet.types import PeerID

if TYPE_CHECKING:
    from tailnet.services.replicas import Replicas

_log = logging.getLogger("tailnet.server")

# Connections that are being decided about.  Each holds a socket and a task of some 10 KiB; more at once would only make
# each slower.
MAX_DECIDING: Final = 10_000
# Of those, about whom nobody knows anything: two seconds' worth of a store that answers slowly.
MAX_DECIDING_STRANGERS: Final = 2_000

# What admission and a websocket's answer read.  All other lines of a request are forgotten before it waits: a head may
# have 64 KiB, and takes more than twice as much when it was read.
_HEADERS: Final = frozenset(
    (
        *("authorization", "connection", "cookie", "coder-session-token", "host", "origin"),
        *("sec-websocket-key", "sec-websocket-version", "upgrade", "x-request-id"),
    )
)

_JSON: Final = ("Content-Type", "application/json; charset=utf-8")
_LEAVING: Final = RefusedPeer(
    503,
    (_JSON, ("Retry-After", "1")),
    b'{"message":"This server is about to stop. Please try again."}\n',
    "draining",
)


_LATER: Final = (_JSON, ("Retry-After", "10"))
_TOO_MUCH: Final = b'{"message":"You have too many connections to this server. Close some, and try again later."}\n'
_TOO_MANY: Final = b'{"message":"Too many come to this server now. Please try again."}\n'
_TOO_LARGE: Final = b'{"message":"This request is too large to wait: send shorter cookies, and nothing behind it."}\n'
_AGAIN_SECONDS: Final = (2, 10)
# Why somebody is put off, for the log.
_OVER_LIMIT: Final = "more come in than --upgrade-limit lets"
_TOO_MANY_QUESTIONS: Final = "the store does not say fast enough who comes in"
_TOO_MANY_STRANGERS: Final = "more come who are not known than --upgrade-limit leaves room for"
_TOO_MUCH_WAITS: Final = "those who wait have sent too much"
_TOO_MANY_FIGHT: Final = "too many wait for ids that processes take from each other"
# Alarms may ring late on a busy machine; who is held is not cut off for that.
_TURN_SECONDS: Final = 10.0
_TELL_SECONDS: Final = 10.0
# Refusals that are told of: an operator has seen enough of a flood then.
_REFUSALS_A_SECOND: Final = 100.0


class Entrance:
    """Lets peers in.  Called from the reactor; each decision that has to wait for somebody is a task."""

    def __init__(
        self,
        admission: RpcAdmission,
        channels: Channels,
        hub: Hub,
        presence: AgentPresence,
        nursery: trio.Nursery,
        lobby: Lobby,
        upgrades_per_second: float,
        replicas: "Replicas | None",
    ) -> None:
        self._admission = admission
        self._channels = channels
        self._hub = hub
        self._presence = presence
        self._nursery = nursery
        self._lobby = lobby
        self._deciding = self._deciding_strangers = 0
        self._is_closed = False
        self.fights: Fights[_DecidingSession] = Fights()
        """Ids that processes take from each other, for health."""
        self.refused_count = self.put_off_count = self.strangers_put_off_count = 0
        self._line: Line[_DecidingSession] = Line(upgrades_per_second, self.host.now)
        self._strangers: Strangers[_DecidingSession] = Strangers(upgrades_per_second, self.host.now)
        self._room = Room(KNOWN_BYTES)
        self._waiting_of: Counter[Hashable] = Counter()  # in the line, by caller
        self._alarm = Alarm(self.host, self._handle_timeout, self._line, self._strangers, self.fights)
        self._refusals = TokenBucket(_REFUSALS_A_SECOND, _REFUSALS_A_SECOND, self.host.now)
        self._untold_count = 0
        self._rarely = Rarely(_TELL_SECONDS)
        hub.on_overtaken.append(self._note_overtaken)
        self._tell_overtaken: Callable[[PeerID, Sequence[str]], None] | None = None
        if replicas is not None:
            from tailnet.services.overtakings import Overtakings

            shared = replicas.shared[Overtakings.topic] = Overtakings(replicas.tell_with_step, self._note_fight)
            self._tell_overtaken = shared.tell

    @property
    def host(self) -> Host:
        return self._channels.host

    def read(self) -> EntranceReading:
        """What is counted, for metrics."""
        return EntranceReading(
            refused=self.refused_count,
            put_off=self.put_off_count,
            waiting=len(self._line) + len(self.fights),
            strangers_put_off=self.strangers_put_off_count,
            strangers_waiting=len(self._strangers),
            held_bytes=self._room.held + self._strangers.room.held,
            fights=len(self.fights.current(self.host.now)),
        )

    def wants(self, target: str) -> bool:
        """Whether a request for this target is for an RPC socket."""
        return self._admission.wants(target)

    def close(self) -> None:
        """Let nobody in any more: the server is about to end."""
        self._is_closed = True

    def enter(self, visit: HttpSession, request: Request) -> None:
        """Decide about a connection, at once or when its turn comes; until then the kernel keeps what it sends."""
        wire = visit.wire
        session = wire.session = _DecidingSession(self, wire, _needed(request), visit.http.trailing_data())
        self._sort(session)
        if wire.kept and wire.session is not session:
            self.host.pause(wire)
            self.host.resume(wire)

    def _sort(self, session: "_DecidingSession") -> None:
        """What memory can refuse takes nobody's place; who is known, and who is not, do not wait for each other."""
        now = self.host.now
        verdict = self._judge_now(session)
        if isinstance(verdict, RefusedPeer):
            self._refuse(session, verdict.status, verdict.headers, verdict.body, verdict.why)
        if verdict is not None:
            key = _identity(verdict).id
            # Or one caller with a loop has all places, and the pace too.
            if not self._channels.accounts.may_wait(key, self._waiting_of[key], now):
                self._turn_away(session, _name(verdict))
        session.is_stranger = verdict is None and not self._admission.knows(
            session.request.target, session.request.headers
        )
        if session.is_stranger:
            if self._strangers.admits(now):
                self._ask(session)
            elif self._is_small(session) and self._join_strangers(session):
                self._hold(session, PATIENCE_SECONDS)
            else:
                self._put_off(session, _TOO_MANY_STRANGERS)
        elif self._line.admits(now):
            self._strangers.make_way(now)
            if verdict is None:
                self._ask(session)
            else:
                self._carry_out(session, verdict)
        elif self._keep(session) and self._line.join(session, now):
            if verdict is not None:
                session.waits_as = _identity(verdict).id
                self._waiting_of[session.waits_as] += 1
            self._hold(session, PATIENCE_SECONDS)
        else:
            self._put_off(session)

    def left(self, wire: Wire, session: "_DecidingSession", reason: CloseReason) -> None:
        """It ended before anything was decided, whoever ended it."""
        self._line.leave(session)
        self._count_out(session)
        self._strangers.leave(session)
        self.fights.leave(session)
        self._give_back(session)
        self._lobby.leave(wire)
        self._lobby.count_closed(reason)

    # --- who waits

    def _hold(self, session: "_DecidingSession", seconds: float) -> None:
        """Its deadline at the door begins when its turn has come."""
        self._lobby.enter(session.wire, seconds + _TURN_SECONDS)
        self.host.pause(session.wire)
        self._alarm.look()

    def _join_strangers(self, session: "_DecidingSession") -> bool:
        address = address_group(session.wire.address[0])
        return self._strangers.join(session, address, session.size, self.host.now)

    def _is_small(self, session: "_DecidingSession") -> bool:
        """Whether it may wait at all; if not, it has been told what is too large."""
        if session.size > MAX_REQUEST_BYTES:
            self._refuse(session, 431, (_JSON,), _TOO_LARGE, f"it would have to wait with {session.size:,} bytes")
        return True

    def _keep(self, session: "_DecidingSession") -> bool:
        """Whether there is room for one more of its kind; what it holds is given back when it waits no more."""
        if session.room is not None:
            return True
        room = self._strangers.room if session.is_stranger else self._room
        size = session.size + WAITER_BYTES
        if not (self._is_small(session) and room.take(size)):
            return False
        session.room, session.held = room, size
        return True

    def _give_back(self, session: "_DecidingSession") -> None:
        if session.room is not None:
            session.room.give(session.held)
            session.room = None

    def _count_out(self, session: "_DecidingSession") -> None:
        """It waits in the line no more, if it did."""
        key, session.waits_as = session.waits_as, None
        if key is not None:
            self._waiting_of[key] -= 1
            if not self._waiting_of[key]:
                del self._waiting_of[key]

    def _handle_timeout(self, now: float) -> None:
        for session, comes_in in self._line.handle_timeout(now):
            if comes_in:
                self._strangers.make_way(now)
            self._take_turn(session, self._judge if comes_in else self._put_off)
        for session, comes_in in self._strangers.handle_timeout(now):
            self._take_turn(session, self._judge if comes_in else partial(self._put_off, why=_TOO_MANY_STRANGERS))
        for session in self.fights.handle_timeout(now):
            self._take_turn(session, self._judge)

    def _take_turn(self, session: "_DecidingSession", take: Callable[["_DecidingSession"], None]) -> None:
        wire = session.wire
        if wire.session is not session:
            return  # another one's turn ended it
        self._count_out(session)
        self._go_on(session, partial(self._begin_turn, session, take))

    def _begin_turn(self, session: "_DecidingSession", take: Callable[["_DecidingSession"], None]) -> None:
        if session.wire.peer_left():  # a paused wire does not see it
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        self._lobby.enter(session.wire)
        take(session)

    def _go_on(self, session: "_DecidingSession", step: Callable[[], None]) -> None:
        """Take a step for a paused wire where the reactor does not guard it."""
        wire = session.wire
        try:
            step()
            if wire.session is not session:
                self.host.resume(wire)
        except (WireEnded, ProtocolError) as error:
            self.host.fail(wire, error)
        except Exception:
            self._fail_for_defect(session)

    def _fail_for_defect(self, session: "_DecidingSession") -> None:
        """It costs one connection, and neither the turns of others nor the server."""
        _log.exception("! %r could not be let in and is closed; please report this", session.wire)
        self.host.close(session.wire, CloseReason.INTERNAL_ERROR)

    def _put_off(self, session: "_DecidingSession", why: str = _OVER_LIMIT) -> NoReturn:
        if session.is_stranger:
            self.strangers_put_off_count += 1
        else:
            self.put_off_count += 1
        more = self._rarely.held_back(why, self.host.now)
        if more is not None:
            _log.warning("! %s: one is told to try again%s", why, and_more(more))
        # Not all of them in one moment again.
        later = ("Retry-After", str(random.randint(*_AGAIN_SECONDS)))
        self._answer(session, 503, (_JSON, later), _TOO_MANY)
        raise WireEnded(CloseReason.TOO_MANY)

    # --- fights

    def _note_overtaken(self, connection: Receiver) -> None:
        """A peer's connection was ended by another one of its id, here or elsewhere."""
        old = _wired(connection)
        if old is None:
            return
        peer_id: PeerID = old.caller.peer_id
        new = _wired(self._hub.coordinator.connection_of(peer_id))
        addresses = [host_port(*each.wire.address[:2]) for each in (old, new) if each is not None]
        self._note_fight(peer_id, addresses)
        if self._tell_overtaken is not None:
            self._tell_overtaken(peer_id, addresses)

    def _note_fight(self, peer_id: PeerID, addresses: Sequence[str]) -> None:
        """Here or at another replica: the next one of this id has to wait."""
        now = self.host.now
        fight = self.fights.note(peer_id, addresses, now)
        if fight.count > 1 and (more := self._rarely.held_back("fight", now)) is not None:
            told = fields(event="fight", peer=str(peer_id), addresses=list(fight.addresses), count=fight.count)
            text = "! processes take %s from each other, from %s: the next one waits %g s%s"
            places = " and ".join(fight.addresses)
            _log.warning(text, peer_id, places, fight.hold_seconds, and_more(more), extra=told)

    # --- deciding

    def _judge_now(self, session: "_DecidingSession") -> Accepted | RefusedPeer | None:
        if self._is_closed:
            return _LEAVING
        request = session.request
        return self._admission.judge_now(request.method, request.target, request.headers)

    def _judge(self, session: "_DecidingSession") -> None:
        """Its turn has come."""
        verdict = self._judge_now(session)
        if verdict is None:
            self._ask(session)
        else:
            self._carry_out(session, verdict)

    def _ask(self, session: "_DecidingSession") -> None:
        """Have somebody say who it is that memory cannot."""
        is_full = session.is_stranger and self._deciding_strangers >= MAX_DECIDING_STRANGERS
        if is_full or self._deciding >= MAX_DECIDING or not self._keep(session):
            self._put_off(session, _TOO_MANY_QUESTIONS)
        self._deciding += 1
        self._deciding_strangers += session.is_stranger
        session.scope = trio.CancelScope()
        self.host.pause(session.wire)
        self._nursery.start_soon(self._decide, session, session.scope)

    async def _decide(self, session: "_DecidingSession", scope: trio.CancelScope) -> None:
        wire, request = session.wire, session.request
        try:
            with scope:
                verdict = await self._admission.judge(request.method, request.target, request.headers)
        except Exception:
            self._fail_for_defect(session)
        finally:
            self._deciding -= 1
            self._deciding_strangers -= session.is_stranger
        if wire.session is not session:
            return  # it left meanwhile
        self.host.tick()
        self._go_on(session, partial(self._carry_out, session, _LEAVING if self._is_closed else verdict))
        self.host.flush()

    def _carry_out(self, session: "_DecidingSession", verdict: Accepted | RefusedPeer) -> None:
        if isinstance(verdict, RefusedPeer):
            self._refuse(session, verdict.status, verdict.headers, verdict.body, verdict.why)
        seconds = self.fights.hold_until(verdict.peer_id) - self.host.now
        if session.is_stranger:
            self._give_back(session)  # he has room among those who are known now
            session.is_stranger = False
        if seconds <= 0:
            self._accept(session, verdict)
        elif not self._keep(session):
            self._put_off(session, _TOO_MUCH_WAITS)
        elif self.fights.join(session, verdict.peer_id):
            self._hold(session, seconds)
        else:
            self._put_off(session, _TOO_MANY_FIGHT)

    def _refuse(
        self, session: "_DecidingSession", status: int, headers: tuple[tuple[str, str], ...], body: bytes, why: str
    ) -> NoReturn:
        self.refused_count += 1
        wire = session.wire
        if self._refusals.take(self.host.now):
            more, self._untold_count = self._untold_count, 0
            told = fields(event="refused", **_address(wire), reason=why)
            _log.info("! refused %s: %s%s", wire.address[0], why, and_more(more), extra=told)
        else:
            self._untold_count += 1
        self._answer(session, status, headers, body)
        raise WireEnded(CloseReason.HTTP_DONE)

    def _turn_away(self, session: "_DecidingSession", name: str) -> NoReturn:
        """A caller that has too much of us already; it may try without end, so it gets a line now and then."""
        self.refused_count += 1
        more = self._rarely.held_back("caller", self.host.now)
        if more is not None:
            limit = self._channels.accounts.limits.sockets
            why = f"it has {limit:,} sockets, or flooded a moment ago"
            _log.info("! refused %s: %s: %s%s", session.wire.address[0], name, why, and_more(more))
        self._answer(session, 429, _LATER, _TOO_MUCH)
        raise WireEnded(CloseReason.HTTP_DONE)

    def _answer(
        self, session: "_DecidingSession", status: int, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> None:
        session.wire.send_raw(last_answer(status, headers, body, method=session.request.method))

    def _accept(self, session: "_DecidingSession", accepted: Accepted) -> None:
        wire, request = session.wire, session.request
        answer = judge_websocket_request(request.method, request.http_version, request.headers, None)
        if isinstance(answer, Refusal):
            body = f'{{"message":"{answer.sentence}"}}\n'.encode()
            self._refuse(session, answer.status, answer.headers, body, answer.sentence)
        identity = _identity(accepted)
        account = self._channels.accounts.open(identity.id, self.host.now)
        if account is None:
            self._turn_away(session, _name(accepted))
        self._give_back(session)
        # From here on the session's own pings tell who is alive, not the deadline of the door.
        self._lobby.leave(wire)
        wire.send_raw(answer)
        wire.codec = WebSocketDecoder(True, MAX_MESSAGE_BYTES)
        version = str(accepted.version) if accepted.version is not None else ""
        name, policy = _name(accepted), _policy(accepted)
        caller = Caller(accepted.peer_id, policy, name, identity, accepted.credential, account, version)
        if accepted.kind in (PeerKind.LEGACY_AGENT, PeerKind.LEGACY_CLIENT):
            agent_id = accepted.agent.id if accepted.agent is not None and accepted.user is not None else None
            legacy = wire.session = LegacyChannel(self._channels, self._hub, wire, caller, agent_id, account)
            if accepted.drives_status:
                self._presence.came(legacy)
            legacy.start()
        else:
            rpcs = TAILNET_AND_AGENT if accepted.kind is PeerKind.AGENT else TAILNET
            channel = wire.session = Channel(self._channels, wire, rpcs, caller, account)
            if accepted.drives_status:
                self._presence.came(channel)
        told = fields(event="connected", caller=caller.name, **_address(wire))
        _log.info("> %s from %s", caller.name, wire.address[0], extra=told)
        # What came behind the request is framed already; peers wait for the 101, so there is rarely any.
        rest = session.behind
        if rest:
            unframed = bytearray(len(rest))
            end = wire.codec.receive_into(memoryview(rest), unframed, 0)
            wire.kept = bytes(unframed[:end])
        if wire.tail:
            self.host.await_room(wire)


class _DecidingSession:
    """A connection whose turn has not come, or whose caller is being looked up."""

    __slots__ = ("_entrance", "behind", "held", "is_stranger", "request", "room", "scope", "waits_as", "wire")

    def __init__(self, entrance: Entrance, wire: Wire, request: Request, behind: bytes) -> None:
        self._entrance = entrance
        self.wire = wire
        self.request = request
        self.behind = behind  # what came with the request
        self.is_stranger = False
        self.room: Room | None = None  # in which it holds so many bytes
        self.held = 0
        self.scope: trio.CancelScope | None = None  # while a task decides
        self.waits_as: Hashable = None  # whose it is, while it waits in the line

    @property
    def size(self) -> int:
        """Bytes that it holds of what was sent."""
        request = self.request
        return len(self.behind) + len(request.target) + sum(map(len, request.headers.values()))

    def received(self, at: int, end: int) -> int:
        return at  # kept for the session to come

    def writable(self) -> None:
        """Nothing was sent yet."""

    def ended(self, reason: CloseReason, text: str) -> None:
        self._entrance.left(self.wire, self, reason)
        if self.scope is not None:
            self.scope.cancel()


def _needed(request: Request) -> Request:
    headers = {name: value for name, value in request.headers.items() if name in _HEADERS}
    return Request(request.method, request.target, headers, b"", request.http_version)


def _wired(connection: Receiver | None) -> Channel | LegacyChannel | None:
    """The websocket that a peer's connection came by; the server's own node has none."""
    holder: object = connection.channel if isinstance(connection, CoordinateCall) else connection
    return holder if isinstance(holder, Channel | LegacyChannel) else None


def _identity(accepted: Accepted) -> AgentIdentity | UserIdentity:
    """Whose account it is."""
    identity = accepted.user or accepted.agent
    assert identity is not None
    return identity


def _policy(accepted: Accepted) -> Policy:
    if accepted.kind in (PeerKind.AGENT, PeerKind.LEGACY_AGENT):
        assert accepted.agent is not None
        return AgentPolicy(accepted.agent.id)
    if accepted.kind is PeerKind.CLIENT_OF_MANY:
        return ManyAgentsPolicy()
    assert accepted.agent is not None
    return ClientPolicy(accepted.agent.id)


def _name(accepted: Accepted) -> str:
    if accepted.kind in (PeerKind.AGENT, PeerKind.LEGACY_AGENT):
        assert accepted.agent is not None
        return f"agent {accepted.agent.name} {accepted.peer_id}"
    assert accepted.user is not None
    return f"client {accepted.peer_id} of {accepted.user.username}"


def _address(wire: Wire) -> dict[str, object]:
    return {"address": wire.address[0], "port": wire.address[1]}
