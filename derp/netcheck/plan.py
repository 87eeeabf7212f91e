"""What a netcheck asks, of whom and when (layer L1).

The first time every region gets three STUN requests per address family, 100 ms apart, over its nodes in turn; later
only the nearest three and the home do, the home most stubbornly.  `plan_stun` gives sets of probes: a set is over with
its first answer.  Should no STUN answer come at all, `https_regions` are asked over HTTPS, and `portal_checks` tell a
captive portal from a broken network.  Numbers as in genuine clients.  Driver: client/netcheck.py.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from derp.map import DEFAULT_STUN_PORT, DERPMap, DERPNode, DERPRegion
from derp.netcheck.report import Report

STUN_SECONDS: Final = 3.0
"""Without any answer for so long, UDP is taken as blocked: HTTPS needs the rest of the time."""
PORTAL_DELAY_SECONDS: Final = 0.2
"""A STUN answer before this makes the check for a captive portal superfluous."""
MAX_PORTAL_CHECKS: Final = 5

_FIRST_TRIES: Final = 3
_FIRST_INTERVAL_SECONDS: Final = 0.1
_NEAREST_REGIONS: Final = 3
_HOME_TRIES: Final = 4
# For a region without an earlier latency: probably far, or the last request timed out.
_UNKNOWN_SECONDS: Final = 0.2
# Wait a little longer than the last answer took before asking again.
_PATIENCE: Final = 1.2
_LATER_TRY_SECONDS: Final = 0.05
_MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class StunTarget:
    """Where a STUN request goes; `host` is an address, or a name to look up for the family."""

    host: str
    port: int
    family: int  # 4 or 6


@dataclass(frozen=True, slots=True)
class Probe:
    """One STUN request.  It is sent `delay_seconds` after the netcheck began, if it is still of use then."""

    region_id: int
    node: str
    target: StunTarget
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class PortalCheck:
    """A relay whose plain port 80 must answer /generate_204 itself."""

    region_id: int
    host: str


ProbeSet = tuple[Probe, ...]


def stun_target(node: DERPNode, family: int) -> StunTarget | None:
    """Where this node answers STUN; None: the map switches STUN or the family (4 or 6) off."""
    if not 0 <= node.stun_port <= _MAX_PORT:
        return None
    stated = node.ipv4 if family == 4 else node.ipv6
    if stated == "none":  # counts even where STUNTestIP would say where to ask
        return None
    stated = node.stun_test_ip or stated
    if stated:
        address = _address(stated)
        if address is None or address.version != family:
            return None
    else:
        literal = _address(node.host_name)
        if not node.host_name or (literal is not None and literal.version != family):
            return None
    return StunTarget(stated or node.host_name, node.stun_port or DEFAULT_STUN_PORT, family)


def plan_stun(derp_map: DERPMap, *, last: Report | None = None, home: int = 0) -> list[ProbeSet]:
    """The STUN requests of one netcheck.  `last`: the report before, for a smaller one; None: ask every region."""
    if last is None or not last.region_seconds:
        return _plan_all(derp_map)
    sets: list[ProbeSet] = []
    had_ipv4, had_ipv6 = bool(last.region_ipv4_seconds), bool(last.region_ipv6_seconds)
    for rank, region in enumerate(_by_distance(derp_map, last, home)):
        is_home, is_nearest = region.region_id == home, rank < 2
        if rank >= _NEAREST_REGIONS and not is_home:
            continue
        ipv4, ipv6 = True, had_ipv6 or is_home or is_nearest
        tries = _HOME_TRIES if is_home else 2 if is_nearest else 1
        if not is_home and not is_nearest and had_ipv4 and had_ipv6:
            # Where both work, one of them is enough for the third and farther ones.
            ipv4, ipv6 = rank % 2 == 0, rank % 2 == 1
        interval = last.region_seconds.get(region.region_id, 0.0) * _PATIENCE or _UNKNOWN_SECONDS
        delays = [number * interval + (number * _LATER_TRY_SECONDS if number > 1 else 0) for number in range(tries)]
        if ipv4:
            sets.append(_probes(region, 4, delays))
        if ipv6:
            # One request may find IPv6 working again; more only if it did lately.
            sets.append(_probes(region, 6, delays if had_ipv6 else delays[:1]))
    return [probes for probes in sets if probes]


def https_regions(derp_map: DERPMap) -> list[DERPRegion]:
    """The regions to measure over HTTPS when UDP is blocked: those that relay and may be home."""
    return [
        region
        for _, region in sorted(derp_map.regions.items())
        if not region.avoid and not region.no_measure_no_home and any(not node.stun_only for node in region.nodes)
    ]


def portal_checks(derp_map: DERPMap, home: int = 0) -> list[PortalCheck]:
    """Relays for the captive-portal check, those of the home first, at most five.

    By address only: behind a portal names are the first thing that lies.
    """
    checks = [
        PortalCheck(region_id, node.ipv4)
        for region_id, region in sorted(derp_map.regions.items(), key=lambda entry: (entry[0] != home, entry[0]))
        if not region.avoid and not region.no_measure_no_home
        for node in region.nodes
        if node.can_port_80 and _address(node.ipv4) is not None
    ]
    return checks[:MAX_PORTAL_CHECKS]


def _plan_all(derp_map: DERPMap) -> list[ProbeSet]:
    delays = [number * _FIRST_INTERVAL_SECONDS for number in range(_FIRST_TRIES)]
    # Avoid does not count here: genuine clients measure such regions at first, and this report must say what they do.
    regions = [region for _, region in sorted(derp_map.regions.items()) if not region.no_measure_no_home]
    sets = [_probes(region, family, delays) for region in regions for family in (4, 6)]
    return [probes for probes in sets if probes]


def _probes(region: DERPRegion, family: int, delays: list[float]) -> ProbeSet:
    probes = []
    for number, delay in enumerate(delays):
        if not region.nodes:
            break
        node = region.nodes[number % len(region.nodes)]
        target = stun_target(node, family)
        if target is not None:
            # Clients count an answer for the region that the node names, wherever it stands in the map.
            probes.append(Probe(node.region_id, node.name, target, delay))
    return tuple(probes)


def _by_distance(derp_map: DERPMap, last: Report, home: int) -> list[DERPRegion]:
    """Nearest first, those never measured last, without those that cannot be home."""
    regions = [
        region
        for region_id, region in derp_map.regions.items()
        if not region.no_measure_no_home and (not region.avoid or region_id == home)
    ]
    unknown = float("inf")
    return sorted(regions, key=lambda one: (last.region_seconds.get(one.region_id, 0) or unknown, one.region_id))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
