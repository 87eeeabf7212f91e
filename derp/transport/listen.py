"""Listening TCP sockets and bound UDP sockets, with the options a relay wants.  Layer L2.

Accepted connections inherit every option set here on Linux, which saves five system calls per accept.
"""

import socket
from typing import Final

from derp.errors import ConfigError
from derp.text import error_text

# Two dozen full packets: enough to keep a link of 250 Mbit/s busy for the millisecond until we are woken; what
# hides in the kernel behind a slow reader is out of reach of the queue's drop policy.
NOTSENT_LOWAT_BYTES: Final = 32 * 1024
# linux/tcp.h; the socket module names it only from Python 3.13 on
TCP_NOTSENT_LOWAT: Final = 25
# A fleet that comes back at once waits here, not in timeouts.  The kernel lowers it to net.core.somaxconn.
_BACKLOG: Final = 4096
# STUN datagrams have 40 bytes but cost the kernel 1 KiB each; a burst of a thousand survives a busy batch.
_UDP_RECEIVE_BYTES: Final = 1024 * 1024


def open_listener(
    host: str,
    port: int,
    *,
    user_timeout_seconds: float = 0.0,
    keepalive_seconds: float = 0.0,
    inherited: socket.socket | None = None,
) -> socket.socket:
    """A non-blocking listening socket.  `host` "" means every address of both families; port 0 any free one.

    `inherited`: the one that another process left open there; it gets the options of this one.
    Raises ConfigError that names the address.
    """
    sock = inherited
    if sock is None:
        sock = _bind(host, port, socket.SOCK_STREAM)
        sock.listen(_BACKLOG)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_seconds * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if keepalive_seconds else 0)
    if keepalive_seconds:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(keepalive_seconds)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(keepalive_seconds)))
    return sock


def open_udp(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket; addresses as for open_listener."""
    sock = _bind(host, port, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_RECEIVE_BYTES)
    return sock


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
    what = "UDP" if kind is socket.SOCK_DGRAM else "TCP"
    sock = socket.socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        place = f"[{host}]:{port}" if ":" in host else f"{host or '*'}:{port}"
        raise ConfigError(
            f"cannot listen on {what} {place}: {error_text(error)}; choose another address or port"
        ) from error
    return sock
