"""The ports of one server: TCP listeners with their certificate, QUIC and STUN beside them.  Layer L3.

The relay and the coordinator each have one.  Open all, then `start`; `close` ends listening and leaves connections
alone.  Next hop: listener.py, stun.py, quic.py, transport/tls.py.
"""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from derp.errors import ListenError
from derp.server.door import FrontDoor
from derp.server.handover import Handed, Inherited
from derp.server.listener import Listener
from derp.server.stun import StunResponder
from derp.transport.listen import open_listener, open_udp
from derp.transport.reactor import Reactor
from derp.transport.timers import Timer
from derp.transport.tls import TlsServer

if TYPE_CHECKING:
    from derp.server.quic import QuicPorts

_log = logging.getLogger("derp.server")

# A look at two files is cheap, but no operator replaces certificates every second.
LOOK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Listening:
    """One socket: `kind` is derp, derp+tls, derp+quic, http, tailnet, tailnet+tls or stun."""

    kind: str
    host: str
    port: int


class Ports:
    """Listening sockets on a reactor.  Opening raises ConfigError; what was opened before stays until `close`."""

    def __init__(self, reactor: Reactor, tls: TlsServer | None, inherited: Inherited | None = None) -> None:
        self.tls = tls
        self.listening: list[Listening] = []
        self.listeners: list[Listener] = []
        self.stun: list[StunResponder] = []
        self.quic: QuicPorts | None = None
        """Set by who wants QUIC, before `open_quic`."""
        self.own_places: set[tuple[str, int]] = set()
        """Where connections of this server to itself come from: no limit counts them (selfcheck.py)."""
        self.reactor = reactor
        self._inherited = inherited or Inherited()
        self._bound: list[Handed] = []
        self._lent: list[Handed] = []  # to QUIC, which closes them when its last connection has ended
        self._look_timer: Timer | None = None

    def open(
        self,
        kind: str,
        host: str,
        port: int,
        door: FrontDoor,
        *,
        is_plain: bool = False,
        user_timeout_seconds: float,
        keepalive_seconds: float,
    ) -> None:
        """Bind a TCP port for `door`: with TLS, unless there is none or `is_plain`."""
        tls = None if is_plain else self.tls
        sock = open_listener(
            host,
            port,
            user_timeout_seconds=user_timeout_seconds,
            keepalive_seconds=keepalive_seconds,
            inherited=self._inherited.take("tcp", host, port),
        )
        self._bound.append(Handed("tcp", host, port, sock))
        listener = Listener(sock, self.reactor, door, tls, self.own_places)
        self.listeners.append(listener)
        self.listening.append(Listening(kind if tls is None else f"{kind}+tls", *listener.address))

    def open_quic(self, host: str) -> None:
        """Serve QUIC on the UDP port beside the TCP port that was opened last."""
        assert self.quic is not None
        port = self.listeners[-1].address[1]
        sock = self._inherited.take("udp", host, port) or open_udp(host, port)
        self._lent.append(Handed("udp", host, port, sock))
        self.quic.open(sock)
        self.listening.append(Listening("derp+quic", str(sock.getsockname()[0]), port))

    def open_stun(self, host: str, port: int, is_well: Callable[[], bool], *, may_move: bool = False) -> None:
        """Answer STUN on a UDP port, as long as the server is well.  `may_move`: on a free one if need be."""
        sock = self._inherited.take("udp", host, port) or open_stun(host, port, may_move=may_move)
        self._bound.append(Handed("udp", host, port, sock))
        responder = StunResponder(sock, is_well)
        self.reactor.watch(sock.fileno(), responder.serve_ready)
        self.stun.append(responder)
        bound = sock.getsockname()
        self.listening.append(Listening("stun", str(bound[0]), int(bound[1])))

    def sockets(self) -> list[Handed]:
        """All that are open, for the process that takes over."""
        return [*self._bound, *self._lent]

    def start(self) -> None:
        """Accept from now on, and look at the certificate now and then."""
        for listener in self.listeners:
            listener.start()
        if self.tls is not None:
            self._look_timer = self.reactor.call_at(self.reactor.tick() + LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._look_timer = self.reactor.call_at(self.reactor.now + LOOK_SECONDS, self._look)
        self.look_at_certificate()

    def look_at_certificate(self) -> None:
        """Serve the certificate that is in the files now, if they changed."""
        done = self.tls.reload_if_changed(time.time()) if self.tls is not None else None
        if self.quic is not None:
            self.quic.look_at_certificate()
        if done is not None:
            _log.log(logging.INFO if done.ok else logging.ERROR, "= %s", done.text)

    def certificate_expires_at(self) -> float | None:
        """Unix time; None without TLS."""
        return self.tls.leaf.not_valid_after_utc.timestamp() if self.tls is not None else None

    def close(self, *, is_replaced: bool = False) -> None:
        """Close the listening sockets; connections stay, but those of QUIC where another process has their socket."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        for listener in self.listeners:
            listener.close()
        if self.quic is not None:
            self.quic.leave(is_replaced=is_replaced)
        for handed in self._bound:
            if handed.kind == "udp":
                self.reactor.unwatch(handed.sock.fileno())
                handed.sock.close()
        self.listeners.clear()
        self._lent.clear()
        self._bound.clear()


def open_stun(host: str, port: int, *, may_move: bool) -> socket.socket:
    """A socket for STUN; `may_move`: on a free port if need be.  Raises ListenError."""
    try:
        return open_udp(host, port)
    except ListenError as error:
        if not may_move:
            raise
        sock = open_udp(host, 0)
        _log.warning("! %s: STUN is on port %d instead", str(error).partition(";")[0], sock.getsockname()[1])
        return sock
