"""The front door: reads the head of a request and gives the request to the first route that wants it.  Layer L3.

A route answers in place (pages.py), upgrades the connection (upgrade.py, the tailnet's RPC sockets), or takes it away
from its host, socket and all (the coordinator's API).  Who has not said yet what he wants waits in the lobby
(lobby.py); TLS is below (transport/links.py).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from derp.close_reason import CloseReason
from derp.protocol.websocket import WebSocketDecoder
from derp.server.address import Caller
from derp.server.lobby import Lobby
from derp.transport.host import Session, Wire, WireEnded
from derp.transport.http import Headers, HttpError, Request, ServerHttp

_log = logging.getLogger("derp.server")

# Requests of one connection in one receive.  Nobody pipelines; 256 KiB of small requests would keep everybody else
# waiting for a second, this many for less than one ms.
_MAX_PIPELINED: Final = 8
# What is answered over a connection that was kept for it when all others were taken.
_OPERATORS_PATHS: Final = frozenset({"/healthz", "/metrics", "/readyz", "/health"})
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")


class Route(NamedTuple):
    """Requests that one part of a server takes.

    `take` does one of these before it returns: `HttpSession.answer` or `refuse`; `HttpSession.upgrade`; it gives the
    wire another session, which answers with `HttpSession.http`; it releases the wire; or it raises WireEnded.
    """

    wants: Callable[[str], bool]  # by the path, without the query
    take: Callable[["HttpSession", Request], None]
    takes_bytes: bool = False  # whether it needs `HttpSession.received`


def every_path(path: str) -> bool:
    """For the last route of a door."""
    return True


class FrontDoor:
    """What connections of one kind of listener share.  The last of `routes` has to want every path."""

    def __init__(self, lobby: Lobby, routes: Sequence[Route]) -> None:
        self.lobby = lobby
        self.routes = tuple(routes)
        self.keeps_bytes = any(route.takes_bytes for route in routes)
        self.requests_refused = 0
        self.tls_requests = Counter[str]()
        self.answering: Wire | None = None
        """Who asked for what is being answered now."""

    def open(self, wire: Wire) -> None:
        """Put a connection behind this door: a fresh one, or one that comes back."""
        wire.session = HttpSession(self, wire)
        self.lobby.enter(wire)


class HttpSession:
    """One connection while it speaks HTTP, until a route makes something else of it."""

    __slots__ = ("_front", "_is_upgraded", "_peer", "caller", "http", "received_bytes", "wire")

    def __init__(self, front: FrontDoor, wire: Wire) -> None:
        self._front = front
        # Who connected: a proxy sends requests of many callers over one connection, each with its own headers.
        self._peer = wire.address
        self._is_upgraded = False
        self.wire = wire
        self.caller = Caller(*self._peer)
        """Who sent the request that is being taken."""
        self.http = ServerHttp(head_only=front.keeps_bytes)
        self.received_bytes = b""
        """Everything since the last answer, if some route of this door takes connections away."""

    # --- for routes

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer the request; the connection goes on with the next one, or ends as HTTP has it."""
        wire, lobby = self.wire, self._front.lobby
        wire.send_raw(self.http.send_response(status, headers, body))
        self.received_bytes = b""
        if self.http.keep_alive:
            lobby.enter(wire)  # the next request has as long as the first one had
        elif wire.tail:
            wire.session = ClosingSession(lobby, wire, CloseReason.HTTP_DONE)
        else:
            raise WireEnded(CloseReason.HTTP_DONE)

    def refuse(self, status: int, headers: Headers, sentence: str) -> None:
        """Answer that it cannot be, in a sentence, and count it."""
        self._front.requests_refused += 1
        self.answer(status, [_TEXT, *headers], f"{sentence}\n".encode())

    def go_on(self) -> None:
        """A route that gave its wire another session to answer later has answered: read the next request."""
        self.http = ServerHttp(head_only=self.http.head_only)

    def upgrade(self, session: Session, answer: bytes, codec: WebSocketDecoder | None = None) -> None:
        """Send the answer; what came behind the request is for `session`, unframed by `codec`.  It stays in the lobby
        until that session takes it out."""
        wire = self.wire
        wire.send_raw(answer)
        wire.codec = codec
        wire.session = session
        self._is_upgraded = True

    # --- for the host

    def received(self, at: int, end: int) -> int:
        front, wire = self._front, self.wire
        raw = bytes(front.lobby.host.view[at:end])
        if front.keeps_bytes:
            self.received_bytes += raw
        try:
            request = self.http.receive_data(raw)
            served = 0
            while request is not None:
                served += 1
                if served > _MAX_PIPELINED:
                    raise WireEnded(CloseReason.FLOOD, f"more than {_MAX_PIPELINED} requests at once")
                self._take(request)
                if self._is_upgraded:
                    return self._begin_of_upgraded(end)
                if wire.session is not self:
                    return end
                if wire.tail:
                    return self._wait_for_reader(end)
                request = self.http.next_cycle()
        except HttpError as error:
            front.requests_refused += 1
            wire.send_raw(self.http.send_response(error.status, [_TEXT], f"{error}\n".encode()))
            # It may be in the middle of what is refused: closed now, it would be reset before it reads why.
            wire.session = ClosingSession(front.lobby, wire, CloseReason.PROTOCOL_ERROR, str(error))
        return end

    def _take(self, request: Request) -> None:
        front, wire = self._front, self.wire
        version = wire.version()
        if version is not None:
            front.tls_requests[version] += 1
        self.caller = front.lobby.find_caller(self._peer, request.headers)
        wire.address = self.caller[:2]
        path = request.target.partition("?")[0]
        if wire in front.lobby.reserved and not (path in _OPERATORS_PATHS or path.startswith("/debug/")):
            front.lobby.count_too_many()
            full = f"all {front.lobby.max_connections:,} connections of this server are taken"
            return self.refuse(503, [("Connection", "close")], full)
        front.answering = wire
        try:
            for wants, take, _ in front.routes:
                if wants(path):
                    return take(self, request)
        finally:
            front.answering = None
        raise AssertionError("the last route wants every path")

    def _wait_for_reader(self, end: int) -> int:
        """Who pipelines requests without reading the answers is not read either, until they have gone."""
        rest = self.http.trailing_data()
        self.http = ServerHttp(head_only=self.http.head_only)
        host = self._front.lobby.host
        host.pause(self.wire)
        host.await_room(self.wire)
        return end - len(rest)

    def _begin_of_upgraded(self, end: int) -> int:
        """Bytes behind the head belong to the new session; those of a websocket are unframed in place first."""
        wire = self.wire
        rest = self.http.trailing_data()
        start = end - len(rest)
        if rest and wire.codec is not None:
            view = self._front.lobby.host.view
            stop = wire.codec.receive_into(memoryview(rest), view, start)
            # what is unframed is shorter, and belongs right before the end of what was received
            unframed = bytes(view[start:stop])
            start = end - len(unframed)
            view[start:end] = unframed
        return start

    def writable(self) -> None:
        """An answer that had to wait has gone; requests go on."""
        self._front.lobby.host.resume(self.wire)

    def ended(self, reason: CloseReason, text: str) -> None:
        lobby = self._front.lobby
        lobby.leave(self.wire)
        lobby.count_closed(reason)
        if reason.is_of_tls:
            lobby.tell_no_tls(self.wire.address, reason, text)
        elif reason not in (CloseReason.HTTP_DONE, CloseReason.CLOSED_BY_PEER):
            _log.debug("x %s:%d at the door: %s %s", *self.wire.address[:2], reason.value, text)


class ClosingSession:
    """The last answer is on its way; then the peer hangs up, or its time in the lobby is up.  What the peer still
    sends is thrown away.  `reason` is counted at once."""

    __slots__ = ("_lobby", "_wire")

    def __init__(self, lobby: Lobby, wire: Wire, reason: CloseReason, text: str = "") -> None:
        self._lobby = lobby
        self._wire = wire
        lobby.count_closed(reason)
        _log.debug("x %s:%d at the door: %s %s", *wire.address[:2], reason.value, text)
        if wire.tail:
            lobby.host.await_room(wire)
        else:
            wire.end_output()

    def received(self, at: int, end: int) -> int:
        return end

    def writable(self) -> None:
        self._wire.end_output()

    def ended(self, reason: CloseReason, text: str) -> None:
        self._lobby.leave(self._wire)
