"""The front door: reads the head of a connection once and hands the connection over whole.  Layer L3.

DERP upgrades stay on the reactor as sessions; small pages are answered here, in place; an embedder may take
other requests over, socket and all.  TLS is below (transport/links.py); what an upgrade is, is decided in
protocol/upgrade.py; next hop: server/session.py or server/routes.py.
"""

import logging
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from derp.close_reason import CloseReason
from derp.config.relay import Network
from derp.protocol.upgrade import Refusal, Upgrade, UpgradeKind, judge_request
from derp.protocol.websocket import WebSocketDecoder
from derp.server.address import is_in
from derp.server.routes import PlainRoutes, Routes
from derp.server.session import Greeting, Plane
from derp.transport.host import Wire, WireEnded
from derp.transport.http import HttpError, Request, ServerHttp

_log = logging.getLogger("derp.server")

# The genuine relay refuses messages above 32 KiB; its fork for control planes takes any.  One packet and its frame
# head must fit one message of a client that never splits.
MAX_WEBSOCKET_MESSAGE_BYTES: Final = 128 * 1024
# Requests of one connection in one receive.  Nobody pipelines; 256 KiB of small requests would keep everybody else
# waiting for a second, this many for some 3 ms.
_MAX_PIPELINED: Final = 32
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")

TakeOver = Callable[[Wire, Request, bytes, ServerHttp], bool]


class FrontDoor:
    """What all doors of one listener share.

    `take_over(wire, request, received, http)` may claim a request: it gets the wire, still on the reactor, every
    byte received since the last answer, and the reader with which to answer.  It gives the wire another session, or
    releases it, and returns True; or False to decline.
    """

    def __init__(
        self,
        plane: Plane,
        routes: Routes | PlainRoutes,
        *,
        trusted_proxies: tuple[Network, ...] = (),
        derp_enabled: bool = True,
        take_over: TakeOver | None = None,
    ) -> None:
        self.plane = plane
        self.routes = routes
        self.trusted_proxies = trusted_proxies
        self.derp_enabled = derp_enabled
        self.take_over = take_over
        self.accepts = 0
        self.websocket_accepts = 0
        self.requests_refused = 0
        self.tls_requests = Counter[str]()
        self.answering: Wire | None = None  # who asks for the page that is being made

    def open(self, wire: Wire) -> None:
        """Put a fresh connection behind this door."""
        wire.session = Door(self, wire)
        self.plane.greet(wire)


