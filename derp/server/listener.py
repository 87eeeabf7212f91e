"""Listening sockets: accepts in batches, within limits, and puts each connection behind a front door.  Layer L3."""

import errno
import socket
from collections.abc import Collection
from typing import Final

from derp.server.door import FrontDoor
from derp.text import error_text
from derp.transport.links import Link
from derp.transport.platform import accept_queue
from derp.transport.reactor import Reactor
from derp.transport.tls import TlsServer
from derp.transport.tls_alpn import tls_link

# Accepts in one turn, of 0.1 ms each with TLS: with those who were accepted before, the listener waits for its turn
# behind those who are inside (transport/reactor.py).  The others wait in the kernel, where they cost us nothing.
_MAX_ACCEPTS: Final = 8
# How soon after descriptors had run out connections are accepted again.
_AGAIN_SECONDS: Final = 0.5


class Listener:
    """One listening socket; without `tls` it is plain."""

    def __init__(
        self,
        sock: socket.socket,
        reactor: Reactor,
        door: FrontDoor,
        tls: TlsServer | None,
        own_places: Collection[tuple[str, int]] = (),
    ) -> None:
        """`own_places`: addresses whose connections no limit counts."""
        self._sock = sock
        self._door = door
        self._tls = tls
        self._reactor = reactor
        self._own_places = own_places
        self._is_watched = False

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def read_backlog(self) -> tuple[int, int]:
        """Connections that wait to be accepted, and how many may; 0 and 0 where the system does not tell."""
        return accept_queue(self._sock)

    def start(self) -> None:
        """Accept from now on; also after descriptors had run out."""
        if not self._is_watched and self._sock.fileno() >= 0:
            self._is_watched = True
            self._reactor.watch(self._sock.fileno(), self._accept_ready, can_wait=True)

    def _accept_ready(self) -> None:
        reactor = self._reactor
        for _ in range(_MAX_ACCEPTS):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The connection stays in the backlog and the descriptor stays ready: look away for a moment.
                    why = f"{error_text(error)}; raise the limit of open files or lower --max-connections"
                    self._door.lobby.tell_refused("no_files", why)
                    reactor.unwatch(self._sock.fileno())
                    self._is_watched = False
                    reactor.call_at(reactor.now + _AGAIN_SECONDS, self.start)
                    return
                continue  # the peer gave up while it waited in the backlog
            host: str = address[0]
            caller = (host.removeprefix("::ffff:") if "." in host else host, int(address[1]))
            lobby, is_own = self._door.lobby, caller in self._own_places
            is_reserved = not is_own and lobby.has_reserve_for(caller[0])
            if not (is_own or is_reserved or lobby.admits(is_tls=self._tls is not None)):
                sock.close()
                continue
            sock.setblocking(False)
            link = Link(sock, caller) if self._tls is None else tls_link(self._tls, sock, caller)
            self._door.open(link)
            if is_reserved:
                lobby.reserve(link, is_tls=self._tls is not None)
            reactor.add(link)

    def close(self) -> None:
        """Stop accepting; connections in the backlog are refused by the kernel."""
        if self._is_watched:
            self._reactor.unwatch(self._sock.fileno())
            self._is_watched = False
        self._sock.close()
