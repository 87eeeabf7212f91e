"""Listening TCP sockets and bound UDP sockets, with the options a relay wants.  Layer L2.

Accepted connections inherit every option set here on Linux, which saves five system calls per accept.
"""

import socket
import sys
from collections.abc import Iterable
from typing import Final

from derp.errors import ListenError
from derp.map import is_unspecified
from derp.relay.pace import FIRST_UNSENT_BYTES
from derp.text import error_text, host_port
from derp.transport import platform

# A fleet that comes back at once waits here, not in timeouts.  The kernel lowers it to net.core.somaxconn.
_BACKLOG: Final = 4096
# STUN datagrams have 40 bytes but cost the kernel 1 KiB each; a burst of a thousand survives a busy batch.
_UDP_RECEIVE_BYTES: Final = 1024 * 1024
# linux/in.h; the socket module does not name it
IP_PKTINFO: Final = 8
# Enough for what `tell_destinations` asks for, of either family.
DESTINATION_BYTES: Final = socket.CMSG_SPACE(20)
_MULTICAST: Final = 0xFF  # the first byte of such an address, from which nobody can answer


def open_listener(
    host: str,
    port: int,
    *,
    user_timeout_seconds: float = 0.0,
    keepalive_seconds: float = 0.0,
    inherited: socket.socket | None = None,
    is_shared: bool = False,
) -> socket.socket:
    """A non-blocking listening socket.  `host` "", 0.0.0.0 or :: means every address of both families, as for derper;
    port 0 any free one.

    `inherited`: the one that another process left open there; it gets the options of this one.  `is_shared`: one of
    several at the same port, between which the kernel distributes what comes.
    Raises ListenError that names the address.
    """
    sock = inherited
    if sock is None:
        sock = _bind(host, port, socket.SOCK_STREAM, is_shared=is_shared)
        sock.listen(_BACKLOG)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    platform.limit_unsent(sock, FIRST_UNSENT_BYTES)
    platform.limit_unacknowledged(sock, user_timeout_seconds)
    platform.keep_alive(sock, keepalive_seconds)
    return sock


def open_udp(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A non-blocking UDP socket; addresses and `is_shared` as for open_listener."""
    sock = _bind(host, port, socket.SOCK_DGRAM, is_shared=is_shared)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_RECEIVE_BYTES)
    return sock


def tell_destinations(sock: socket.socket) -> bool:
    """Have a UDP socket that is bound to every address say with each datagram to which it came; False if it cannot, or
    has only one.  `recvmsg(n, DESTINATION_BYTES)` gets it, and `sent_from` answers from there."""
    if not is_unspecified(sock.getsockname()[0]):
        return False
    if sock.family == socket.AF_INET6:
        if not hasattr(socket, "IPV6_RECVPKTINFO"):  # macOS names it to few
            return False
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        return True
    if not sys.platform.startswith("linux"):
        return False
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    return True


def sent_from(ancillary: Iterable[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """For `sendmsg`: that the answer leaves by the address to which the datagram came, on whatever interface."""
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and value[0] != _MULTICAST:
            return [(level, kind, value[:16] + bytes(len(value) - 16))]  # in6_pktinfo: address, interface
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            return [(level, kind, bytes(4) + value[4:8] + bytes(4))]  # in_pktinfo: interface, ours, as it came
    return []


def _bind(host: str, port: int, kind: socket.SocketKind, *, is_shared: bool = False) -> socket.socket:
    host = "" if is_unspecified(host) else host
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
    what = "UDP" if kind is socket.SOCK_DGRAM else "TCP"
    sock = socket.socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        place = host_port(host or "*", port)
        raise ListenError(
            f"cannot listen on {what} {place}: {error_text(error)}; choose another address or port"
        ) from error
    return sock
