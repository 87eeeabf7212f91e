"""What readings mean: each bound from both sides, and how bad it is."""

from dataclasses import replace

import pytest

from tailnet.health.codes import RULES, Check, Code, Severity
from tailnet.health.judge import Finding, judge, overall
from tailnet.health.readings import (
    AddressReading,
    AgentsReading,
    Certificate,
    CertificateReading,
    ClockReading,
    DiskReading,
    EmptyPlace,
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
    Skipped,
    SourceReading,
    StoreReading,
    StunAnswer,
    StunReading,
    WebSocketReading,
)

OK, WARNING, ERROR = Severity
GIB, MIB, DAY = 1 << 30, 1 << 20, 86_400.0
ADDRESS = AddressReading("https://a.example", True, seconds=0.01)
RELAY = RelayReading("https://a.example/derp", seconds=0.01)
STORE = StoreReading(read_seconds=0.001, write_seconds=0.01)
OUTBOX = OutboxReading(1, 100, 1000, 1.0, "logs")
MAP = MapReading(1, 1, True)
LEAF = Certificate("here", 30 * DAY, 90 * DAY)
SHORT = Certificate("here", 2 * DAY, 6 * DAY)
KEYS = ResumeKeysReading(-DAY, 600.0)
OTHER = OtherReplica("b", "1.1", heard_seconds=0.5, outward="OUT", inward="IN", clock_ahead_seconds=0.0)
APART = replace(OTHER, apart_seconds=6.0, heard_seconds=6.0)
REPLICAS = ReplicasReading("1.0", [OTHER], bus="redis")


def others(*found: OtherReplica) -> ReplicasReading:
    return replace(REPLICAS, others=found)


def certificate(left: float, of: Certificate = LEAF) -> CertificateReading:
    return CertificateReading([replace(of, left_seconds=left)])


