"""Where a node is: its home region, its endpoints, and how far the relays are.  Layer L3.

    take_map(derp_map)      from the coordinator;  run() measures, moves and looks at this machine's addresses
    wait_home(), describe() what others are told; `changed` is called when that is something else
The home is chosen by the rules of genuine nodes (derp/netcheck/report.py), and besides them left when its relay does
not let us in.  Docs: docs/node.md.  Caller: membership.py.  Next hops: relays.py, derp/client/netcheck.py.
"""

import logging
import random
import socket
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import trio

from derp.client.dial import DialOptions
from derp.client.netcheck import Netcheck, NetcheckOptions
from derp.client.stun import open_stun
from derp.map import DERPMap, DERPRegion
from derp.netcheck.report import FULL_REPORT_SECONDS, Report
from tailnet.errors import ConfigError
from tailnet.node.engine import Engine
from tailnet.paths.endpoint import Endpoint, parse_endpoint
from tailnet.transport.interfaces import AddressWatch, own_hosts

_log = logging.getLogger("tailnet.client")

# Measured again after so long while peers are spoken with, a little irregularly, as genuine nodes do: a NAT forgets a
# mapping after half a minute.  A node without traffic measures every five minutes.
ACTIVE_SECONDS: Final = (20.0, 26.0)
# A node that has to choose a home waits so long for the first measurement; it moves later, if it was slower.
HOME_SECONDS: Final = 1.0
# A home whose relay has not let us in for so long is left, and not looked at again for a while.
DEAD_SECONDS: Final = 10.0
AVOID_SECONDS: Final = 120.0
# What STUN saw is told for so long, as genuine nodes do, and of each family so many at most.
SEEN_SECONDS: Final = 310.0
MAX_SEEN: Final = 6
# Machines with containers have hundreds of addresses, of which peers would ping each.
MAX_LOCAL: Final = 16
SIMILAR_SECONDS: Final = 0.010
# Changes of addresses come several at a time.
SETTLE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Description:
    """What others are told.  `latencies` in seconds, by `<region>-v4` and `<region>-v6`."""

    home: int
    endpoints: tuple[Endpoint, ...]
    latencies: Mapping[str, float]


