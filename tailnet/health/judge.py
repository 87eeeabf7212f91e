"""From what was measured to what is wrong (layer L1): one function, one branch for each kind of reading.

`judge` gives findings with codes of codes.py; `overall` the worst severity.  Every bound stands here with its reason.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from derp.text import some_of
from tailnet.health.codes import RULES, Code, Severity
from tailnet.health.readings import (
    AddressReading,
    AgentsReading,
    Certificate,
    CertificateReading,
    ClockReading,
    DiskReading,
    Failed,
    FoughtFor,
    LogReading,
    MapReading,
    OtherReplica,
    OutboxReading,
    OwnNodeReading,
    PeersReading,
    Reading,
    RelayKeysReading,
    RelayReading,
    ReplicasReading,
    ResumeKeysReading,
    StoreReading,
    StunReading,
    WebSocketReading,
)

# From one side of the earth to the other it is 300 ms.
SLOW_RELAY_SECONDS: Final = 0.5
# A read takes about a millisecond; whoever waits for a quarter of a second behind each door notices.  A write shares
# the batch of all reports, so it may take longer; 10 s is when SQLite and PostgreSQL give up.
SLOW_READ_SECONDS: Final = (0.25, 2.0)
SLOW_WRITE_SECONDS: Final = (2.0, 10.0)
# Reports are written each second; a minute is what the alert rule takes.
LAG_SECONDS: Final = (10.0, 60.0)
# Time services keep milliseconds.  Beyond a minute servers take each other's words for mistakes (store/presence.py).
CLOCK_SECONDS: Final = (5.0, 60.0)
# Renewal begins with a third of the life left (30 of 90 days, two of six), so with a quarter left it has failed.
EXPIRY_SECONDS: Final = (7 * 86_400.0, 86_400.0)
EXPIRY_PARTS: Final = (1 / 4, 1 / 8)
RENEWAL_FAILURES: Final = 3
# Keys are replaced after a month, and looked at each ten minutes.
OVERDUE_SECONDS: Final = 86_400.0
UNREAD_SECONDS: Final = 1_800.0
# SQLite needs room for its log, and an operator needs time.  A small disk has a gigabyte free rarely.
FREE_BYTES: Final = (1 << 30, 100 << 20)
FREE_PART: Final = 0.1
# As long as a silent replica is waited for: a session ends and begins anew within a second or two.
APART_SECONDS: Final = 6.0
# Beats on their way are taken for a clock that is behind, by what the fastest of eight took.
REPLICA_CLOCK_SECONDS: Final = 1.0
# A change of the map is read by all within half of it.
MAP_SECONDS: Final = 60.0
# Named in one sentence; the report has all.
MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.  `what`: what was measured, in a sentence."""

    code: Code
    severity: Severity
    what: str

    @property
    def advice(self) -> str:
        return RULES[self.code].advice


def overall(findings: Iterable[Finding]) -> Severity:
    """The worst of them."""
    return max((finding.severity for finding in findings), default=Severity.OK)


def judge(reading: Reading) -> list[Finding]:
    """What is wrong with one reading; empty where nothing is."""
    return list(_judge(reading))


def _judge(reading: Reading) -> Iterator[Finding]:
    match reading:
        case AddressReading():
            yield from _address(reading)
        case RelayReading():
            yield from _relay(reading)
        case WebSocketReading():
            if reading.problem:
                yield Finding(Code.WEBSOCKET_UNREACHABLE, Severity.ERROR, reading.problem)
        case StunReading():
            for answer in reading.answers:
                if answer.problem:
                    what = f"{answer.host}, UDP port {answer.port}, IPv{answer.family}: {answer.problem}"
                    yield Finding(Code.STUN_SILENT, Severity.WARNING, what)
        case StoreReading():
            yield from _store(reading)
        case OutboxReading():
            yield from _outbox(reading)
        case ClockReading():
            yield from _clock(reading)
        case MapReading():
            yield from _map(reading)
        case CertificateReading():
            yield from _certificates(reading)
        case AgentsReading():
            if reading.flapping:
                shown = some_of([f"{agent_id} {count} times" for agent_id, count in reading.flapping], MAX_NAMED)
                yield Finding(Code.AGENTS_FLAP, Severity.WARNING, f"agents came again and again: {shown}")
        case OwnNodeReading():
            if reading.problem:
                yield Finding(Code.OWN_NODE_LOST, Severity.ERROR, f"agents cannot be reached into: {reading.problem}")
        case ResumeKeysReading():
            yield from _resume_keys(reading)
        case RelayKeysReading():
            if reading.contested:
                what = f"peers announced keys of other tenants' peers {reading.contested:,} times"
                yield Finding(Code.RELAY_KEYS_CONTESTED, Severity.WARNING, what)
        case DiskReading():
            yield from _disk(reading)
        case LogReading():
            if reading.lost:
                yield Finding(Code.LOG_LOST, Severity.WARNING, f"{reading.lost:,} log lines were dropped")
        case PeersReading():
            if reading.fought_for:
                shown = some_of([_fought_for(each) for each in reading.fought_for], MAX_NAMED)
                yield Finding(Code.PEER_FOUGHT_FOR, Severity.WARNING, f"processes take ids from each other: {shown}")
        case ReplicasReading():
            yield from _replicas(reading)
        case Failed():
            yield Finding(Code.CHECK_FAILED, Severity.WARNING, f"{reading.check.value}: {reading.reason}")