WELL: list[Reading] = [
    ADDRESS,
    RELAY,
    replace(RELAY, seconds=0.5),
    WebSocketReading("x", seconds=0.1),
    StunReading([StunAnswer("a", 3478, 4, seconds=0.1)]),
    STORE,
    replace(STORE, read_seconds=0.25, write_seconds=2.0, servers=3),
    replace(STORE, read_seconds=None, write_seconds=None),
    OUTBOX,
    replace(OUTBOX, oldest_seconds=10.0, lost={"logs": 0}),
    ClockReading(None, None),
    ClockReading(5.0, 60.0),
    ClockReading(-5.0, -1000.0),
    MAP,
    certificate(7 * DAY + 1),
    certificate(1.5 * DAY + 1, SHORT),
    replace(certificate(30 * DAY), renewal_failures=2),
    AgentsReading(5),
    KEYS,
    ResumeKeysReading(DAY, 1_800.0),
    RelayKeysReading(0),
    DiskReading("/", GIB, 100 * GIB),
    DiskReading("/", 200 * MIB, GIB),  # a fifth of a small disk
    LogReading(0),
    PeersReading(),
    REPLICAS,
    others(),
    others(replace(APART, apart_seconds=5.9)),
    others(replace(APART, is_leaving=True, refused="x", clock_ahead_seconds=9.0)),
    others(replace(OTHER, clock_ahead_seconds=1.0), replace(OTHER, clock_ahead_seconds=None)),
    others(replace(OTHER, map_differs_seconds=59.0)),
    replace(REPLICAS, empty=[EmptyPlace("c:1", "nothing listens", 5.9)]),
    Skipped(Check.DISK, "elsewhere"),
]
WRONG: list[tuple[Reading, Code, Severity, str]] = [
    (replace(ADDRESS, is_set=False), Code.ADDRESS_UNSET, WARNING, "https://a.example"),
    (replace(ADDRESS, problem="nobody"), Code.ADDRESS_UNREACHABLE, ERROR, "nobody"),
    (replace(RELAY, problem="no way"), Code.RELAY_UNREACHABLE, ERROR, "no way"),
    (replace(RELAY, is_ours=False), Code.RELAY_ANOTHER, ERROR, "/derp"),
    (replace(RELAY, websocket_reason="400"), Code.RELAY_WITHOUT_UPGRADE, WARNING, "400"),
    (replace(RELAY, seconds=0.51), Code.RELAY_SLOW, WARNING, "510 ms"),
    (WebSocketReading("x", "refused"), Code.WEBSOCKET_UNREACHABLE, ERROR, "refused"),
    (StunReading([StunAnswer("a", 1, 6, "silent")]), Code.STUN_SILENT, WARNING, "a, UDP port 1, IPv6: silent"),
    (replace(STORE, problem="gone"), Code.STORE_AWAY, ERROR, "gone"),
    (replace(STORE, read_seconds=0.26), Code.STORE_SLOW, WARNING, "a read took 260 ms"),
    (replace(STORE, read_seconds=2.1), Code.STORE_SLOW, ERROR, "a read took 2,100 ms"),
    (replace(STORE, write_seconds=2.1), Code.STORE_SLOW, WARNING, "a write took 2,100 ms"),
    (replace(STORE, read_seconds=0.3, write_seconds=11.0), Code.STORE_SLOW, ERROR, "300 ms; a write took 11,000 ms"),
    (replace(STORE, has_island=True, servers=2), Code.STORE_ISLANDS, ERROR, "2 servers"),
    (replace(OUTBOX, oldest_seconds=11.0), Code.OUTBOX_LAG, WARNING, "(logs) waits for 11 s"),
    (replace(OUTBOX, oldest_seconds=61.0), Code.OUTBOX_LAG, ERROR, "61 s"),
    (replace(OUTBOX, lost={"stats": 2, "logs": 1000}), Code.OUTBOX_LOST, WARNING, "1,000 of logs, 2 of stats"),
    (ClockReading(5.1, None), Code.CLOCK_OFF, WARNING, "5.1 s ahead of"),
    (ClockReading(-61.0, None), Code.CLOCK_OFF, ERROR, "61.0 s behind"),
    (ClockReading(None, 61.0), Code.CLOCK_WENT_BACK, WARNING, "61 s in the future"),
    (replace(MAP, has_relay=False), Code.MAP_EMPTY, ERROR, "no region"),
    (replace(MAP, sources=[SourceReading("a.json", "is bad")]), Code.MAP_SOURCE_FAILED, WARNING, "a.json is bad"),
    (replace(MAP, sources=[SourceReading("u", "is bad", False)]), Code.MAP_SOURCE_FAILED, ERROR, "u is bad"),
    (replace(MAP, lint=list("abcdefg")), Code.MAP_LINT, WARNING, "a; b; c; d; e; and 2 more"),
    (certificate(7 * DAY), Code.CERTIFICATE_EXPIRES, WARNING, "here ends in 7.0 days"),
    (certificate(DAY), Code.CERTIFICATE_EXPIRES, ERROR, "ends in 1.0 days"),
    (certificate(-DAY), Code.CERTIFICATE_EXPIRES, ERROR, "ended 1.0 days ago"),
    (certificate(1.5 * DAY, SHORT), Code.CERTIFICATE_EXPIRES, WARNING, "1.5 days"),
    (certificate(0.7 * DAY, SHORT), Code.CERTIFICATE_EXPIRES, ERROR, "0.7 days"),
    (replace(certificate(30 * DAY), renewal_failures=3), Code.CERTIFICATE_RENEWAL, WARNING, "3 attempts"),
    (AgentsReading(9, [(f"a{n}", 9 - n) for n in range(6)]), Code.AGENTS_FLAP, WARNING, "a0 9 times"),
    (OwnNodeReading("the map has no relay"), Code.OWN_NODE_LOST, ERROR, "the map has no relay"),
    (replace(KEYS, overdue_seconds=2 * DAY), Code.RESUME_KEYS_OLD, WARNING, "2 days ago"),
    (replace(KEYS, unread_seconds=1_860.0), Code.RESUME_KEYS_UNREAD, WARNING, "31 minutes"),
    (RelayKeysReading(3), Code.RELAY_KEYS_CONTESTED, WARNING, "3 times"),
    (DiskReading("/s", GIB - 1, 100 * GIB), Code.DISK_FULL, WARNING, "/s: 1,023 of 102,400 MiB are free"),
    (DiskReading("/s", 99 * MIB, 200 * MIB), Code.DISK_FULL, ERROR, "99 of 200"),
    (LogReading(7), Code.LOG_LOST, WARNING, "7 log lines"),
    (
        others(APART),
        Code.REPLICA_UNREACHABLE,
        ERROR,
        "replica b for 6 s; from here to there: OUT; from there to here: IN",
    ),
    (others(replace(APART, is_known=False)), Code.REPLICA_UNREACHABLE, WARNING, "no session with replica b"),
    (others(replace(APART, heard_seconds=None)), Code.REPLICA_UNREACHABLE, ERROR, "no session with replica b"),
    (
        replace(REPLICAS, empty=[EmptyPlace("c:1", "nothing listens", 6.0)]),
        Code.REPLICA_UNREACHABLE,
        WARNING,
        "no replica is found at c:1 for 6 s: nothing listens",
    ),
    (
        others(replace(APART, heard_seconds=5.9)),
        Code.REPLICA_ONE_WAY,
        ERROR,
        "b is heard, and has not answered for 6 s",
    ),
    (others(replace(APART, hears_us=True)), Code.REPLICA_ONE_WAY, ERROR, "b hears this one, and nothing has come from"),
    (others(replace(OTHER, clock_ahead_seconds=1.1)), Code.REPLICA_CLOCK, WARNING, "b is 1.1 s ahead of"),
    (others(replace(OTHER, clock_ahead_seconds=-3600.0)), Code.REPLICA_CLOCK, WARNING, "b is 3600.0 s behind"),
    (others(replace(OTHER, map_differs_seconds=60.0)), Code.REPLICA_MAP, WARNING, "another DERP map for 60 s"),
    (replace(REPLICAS, bus_trouble="it is away"), Code.DISCOVERY_AWAY, WARNING, "the bus (redis): it is away"),
    (replace(others(), bus_trouble="it is away"), Code.DISCOVERY_AWAY, ERROR, "it is away"),
    (replace(REPLICAS, unheard=["b"]), Code.REPLICA_DEAF, ERROR, "nothing is heard of b"),
    (
        PeersReading([FoughtFor("p1", 4, ["a:1", "b:2"])]),
        Code.PEER_FOUGHT_FOR,
        WARNING,
        "processes take ids from each other: p1 4 times, from a:1 and b:2",
    ),
    (
        PeersReading([FoughtFor(f"p{n}", 2, []) for n in range(7)]),
        Code.PEER_FOUGHT_FOR,
        WARNING,
        "elsewhere and 2 more",
    ),
    (others(replace(APART, refused="it speaks 2")), Code.REPLICA_VERSION, ERROR, "b: it speaks 2; it is release 1.1"),
    (Failed(Check.STUN, "broken"), Code.CHECK_FAILED, WARNING, "stun: broken"),
]


