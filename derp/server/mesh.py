"""Mesh connections to the other relays of the region: dialled, kept, and served on the reactor.  Layer L3.

Dialling and handshake are a trio task per relay, written for the reader; then the socket moves to the reactor, where
packets to the other relay leave with the same flush as everybody's.  What is learnt goes to relay/mesh.py.  Those of
`--mesh-with` are dialled here; who knows of others, and how to reach them, gives a `Dial` to `keep`.
"""

import logging
import math
import random
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import trio

from derp.close_reason import CloseReason
from derp.config.relay import MeshPeer
from derp.errors import ConnectError, DerpError, RemoteProtocolError
from derp.keys import KEY_BYTES, MeshKey, NodePrivate, short_key
from derp.log import fields
from derp.protocol.connection import ClientConnection
from derp.protocol.messages import Restarting
from derp.relay.clients import Client
from derp.relay.counters import DropReason
from derp.relay.deadlines import Deadlines
from derp.relay.forward import forward_again
from derp.relay.mesh import MeshPeerState, MeshRoute
from derp.server.login import OwnRelay, log_in, shake_hands
from derp.server.session import Greeting, Sessions, drain_queue
from derp.text import error_text
from derp.transport.alarm import Alarm
from derp.transport.host import Wire, WireEnded
from derp.transport.links import TlsLink
from derp.transport.linkstream import LinkStream
from derp.transport.stream import reason_of
from derp.transport.tcp import TcpTarget, dial_tcp
from derp.transport.tls_client import system_context

_log = logging.getLogger("derp.mesh")

# Genuine relays retry after 5 s.  A node that is being replaced is back in about a second, and until we are connected
# again every packet between its clients and ours is lost.  So our first attempts come soon, and only a relay that
# stays away is dialled as rarely as a genuine relay would dial it.  Chance spreads all attempts, so that the relays of
# a region do not dial in step.
_FIRST_RETRY_SECONDS: Final = 0.2
_MAX_RETRY_SECONDS: Final = 5.0
# An operator is most likely restarting or replacing a relay that was good a moment ago: (seconds since then, longest
# wait).  A refused connection costs both sides nearly nothing, and packets are lost for as long as we wait.
_RESTART: Final = ((5.0, 0.25), (30.0, 1.0))
# So many keys of a lost relay we forget between two batches of packets: 2 us each, so some 4 ms.
_FORGET_AT_ONCE: Final = 2000
# A connection that lasted so long was a good one: the log tells of its end, and our first attempt after it comes soon.
_SETTLED_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 10.0
# All relays of a region hear at once that one is replaced: they need not dial it in the same millisecond.
_REPLACED_SECONDS: Final = 0.02
# The last packets of clients that we sent away go to the other relay, and it hangs up: a round trip or two.
_LEAVE_SECONDS: Final = 2.0
_LEAVE_STEP_SECONDS: Final = 0.01
# A relay sends a keep-alive every 60 to 65 s; twice that without a frame and it is dead.
SILENT_SECONDS: Final = 130.0
# What OpenSSL says, and what the operator of a region can do about it.
_TLS_REMEDIES: Final = {
    "VERIFY_FAILED": "this machine has to trust its certificate: SSL_CERT_FILE names an authority of your own",
    "UNRECOGNIZED_NAME": "it has no certificate for that name: use the name that is its --hostname, or name/dialhost",
    "INTERNAL_ERROR": "it has no certificate for that name: use the name that is its --hostname, or name/dialhost",
    "WRONG_VERSION_NUMBER": "it does not speak TLS there, and relays mesh over TLS only: is the port right?",
}


@dataclass(slots=True)
class Dialled:
    """A connection on which another relay takes us for a mesh peer; it was told `send_watch_conns`."""

    wire: Wire
    connection: ClientConnection
    received: bytes  # behind the login
    key: bytes
    """Raw: which of the keys that the other relay announces is this connection's end, and no client."""


Dial: TypeAlias = Callable[[], Awaitable[Dialled]]
"""Reaches a relay.  Raises DerpError or OSError, and OwnRelay if it is this one."""


