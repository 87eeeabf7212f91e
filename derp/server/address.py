"""Who is calling: addresses against lists of networks, and what proxies in front say about them.  Layer L3.

The one rule for relay and coordinator, whose front doors and operator's pages ask here.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from derp.config.relay import LOOPBACK, Network
from derp.map import is_address
from derp.text import printable

_FORWARDED_FOR: Final = "x-forwarded-for"
# A proxy adds at least one of these, whatever their value is.
_MARKS_OF_PROXIES: Final = frozenset({_FORWARDED_FOR, "forwarded", "via", "x-real-ip"})


class Caller(NamedTuple):
    """Who sent a request, as far as it can be believed."""

    address: str
    port: int  # 0 where only a proxy knows it
    is_hidden: bool = False  # the address is a proxy's, and the caller behind it is unknown: it opens nothing


def find_caller(peer: tuple[str, int], headers: Mapping[str, str], trusted: Iterable[Network]) -> Caller:
    """The caller of a request that came over a connection from `peer`; `headers` have lower-case names.

    Each trusted proxy added whom it saw to the right end of X-Forwarded-For.  So the last entry that is not a trusted
    proxy itself is the caller; what stands further left, anybody may have written.
    """
    if _MARKS_OF_PROXIES.isdisjoint(headers):
        return Caller(*peer)
    trusted = tuple(trusted)
    if is_in(peer[0], trusted):
        for hop in reversed(headers.get(_FORWARDED_FOR, "").split(",")):
            address = _address_of_hop(hop)
            if not address:
                break
            if not is_in(address, trusted):
                return Caller(address, 0)
    return Caller(*peer, is_hidden=True)


def why_closed(caller: Caller, host: str, own_names: Iterable[str], allowed: Iterable[Network]) -> str:
    """Why `caller` may not see the operator's pages, to be put behind "closed to"; empty: he may.

    `host`: the request's Host.  Whoever asks from this machine may be a browser that a web page leads here: its owner
    has DNS answer for a name of his with our address (DNS rebinding), and the page may then read what we answer.  So
    from here pages are asked for by an address, as localhost, or by one of `own_names`, which no stranger's DNS gives.
    """
    if caller.is_hidden:
        return (
            f"whatever comes through {caller.address}: list that proxy in trusted_proxies, and have it say in "
            "X-Forwarded-For who asks"
        )
    if not is_in(caller.address, allowed):
        return f"{caller.address}: list your network in debug_allow to open it"
    if is_in(caller.address, LOOPBACK) and not _is_named_safely(host, own_names):
        return f"who asks for {printable(host)!r}: ask by an address, as localhost, or by this server's own name"
    return ""


def _is_named_safely(host: str, own_names: Iterable[str]) -> bool:
    name = host.strip().lower()
    if not name:
        return True  # no browser leaves it out
    name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or is_address(name):
        return True
    return name in {own.lower().removesuffix(".") for own in own_names if own}


def _address_of_hop(text: str) -> str:
    """The address of an entry: bare, with a port (203.0.113.7:51234), in brackets, or both; "" if it is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return text if mapped is None else str(mapped)


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


def address_group(address: str) -> str:
    """What counts as one caller: an IPv4 address, or the /64 that one customer of an IPv6 provider has."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(IPv6Network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else str(parsed)
