"""The UDP sockets of a node, one for each family.  Layer L2: plain sockets, read and written in batches.

On Linux one call takes or gives many datagrams of one place (udp(7): UDP_SEGMENT, UDP_GRO); elsewhere, and where the
kernel refuses, it is a call for each.
Where a datagram may be sent is judged before: tailnet/paths/endpoint.py makes endpoints, and this file takes no others.
Used by tailnet/node/engine.py.
"""

import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import trio

from tailnet.paths.endpoint import Endpoint, make_endpoint
from tailnet.transport.interfaces import own_hosts

# Larger ones are nobody's: a tunnel's have 1,312 bytes at most.
_DATAGRAM_BYTES: Final = 2048
_READ_BYTES: Final = 65536
# Of linux/udp.h; the socket module of Python 3.11 does not name them.
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IS_GATHERING: Final = sys.platform == "linux"
_SEGMENT_BYTES: Final = struct.Struct("=H")
_GRO_BYTES: Final = struct.Struct("=i")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_GRO_BYTES.size) if _IS_GATHERING else 0
# What the kernel takes at once: UDP_MAX_SEGMENTS, and the largest UDP datagram of IPv4.
_MAX_SEGMENTS: Final = 64
_MAX_GATHERED_BYTES: Final = 65535 - 20 - 8
# Datagrams that are taken before others have their turn: some milliseconds of work.
_BATCH: Final = 64
# The default of 208 KiB holds a hundred packets, since the kernel counts each double; a stream has more on its way.
_BUFFER_BYTES: Final = 4 * 1024 * 1024
_LOOPBACK: Final = "127.0.0.1"
# A node is reached wherever its machine is.
_FAMILIES: Final = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))


class UdpSockets:
    """`open`, then one `serve` per socket as a task; `send` never waits; `close` in the end."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def open(self) -> list[Endpoint]:
        """Bind a port of each family that the system has; the `endpoints`."""
        for family, bind in _FAMILIES:
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM)
            except OSError:
                continue  # a system without IPv6
            try:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                    sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
                if _IS_GATHERING:
                    with suppress(OSError):  # a kernel before 5.0
                        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
                sock.setblocking(False)
                sock.bind((bind, 0))
            except OSError:
                sock.close()
                continue
            self._sockets[family] = sock
        return self.endpoints()

    def endpoints(self) -> list[Endpoint]:
        """Where this machine may be reached now; on loopback too, for peers on the same machine."""
        ports = {family: sock.getsockname()[1] for family, sock in self._sockets.items()}
        found = []
        for host in (_LOOPBACK, *own_hosts()) if ports else ():
            port = ports.get(socket.AF_INET6 if ":" in host else socket.AF_INET, 0)
            if (endpoint := make_endpoint(host, port)) is not None:
                found.append(endpoint)
        return found

    def port_of(self, family: int) -> int | None:
        """The port of our socket of a family; None: there is none."""
        sock = self._sockets.get(family)
        return int(sock.getsockname()[1]) if sock is not None else None

    @property
    def all(self) -> list[socket.socket]:
        """The sockets that are open."""
        return list(self._sockets.values())

    def send(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> int:
        """How many were taken; a socket that is full loses the rest.  OSError: nothing can be sent there."""
        sock = self._sockets.get(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
        if sock is None:
            raise OSError("this system has no addresses of that family")
        sent = 0
        for run in _runs(datagrams):
            try:
                if len(run) == 1 or not _IS_GATHERING or not _send_gathered(sock, endpoint, run):
                    for datagram in run:
                        sock.sendto(datagram, endpoint)
                        sent += 1
                    continue
            except BlockingIOError:
                return sent
            sent += len(run)
        return sent

    async def serve(
        self, sock: socket.socket, receive: Callable[[list[bytes], Endpoint], None], pump: Callable[[], None]
    ) -> None:
        """Hand on what comes, by its source, and call `pump` after each batch; until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            by_source: dict[tuple[str, int], list[bytes]] = {}
            taken = 0
            while taken < _BATCH:
                try:
                    data, ancillary, _, place = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error for something that we sent
                    taken += 1
                    continue
                some = _split(data, ancillary)
                by_source.setdefault(place[:2], []).extend(some)
                taken += len(some) or 1
            for (host, port), datagrams in by_source.items():
                source = make_endpoint(host, port)
                if source is not None and datagrams:
                    receive(datagrams, source)
            pump()

    def close(self) -> None:
        """Close all; `serve` has ended before."""
        for sock in self._sockets.values():
            sock.close()


def _send_gathered(sock: socket.socket, endpoint: Endpoint, run: Sequence[bytes]) -> bool:
    """In one call.  False: the kernel cannot, or not on that way; none was sent."""
    size = [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_BYTES.pack(len(run[0])))]
    try:
        sock.sendmsg(run, size, 0, endpoint)
    except BlockingIOError:
        raise
    except OSError:
        # No checksums in hardware (EIO), too large for the way (EINVAL), or the place itself: one by one tells.
        return False
    return True


def _runs(datagrams: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut into what one call can send: all of one size, but for the last, which may be shorter."""
    start, count = 0, len(datagrams)
    while start < count:
        size = len(datagrams[start])
        limit = min(count, start + min(_MAX_SEGMENTS, max(1, _MAX_GATHERED_BYTES // max(size, 1))))
        end = start + 1
        while end < limit and len(datagrams[end]) == size:
            end += 1
        if end < limit and 0 < len(datagrams[end]) < size:
            end += 1
        yield datagrams[start:end]
        start = end


def _split(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> list[bytes]:
    """The datagrams of one read, without those that are too large."""
    size = len(data)
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO and len(value) >= _GRO_BYTES.size:
            size = _GRO_BYTES.unpack_from(value)[0]
    if size <= 0:
        return [data]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return pieces if size <= _DATAGRAM_BYTES else [piece for piece in pieces if len(piece) <= _DATAGRAM_BYTES]
