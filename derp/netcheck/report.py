"""What the measurements of a netcheck mean, and which region becomes home (layer L1).

`Measurements` collects what came back during one netcheck; `finish` makes the Report of it.  `History` then chooses the
home among the regions that answered: the lowest latency of the last five minutes, with the map's scores, and with
hysteresis, for a home that moves breaks every relayed connection.  The rules and numbers are those of genuine clients,
so that what we report is what they do.  Times are seconds of one monotonic clock.  Driver: client/netcheck.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from derp.map import DERPMap
from derp.netcheck.steering import score_in
from derp.text import host_port

FULL_REPORT_SECONDS: Final = 300.0
"""At least this often all regions are measured, not only the nearest."""
REPORT_SECONDS: Final = 5.0
"""A netcheck never takes longer."""
# A home 10 ms farther than the best, or less than half as far again, is kept: a move costs more than it gains.
KEEP_HOME_SECONDS: Final = 0.010
KEEP_HOME_SHARE: Final = 2 / 3
# A home that sent a frame so recently is alive, whatever became of its STUN answers.
HEARD_SECONDS: Final = 8.0
# Twice the keep-alive: while nothing at all can be measured, a home that was heard so recently stays home.
HEARD_WITHOUT_MEASURE_SECONDS: Final = 120.0
_RETAIN_SECONDS: Final = FULL_REPORT_SECONDS + REPORT_SECONDS
# A client reports every 20 to 30 s, which makes 16 in the window; only somebody who asks in a loop comes near this.
_MAX_HISTORY: Final = 1000
_MAX_REASON: Final = 400

IpAddress = IPv4Address | IPv6Address
LastHeard = Callable[[int], float | None]
"""When the relay connection to a region last gave a frame; None: never, or there is no such connection."""


@dataclass(frozen=True, slots=True)
class Report:
    """One netcheck.  Latencies in seconds by region id; None where a question was not asked, or not answered."""

    udp: bool = False  # a STUN answer came back
    ipv4: bool = False  # something answered over IPv4, be it over TCP
    ipv6: bool = False
    ipv4_can_send: bool = False  # the system let an IPv4 datagram out
    ipv6_can_send: bool = False
    os_has_ipv6: bool = False
    mapping_varies: bool | None = None  # the address others see depends on whom we talk to: direct paths will be rare
    global_ipv4: str = ""  # address:port that others see; empty: unknown
    global_ipv6: str = ""
    captive_portal: bool | None = (
        None  # False: none showed itself; None: not looked for, since STUN works, or nowhere to
    )
    preferred: int = 0  # home region; 0: none
    preferred_because: str = ""  # by which latencies and scores
    region_seconds: Mapping[int, float] = field(default_factory=dict)  # the best of whatever way
    region_ipv4_seconds: Mapping[int, float] = field(default_factory=dict)  # STUN only
    region_ipv6_seconds: Mapping[int, float] = field(default_factory=dict)
    stun_asked: bool = False  # False: the map names no STUN, so `udp` says nothing
    reasons: Mapping[int, str] = field(default_factory=dict)  # why a region that was asked over HTTPS gave no latency


class Measurements:
    """Collects one netcheck: `add_*` as answers come, `finish` once.  Never raises."""

    def __init__(self, *, incremental: bool = False) -> None:
        self._incremental = incremental
        self._best: dict[int, float] = {}
        self._by_family: dict[int, dict[int, float]] = {4: {}, 6: {}}
        self._sent: set[int] = set()
        self._families: set[int] = set()
        self._seen_as: dict[int, str] = {}
        self._mapping_varies: bool | None = None
        self._reasons: dict[int, str] = {}
        self._asked = False
        self.udp = False
        self.captive_portal: bool | None = None

    def note_sent(self, family: int) -> None:
        """A STUN request of this family (4 or 6) left this machine."""
        self._sent.add(family)

    def note_asked(self) -> None:
        """A STUN request was tried."""
        self._asked = True

    def would_help(self, region_id: int, family: int) -> bool:
        """Whether another STUN answer of this region could still tell something new."""
        if region_id not in self._best:
            return True
        if family == 6:
            return not self._by_family[6]
        # Two answers over IPv4 tell whether the mapping depends on the destination.
        return self._mapping_varies is None

    def add_stun(self, region_id: int, seconds: float, ip: IpAddress, port: int) -> None:
        """A STUN answer, and the address it saw us at."""
        self.udp = True
        _keep_least(self._best, region_id, seconds)
        family = ip.version
        _keep_least(self._by_family[family], region_id, seconds)
        self._families.add(family)
        seen = host_port(str(ip), port)
        if family == 6:
            self._seen_as[6] = seen
        elif 4 not in self._seen_as:
            self._seen_as[4] = seen
        else:
            self._mapping_varies = bool(self._mapping_varies) or self._seen_as[4] != seen

    def add_https(self, region_id: int, seconds: float, family: int) -> None:
        """An answer to /derp/latency-check."""
        _keep_least(self._best, region_id, seconds)
        self._families.add(family)

    def add_failure(self, region_id: int, reason: str) -> None:
        """The region did not answer over HTTPS."""
        self._reasons[region_id] = reason[:_MAX_REASON]

    def seconds_for_the_rest(self, enough_regions: int | None) -> float | None:
        """How long to wait for the other regions once `enough_regions` have answered; None: they have not."""
        if enough_regions is None or len(self._best) < enough_regions:
            return None
        slowest = max(self._best.values())
        return slowest if self._incremental else 2 * slowest

    def finish(self, *, os_has_ipv6: bool = False) -> Report:
        """The report, without a home: History.settle gives it one."""
        return Report(
            udp=self.udp,
            ipv4=4 in self._families,
            ipv6=6 in self._families,
            ipv4_can_send=4 in self._sent,
            ipv6_can_send=6 in self._sent,
            os_has_ipv6=os_has_ipv6,
            mapping_varies=self._mapping_varies,
            global_ipv4=self._seen_as.get(4, ""),
            global_ipv6=self._seen_as.get(6, ""),
            captive_portal=self.captive_portal,
            region_seconds=dict(self._best),
            region_ipv4_seconds=dict(self._by_family[4]),
            region_ipv6_seconds=dict(self._by_family[6]),
            stun_asked=self._asked,
            reasons={region_id: text for region_id, text in self._reasons.items() if region_id not in self._best},
        )


class History:
    """The reports of the last five minutes, and the home they led to.  One per client; call `settle` per netcheck."""

    def __init__(self) -> None:
        self._reports: list[tuple[float, Report]] = []
        self._full_at: float | None = None

    @property
    def last(self) -> Report | None:
        """The last report, settled."""
        return self._reports[-1][1] if self._reports else None

    @property
    def home(self) -> int:
        """The region it chose; 0: none."""
        return self.last.preferred if self.last is not None else 0

    def wants_full(self, now: float) -> bool:
        """Whether the next netcheck should ask every region, as for the first time; if so, that counts as done."""
        last = self.last
        is_due = self._full_at is None or now - self._full_at > FULL_REPORT_SECONDS
        # Behind a captive portal nothing was learnt; somebody may have logged in since.
        if is_due or last is None or (not last.udp and last.captive_portal is True):
            self._full_at = now
            return True
        return False

    def settle(
        self, report: Report, derp_map: DERPMap, *, started: float, now: float, last_heard: LastHeard = lambda _: None
    ) -> Report:
        """The report with its home region, which is also remembered.  `started`: when this netcheck began."""
        home = self.home
        self._reports = [(at, one) for at, one in self._reports if now - at <= _RETAIN_SECONDS][-_MAX_HISTORY:]
        self._reports.append((now, report))

        def scored(region_id: int, seconds: float) -> float:
            return seconds * score_in(derp_map, region_id)

        recent: dict[int, float] = {}
        for _, one in self._reports:
            for region_id, seconds in one.region_seconds.items():
                _keep_least(recent, region_id, seconds)
        # Only regions that answered now may become home, each with the best it has shown lately.
        choice = min(report.region_seconds, key=lambda one: (scored(one, recent[one]), one), default=0)
        heard = last_heard(home) if home else None
        if choice and home and choice != home:
            best = scored(choice, recent[choice])
            measured = report.region_seconds.get(home)
            # Without a latency of now, but with frames, it counts as near: its STUN answer may just have been lost.
            current = scored(home, measured) if measured is not None else 0.0
            is_alive = measured is not None or _heard_since(heard, min(started, now - HEARD_SECONDS))
            if is_alive and stays_home(current, best):
                choice = home
        if not choice and home and _heard_since(heard, now - HEARD_WITHOUT_MEASURE_SECONDS):
            choice = home
        because = why_home(choice, {each: recent[each] for each in report.region_seconds}, derp_map)
        settled = replace(report, preferred=choice, preferred_because=because)
        self._reports[-1] = (now, settled)
        return settled


def why_home(home: int, seconds: Mapping[int, float], derp_map: DERPMap) -> str:
    """Why a client with these latencies has this home, as one sentence; empty without a home."""
    if not home:
        return ""
    if home not in seconds:
        return f"region {home} was not measured, and stays because its relay was heard, or nothing was measured at all"
    ours, others = seconds[home] * score_in(derp_map, home), sorted(seconds.keys() - {home})
    said = _looks(home, seconds[home], derp_map)
    if not others:
        return f"{said}; no other region was measured"
    best = min(others, key=lambda one: seconds[one] * score_in(derp_map, one))
    next_one = _looks(best, seconds[best], derp_map)
    theirs = seconds[best] * score_in(derp_map, best)
    if theirs >= ours:
        return f"{said}; the next is {next_one}"
    if stays_home(ours, theirs):
        return f"{said}; {next_one} looks nearer, but not by {1000 * KEEP_HOME_SECONDS:.0f} ms and a third: it stays"
    return f"{said}; {next_one} looks so much nearer that it moves there at its next report"


def stays_home(ours: float, best: float) -> bool:
    """Whether a home is kept although another region looks nearer."""
    return ours - best < KEEP_HOME_SECONDS or best > ours * KEEP_HOME_SHARE


def _looks(region_id: int, seconds: float, derp_map: DERPMap) -> str:
    score = score_in(derp_map, region_id)
    told = f"region {region_id} at {1000 * seconds:.1f} ms"
    return f"{told} x {score:g} = {1000 * seconds * score:.1f} ms" if score != 1 else told


def is_captive_answer(status: int, response_header: str, challenge: str) -> bool:
    """Whether an answer to /generate_204 comes from somebody else than a relay."""
    return status != 204 or response_header != f"response {challenge}"


def verdicts(report: Report, derp_map: DERPMap) -> list[str]:
    """What a person should know about a report, one sentence each; none: all is well."""
    said = []
    if report.captive_portal:
        said.append("a captive portal answers in place of the relays: log in to this network first")
    if not report.udp and report.stun_asked:
        if not (report.ipv4_can_send or report.ipv6_can_send):
            said.append("no STUN request could be sent: no name resolves, or this machine has no route to any relay")
        elif report.region_seconds:
            said.append(
                "no STUN answer came back: UDP is blocked on the way, so every path will be relayed, and slower"
            )
        else:
            said.append("no STUN answer came back, none over HTTPS either: the relays are down, or all is blocked")
    elif not report.stun_asked:
        said.append("the map names no relay with STUN: whether UDP works is unknown")
    if not report.region_seconds:
        said.append("no region answered: without a home this client can be reached only directly")
    if report.mapping_varies:
        said.append("this network gives us another address for each destination (hard NAT): direct paths will be rare")
    for region_id in sorted(report.region_seconds.keys() - derp_map.regions.keys()):
        chosen = ", and choose it as home, where nobody finds them" if region_id == report.preferred else ""
        said.append(
            f"a node names region {region_id} as its own, which the map does not have: clients count its answers there"
            f"{chosen}; correct RegionID"
        )
    home = derp_map.regions.get(report.preferred)
    if home is not None and home.avoid and len(report.region_seconds) > 1:
        said.append(
            f"home is region {home.region_id} although the map says Avoid, which clients ignore when they measure all "
            "regions: set NoMeasureNoHome instead"
        )
    for region_id in sorted(derp_map.regions):
        region = derp_map.regions[region_id]
        name = f"region {region_id} ({region.region_code or region.region_name or 'without a code'})"
        if region.no_measure_no_home or region_id in report.region_seconds:
            continue
        if report.reasons.get(region_id):
            said.append(f"{name} cannot be used: {report.reasons[region_id]}")
        elif report.udp:
            said.append(f"{name} answered no STUN request, although UDP works: no client makes it its home")
    return said


def _keep_least(table: dict[int, float], key: int, value: float) -> None:
    if key not in table or value < table[key]:
        table[key] = value


def _heard_since(heard: float | None, moment: float) -> bool:
    return heard is not None and heard > moment
