"""Listening sockets: accepts in batches, within limits, and puts each connection behind a front door.  Layer L3."""

import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from derp.relay.limits import TokenBucket
from derp.server.door import FrontDoor
from derp.text import error_text
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from derp.transport.tls import TlsServer
from derp.transport.tls_alpn import tls_link

_log = logging.getLogger("derp.server")

# Accepts per wake-up: newcomers may not keep those inside from their packets.  Each is 0.1 ms with TLS; the handshakes
# that follow have a bound of their own in transport/reactor.py.
_MAX_ACCEPTS: Final = 16


class AcceptGate:
    """How many connections may come in; shared by all listeners of a relay."""

    def __init__(self, bucket: TokenBucket | None, max_connections: int, count_connections: Callable[[], int]) -> None:
        self._bucket = bucket
        self._max_connections = max_connections
        self._count_connections = count_connections
        self.accepted_count = 0
        self.tls_accepted_count = self.tls_rejected_count = 0
        self.too_fast_count = 0
        self.too_many_count = 0

    def admits(self, now: float, *, is_tls: bool = False) -> bool:
        """Whether one more connection may come in now; counts it either way, those of TLS listeners twice."""
        admitted = self._admits(now)
        if is_tls:
            self.tls_accepted_count += admitted
            self.tls_rejected_count += not admitted
        return admitted

    def _admits(self, now: float) -> bool:
        if self._count_connections() >= self._max_connections:
            self.too_many_count += 1
            return False
        if self._bucket is not None and not self._bucket.take(now):
            self.too_fast_count += 1
            return False
        self.accepted_count += 1
        return True


class Listener:
    """One listening socket; without `tls` it is plain."""

    def __init__(
        self, sock: socket.socket, reactor: Reactor, door: FrontDoor, gate: AcceptGate, tls: TlsServer | None
    ) -> None:
        self._sock = sock
        self._door = door
        self._gate = gate
        self._tls = tls
        self._reactor = reactor
        self._is_watched = False

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Accept from now on; also after descriptors had run out."""
        if not self._is_watched and self._sock.fileno() >= 0:
            self._is_watched = True
            self._reactor.watch(self._sock.fileno(), self._accept_ready)

    def _accept_ready(self) -> None:
        reactor = self._reactor
        for _ in range(_MAX_ACCEPTS):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The connection stays in the backlog and the descriptor stays ready: wait for the next tick.
                    _log.warning(
                        "cannot accept: %s; raise the limit of open files or lower max_connections", error_text(error)
                    )
                    reactor.unwatch(self._sock.fileno())
                    self._is_watched = False
                    return
                continue  # the peer gave up while it waited in the backlog
            if not self._gate.admits(reactor.now, is_tls=self._tls is not None):
                sock.close()
                continue
            sock.setblocking(False)
            host: str = address[0]
            caller = (host.removeprefix("::ffff:") if "." in host else host, int(address[1]))
            link = Link(sock, caller) if self._tls is None else tls_link(self._tls, sock, caller)
            self._door.open(link)
            reactor.add(link)

    def close(self) -> None:
        """Stop accepting; connections in the backlog are refused by the kernel."""
        if self._is_watched:
            self._reactor.unwatch(self._sock.fileno())
            self._is_watched = False
        self._sock.close()
