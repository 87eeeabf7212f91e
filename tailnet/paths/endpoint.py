"""Addresses that a peer may be reached at, and which of two is better (layer L1).

An Endpoint is what a UDP socket takes: the text of an IP address, and a port.  Endpoints come from the coordinator,
from other nodes and from datagrams, so each is judged before anything is sent to it.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from derp.text import host_port
from tailnet.types import CODER_SERVICE_PREFIX, PREFIX_BYTES, TAILSCALE_SERVICE_PREFIX

_ADDRESS_BYTES: Final = 16
WIRE_BYTES: Final = _ADDRESS_BYTES + 2
"""An endpoint inside a message: 16 bytes, IPv4 as ::ffff:a.b.c.d, and the port, big endian."""

# As which a region of the relay appears where an endpoint is wanted: this address, and the region as the port.
_RELAY: Final = "127.3.3.40"

# Addresses inside tailnets: to send there would send packets of the tunnel through the tunnel.
_TUNNELS: Final = tuple(
    IPv6Network((prefix + bytes(_ADDRESS_BYTES - PREFIX_BYTES), 8 * PREFIX_BYTES))
    for prefix in (TAILSCALE_SERVICE_PREFIX, CODER_SERVICE_PREFIX)
)

_PERCENT: Final = 100
_LOOPBACK_POINTS: Final = 50
_LINK_LOCAL_POINTS: Final = 30
_PRIVATE_POINTS: Final = 20
_IPV6_POINTS: Final = 10
_PRIVATE: Final = IPv6Network("fc00::/7")


class Endpoint(NamedTuple):
    """Address and port, as sockets take them; the address in its shortest form."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


def make_endpoint(host: str, port: int) -> Endpoint | None:
    """The one form of an address; None if nothing can be sent there: no address, unspecified, multicast, port 0,
    IPv6 link-local, a relay's stand-in, or inside a tailnet."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not 0 < port <= 0xFFFF or address.is_unspecified or address.is_multicast or str(address) == _RELAY:
        return None
    if isinstance(address, IPv4Address):
        return Endpoint(str(address), port) if not address.is_reserved else None
    if address.is_link_local or any(address in network for network in _TUNNELS):
        return None
    return Endpoint(str(address), port)


def parse_endpoint(text: str) -> Endpoint | None:
    """Read `a.b.c.d:port` or `[v6]:port`, as coordination carries them."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or len(port) > 5:
        return None
    return make_endpoint(host.removeprefix("[").removesuffix("]"), int(port))


def decode_endpoint(wire: bytes) -> Endpoint | None:
    """Read the 18 bytes of an endpoint in a message."""
    return make_endpoint(str(IPv6Address(wire[:_ADDRESS_BYTES])), int.from_bytes(wire[_ADDRESS_BYTES:], "big"))


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """The 18 bytes of an endpoint in a message."""
    address = ip_address(endpoint.host)
    raw = address.packed if isinstance(address, IPv6Address) else bytes(10) + b"\xff\xff" + address.packed
    return raw + endpoint.port.to_bytes(2, "big")


def relay_endpoint(region: int) -> Endpoint:
    """What a pong says of a ping that came by a relay."""
    return Endpoint(_RELAY, region & 0xFFFF)


def is_better(one: Endpoint, seconds: float, other: Endpoint, other_seconds: float) -> bool:
    """Whether a path to `one` with this round trip should replace the other: as genuine nodes weigh them.

    In percent: the faster one gets by how much it is faster; near addresses and IPv6 get a little.  One percent is not
    worth a change.
    """
    points, other_points = _points(one), _points(other)
    if seconds < other_seconds:
        points += int(_PERCENT - _PERCENT * seconds / other_seconds)
    elif other_seconds < seconds:
        other_points += int(_PERCENT - _PERCENT * other_seconds / seconds)
    return points > other_points and not (points <= 1 and other_points == 0)


def _points(endpoint: Endpoint) -> int:
    address = ip_address(endpoint.host)
    points = _IPV6_POINTS if isinstance(address, IPv6Address) else 0
    if address.is_loopback:
        return points + _LOOPBACK_POINTS
    if address.is_link_local:
        return points + _LINK_LOCAL_POINTS
    return points + (_PRIVATE_POINTS if is_private(address) else 0)


def is_private(address: IPv4Address | IPv6Address) -> bool:
    """RFC 1918 and RFC 4193: what Python calls private is far more."""
    if isinstance(address, IPv6Address):
        return address in _PRIVATE
    first, second, *_ = address.packed
    return first == 10 or (first == 172 and second & 0xF0 == 16) or (first == 192 and second == 168)
