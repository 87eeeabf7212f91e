"""What not every system has, asked for before it is used: socket options, files in memory, /proc.  Layer L2.

Linux is where this runs; macOS and the BSDs are where it is written and tried out.  There the same sockets have fewer
options, and what cannot be told is left out.
"""

import contextlib
import errno
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, Protocol

# Of linux/tcp.h and of Darwin's netinet/tcp.h; the socket module names it only from Python 3.13 on.
_NOTSENT_LOWAT: Final = {"linux": 25, "darwin": 0x201}
# Where the smoothed round-trip time lies in Linux's struct tcp_info, in microseconds.
_TCP_INFO_BYTES: Final = 72
_TCP_INFO_RTT: Final = slice(68, 72)
# Of a listening socket two other fields say how full its queue is, and how long it may be (tcp_get_info of the kernel).
_TCP_INFO_BACKLOG: Final = (slice(24, 28), slice(28, 32))
# Of Linux' TCP: the peer's FIN has come, or the connection is gone (TCP_CLOSE, TCP_CLOSE_WAIT).
_ENDED_STATES: Final = frozenset({7, 8})
# What macOS allows a process when the hard limit says "infinity" (OPEN_MAX of its limits.h).
_OPEN_FILES_WITHOUT_LIMIT: Final = 10_240


class HasOptions(Protocol):
    """A socket, or trio's word for one."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def limit_unsent(sock: HasOptions, size_bytes: int) -> None:
    """Have the kernel call a socket full when it holds so many bytes that were not sent yet, where it can."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", _NOTSENT_LOWAT.get(sys.platform))
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, size_bytes)


def limit_unacknowledged(sock: HasOptions, seconds: float) -> None:
    """Have the kernel end a connection whose bytes nobody acknowledged for so long; 0: when the kernel thinks best."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


def keep_alive(sock: HasOptions, seconds: float) -> None:
    """Have the kernel ask for a sign of life after so long a silence, and as often; 0: never."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if seconds else 0)
    if not seconds:
        return
    for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE"):  # Darwin's word for it is the second
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, int(seconds)))
            break
    if hasattr(socket, "TCP_KEEPINTVL"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds)))


# Of linux/in.h and linux/in6.h, unnamed in the socket module: the option, and "do not fragment, and do not believe what
# routers say of sizes".
_MTU_DISCOVER: Final = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_PROBE: Final = 3


def never_fragment(sock: socket.socket) -> None:
    """Have datagrams of a UDP socket lost that a path cannot carry whole, where the system can: QUIC's must be."""
    if sys.platform != "linux":
        return
    for family, (level, option) in _MTU_DISCOVER.items():
        if sock.family in (family, socket.AF_INET6):  # one of both families has both options
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, _PMTUDISC_PROBE)


def _tcp_info(sock: socket.socket, size: int) -> bytes:
    """The beginning of the kernel's struct tcp_info.  OSError where nobody tells."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or sys.platform != "linux":
        raise OSError(errno.ENOPROTOOPT, "this system does not tell of TCP connections")
    return sock.getsockopt(socket.IPPROTO_TCP, option, size)


def rtt_microseconds(sock: socket.socket) -> int:
    """The kernel's smoothed round-trip time.  OSError where it does not tell."""
    return int.from_bytes(_tcp_info(sock, _TCP_INFO_BYTES)[_TCP_INFO_RTT], sys.byteorder)


def accept_queue(sock: socket.socket) -> tuple[int, int]:
    """Of a listening socket: connections that wait to be accepted, and how many may.  0 and 0 where nobody tells."""
    try:
        info = _tcp_info(sock, _TCP_INFO_BYTES)
    except OSError:  # or it was closed meanwhile
        return 0, 0
    waiting, room = (int.from_bytes(info[place], sys.byteorder) for place in _TCP_INFO_BACKLOG)
    return waiting, room


def peer_left(sock: socket.socket) -> bool:
    """Whether the peer has ended its side, though bytes that it sent before may still wait.  Elsewhere than on Linux
    this is seen only when none do."""
    with contextlib.suppress(OSError):  # no TCP, or nobody tells
        return _tcp_info(sock, 1)[0] in _ENDED_STATES
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def named_file(content: bytes) -> Iterator[str]:
    """The name of a file with this content, for libraries that read from names only.

    On Linux it is an anonymous file in memory, which has a name under /proc and never touches a disk; elsewhere one
    that only we may read, for as long as the context lasts.
    """
    if not hasattr(os, "memfd_create") or not Path("/proc/self/fd").exists():
        with tempfile.NamedTemporaryFile(prefix="derp-", suffix=".pem") as file:
            file.write(content)
            file.flush()
            yield file.name
        return
    handle = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with open(handle, "wb", closefd=False) as memory:
            memory.write(content)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def count_open_files() -> int:
    """Descriptors of this process; 0 where the system does not list them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return 0


@cache
def boot_time() -> int:
    """When this machine started, Unix time; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/stat") as stat:
        return next((int(line.split()[1]) for line in stat if line.startswith("btime ")), 0)
    return 0


def raise_open_files() -> None:
    """Take all open files that the administrator allows, not the 1,024 or 256 that shells start with."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (hard, _OPEN_FILES_WITHOUT_LIMIT):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return
