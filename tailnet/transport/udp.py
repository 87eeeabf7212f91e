"""The UDP sockets of a node, one for each family.  Layer L2: plain sockets, read in batches.

Where a datagram may be sent is judged before: tailnet/paths/endpoint.py makes endpoints, and this file takes no others.
Used by tailnet/node/engine.py.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import trio

from tailnet.paths.endpoint import Endpoint, make_endpoint

_DATAGRAM_BYTES: Final = 2048
# Datagrams that are taken before others have their turn: some milliseconds of work.
_BATCH: Final = 64
# The default of 208 KiB holds a hundred packets, since the kernel counts each double; a stream has more on its way.
_BUFFER_BYTES: Final = 4 * 1024 * 1024
# Of each family: where to bind, and an address of the world (of documentation) that is never sent anything.
_FAMILIES: Final = (
    (socket.AF_INET, "0.0.0.0", "192.0.2.1"),  # a node is reached wherever its machine is
    (socket.AF_INET6, "::", "2001:db8::1"),
)


class UdpSockets:
    """`open`, then one `serve` per socket as a task; `send` never waits; `close` in the end."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def open(self) -> list[Endpoint]:
        """Bind a port of each family that the system has; return where this machine may be reached on them."""
        found: list[Endpoint] = []
        for family, bind, probe in _FAMILIES:
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM)
            except OSError:
                continue  # a system without IPv6
            try:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                    sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
                sock.setblocking(False)
                sock.bind((bind, 0))
            except OSError:
                sock.close()
                continue
            self._sockets[family] = sock
            port = sock.getsockname()[1]
            found += [each for host in _own_hosts(family, probe) if (each := make_endpoint(host, port)) is not None]
        return found

    @property
    def all(self) -> list[socket.socket]:
        """The sockets that are open."""
        return list(self._sockets.values())

    def send(self, endpoint: Endpoint, datagram: bytes) -> bool:
        """False: the socket is full, and the datagram is lost.  OSError: nothing can be sent there."""
        sock = self._sockets.get(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
        if sock is None:
            raise OSError("this system has no addresses of that family")
        try:
            sock.sendto(datagram, endpoint)
        except BlockingIOError:
            return False
        return True

    async def serve(
        self, sock: socket.socket, receive: Callable[[list[bytes], Endpoint], None], pump: Callable[[], None]
    ) -> None:
        """Hand on what comes, by its source, and call `pump` after each batch; until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            by_source: dict[Endpoint, list[bytes]] = {}
            for _ in range(_BATCH):
                try:
                    datagram, place = sock.recvfrom(_DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error for something that we sent
                    continue
                endpoint = make_endpoint(place[0], place[1])
                if endpoint is not None:
                    by_source.setdefault(endpoint, []).append(datagram)
            for source, datagrams in by_source.items():
                receive(datagrams, source)
            pump()

    def close(self) -> None:
        """Close all; `serve` has ended before."""
        for sock in self._sockets.values():
            sock.close()


def _own_hosts(family: int, probe: str) -> list[str]:
    """The address from which this machine would reach the world, and loopback for peers on the same machine."""
    hosts = ["127.0.0.1"] if family == socket.AF_INET else []
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((probe, 9))  # sends nothing
        host = str(sock.getsockname()[0])
        if not ip_address(host).is_link_local and host not in hosts:
            hosts.append(host)
    return hosts
