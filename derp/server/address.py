"""Addresses of callers against lists of networks.  Layer L3; used by server/door.py and server/routes.py."""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from derp.config.relay import Network


def is_in(address: str, networks: Iterable[Network]) -> bool:
    """Whether the textual `address` lies in one of `networks`.  IPv4 mapped into IPv6 counts as IPv4; what is no
    address is in none."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks if network.version == parsed.version)
