"""The addresses of this machine's interfaces, and when they change.  Layer L2.

Linux is asked by netlink (rtnetlink(7)): one question gives all addresses, and a subscription tells of changes.  Where
that is missing, or not allowed, the system is asked from where it would reach the world, and again after a while.
Callers: udp.py, tailnet/node/place.py.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import trio

# Of each family an address of the world (of documentation), to which nothing is sent.
_WORLD: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
# Without news from the system: a connect of two sockets that send nothing.
LOOK_SECONDS: Final = 30.0
# Of linux/netlink.h, rtnetlink.h and if_addr.h; the socket module of Python 3.11 names none of them.
_NETLINK: Final = getattr(socket, "AF_NETLINK", None)
_ROUTE, _ADDRESS_GROUPS = 0, 0x10 | 0x100  # changes of IPv4 and of IPv6 addresses
_GET_ADDRESSES, _NEW_ADDRESS, _DONE, _ERROR = 22, 20, 3, 2
_REQUEST_ALL: Final = 0x301
_HEAD: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, sender
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix, flags, scope, interface
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NOT_USABLE: Final = 0x40 | 0x08  # tentative; somebody else has it
_READ_BYTES: Final = 1 << 16
# The kernel answers at once; what stands in for one, in a sandbox, may not answer at all.
_ANSWER_SECONDS: Final = 1.0


def own_hosts() -> list[str]:
    """Addresses under which others may reach this machine, IPv4 first: no loopback, and no link-local ones."""
    with suppress(OSError):
        if _NETLINK is not None:
            return _usable(_ask_netlink())
    return _usable(_ask_routes())


class AddressWatch:
    """Tells when the addresses may have changed.  `close` it."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        with suppress(OSError):
            if _NETLINK is not None:
                sock = socket.socket(_NETLINK, socket.SOCK_RAW, _ROUTE)
                try:
                    sock.setblocking(False)
                    sock.bind((0, _ADDRESS_GROUPS))
                except OSError:
                    sock.close()  # of one that is not subscribed nothing would ever come
                    raise
                self._sock = sock

    async def wait(self) -> None:
        """Until they may have changed."""
        if self._sock is None:
            await trio.sleep(LOOK_SECONDS)
            return
        await trio.lowlevel.wait_readable(self._sock)
        # What changed is asked anew, whatever the news say; of those that did not fit the kernel tells by an error.
        with suppress(OSError):
            while self._sock.recv(_READ_BYTES):
                pass

    def close(self) -> None:
        """Nobody waits any more."""
        if self._sock is not None:
            self._sock.close()


def _ask_netlink() -> Iterator[str]:
    assert _NETLINK is not None
    with socket.socket(_NETLINK, socket.SOCK_RAW, _ROUTE) as sock:
        sock.settimeout(_ANSWER_SECONDS)
        sock.bind((0, 0))
        sock.send(_HEAD.pack(_HEAD.size + _ADDRESS.size, _GET_ADDRESSES, _REQUEST_ALL, 1, 0) + _ADDRESS.pack(*[0] * 5))
        while True:
            data = sock.recv(_READ_BYTES)
            at = 0
            while at + _HEAD.size <= len(data):
                length, kind, _, _, _ = _HEAD.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR or length < _HEAD.size:
                    raise OSError("netlink did not tell this machine's addresses")
                if kind == _NEW_ADDRESS:
                    yield from _address_in(data[at + _HEAD.size : at + length])
                at += length + 3 & ~3


def _address_in(message: bytes) -> Iterator[str]:
    family, _, flags, _, _ = _ADDRESS.unpack_from(message)
    if flags & _NOT_USABLE or family not in (socket.AF_INET, socket.AF_INET6):
        return
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            return
        found[kind] = message[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    # Of a point-to-point link the other one is its far end.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is not None:
        yield socket.inet_ntop(family, packed)


def _ask_routes() -> Iterator[str]:
    for family, world in _WORLD:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((world, 9))  # sends nothing
            yield str(sock.getsockname()[0])


def _usable(hosts: Iterator[str]) -> list[str]:
    found = {ip_address(host.partition("%")[0]) for host in hosts}
    kept = [each for each in found if not (each.is_loopback or each.is_link_local or each.is_unspecified)]
    return [str(each) for each in sorted(kept, key=lambda each: (each.version, each.packed))]
