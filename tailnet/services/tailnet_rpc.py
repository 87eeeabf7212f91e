"""The Tailnet service, and the way that every RPC takes.  Layer L3.

transport/channel.py calls `serve` with each event.  Coordinate, resume tokens and telemetry are answered in place, on
the reactor's path; an RPC that must wait (for the store, for a change of the map) becomes a trio task, which answers
through the same channel.  Next hop: coordinator/core.py, and hub.py with what it says; agents' RPCs: agent_rpc.py.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError, Message

from derp.admission.terms import is_tenant_name
from derp.log import fields
from derp.text import error_text
from tailnet.auth.callers import Credential
from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Request
from tailnet.coordinator.policy import Policy
from tailnet.coordinator.resume import ResumeTokens, audience
from tailnet.errors import RpcError, Unimplemented
from tailnet.proto import convert
from tailnet.proto.coordination import decode_request
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import COORDINATE, POST_TELEMETRY, REFRESH_RESUME_TOKEN, Rpc
from tailnet.rpc.connection import ConnectionEvent
from tailnet.services.hub import CoordinateCall, Hub, Receiver
from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.transport.accounts import Account
from tailnet.transport.channel import Channel, Connected
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

# Calls of one connection that tasks answer at a time.  An agent starts with seven and keeps two or three open.
MAX_TASKS_PER_CHANNEL: Final = 64

_CALLED, _MESSAGE = ConnectionEvent.CALLED, ConnectionEvent.MESSAGE
_HALF_CLOSED, _ENDED = ConnectionEvent.HALF_CLOSED, ConnectionEvent.ENDED

Authorise = Callable[["Caller", bytes], bool | Awaitable[bool]]
Unary = Callable[["Caller", Any], Awaitable[Message]]
# Runs until the client ends the call, and sends with the given function, which says False to one that does not read.
Stream = Callable[["Caller", Any, Callable[[bytes], bool]], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Caller:
    """Who is at the other end of a channel, as admission (api/rpc_admission.py) found out."""

    peer_id: PeerID
    policy: Policy
    name: str  # for the log and the debug page
    identity: AgentIdentity | UserIdentity | None = None  # who it is to the store
    credential: Credential | None = None  # what it came in with: services/rights.py asks about it again
    account: Account | None = None  # what it has of this server
    api_version: str = ""  # what was dialled, as `major.minor`; empty for peers of version 1
    # When services/rights.py asks about it at the latest, in seconds of trio's clock; soon when it has come in.
    ask_again_at: float = 0.0
    tenant: str = field(init=False, default="")
    """Whose peer it is, for the limits of relays: an agent's owner's, or the user's; empty: nobody's.

    Found once: the hub asks with each update, of which finding it would be a fiftieth.
    """

    def __post_init__(self) -> None:
        self.be(self.identity)

    def be(self, identity: AgentIdentity | UserIdentity | None) -> None:
        """Who it is to the store from now on: names, and whose it is, may be others."""
        self.identity = identity
        match identity:
            case AgentIdentity(owner_name=name, owner_id=ident) | UserIdentity(username=name, id=ident):
                self.tenant = name if is_tenant_name(name) else str(ident)
            case None:
                self.tenant = ""


class _TaskCall:
    """A call that a task answers, or will when its request has come."""

    __slots__ = ("request_bytes", "rpc", "scope")

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.request_bytes = 0
        self.scope: trio.CancelScope | None = None


class TailnetService:
    """Serves the events of all channels.  `unary` and `streams` give for an RPC's path what answers it.

    `authorise(caller, agent_id)` says whether a client of many agents may open a tunnel; it may have to wait.
    """

    def __init__(
        self,
        coordinator: Coordinator[Receiver],
        hub: Hub,
        resume_tokens: Callable[[], ResumeTokens],
        *,
        nursery: trio.Nursery,
        unary: Mapping[str, Unary],
        streams: Mapping[str, Stream],
        authorise: Authorise,
        flush: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.coordinator = coordinator
        self.hub = hub
        self._resume_tokens = resume_tokens
        self.telemetry_events = 0
        self.telemetry_unreadable = 0
        self.refused_calls = 0
        self._nursery = nursery
        self._unary = unary
        self._streams = streams
        self._authorise = authorise
        self._flush = flush
        self._clock = clock

    # --- the reactor's path

    def serve(self, channel: Channel, event: ConnectionEvent, call_id: int, value: Any) -> None:
        """One event of a channel; see ServerConnection for their meaning."""
        if event is _MESSAGE:
            call = channel.calls.get(call_id)
            if type(call) is CoordinateCall:
                self._receive_coordinate(call, value)
            elif call is not None:
                self._receive_request(channel, call_id, call, value)
        elif event is _CALLED:
            self._open(channel, call_id, value)
        elif event is _ENDED or event is _HALF_CLOSED:
            self._end(channel, call_id, event)

    def ended(self, channel: Connected, reason: str) -> None:
        """The channel is gone, and its calls have heard of it."""
        told = fields(event="disconnected", caller=channel.caller.name, reason=reason)
        _log.info("x %s: %s", channel.caller.name, reason, extra=told)

    def _open(self, channel: Channel, call_id: int, rpc: Rpc) -> None:
        if rpc.path == COORDINATE:
            for other in channel.calls.values():
                if type(other) is CoordinateCall:
                    channel.connection.send_error(call_id, RpcError("this connection coordinates already"))
                    channel.touch()
                    return
            call = channel.calls[call_id] = CoordinateCall(channel, call_id)
            caller: Caller = channel.caller
            now = self._clock()
            self.hub.carry_out(self.coordinator.handle_connect(caller.peer_id, caller.policy, call, now), now)
        elif len(channel.calls) >= MAX_TASKS_PER_CHANNEL:
            self.refused_calls += 1
            channel.connection.send_error(call_id, RpcError(f"more than {MAX_TASKS_PER_CHANNEL} calls at once"))
            channel.touch()
        else:
            channel.calls[call_id] = _TaskCall(rpc)

    def _receive_coordinate(self, call: CoordinateCall, payload: bytes) -> None:
        if call.waiting is not None:
            call.waiting.append(payload)
            call.channel.take_in_hand(len(payload))
            return
        try:
            request = decode_request(payload)
        except DecodeError:
            now = self._clock()
            call.send_error("malformed request: not a CoordinateRequest")
            self.hub.carry_out(self.coordinator.handle_disconnect(call, False, now), now)
            call.end("malformed request")
            return
        target = request.add_tunnel
        if target is not None and call.channel.caller.policy.needs_decision:
            verdict = self._authorise(call.channel.caller, target)
            if not isinstance(verdict, bool):
                self._decide_later(call, request, verdict)
                return
            if verdict:
                request.allowed = (target,)
        self.hub.handle_request(call, request, self._clock())

    def _decide_later(self, call: CoordinateCall, request: Request, verdict: Awaitable[bool]) -> None:
        """Decide in a task.  Requests keep their order: those received wait in the call, later ones in the kernel."""
        channel = call.channel
        call.deciding, call.waiting = request, deque()
        channel.host.pause(channel.wire)

        async def decide() -> None:
            allowed = unknown = False
            try:
                allowed = await verdict
            except Exception as error:
                # No answer is not a "no": a client that was told "no permission" would not ask again.
                _log.error("! %s: cannot decide about a tunnel: %s", channel.caller.name, error_text(error))
                unknown = True
            if channel.is_open:
                self._decided(call, request, None if unknown else allowed)
                self._flush()

        self._nursery.start_soon(decide)

    def _decided(self, call: CoordinateCall, request: Request, allowed: bool | None) -> None:
        channel = call.channel
        waiting, call.waiting, call.deciding = call.waiting or (), None, None
        channel.take_in_hand(-sum(map(len, waiting)))
        now = self._clock()
        if allowed is None:
            call.send_error("this server cannot decide about tunnels now: try again")
            self.hub.carry_out(self.coordinator.handle_disconnect(call, False, now), now)
            call.end("undecided")
        else:
            request.allowed = (request.add_tunnel,) if allowed and request.add_tunnel is not None else ()
            self.hub.handle_request(call, request, now)
        for payload in waiting:
            # The core has ended a peer that it refused; its later requests are not worth a question to the store each.
            if self.coordinator.policy_of(call) is None:
                break
            self._receive_coordinate(call, payload)
        if call.waiting is None:
            channel.host.resume(channel.wire)

    def _end(self, channel: Channel, call_id: int, event: ConnectionEvent) -> None:
        call = channel.calls.get(call_id)
        if type(call) is CoordinateCall:
            # CloseSend ends a Coordinate call too: the reference takes a closed request stream as leaving.
            channel.calls.pop(call_id)
            now = self._clock()
            self.hub.carry_out(self.coordinator.handle_disconnect(call, _said_goodbye(call), now), now)
            if event is _HALF_CLOSED:
                channel.connection.finish(call_id)
                channel.touch()
        elif call is not None and event is _ENDED:
            channel.calls.pop(call_id)
            if call.scope is not None:
                call.scope.cancel()
        elif call is not None and call.scope is None:
            self._answer_error(channel, call_id, RpcError("the call ended before its request"))

    # --- calls that may wait

    def _receive_request(self, channel: Channel, call_id: int, call: _TaskCall, payload: bytes) -> None:
        if call.scope is not None:
            return  # a unary call and a server stream have one request; clients that send more do no harm
        rpc = call.rpc
        try:
            request = rpc.request.FromString(payload)
        except DecodeError:
            if rpc.path == POST_TELEMETRY:
                # Clients in use send drafts of this message, and can do nothing about an error.
                self.telemetry_unreadable += 1
                self._reply(channel, call_id, tailnet.TelemetryResponse())
                return
            self._answer_error(channel, call_id, RpcError(f"not a {rpc.request.DESCRIPTOR.name}"))
            return
        if rpc.path == REFRESH_RESUME_TOKEN:
            self._refresh_token(channel, call_id)
        elif rpc.path == POST_TELEMETRY:
            assert isinstance(request, tailnet.TelemetryRequest)
            self.telemetry_events += len(request.events)
            self._reply(channel, call_id, tailnet.TelemetryResponse())
        elif rpc.path in self._unary or rpc.path in self._streams:
            call.scope = trio.CancelScope()
            call.request_bytes = len(payload)
            channel.take_in_hand(len(payload))
            answer = self._answer if rpc.path in self._unary else self._answer_stream
            self._nursery.start_soon(self._answer_and_let_go, answer, channel, call_id, call, request)
        else:
            self._answer_error(channel, call_id, Unimplemented())

    def _refresh_token(self, channel: Channel, call_id: int) -> None:
        caller: Caller = channel.caller
        user = caller.identity
        if not isinstance(user, UserIdentity):
            # An agent's id is its own for good.  With a token for it a client could come in as that agent.
            self._answer_error(channel, call_id, Unimplemented())
            return
        issued = self._resume_tokens().issue(caller.peer_id, audience(caller.policy.name, user.id), time.time())
        response = tailnet.RefreshResumeTokenResponse(token=issued.token, peer_id=bytes(caller.peer_id))
        response.refresh_in.CopyFrom(convert.duration(issued.refresh_in_seconds))
        response.expires_at.FromSeconds(int(issued.expires_at))
        self._reply(channel, call_id, response)

    def _reply(self, channel: Channel, call_id: int, response: Message) -> None:
        channel.calls.pop(call_id, None)
        channel.connection.reply(call_id, response.SerializeToString())
        channel.touch()

    def _answer_error(self, channel: Channel, call_id: int, error: RpcError) -> None:
        channel.calls.pop(call_id, None)
        channel.connection.send_error(call_id, error)
        channel.touch()

    async def _answer_and_let_go(
        self,
        answer: Callable[[Channel, int, _TaskCall, Message], Awaitable[None]],
        channel: Channel,
        call_id: int,
        call: _TaskCall,
        request: Message,
    ) -> None:
        try:
            await answer(channel, call_id, call, request)
        finally:
            channel.take_in_hand(-call.request_bytes)

    async def _answer(self, channel: Channel, call_id: int, call: _TaskCall, request: Message) -> None:
        assert call.scope is not None
        with call.scope:
            response = await self._guarded(channel, call, self._unary[call.rpc.path](channel.caller, request))
            if channel.is_open and channel.calls.get(call_id) is call:
                if isinstance(response, RpcError):
                    self._answer_error(channel, call_id, response)
                else:
                    self._reply(channel, call_id, response)
                self._flush()

    async def _answer_stream(self, channel: Channel, call_id: int, call: _TaskCall, request: Message) -> None:
        assert call.scope is not None

        def send(payload: bytes) -> bool:
            if not channel.is_open or channel.calls.get(call_id) is not call:
                return False
            taken = channel.connection.send_message(call_id, payload)
            channel.touch()
            self._flush()
            return taken

        with call.scope:
            ended = await self._guarded(channel, call, self._streams[call.rpc.path](channel.caller, request, send))
            if channel.is_open and channel.calls.get(call_id) is call:
                if isinstance(ended, RpcError):
                    self._answer_error(channel, call_id, ended)
                else:
                    channel.calls.pop(call_id)
                    channel.connection.finish(call_id)
                    channel.touch()
                self._flush()

    async def _guarded(self, channel: Channel, call: _TaskCall, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except RpcError as error:
            return error
        except Exception:
            # The service boundary: a defect costs one caller its call, and the operator gets the whole story.
            _log.exception("! %s: %s failed", channel.caller.name, call.rpc.path)
            return RpcError("internal error; the server's log says more")


def _said_goodbye(call: CoordinateCall) -> bool:
    """Whether a Disconnect waits behind a tunnel that is being decided: its sender said goodbye and is not lost."""
    if call.deciding is None:
        return False
    try:
        return call.deciding.disconnect or any(decode_request(each).disconnect for each in call.waiting or ())
    except DecodeError:
        return False