@pytest.mark.parametrize("reading", WELL)
def test_nothing_is_found(reading: Reading) -> None:
    assert judge(reading) == []


@pytest.mark.parametrize(("reading", "code", "severity", "what"), WRONG, ids=lambda each: getattr(each, "value", ""))
def test_found(reading: Reading, code: Code, severity: Severity, what: str) -> None:
    [finding] = judge(reading)
    assert (finding.code, finding.severity) == (code, severity)
    assert what in finding.what
    assert finding.advice == RULES[code].advice


def test_every_severity_of_every_code_is_reached() -> None:
    reached = {(code, severity) for _, code, severity, _ in WRONG}
    assert reached == {(code, severity) for code, rule in RULES.items() for severity in rule.severities}
    assert all(RULES[code].check in (None, reading.check) for reading, code, _, _ in WRONG)


def test_what_cannot_be_reached_is_judged_no_further() -> None:
    assert [each.code for each in judge(replace(RELAY, problem="no", is_ours=False))] == [Code.RELAY_UNREACHABLE]


def test_whether_a_replica_is_alive_nobody_knows_while_discovery_is_away() -> None:
    found = judge(replace(others(OTHER, APART), bus_trouble="away"))
    assert {each.code: each.severity for each in found} == {
        Code.REPLICA_UNREACHABLE: WARNING,
        Code.DISCOVERY_AWAY: WARNING,
    }


def test_the_worst_counts() -> None:
    assert overall([]) is OK
    warning, error = Finding(Code.LOG_LOST, WARNING, ""), Finding(Code.STORE_AWAY, ERROR, "")
    assert overall([warning]) is WARNING
    assert overall([warning, error, warning]) is ERROR