def _address(reading: AddressReading) -> Iterator[Finding]:
    if not reading.is_set:
        yield Finding(Code.ADDRESS_UNSET, Severity.WARNING, f"peers are told {reading.url}")
    if reading.problem:
        yield Finding(Code.ADDRESS_UNREACHABLE, Severity.ERROR, reading.problem)


def _relay(reading: RelayReading) -> Iterator[Finding]:
    if reading.problem:
        yield Finding(Code.RELAY_UNREACHABLE, Severity.ERROR, reading.problem)
        return
    if not reading.is_ours:
        yield Finding(Code.RELAY_ANOTHER, Severity.ERROR, f"{reading.address} is answered by another relay")
    if reading.websocket_reason:
        yield Finding(Code.RELAY_WITHOUT_UPGRADE, Severity.WARNING, f"{reading.address}: {reading.websocket_reason}")
    if reading.seconds is not None and reading.seconds > SLOW_RELAY_SECONDS:
        what = f"a ping of {reading.address} took {_milliseconds(reading.seconds)}"
        yield Finding(Code.RELAY_SLOW, Severity.WARNING, what)


def _store(reading: StoreReading) -> Iterator[Finding]:
    if reading.problem:
        yield Finding(Code.STORE_AWAY, Severity.ERROR, reading.problem)
    slow = [
        (severity, f"a {what} took {_milliseconds(seconds)}")
        for what, seconds, bounds in (
            ("read", reading.read_seconds, SLOW_READ_SECONDS),
            ("write", reading.write_seconds, SLOW_WRITE_SECONDS),
        )
        if seconds is not None and (severity := _grade(seconds, bounds))
    ]
    if slow:
        yield Finding(Code.STORE_SLOW, max(slow)[0], "; ".join(what for _, what in slow))
    if reading.has_island:
        yield Finding(Code.STORE_ISLANDS, Severity.ERROR, f"{reading.servers} servers use this file")


def _outbox(reading: OutboxReading) -> Iterator[Finding]:
    severity = _grade(reading.oldest_seconds, LAG_SECONDS)
    if severity:
        what = (
            f"the oldest report ({reading.oldest_kind}) waits for {reading.oldest_seconds:.0f} s; "
            f"{reading.waiting:,} wait, {reading.waiting_bytes:,} of {reading.max_bytes:,} bytes"
        )
        yield Finding(Code.OUTBOX_LAG, severity, what)
    lost = {kind: count for kind, count in reading.lost.items() if count}
    if lost:
        shown = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(lost.items()))
        yield Finding(Code.OUTBOX_LOST, Severity.WARNING, f"reports were given up within an hour: {shown}")


def _clock(reading: ClockReading) -> Iterator[Finding]:
    ahead = reading.ahead_seconds
    if ahead is not None and (severity := _grade(abs(ahead), CLOCK_SECONDS)):
        where = "ahead of" if ahead > 0 else "behind"
        yield Finding(Code.CLOCK_OFF, severity, f"this machine's clock is {abs(ahead):.1f} s {where} the database's")
    if reading.future_seconds is not None and reading.future_seconds > CLOCK_SECONDS[1]:
        what = f"the newest sign of life in the store lies {reading.future_seconds:,.0f} s in the future"
        yield Finding(Code.CLOCK_WENT_BACK, Severity.WARNING, what)


def _map(reading: MapReading) -> Iterator[Finding]:
    if not reading.has_relay:
        yield Finding(Code.MAP_EMPTY, Severity.ERROR, "no region of the DERP map has a relay")
    for source in reading.sources:
        if source.problem:
            severity = Severity.WARNING if source.has_map else Severity.ERROR
            yield Finding(Code.MAP_SOURCE_FAILED, severity, f"{source.name} {source.problem}")
    if reading.lint:
        more = f"; and {len(reading.lint) - MAX_NAMED} more" if len(reading.lint) > MAX_NAMED else ""
        yield Finding(Code.MAP_LINT, Severity.WARNING, "; ".join(reading.lint[:MAX_NAMED]) + more)


def _certificates(reading: CertificateReading) -> Iterator[Finding]:
    for each in reading.certificates:
        severity = _expiry(each)
        if severity:
            left = each.left_seconds / 86_400
            when = f"ends in {left:.1f} days" if left > 0 else f"ended {-left:.1f} days ago"
            yield Finding(Code.CERTIFICATE_EXPIRES, severity, f"the certificate {each.place} {when}")
    if reading.renewal_failures >= RENEWAL_FAILURES:
        what = f"{reading.renewal_failures} attempts in a row failed"
        yield Finding(Code.CERTIFICATE_RENEWAL, Severity.WARNING, what)