class MeshSession:
    """One mesh connection on the reactor."""

    __slots__ = (
        "_connection",
        "_name",
        "_sessions",
        "ended_event",
        "heard_at",
        "is_ours",
        "left_event",
        "reason",
        "route",
        "wire",
    )

    def __init__(
        self, sessions: Sessions, wire: Wire, connection: ClientConnection, route: MeshRoute, name: str
    ) -> None:
        self._sessions = sessions
        self._name = name
        self._connection = connection
        self.wire = wire
        self.route = route
        # Genuine relays do not tell it.
        self.is_ours = connection.server_info is not None and connection.server_info.queue_depth > 0
        self.ended_event = trio.Event()
        # It ended, or it is about to and another process serves already in the place of the one at its other end.
        self.left_event = trio.Event()
        self.reason = ""
        self.heard_at = sessions.host.now

    def received(self, at: int, end: int) -> int:
        self.heard_at = self._sessions.host.now
        was_accepted = self.route.is_accepted
        for message in self._connection.receive_data(self._sessions.host.view[at:end]):
            self.route.handle_message(message)
            if isinstance(message, Restarting) and not message.reconnect_in_ms:
                self.left_event.set()
        if self.route.too_many:
            raise RemoteProtocolError(
                f"it announced more than {len(self.route.keys)} keys; if it has so many clients, raise max_connections"
            )
        if self.route.is_accepted and not was_accepted:
            told = fields(event="mesh_connected", peer=self._name, key=self.route.key)
            _log.info("> mesh: %s %s", self._name, short_key(self.route.key), extra=told)
        for frame in self._connection.data_to_send():  # answers to pings
            self._sessions.router.send(self.route, frame)
        return end

    def writable(self) -> None:
        drain_queue(self.route, self._sessions.host.now)

    def ended(self, reason: CloseReason, text: str) -> None:
        self.reason = reason.told(text)
        if not self.route.is_accepted and reason in (CloseReason.CLOSED_BY_PEER, CloseReason.SOCKET_FAILED):
            # Every relay announces at least our own connection to us, unless it takes us for an ordinary client.
            self.reason = "it closed the connection when asked for its clients: does it have the same mesh key?"
        if self.is_ours:
            self._sessions.router.mesh_links.remove(self.route)
        self._sessions.lobby.count_closed(reason)
        self._sessions.router.counters.write_timeouts += reason is CloseReason.WRITE_TIMEOUT
        pending = b"".join(self.route.pending)
        self.route.pending, self.route.pending_bytes = [], 0
        if self.route.queue is not None:
            self.route.queue.discard(DropReason.WRITE_ERROR)
            self.route.queue = None
        if len(self.route.keys) <= _FORGET_AT_ONCE:
            self.route.handle_break()
        forward_again(pending, self.route, self._sessions.router)
        self.left_event.set()
        self.ended_event.set()

    async def see_out(self) -> None:
        """Until it has ended, and nothing is left of what was learnt over it."""
        await self.ended_event.wait()
        await self.forget()

    async def forget(self) -> None:
        """Forget the rest of what was learnt over it, once it has ended."""
        while self.route.forget_some(_FORGET_AT_ONCE):
            self._sessions.host.flush()
            await trio.lowlevel.checkpoint()