class Place:
    """Of one node.  `home`: a region to stay in whatever is measured; None: the nearest."""

    def __init__(
        self,
        engine: Engine,
        home: int | None,
        options: DialOptions | None,
        *,
        changed: Callable[[], object],
        moved: Callable[[], object] = lambda: None,
    ) -> None:
        """`moved` is called when an address of this machine is gone, and with it connections from there."""
        self.report: Report | None = None
        """What was measured last."""
        self._engine = engine
        self._relays = engine.relays
        self._wanted_home = home
        self._changed = changed
        self._moved = moved
        self._map = DERPMap({})
        self._avoided: dict[int, float] = {}
        self._seen: dict[Endpoint, float] = {}
        self._latencies: dict[str, float] = {}
        self._news = trio.Event()  # measure at once
        self._has_map = trio.Event()
        self._has_home = trio.Event()
        is_direct = bool(engine.sockets.all)
        self._netcheck = Netcheck(
            NetcheckOptions(dial=options or DialOptions()),
            open_stun=(lambda: nullcontext(engine.stun)) if is_direct else open_stun,
        )

    def take_map(self, derp_map: DERPMap) -> None:
        """Take another map.  Raises ConfigError for the first one, if it has no relay where we are to be."""
        usable, home, wanted = usable_regions(derp_map.regions), self._relays.home, self._wanted_home
        if home is not None and not usable:
            # It is a slip of the map's, maybe of minutes; who has a session goes on.
            _log.warning("the coordinator's new map has no relay: the one before stays")
            return
        chosen = choose_home(derp_map.regions, wanted if home is None or wanted in usable else None)
        is_other, self._map = derp_map != self._map, derp_map
        self._relays.set_map(derp_map.regions)
        # With several regions a node's first home is measured.
        if len(usable) == 1 or wanted in usable or (home is not None and home not in usable):
            self._move(chosen)
        self._has_map.set()
        if is_other:
            self._news.set()

    async def wait_home(self) -> None:
        """Until there is a map, and a home: the nearest, if that is known soon, and else the map's."""
        await self._has_map.wait()
        with trio.move_on_after(HOME_SECONDS):
            await self._has_home.wait()
        if self._relays.home is None:
            self._move(choose_home(self._map.regions, self._wanted_home))

    def describe(self) -> Description:
        """What others are told now; there is a home."""
        assert self._relays.home is not None
        return Description(self._relays.home, self._engine.local_endpoints, self._latencies)

    async def run(self) -> None:
        """Keep it true until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_home)
            nursery.start_soon(self._watch_addresses)
            while True:
                await self._news.wait()
                self._news = trio.Event()
                await self._take(await self._netcheck.report(self._measured(), last_heard=self._relays.last_heard))
                await self._wait_due()

    # --- measurements ---

    async def _wait_due(self) -> None:
        measured_at = trio.current_time()
        while not self._news.is_set():
            with trio.move_on_after(random.uniform(*ACTIVE_SECONDS)):
                await self._news.wait()
            now = trio.current_time()
            # A map without STUN is measured by HTTPS alone, which costs each relay a connection.
            is_cheap = self.report is not None and self.report.stun_asked
            if (is_cheap and self._engine.core.paths.is_active(now)) or now - measured_at >= FULL_REPORT_SECONDS:
                self._news.set()

    def _measured(self) -> DERPMap:
        """The map without regions that did not let us in of late, if others are left."""
        now = trio.current_time()
        self._avoided = {region: until for region, until in self._avoided.items() if until > now}
        left = {number: region for number, region in self._map.regions.items() if number not in self._avoided}
        return replace(self._map, regions=left) if usable_regions(left) else self._map

    async def _take(self, report: Report) -> None:
        self.report = report
        now = trio.current_time()
        if self._engine.sockets.all:
            for seen in (parse_endpoint(report.global_ipv4), parse_endpoint(report.global_ipv6)):
                if seen is not None:
                    self._see(seen, now)
            self._see_static_mapping(report, now)
            self._set_endpoints(now)
        latencies = latencies_of(report)
        if not are_similar(latencies, self._latencies):
            self._latencies = latencies
            self._changed()
        home = report.preferred
        if self._wanted_home is None and home != self._relays.home and home in usable_regions(self._map.regions):
            # That STUN answers does not say that the relay lets us in.
            self._relays.open(home)
            with trio.move_on_after(DEAD_SECONDS):
                await self._relays.wait_connected(home)
                self._move(home)
                return
            self._avoided[home] = trio.current_time() + AVOID_SECONDS

    def _see(self, endpoint: Endpoint, now: float) -> None:
        self._seen.pop(endpoint, None)
        self._seen[endpoint] = now

    def _see_static_mapping(self, report: Report, now: float) -> None:
        """A hard NAT shows peers another port than it showed to STUN, but it may have been told to let our own port in,
        or everything: as genuine nodes do, we name that too.  If there is no such mapping, peers ping it in vain."""
        port = self._engine.sockets.port_of(socket.AF_INET)
        seen = parse_endpoint(report.global_ipv4)
        if port is None or seen is None:
            return
        static = Endpoint(seen.host, port)
        # A short measurement asks one relay, and cannot tell: what was known before stands.
        if report.mapping_varies or (report.mapping_varies is None and static in self._seen):
            self._see(static, now)

    def _move(self, home: int) -> None:
        before = self._relays.home
        self._has_home.set()
        if before == home:
            return
        if before is not None:
            _log.info("home is region %d now, and was %d", home, before)
        self._relays.set_home(home)
        self._changed()

    # --- this machine ---

    def _set_endpoints(self, now: float) -> None:
        self._seen = {endpoint: at for endpoint, at in self._seen.items() if now - at < SEEN_SECONDS}
        local = self._engine.sockets.endpoints()[:MAX_LOCAL]
        for is_ipv6 in (False, True):
            local += [each for each in reversed(self._seen) if (":" in each.host) is is_ipv6][:MAX_SEEN]
        endpoints = tuple(dict.fromkeys(local))
        if endpoints != self._engine.local_endpoints:
            self._engine.local_endpoints = endpoints
            self._engine.core.paths.set_local_endpoints(endpoints, now)
            self._engine.pump()
            self._changed()

    async def _watch_addresses(self) -> None:
        before = own_hosts()
        with closing(AddressWatch()) as watch:
            while True:
                await watch.wait()
                await trio.sleep(SETTLE_SECONDS)
                hosts = own_hosts()
                if hosts != before:
                    self._network_changed(is_lost=not set(before) <= set(hosts))
                    before = hosts

    def _network_changed(self, *, is_lost: bool) -> None:
        _log.info("this machine's addresses are others now")
        now = trio.current_time()
        self._seen.clear()
        self._set_endpoints(now)
        self._engine.core.paths.network_changed(now)
        if is_lost:  # connections from an address that is gone are silent for minutes before they end
            self._relays.redial()
            self._moved()
        self._engine.pump()
        self._news.set()

    async def _watch_home(self) -> None:
        """Leave a home whose relay does not let us in, if there is another."""
        while True:
            home = self._relays.home
            since = self._relays.down_since(home) if home is not None else None
            with trio.move_on_at(since + DEAD_SECONDS if since is not None else inf) as wait:
                await self._relays.wait_change()
            if wait.cancelled_caught and home is not None:
                self._avoided[home] = trio.current_time() + AVOID_SECONDS
                self._news.set()
                with trio.move_on_after(AVOID_SECONDS):
                    await self._relays.wait_change()


def are_similar(ones: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Whether others need not be told: the same regions, each within 10 ms of what was said, or half of it."""
    return ones.keys() == others.keys() and all(
        abs(seconds - others[name]) <= max(SIMILAR_SECONDS, others[name] / 2) for name, seconds in ones.items()
    )


def latencies_of(report: Report) -> dict[str, float]:
    """As nodes tell them: by address family where STUN answered, and by IPv4 where HTTPS did."""
    found = {f"{region}-v4": seconds for region, seconds in report.region_ipv4_seconds.items()}
    found |= {f"{region}-v6": seconds for region, seconds in report.region_ipv6_seconds.items()}
    for region, seconds in report.region_seconds.items():
        if f"{region}-v6" not in found:
            found.setdefault(f"{region}-v4", seconds)
    return found


def usable_regions(regions: Mapping[int, DERPRegion]) -> list[int]:
    """Those with a relay."""
    return [number for number, region in regions.items() if any(not node.stun_only for node in region.nodes)]


def choose_home(regions: Mapping[int, DERPRegion], home: int | None) -> int:
    """A region to be at home in: the one asked for, else the coordinator's own, else the first.  Raises ConfigError."""
    usable = usable_regions(regions)
    if home is not None:
        if home not in usable:
            raise ConfigError(f"the map has no relay in region {home}; it has {sorted(usable)}")
        return home
    embedded = [number for number in usable if regions[number].embedded_relay]
    if not usable:
        raise ConfigError("the coordinator's map has no relay: nobody could reach this node")
    return min(embedded or usable)