def _expiry(certificate: Certificate) -> Severity:
    soon, now = (
        min(seconds, part * certificate.life_seconds)
        for seconds, part in zip(EXPIRY_SECONDS, EXPIRY_PARTS, strict=True)
    )
    left = certificate.left_seconds
    return Severity.ERROR if left <= now else Severity.WARNING if left <= soon else Severity.OK


def _resume_keys(reading: ResumeKeysReading) -> Iterator[Finding]:
    if reading.overdue_seconds > OVERDUE_SECONDS:
        what = f"the newest key should have been replaced {reading.overdue_seconds / 86_400:.0f} days ago"
        yield Finding(Code.RESUME_KEYS_OLD, Severity.WARNING, what)
    if reading.unread_seconds > UNREAD_SECONDS:
        what = f"the keys were last read {reading.unread_seconds / 60:.0f} minutes ago"
        yield Finding(Code.RESUME_KEYS_UNREAD, Severity.WARNING, what)


def _disk(reading: DiskReading) -> Iterator[Finding]:
    free = reading.free_bytes
    what = f"{reading.path}: {free >> 20:,} of {reading.total_bytes >> 20:,} MiB are free"
    if free < FREE_BYTES[1]:
        yield Finding(Code.DISK_FULL, Severity.ERROR, what)
    elif free < FREE_BYTES[0] and free < FREE_PART * reading.total_bytes:
        yield Finding(Code.DISK_FULL, Severity.WARNING, what)


def _grade(value: float, bounds: tuple[float, float]) -> Severity:
    return Severity.ERROR if value > bounds[1] else Severity.WARNING if value > bounds[0] else Severity.OK


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _fought_for(peer: FoughtFor) -> str:
    return f"{peer.peer_id} {peer.count} times, from {' and '.join(peer.addresses) or 'elsewhere'}"


def _replicas(reading: ReplicasReading) -> Iterator[Finding]:
    for other in reading.others:
        if not other.is_leaving:
            yield from _other_replica(other, reading)
    for place in reading.empty:
        if place.seconds >= APART_SECONDS:
            what = f"no replica is found at {place.place} for {place.seconds:.0f} s: {place.problem}"
            yield Finding(Code.REPLICA_UNREACHABLE, Severity.WARNING, what)
    if reading.bus_trouble:
        is_alone = all(other.apart_seconds is not None for other in reading.others)
        severity = Severity.ERROR if is_alone else Severity.WARNING
        yield Finding(Code.DISCOVERY_AWAY, severity, f"the bus ({reading.bus}): {reading.bus_trouble}")
    if reading.unheard:
        others = some_of(reading.unheard, MAX_NAMED)
        what = f"the bus ({reading.bus}) does not bring back our own beat, so nothing is heard of {others}"
        yield Finding(Code.REPLICA_DEAF, Severity.ERROR, what)


def _other_replica(other: OtherReplica, reading: ReplicasReading) -> Iterator[Finding]:
    apart, heard, name = other.apart_seconds, other.heard_seconds, other.name
    if other.refused:
        versions = f"it is release {other.version or 'unknown'}, this one {reading.version}"
        yield Finding(Code.REPLICA_VERSION, Severity.ERROR, f"replica {name}: {other.refused}; {versions}")
    elif apart is not None and apart >= APART_SECONDS:
        ways = f"from here to there: {other.outward}; from there to here: {other.inward}"
        if heard is not None and heard < APART_SECONDS:
            what = f"replica {name} is heard, and has not answered for {apart:.0f} s; {ways}"
            yield Finding(Code.REPLICA_ONE_WAY, Severity.ERROR, what)
        elif other.hears_us and not reading.bus_trouble:
            what = f"replica {name} hears this one, and nothing has come from there for {apart:.0f} s; {ways}"
            yield Finding(Code.REPLICA_ONE_WAY, Severity.ERROR, what)
        else:
            # Where discovery is away nobody knows whether it is alive.
            is_sure = other.is_known and not reading.bus_trouble
            severity = Severity.ERROR if is_sure else Severity.WARNING
            what = f"no session with replica {name} for {apart:.0f} s; {ways}"
            yield Finding(Code.REPLICA_UNREACHABLE, severity, what)
    ahead = other.clock_ahead_seconds
    if ahead is not None and abs(ahead) > REPLICA_CLOCK_SECONDS:
        where = "ahead of" if ahead > 0 else "behind"
        what = f"the clock of replica {name} is {abs(ahead):.1f} s {where} this one's"
        yield Finding(Code.REPLICA_CLOCK, Severity.WARNING, what)
    if other.map_differs_seconds >= MAP_SECONDS:
        difference = f": {other.map_difference}" if other.map_difference else ""
        what = f"replica {name} has served another DERP map for {other.map_differs_seconds:.0f} s{difference}"
        yield Finding(Code.REPLICA_MAP, Severity.WARNING, what)
