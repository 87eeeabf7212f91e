"""The mesh between a process and the one that takes its place, on sockets that the second inherits.  Layer L3.

While clients go from one process to the other, packets between them cross here, so that a region of one relay loses
none either.  Of two pairs of sockets each process is the relay on one and the mesh peer on the other, without HTTP, TLS
and key: nobody else has these sockets.  life.py makes and joins them; next hop: mesh.py.
"""

import secrets
import socket
from typing import Final, NamedTuple, Self

import trio

from derp.close_reason import CloseReason
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.messages import Message, Pong
from derp.relay.mesh import MeshRoute
from derp.server.handover import READY_SECONDS, Handed, Inherited
from derp.server.mesh import MeshSession, begin, greet_kin, leave, log_in_as_kin
from derp.server.session import Sessions
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream

_KINDS: Final = ("kin-serves", "kin-dials")
# Nobody's address: the log and PeerPresent leave it out.
_NOWHERE: Final = ("", 0)
# The other process is busy with its start, or with its clients; what it has to say is 56 bytes for each of those.
_ASK_SECONDS: Final = 0.02


class Ends(NamedTuple):
    """What one process has of the two pairs."""

    serves: socket.socket
    dials: socket.socket

    def handed(self) -> list[Handed]:
        """For the process that inherits these."""
        return [Handed(kind, "", 0, sock) for kind, sock in zip(_KINDS, self, strict=True)]

    @classmethod
    def inherited(cls, inherited: Inherited) -> Self | None:
        """Those that the process that we replace gave us; None without one, or if it knew of none."""
        serves, dials = map(inherited.take, _KINDS)
        return cls(serves, dials) if serves is not None and dials is not None else None


def open_pairs() -> tuple[Ends, Ends]:
    """For either process its ends."""
    (one, other), (another, yet_another) = socket.socketpair(), socket.socketpair()
    for sock in (one, other, another, yet_another):
        sock.setblocking(False)
    return Ends(one, another), Ends(yet_another, other)


class _Route(MeshRoute):
    """`is_whole`: all keys that the other process had when it was asked have been announced."""

    __slots__ = ("is_whole",)
    is_whole: bool

    def handle_message(self, message: Message) -> None:
        super().handle_message(message)
        if isinstance(message, Pong):
            self.is_whole = True


class _Session(MeshSession):
    """One that no task sees out."""

    __slots__ = ()

    def ended(self, reason: CloseReason, text: str) -> None:
        super().ended(reason, text)
        # Clients that the other process had when it failed: they come back to us or to another relay of the region.
        self.route.handle_break()


class Succession:
    """One process's side.  Call `join` once the host runs, and `leave` when no packet for the other is to come."""

    def __init__(self, sessions: Sessions, ends: Ends, max_keys: int) -> None:
        """`max_keys`: the most that the other process may announce."""
        self._sessions = sessions
        self._ends = ends
        self._max_keys = max_keys
        self._session: MeshSession | None = None
        self._served = Link(ends.serves, _NOWHERE)

    @property
    def is_up(self) -> bool:
        """Whether we hear which clients come to the other process, and packets for them go there."""
        return self._session is not None and not self._session.ended_event.is_set()

    def has(self, key: bytes) -> bool:
        """Whether a key is connected to the other process."""
        return self._session is not None and key in self._session.route.keys

    def keys(self) -> set[bytes]:
        """By which the other process is connected with us."""
        clients = self._sessions.router.clients.values()
        return {client.key for client in clients if client.wire is self._served}

    def note_leaving(self) -> None:
        """The other process has begun to give its clients up: it says so over another socket than this."""
        if self._session is not None:
            self._session.route.is_leaving = True

    async def join(self) -> None:
        """Serve the other process, and have it serve us; returns when we know all its clients.  Whoever waits no longer
        cancels it."""
        sessions = self._sessions
        greet_kin(sessions, self._served, READY_SECONDS)
        dialled = await log_in_as_kin(LinkStream(Link(self._ends.dials, _NOWHERE), b""), sessions.kin_private)
        route = _Route(sessions.router, dialled.key, dialled.wire, self._max_keys)
        route.is_whole = False
        self._session = _Session(sessions, dialled.wire, dialled.connection, route, "the other process")
        begin(sessions, self._session, dialled.received)
        while not route.is_whole and self.is_up:
            sessions.router.send(route, encode_frame(FrameType.PING, secrets.token_bytes(8)))
            sessions.host.flush()
            await trio.sleep(_ASK_SECONDS)

    async def leave(self) -> None:
        """Say that nothing more comes, when all has gone, and wait until the other process has hung up."""
        if self._session is not None:
            await leave(self._session)
