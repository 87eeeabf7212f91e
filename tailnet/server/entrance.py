"""From an HTTP request to a channel: authenticates RPC sockets while the reactor keeps the connection.  Layer L3.

A route of the front door (server/server.py).  api/rpc_admission.py decides, and may have to ask the store for it.  An
accepted connection becomes a websocket on the reactor: transport/channel.py, or services/legacy.py for version 1.
"""

import logging
from typing import Final, NoReturn

import trio

from derp.close_reason import CloseReason
from derp.errors import ProtocolError
from derp.log import Rarely, and_more, fields
from derp.protocol.upgrade import Refusal, judge_websocket_request
from derp.protocol.websocket import WebSocketDecoder
from derp.server.door import HttpSession
from derp.server.lobby import Lobby
from derp.transport.host import Host, Wire, WireEnded
from derp.transport.http import Request, ServerHttp
from tailnet.api.rpc_admission import Accepted, PeerKind, RefusedPeer, RpcAdmission
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy, ManyAgentsPolicy, Policy
from tailnet.proto.services import TAILNET, TAILNET_AND_AGENT
from tailnet.services.hub import Hub
from tailnet.services.legacy import LegacyChannel
from tailnet.services.presence import AgentPresence
from tailnet.services.tailnet_rpc import Caller
from tailnet.transport.channel import MAX_MESSAGE_BYTES, Channel, Channels

_log = logging.getLogger("tailnet.server")

# Connections that are being decided about.  Each holds a socket and a task of some 10 KiB; more at once would only make
# each slower.
MAX_DECIDING: Final = 10_000


_LEAVING: Final = RefusedPeer(
    503,
    (("Content-Type", "application/json; charset=utf-8"), ("Retry-After", "1")),
    b'{"message":"This server is about to stop. Please try again."}\n',
    "draining",
)


_LATER: Final = (("Content-Type", "application/json; charset=utf-8"), ("Retry-After", "10"))
_TOO_MUCH: Final = b'{"message":"You have too many connections to this server. Close some, and try again later."}\n'
_TELL_SECONDS: Final = 10.0


class Entrance:
    """Lets peers in.  Called from the reactor; each decision is a task."""

    def __init__(
        self,
        admission: RpcAdmission,
        channels: Channels,
        hub: Hub,
        presence: AgentPresence,
        nursery: trio.Nursery,
        lobby: Lobby,
    ) -> None:
        self._admission = admission
        self._channels = channels
        self._hub = hub
        self._presence = presence
        self._nursery = nursery
        self._lobby = lobby
        self._deciding = 0
        self._is_closed = False
        self.refused_count = 0
        self._rarely = Rarely(_TELL_SECONDS)

    @property
    def host(self) -> Host:
        return self._channels.host

    def wants(self, target: str) -> bool:
        """Whether a request for this target is for an RPC socket."""
        return self._admission.wants(target)

    def close(self) -> None:
        """Let nobody in any more: the server is about to end."""
        self._is_closed = True

    def enter(self, visit: HttpSession, request: Request) -> None:
        """Decide about a connection; until then the kernel keeps what it sends."""
        wire, http = visit.wire, visit.http
        session = wire.session = _DecidingSession(self._lobby, wire)
        if self._is_closed:
            self._carry_out(wire, request, http, _LEAVING)
        verdict = self._admission.judge_now(request.method, request.target, request.headers)
        if verdict is not None:
            self._carry_out(wire, request, http, verdict)
            if wire.kept:
                self.host.pause(wire)
                self.host.resume(wire)
            return
        if self._deciding >= MAX_DECIDING:
            self._answer(wire, http, 503, (("Retry-After", "5"),), b'{"message":"too many are coming in; try again"}\n')
            raise WireEnded(CloseReason.TOO_MANY)
        self._deciding += 1
        session.scope = trio.CancelScope()
        self.host.pause(wire)
        self._nursery.start_soon(self._decide, session, request, http)

    async def _decide(self, session: "_DecidingSession", request: Request, http: ServerHttp) -> None:
        wire = session.wire
        assert session.scope is not None
        try:
            with session.scope:
                verdict = await self._admission.judge(request.method, request.target, request.headers)
        finally:
            self._deciding -= 1
        if wire.session is not session:
            return  # it left meanwhile
        if self._is_closed:
            verdict = _LEAVING
        self.host.tick()
        try:
            self._carry_out(wire, request, http, verdict)
            self.host.resume(wire)
        except (WireEnded, ProtocolError) as error:
            self.host.fail(wire, error)
        self.host.flush()

    def _carry_out(self, wire: Wire, request: Request, http: ServerHttp, verdict: Accepted | RefusedPeer) -> None:
        if isinstance(verdict, RefusedPeer):
            self._refuse(wire, http, verdict.status, verdict.headers, verdict.body, verdict.why)
        else:
            self._accept(wire, request, http, verdict)

    def _refuse(
        self, wire: Wire, http: ServerHttp, status: int, headers: tuple[tuple[str, str], ...], body: bytes, why: str
    ) -> None:
        self.refused_count += 1
        _log.info("! refused %s: %s", wire.address[0], why, extra=fields(event="refused", **_address(wire), reason=why))
        self._answer(wire, http, status, headers, body)
        raise WireEnded(CloseReason.HTTP_DONE)

    def _turn_away(self, wire: Wire, http: ServerHttp, name: str) -> NoReturn:
        """A caller that has too much of us already; it may try without end, so it gets a line now and then."""
        self.refused_count += 1
        more = self._rarely.held_back("caller", self.host.now)
        if more is not None:
            limit = self._channels.accounts.limits.sockets
            why = f"it has {limit:,} sockets, or flooded a moment ago"
            _log.info("! refused %s: %s: %s%s", wire.address[0], name, why, and_more(more))
        self._answer(wire, http, 429, _LATER, _TOO_MUCH)
        raise WireEnded(CloseReason.HTTP_DONE)

    def _answer(
        self, wire: Wire, http: ServerHttp, status: int, headers: tuple[tuple[str, str], ...], body: bytes
    ) -> None:
        wire.send_raw(http.send_response(status, [*headers, ("Connection", "close")], body))

    def _accept(self, wire: Wire, request: Request, http: ServerHttp, accepted: Accepted) -> None:
        answer = judge_websocket_request(request.method, request.http_version, request.headers, None)
        if isinstance(answer, Refusal):
            body = f'{{"message":"{answer.sentence}"}}\n'.encode()
            self._refuse(wire, http, answer.status, answer.headers, body, answer.sentence)
            return
        identity = accepted.user or accepted.agent
        assert identity is not None
        account = self._channels.accounts.open(identity.id, self.host.now)
        if account is None:
            self._turn_away(wire, http, _name(accepted))
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
        rest = http.trailing_data()
        if rest:
            unframed = bytearray(len(rest))
            end = wire.codec.receive_into(memoryview(rest), unframed, 0)
            wire.kept = bytes(unframed[:end])
        if wire.tail:
            self.host.await_room(wire)


class _DecidingSession:
    """A connection whose caller is being looked up."""

    __slots__ = ("_lobby", "scope", "wire")

    def __init__(self, lobby: Lobby, wire: Wire) -> None:
        self._lobby = lobby
        self.wire = wire
        self.scope: trio.CancelScope | None = None  # while a task decides

    def received(self, at: int, end: int) -> int:
        return at  # kept for the session to come

    def writable(self) -> None:
        """Nothing was sent yet."""

    def ended(self, reason: CloseReason, text: str) -> None:
        self._lobby.leave(self.wire)
        self._lobby.count_closed(reason)
        if self.scope is not None:
            self.scope.cancel()


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