class Mesh:
    """All mesh connections of one relay.  `sessions` are those that stand, `states` tell about all that should."""

    def __init__(
        self,
        sessions: Sessions,
        private: NodePrivate,
        mesh_key: MeshKey | None,
        *,
        max_keys: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._sessions = sessions
        self._private = private
        self._mesh_key = mesh_key
        self._max_keys = max_keys
        self._context = context
        self.sessions: dict[Hashable, MeshSession] = {}
        self.states: dict[Hashable, MeshPeerState] = {}
        self._replaced: dict[MeshSession, Hashable] = {}  # those to processes in whose place others serve
        # when each session will have been silent for too long if nothing comes; `_hang_up` looks at `heard_at` then
        self._silence = Deadlines[MeshSession]()
        self._alarm = Alarm(sessions.host, self._hang_up, self._silence)
        self._is_leaving = False
        self._arrived = trio.Event()  # another relay of the region has just connected: it is there to be dialled
        sessions.on_register.append(self._note_arrival)

    async def run(self, peers: tuple[MeshPeer, ...]) -> None:
        """Keep a connection to each of `peers` until cancelled.  One that turns out to be this relay is left out."""
        async with trio.open_nursery() as nursery:
            for peer in dict.fromkeys(peers):
                nursery.start_soon(self.keep, peer, _label(peer), partial(self._dial, peer))

    async def keep(self, peer: Hashable, name: str, dial: Dial) -> None:
        """Keep a connection to one relay until cancelled; `name` is for people."""
        async with trio.open_nursery() as nursery:  # for connections to processes that others have replaced
            await self._dial_forever(peer, name, dial, nursery)

    async def forget(self, peer: Hashable) -> None:
        """This relay is of the region no more, and `keep` was cancelled."""
        self.states.pop(peer, None)
        session = self.sessions.pop(peer, None)
        gone = [each for each, of in self._replaced.items() if of == peer] + ([session] if session is not None else [])
        # Whoever leaves the rest of a large one's keys has their packets go to a closed connection for ever.
        with trio.CancelScope(shield=True):
            for session in gone:
                self._replaced.pop(session, None)
                self._sessions.host.close(session.wire, CloseReason.DRAINED)
                await session.forget()

    def _hang_up(self, now: float) -> None:
        """End the connections to relays that fell silent."""
        for session in self._silence.handle_timeout(now):
            if session.wire.session is not session:
                continue  # it ended meanwhile
            silent_at = session.heard_at + SILENT_SECONDS
            if silent_at > now:
                self._silence.set(session, silent_at)
            else:
                self._sessions.host.close(session.wire, CloseReason.SILENT)

    def _note_arrival(self, client: Client) -> None:
        if client.is_mesh_peer:
            self._arrived.set()
            self._arrived = trio.Event()

    async def leave(self) -> None:
        """Say to the others that nothing more comes, when all has gone, and wait until they have hung up."""
        self._is_leaving = True
        async with trio.open_nursery() as nursery:
            for session in tuple(self.sessions.values()):
                nursery.start_soon(leave, session)

    async def _dial_forever(self, peer: Hashable, name: str, dial: Dial, nursery: trio.Nursery) -> None:
        state = self.states[peer] = MeshPeerState(name)
        complained = ""
        failures = 0
        lost_at = -math.inf  # when a good connection ended
        while not self._is_leaving:
            began = trio.current_time()
            try:
                with trio.fail_after(_CONNECT_SECONDS):
                    dialled = await dial()
                session = self._adopt(name, dialled)
            except OwnRelay:
                _log.info("= mesh: %s is this relay itself", name)
                state.is_ourselves = True
                return
            except trio.TooSlowError:
                trouble = f"no DERP relay answered within {_CONNECT_SECONDS:g} s"
            except (DerpError, OSError, trio.BrokenResourceError) as error:
                trouble = reason_of(error)
            else:
                self.sessions[peer] = session
                state.route = session.route
                await session.left_event.wait()
                is_replaced = not session.ended_event.is_set()
                if is_replaced:
                    self._replaced[session] = peer
                    nursery.start_soon(self._see_out, session)
                else:
                    await session.see_out()
                del self.sessions[peer]
                state.route = None
                state.past_connects += session.route.is_accepted
                if is_replaced:
                    _log.info("= mesh: %s is replaced by another process", name)
                    await trio.sleep(_REPLACED_SECONDS * random.random())
                    continue
                trouble = session.reason
                if session.route.is_accepted and trio.current_time() - began > _SETTLED_SECONDS:
                    complained = ""
                    failures = 0
                    lost_at = trio.current_time()
            state.trouble = trouble
            if trouble != complained:  # once per kind of trouble, not with every attempt
                told = fields(event="mesh_trouble", peer=name, reason=trouble, failures_count=failures)
                _log.warning("x mesh: %s: %s", name, trouble, extra=told)
                complained = trouble
            with trio.move_on_after(retry_seconds(failures, trio.current_time() - lost_at) * (0.5 + random.random())):
                await self._arrived.wait()
            failures += 1

    async def _see_out(self, session: MeshSession) -> None:
        await session.see_out()
        self._replaced.pop(session, None)

    async def _dial(self, peer: MeshPeer) -> Dialled:
        """Dial one relay of --mesh-with."""
        tcp = await dial_tcp(TcpTarget(peer.dial_host, peer.port), timeout_seconds=_CONNECT_SECONDS)
        sock = socket.socket(fileno=tcp.socket.detach())
        sock.setblocking(False)
        wire = TlsLink(sock, (peer.host, peer.port), self._tls_context(), peer.host)
        stream = LinkStream(wire, b"")
        try:
            await _start_tls(stream)
            connection = await self._handshake(stream, peer)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        assert connection.server_key is not None
        return Dialled(wire, connection, stream.take_received(), connection.server_key)

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = system_context()
        return self._context

    async def _handshake(self, stream: LinkStream, peer: MeshPeer) -> ClientConnection:
        host = TcpTarget(peer.host, peer.port).label().removesuffix(":443")
        connection = ClientConnection(self._private, random_bytes=secrets.token_bytes, mesh_key=self._mesh_key)
        await log_in(stream, host, connection, own_key=self._sessions.router.own_key)
        connection.send_watch_conns()
        await stream.send_all(b"".join(connection.data_to_send()))
        return connection

    def _adopt(self, name: str, dialled: Dialled) -> MeshSession:
        sessions = self._sessions
        route = MeshRoute(sessions.router, dialled.key, dialled.wire, self._max_keys)
        session = MeshSession(sessions, dialled.wire, dialled.connection, route, name)
        self._silence.set(session, sessions.host.now + SILENT_SECONDS)
        self._alarm.by(sessions.host.now + SILENT_SECONDS)
        begin(sessions, session, dialled.received)
        return session


def begin(sessions: Sessions, session: MeshSession, received: bytes) -> None:
    """Serve a session on the host from now on; `received` came with its login."""
    wire = session.wire
    wire.session = session
    wire.write_seconds = sessions.mesh_write_seconds
    if session.is_ours:
        sessions.router.mesh_links.append(session.route)
    sessions.host.adopt(wire, received)
    sessions.host.flush()


async def leave(session: MeshSession) -> None:
    """Say to a relay that nothing more comes, when all has gone, and wait until it has hung up."""
    with trio.move_on_after(_LEAVE_SECONDS):
        while session.route.queue is not None or session.wire.tail:  # noqa: ASYNC110  # for as long as a flush takes
            await trio.sleep(_LEAVE_STEP_SECONDS)
        session.wire.end_output()
        await session.ended_event.wait()


def greet_kin(sessions: Sessions, wire: Wire, seconds: float) -> None:
    """Serve a wire that proves by itself who is there, without HTTP and keys: whoever logs in on it within so many
    seconds is a mesh peer."""
    greeting = wire.session = Greeting(sessions, wire, is_ideal=True, is_kin=True)
    sessions.lobby.enter(wire, seconds)
    sessions.host.add(wire)
    try:
        wire.push(greeting.hello())
    except WireEnded as error:  # whoever was there has ended already
        sessions.host.fail(wire, error)


async def log_in_as_kin(stream: LinkStream, private: NodePrivate) -> Dialled:
    """The other end of `greet_kin`, by our `Sessions.kin_private`; the stream is closed if this fails."""
    # A mesh peer shows a key, though nobody looks at this one.
    shown = MeshKey(secrets.token_bytes(KEY_BYTES))
    connection = ClientConnection(private, random_bytes=secrets.token_bytes, mesh_key=shown)
    try:
        await shake_hands(stream, connection)
        connection.send_watch_conns()
        await stream.send_all(b"".join(connection.data_to_send()))
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return Dialled(stream.link, connection, stream.take_received(), private.public().raw)


async def _start_tls(stream: LinkStream) -> None:
    try:
        await stream.start_tls()
    except trio.BrokenResourceError as error:
        why = error_text(error)
        remedy = next((remedy for reason, remedy in _TLS_REMEDIES.items() if reason in why), "")
        raise ConnectError(f"{why}; {remedy}".removesuffix("; ")) from error


def retry_seconds(failures: int, since_lost_seconds: float) -> float:
    """How long to wait before the next attempt, after so many that failed since a good connection ended."""
    longest = next((wait for until, wait in _RESTART if since_lost_seconds < until), _MAX_RETRY_SECONDS)
    return min(math.ldexp(_FIRST_RETRY_SECONDS, min(failures, 10)), longest)


def _label(peer: MeshPeer) -> str:
    """As --mesh-with has it."""
    label = TcpTarget(peer.host, peer.port).label()
    return label if peer.dial_host == peer.host else f"{label}/{peer.dial_host}"
