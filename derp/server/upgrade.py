"""The way into the relay: `GET /derp` with an upgrade, as DERP or as a websocket.  Layer L3; a route of door.py.

What an upgrade is, is decided in protocol/upgrade.py; next hop: session.py.
"""

from typing import Final

from derp.admission.ticket import HEADER as TICKET_HEADER
from derp.protocol.upgrade import Refusal, UpgradeKind, judge_request
from derp.protocol.websocket import WebSocketDecoder
from derp.server.door import HttpSession, Route
from derp.server.session import Greeting, Sessions
from derp.transport.http import Request

# The genuine relay refuses messages above 32 KiB; its fork for control planes takes any.  One packet and its frame
# head must fit one message of a client that never splits.
MAX_WEBSOCKET_MESSAGE_BYTES: Final = 128 * 1024

# A host name has 253 characters at the most, and its port.
_MAX_SHOWN_CHARS: Final = 260


class DerpUpgrades:
    """Makes DERP clients of connections.  One per relay, whatever doors lead to it."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.accepts = 0
        self.websocket_accepts = 0

    def route(self) -> Route:
        """For a front door; before the pages, which know `/derp` as a place where nothing is."""
        return Route(lambda path: path == "/derp", self.take)

    def take(self, session: HttpSession, request: Request) -> None:
        """Upgrade the connection, or say why not."""
        sessions, wire = self._sessions, session.wire
        verdict = judge_request(request.method, request.http_version, request.headers, sessions.router.own_key)
        if isinstance(verdict, Refusal):
            session.refuse(verdict.status, verdict.headers, verdict.sentence)
            return
        self.accepts += 1
        shown = request.headers.get(TICKET_HEADER, "") or request.headers.get("host", "")
        greeting = Greeting(sessions, wire, is_ideal=not verdict.ideal_node, shown=shown[:_MAX_SHOWN_CHARS])
        if verdict.kind is UpgradeKind.WEBSOCKET:
            self.websocket_accepts += 1
            session.upgrade(greeting, verdict.answer, WebSocketDecoder(True, MAX_WEBSOCKET_MESSAGE_BYTES))
            wire.push(greeting.hello())
        else:
            session.upgrade(greeting, verdict.answer + greeting.hello())
