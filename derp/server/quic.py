"""DERP over QUIC at the server's ports: who comes in by it, and what is asked of the door.  Layer L3.

A connection's control stream is a connection behind a door like any other, which lets in nobody but DERP clients; from
there on the relay does not know what carries them.  Called by life.py; next hop: transport/quic_wire.py, door.py.
"""

import logging
import socket
from typing import Final

from derp.errors import ConfigError
from derp.server.door import FrontDoor, HttpSession, Route, every_path
from derp.server.lobby import Lobby
from derp.server.session import ClientSession
from derp.server.upgrade import DerpUpgrades
from derp.transport.host import Session
from derp.transport.http import Request
from derp.transport.quic import QuicDoor
from derp.transport.quic_wire import Drop, QuicEndpoint
from derp.transport.reactor import Reactor
from derp.transport.tls import TlsServer

_log = logging.getLogger("derp.server")

# Until the process that we replace, or that replaces us, has the socket alone, each gets datagrams of the other.
SUCCESSION_SECONDS: Final = 60.0
_NOT_FOUND: Final = "over QUIC there is DERP, at /derp, and nothing else"
_NO_WEBSOCKET: Final = "QUIC carries DERP as it is: ask for Upgrade: DERP, not for a websocket"


class QuicPorts:
    """The QUIC side of one server: one endpoint per UDP port, with the certificate of TLS."""

    def __init__(
        self,
        reactor: Reactor,
        tls: TlsServer,
        lobby: Lobby,
        upgrades: DerpUpgrades,
        *,
        secret: bytes,
        replaces_another: bool = False,
    ) -> None:
        """Raises ConfigError for a certificate that QUIC cannot use.  `secret`: the relay's own, at every start."""
        self.endpoints: list[QuicEndpoint] = []
        self.door = FrontDoor(lobby, [Route(lambda path: path == "/derp", self._take), Route(every_path, _refuse)])
        self._upgrades = upgrades
        self._reactor = reactor
        self._tls = tls
        self._shown = tls.chain_and_key
        self._quic = QuicDoor(secret)
        self._resets_from = reactor.now + (SUCCESSION_SECONDS if replaces_another else 0.0)
        self._quic.configure(*self._shown)

    def open(self, sock: socket.socket) -> None:
        """Serve QUIC on a bound UDP socket, which is ours from now on."""
        endpoint = QuicEndpoint(
            sock,
            self._reactor,
            self._quic,
            admits=lambda: self.door.lobby.admits(is_tls=True),
            opened=self.door.open,
            takes_packets=_takes_packets,
            is_elsewhere=lambda name: any(each.knows(name) for each in self.endpoints),
            resets_from=self._resets_from,
        )
        self.endpoints.append(endpoint)

    def share_sockets(self, *, is_shared: bool) -> None:
        """Whether another process serves on our sockets too from now on: then what we do not know may be its."""
        for endpoint in self.endpoints:
            endpoint.resets_from = self._reactor.tick() + (SUCCESSION_SECONDS if is_shared else 0.0)

    def look_at_certificate(self) -> None:
        """Show the certificate that TLS shows, to those who come from now on."""
        if self._shown is self._tls.chain_and_key:
            return
        self._shown = self._tls.chain_and_key
        try:
            self._quic.configure(*self._shown)
        except ConfigError as error:
            _log.error("! %s; it goes on with the one of before", error)

    def totals(self) -> dict[str, int]:
        """What became of those who came: connections that began, that were asked to come again, that moved, and
        that were told of our start."""
        return {
            "accepted": sum(endpoint.accepted_count for endpoint in self.endpoints),
            "retried": sum(endpoint.retry_count for endpoint in self.endpoints),
            "moved": sum(endpoint.moved_count for endpoint in self.endpoints),
            "reset": sum(endpoint.reset_count for endpoint in self.endpoints),
        }

    def dropped(self) -> dict[str, int]:
        """Datagrams that were not served, by why."""
        return {why.value: sum(endpoint.dropped[why] for endpoint in self.endpoints) for why in Drop}

    def leave(self, *, is_replaced: bool) -> None:
        """Begin no connection any more; with `is_replaced` end those that there are."""
        for endpoint in self.endpoints:
            endpoint.leave(is_replaced=is_replaced)

    def _take(self, session: HttpSession, request: Request) -> None:
        if "websocket" in request.headers.get("upgrade", "").lower():
            session.refuse(400, [], _NO_WEBSOCKET)
        else:
            self._upgrades.take(session, request)


def _refuse(session: HttpSession, request: Request) -> None:
    session.refuse(404, [], _NOT_FOUND)


def _takes_packets(session: Session | None) -> bool:
    return isinstance(session, ClientSession)