class Door:
    """One connection until it is known what it wants."""

    __slots__ = ("_front", "_http", "_peer", "_received", "_wire")

    def __init__(self, front: FrontDoor, wire: Wire) -> None:
        self._front = front
        self._wire = wire
        # Who connected: a proxy sends requests of many callers over one connection, each with its own header.
        self._peer = wire.address
        self._http = ServerHttp(head_only=front.take_over is not None)
        # only kept where somebody may take the connection over
        self._received = b""

    def received(self, at: int, end: int) -> int:
        front = self._front
        raw = bytes(front.plane.host.view[at:end])
        if front.take_over is not None:
            self._received += raw
        try:
            request = self._http.receive_data(raw)
            served = 0
            while request is not None:
                served += 1
                if served > _MAX_PIPELINED:
                    raise WireEnded(CloseReason.FLOOD, f"more than {_MAX_PIPELINED} requests at once")
                if self._serve(request):
                    return self._upgraded(at, end)
                if self._wire.session is not self:
                    return end
                if self._wire.tail:
                    return self._wait_for_reader(end)
                request = self._http.next_cycle()
        except HttpError as error:
            front.requests_refused += 1
            self._wire.send_raw(self._http.send_response(error.status, [_TEXT], f"{error}\n".encode()))
            # It may be in the middle of what is refused: closed now, it would be reset before it reads why.
            self._wire.session = Closing(front.plane, self._wire, CloseReason.PROTOCOL_ERROR, str(error))
        return end

    def _wait_for_reader(self, end: int) -> int:
        """Who pipelines requests without reading the answers is not read either, until they have gone."""
        rest = self._http.trailing_data()
        self._http = ServerHttp(head_only=self._http.head_only)
        host = self._front.plane.host
        host.pause(self._wire)
        host.await_room(self._wire)
        return end - len(rest)

    def _serve(self, request: Request) -> bool:
        """Answer a request; True when the connection is DERP from here on."""
        front, wire = self._front, self._wire
        version = wire.version()
        if version is not None:
            front.tls_requests[version] += 1
        if front.trusted_proxies:
            wire.address = client_address(request, self._peer, front.trusted_proxies)
        if request.target.partition("?")[0] == "/derp" and front.derp_enabled:
            verdict = judge_request(request.method, request.http_version, request.headers, front.plane.router.own_key)
            if isinstance(verdict, Refusal):
                front.requests_refused += 1
                self._answer(verdict.status, [_TEXT, *verdict.headers], f"{verdict.sentence}\n".encode())
                return False
            self._upgrade(verdict)
            return True
        if front.take_over is not None and front.take_over(wire, request, self._received, self._http):
            return False
        front.answering = wire
        try:
            answer = front.routes.answer(request, wire.address[0])
        finally:
            front.answering = None
        self._answer(answer.status, list(answer.headers), answer.body)
        return False

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        wire = self._wire
        wire.send_raw(self._http.send_response(status, headers, body))
        self._received = b""
        if not self._http.keep_alive:
            if wire.tail:
                wire.session = Closing(self._front.plane, wire, CloseReason.HTTP_DONE)
                return
            raise WireEnded(CloseReason.HTTP_DONE)
        # the next request has as long as the first one had
        self._front.plane.greet(wire)

    def _upgrade(self, verdict: Upgrade) -> None:
        front, wire = self._front, self._wire
        plane = front.plane
        front.accepts += 1
        greeting = Greeting(plane, wire, is_ideal=not verdict.ideal_node)
        if verdict.kind is UpgradeKind.WEBSOCKET:
            front.websocket_accepts += 1
            wire.send_raw(verdict.answer)
            wire.codec = WebSocketDecoder(True, MAX_WEBSOCKET_MESSAGE_BYTES)
            wire.push(greeting.hello())
        else:
            wire.send_raw(verdict.answer + greeting.hello())
        wire.session = greeting

    def _upgraded(self, at: int, end: int) -> int:
        """Bytes behind the head belong to the new session; those of a websocket are unframed in place first."""
        wire = self._wire
        rest = self._http.trailing_data()
        start = end - len(rest)
        if rest and wire.codec is not None:
            view = self._front.plane.host.view
            stop = wire.codec.receive_into(memoryview(rest), view, start)
            # what is unframed is shorter, and belongs right before the end of what was received
            unframed = bytes(view[start:stop])
            start = end - len(unframed)
            view[start:end] = unframed
        return start

    def writable(self) -> None:
        """An answer that had to wait has gone; requests go on."""
        self._front.plane.host.resume(self._wire)

    def ended(self, reason: CloseReason, text: str) -> None:
        plane = self._front.plane
        plane.greeted.clear(self._wire)
        plane.count_closed(reason)
        if reason not in (CloseReason.HTTP_DONE, CloseReason.CLOSED_BY_PEER):
            _log.debug("x %s:%d at the door: %s %s", *self._wire.address[:2], reason.value, text)


class Closing:
    """The last answer is on its way; then the peer hangs up, or the handshake's deadline ends it.  Nothing is read
    but thrown away.  `reason` is counted at once."""

    __slots__ = ("_plane", "_wire")

    def __init__(self, plane: Plane, wire: Wire, reason: CloseReason, text: str = "") -> None:
        self._plane = plane
        self._wire = wire
        plane.count_closed(reason)
        _log.debug("x %s:%d at the door: %s %s", *wire.address[:2], reason.value, text)
        if wire.tail:
            plane.host.await_room(wire)
        else:
            wire.end_output()

    def received(self, at: int, end: int) -> int:
        return end

    def writable(self) -> None:
        self._wire.end_output()

    def ended(self, reason: CloseReason, text: str) -> None:
        self._plane.greeted.clear(self._wire)


def client_address(request: Request, peer: tuple[str, int], trusted: tuple[Network, ...]) -> tuple[str, int]:
    """Who is really calling: the last address of X-Forwarded-For that is not a trusted proxy, if `peer` is one."""
    if not is_in(peer[0], trusted):
        return peer
    for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        hop = hop.strip()
        try:
            ip_address(hop)
        except ValueError:
            return peer
        if not is_in(hop, trusted):
            return hop, 0
    return peer
