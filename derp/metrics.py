"""The relay's counters as Prometheus metrics.  Layer L2: read when somebody scrapes, nothing is kept here.

`RelayStatistics` is the one table of everything that is counted; `/metrics` shows it under our names, and the pages
that dashboards made for derper read show it under derper's (server/varz.py).
"""

import math
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from derp import __version__
from derp.relay.counters import Counters, DropReason, PacketKind
from derp.relay.load import LoadReading
from derp.relay.router import Router
from derp.relay.rtt import ERROR_BUCKET, RTT_LIMITS_SECONDS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class MeshReading:
    """One relay of the region that this one dials.  `name` as --mesh-with has it; connects: since the start."""

    name: str
    is_up: bool
    connects: int
    keys: int


@dataclass(frozen=True, slots=True)
class SelfCheckReading:
    """What a server sees of itself: signs that keep its probes from being answered (True), and its own packets."""

    signs: Mapping[str, bool]
    packets: int
    failures: int
    round_trip_seconds: float


@dataclass(frozen=True, slots=True)
class TenantReading:
    """A tenant that the limits name, or all others together.  `limited`: times a client was made to wait, by whose
    limit it reached; `quota_used_part`: of the quota that is used most, 1 is all; None: it has none."""

    weight: float
    limit_bytes_per_second: int
    waiting_clients: int
    limited: Mapping[str, int]
    carried_bytes: int
    quota_used_part: float | None


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """One reading of a relay.  Counts since the start, unless said otherwise."""

    counters: Counters
    clients_local: int  # keys with a connection here, now
    clients_remote: int  # keys only behind other relays, now
    connections: int  # registered connections, now
    home_connections: int
    not_ideal_connections: int
    duplicate_keys: int
    duplicate_connections: int
    watchers: int
    queued_packets: int  # waiting behind slow readers, now
    queued_bytes: int  # of memory that these and notices take
    queued_bytes_limit: int
    slow_readers: int
    in_trios_place: bool  # whether the reactor waits there, as it should
    packets_sent: int
    bytes_sent: int
    accepted: int  # connections that the limits let in
    accepts: int = 0  # those of them that became DERP
    tls_accepted: int = 0  # those of `accepted` that a TLS listener took, and what it refused
    tls_rejected: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    closed: Mapping[str, int] = field(default_factory=dict)
    requests_refused: int = 0
    websocket_accepts: int = 0
    stun: Mapping[str, int] = field(default_factory=dict)
    stun_family: Mapping[str, int] = field(default_factory=dict)
    stun_no_local_address: int = 0
    quic: Mapping[str, int] = field(default_factory=dict)  # connections by what became of them; empty without QUIC
    quic_dropped: Mapping[str, int] = field(default_factory=dict)  # its datagrams that were not served
    certificate_expires_at: float | None = None  # Unix time
    mesh: tuple[MeshReading, ...] = ()
    key_sets: Mapping[str, int] = field(default_factory=dict)  # of --key-set, by what became of them
    key_set_ends_at: float | None = None  # Unix time; None: there is none
    questions: Mapping[str, int] = field(default_factory=dict)  # to tailscaled and the admission URL, by answer
    renewal_failures: int | None = None  # since the last success; None: certificates do not come from an authority
    log_lines_dropped: int = 0  # of this process
    ledger_write_failures: int = 0  # what was to be written then waits in memory
    ledger_waiting_rows: int = 0
    tenants: Mapping[str, TenantReading] = field(default_factory=dict)
    node_limit_bytes_per_second: int = 0  # 0: no limit
    quota_acts: Mapping[str, int] = field(default_factory=dict)  # by what was done with a client
    quota_over_bytes: Mapping[str, int] = field(default_factory=dict)  # relayed all the same, by whose quota it was
    rate_bytes_per_second: int = 0  # what each client may send; 0: no limit
    rate_burst_bytes: int = 0
    bootstrap: Mapping[str, int] = field(default_factory=dict)
    bootstrap_domains: int = 0  # different names that were asked for
    tls_requests: Mapping[str, int] = field(default_factory=dict)
    health_texts: Mapping[str, int] = field(default_factory=dict)  # to clients, by what was the matter
    self_check: "SelfCheckReading | None" = None  # None: the server does not look at itself
    tls_active: Mapping[str, int] = field(default_factory=dict)  # now, DERP connections and requests
    load: LoadReading | None = None  # None: there is no relay


def routed_totals(router: Router, held_packets: int, held_bytes: int) -> tuple[int, int]:
    """Packets and bytes that left for clients: what came in, less what was dropped, forwarded or still waits.

    Counting them one by one at the kernel's edge would cost the hot path; the sums say the same.
    """
    counters = router.counters
    packets = counters.packets_received + counters.packets_forwarded_in - counters.packets_forwarded_out
    sent_bytes = counters.bytes_received + counters.bytes_forwarded_in - counters.bytes_forwarded_out
    packets -= sum(counters.packets_dropped) - counters.mesh_packets_dropped + held_packets
    sent_bytes -= sum(counters.bytes_dropped) - counters.mesh_bytes_dropped + held_bytes
    return packets, sent_bytes


def plain(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily], rows: Iterable[tuple[str, str, float]]
) -> Iterable[Metric]:
    """Metrics without labels: name, help and value of each."""
    for name, text, value in rows:
        yield family(name, text, value=value)


def histogram(name: str, text: str, counts: Iterable[tuple[float, int]], total: float) -> Metric:
    """`counts`: upper limits, the last of them inf, and how many there were up to each beyond the one before; `total`:
    the sum of all values."""
    buckets, so_far = [], 0
    for limit, count in counts:
        so_far += count
        buckets.append(("+Inf" if limit == math.inf else str(limit), so_far))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


class RelayCollector(Collector):
    """Gives prometheus-client one reading per scrape."""

    def __init__(self, read: Callable[[], RelayStatistics]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        reading = self._read()
        yield build_info("derp")
        yield from _gauges(reading)
        yield from _counters(reading)
        yield from _labelled(reading)
        yield from _mesh(reading.mesh)
        yield from _tenants(reading.tenants)
        if reading.self_check is not None:
            yield from _self_check(reading.self_check)
        if reading.load is not None:
            yield _load(reading.load)


def metrics_page(read: Callable[[], RelayStatistics]) -> Callable[[], bytes]:
    """A function that renders /metrics: the relay, this process and Python's garbage collector."""
    registry = CollectorRegistry()
    registry.register(RelayCollector(read))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return lambda: generate_latest(registry)


def _gauges(reading: RelayStatistics) -> Iterable[Metric]:
    rows: tuple[tuple[str, str, float], ...] = (
        ("derp_clients", "Keys with a connection here.", reading.clients_local),
        ("derp_clients_remote", "Keys that only other relays of the region have.", reading.clients_remote),
        ("derp_connections", "Registered connections.", reading.connections),
        ("derp_home_connections", "Connections that call this relay their home.", reading.home_connections),
        ("derp_not_ideal_connections", "Connections that wanted another node.", reading.not_ideal_connections),
        ("derp_duplicate_keys", "Keys with more than one connection.", reading.duplicate_keys),
        ("derp_watchers", "Mesh peers that watch who is here.", reading.watchers),
        ("derp_queued_packets", "Packets that wait behind slow readers.", reading.queued_packets),
        ("derp_queued_bytes", "Memory of everything that waits behind slow readers.", reading.queued_bytes),
        ("derp_queued_bytes_limit", "How much of that there may be.", reading.queued_bytes_limit),
        ("derp_slow_readers", "Connections whose socket is full.", reading.slow_readers),
        (
            "derp_reactor_in_trios_place",
            "1 while the reactor waits in the place of trio's loop; 0 costs more CPU for each packet.",
            reading.in_trios_place,
        ),
        ("derp_ledger_waiting_rows", "Rows of the ledger that are not in its file yet.", reading.ledger_waiting_rows),
        (
            "derp_node_limit_bytes_per_second",
            "What all clients together may send; 0: no limit.",
            reading.node_limit_bytes_per_second,
        ),
    )
    yield from plain(GaugeMetricFamily, rows)
    if reading.certificate_expires_at is not None:
        yield GaugeMetricFamily(
            "derp_certificate_expires_timestamp_seconds",
            "When the certificate in use expires.",
            value=reading.certificate_expires_at,
        )
    if reading.key_set_ends_at is not None:
        yield GaugeMetricFamily(
            "derp_key_set_ends_timestamp_seconds",
            "When the key set ends by which clients come in.",
            value=reading.key_set_ends_at,
        )
    if reading.renewal_failures is not None:
        yield GaugeMetricFamily(
            "derp_certificate_renewal_failures",
            "Attempts to get a certificate that failed, since the last one that did not.",
            value=reading.renewal_failures,
        )


def _counters(reading: RelayStatistics) -> Iterable[Metric]:
    counters = reading.counters
    rows: tuple[tuple[str, str, float], ...] = (
        ("derp_packets_sent", "Packets given to clients here.", reading.packets_sent),
        ("derp_bytes_sent", "Bytes of those packets.", reading.bytes_sent),
        ("derp_bytes_received", "Bytes of packets from clients.", counters.bytes_received),
        ("derp_packets_forwarded_out", "Packets given to other relays.", counters.packets_forwarded_out),
        ("derp_packets_forwarded_in", "Packets from other relays.", counters.packets_forwarded_in),
        ("derp_unknown_frames", "Frames skipped because nobody knows their type.", counters.unknown_frames),
        ("derp_pings_received", "Pings from clients.", counters.got_ping),
        ("derp_pongs_sent", "Answers to them.", counters.sent_pong),
        ("derp_home_moves_in", "Clients that made this relay their home.", counters.home_moves_in),
        ("derp_home_moves_out", "Clients that moved their home away.", counters.home_moves_out),
        ("derp_duplicate_connections", "Connections of a key that had one.", counters.dup_client_conns_total),
        ("derp_write_timeouts", "Clients closed because they took nothing.", counters.write_timeouts),
        ("derp_wrong_mesh_keys", "Logins with a mesh key that is not ours.", counters.wrong_mesh_keys),
        ("derp_notices_dropped", "Control frames that a full queue refused.", counters.notices_dropped),
        ("derp_queue_seconds", "Time packets spent in queues, summed.", counters.queue_seconds),
        ("derp_queued_packets_sent", "Packets that went through a queue.", counters.queued_packets),
        ("derp_rate_limited", "Times a client was made to wait by its rate limit.", counters.rate_limited),
        ("derp_connections_accepted", "Connections that the limits let in.", reading.accepted),
        ("derp_accepts", "Connections that became DERP.", reading.accepts),
        ("derp_requests_refused", "HTTP requests answered with an error.", reading.requests_refused),
        ("derp_websocket_accepts", "Clients that came by websocket.", reading.websocket_accepts),
        ("derp_stun_no_local_address", "STUN requests that hide where they came to.", reading.stun_no_local_address),
        ("derp_log_lines_dropped", "Log lines that nobody read in time.", reading.log_lines_dropped),
        ("derp_ledger_write_failures", "Attempts to write the ledger that failed.", reading.ledger_write_failures),
    )
    yield from plain(CounterMetricFamily, rows)


def _mesh(readings: Iterable[MeshReading]) -> Iterable[Metric]:
    up = GaugeMetricFamily("derp_mesh_up", "1: the other relay is connected and takes us for one.", labels=["peer"])
    keys = GaugeMetricFamily("derp_mesh_keys", "Keys that the other relay announced.", labels=["peer"])
    connects = CounterMetricFamily("derp_mesh_connects", "Connections to the other relay that stood.", labels=["peer"])
    for reading in readings:
        up.add_metric([reading.name], float(reading.is_up))
        keys.add_metric([reading.name], reading.keys)
        connects.add_metric([reading.name], reading.connects)
    yield from (up, keys, connects) if up.samples else ()


def _tenants(readings: Mapping[str, TenantReading]) -> Iterable[Metric]:
    weight = GaugeMetricFamily(
        "derp_tenant_weight", "Its share beside others when the relay is full.", labels=["tenant"]
    )
    text = "What its clients together may send; 0: no limit."
    limit = GaugeMetricFamily("derp_tenant_limit_bytes_per_second", text, labels=["tenant"])
    waiting = GaugeMetricFamily("derp_tenant_waiting_clients", "Clients that wait by a limit.", labels=["tenant"])
    limited = CounterMetricFamily(
        "derp_tenant_limited", "Times a client was made to wait, by whose limit it reached.", labels=["tenant", "limit"]
    )
    carried = CounterMetricFamily(
        "derp_tenant_bytes", "Bytes from and to its clients, as the ledger has them.", labels=["tenant"]
    )
    used = GaugeMetricFamily("derp_tenant_quota_used_ratio", "Of the quota that is used most.", labels=["tenant"])
    for name, reading in readings.items():
        weight.add_metric([name], reading.weight)
        limit.add_metric([name], reading.limit_bytes_per_second)
        waiting.add_metric([name], reading.waiting_clients)
        for whose, count in reading.limited.items():
            limited.add_metric([name, whose], count)
        carried.add_metric([name], reading.carried_bytes)
        if reading.quota_used_part is not None:
            used.add_metric([name], reading.quota_used_part)
    yield from (weight, limit, waiting, limited, carried, used)


def _self_check(reading: SelfCheckReading) -> Iterable[Metric]:
    text = "1: probes get no answer, because this speaks against the server."
    problems = GaugeMetricFamily("derp_self_check_problem", text, labels=["sign"])
    for sign, counts in reading.signs.items():
        problems.add_metric([sign], float(counts))
    yield problems
    yield CounterMetricFamily("derp_self_check_packets", "Own packets that came back.", reading.packets)
    yield CounterMetricFamily("derp_self_check_failures", "Attempts in which one did not.", reading.failures)
    text = "How long the last of them took."
    yield GaugeMetricFamily("derp_self_check_round_trip_seconds", text, reading.round_trip_seconds)


def _load(reading: LoadReading) -> Metric:
    text = "Share of each limit of this relay that is in use; 1 is all of it."
    family = GaugeMetricFamily("derp_load_share", text, labels=["of"])
    for name, share in reading.shares.items():
        family.add_metric([name], share)
    return family


def _rtt(counters: Counters) -> Metric:
    counts = zip(RTT_LIMITS_SECONDS, counters.tcp_rtt, strict=False)  # behind them stand no times
    text = "Round-trip times of clients, sampled."
    return histogram("derp_tcp_rtt_seconds", text, counts, counters.tcp_rtt_seconds)


def build_info(product: str) -> Metric:
    """The constant 1 under what is running: `<product>_build_info{version, python, openssl}`."""
    versions = {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
    }
    family = GaugeMetricFamily(f"{product}_build_info", "What is running here.", labels=list(versions))
    family.add_metric(list(versions.values()), 1)
    return family


def _labelled(reading: RelayStatistics) -> Iterable[Metric]:
    counters = reading.counters
    received = CounterMetricFamily("derp_packets_received", "Packets from clients.", labels=["kind"])
    received.add_metric(["disco"], counters.disco_received)
    received.add_metric(["other"], counters.packets_received - counters.disco_received)
    yield received
    packets = CounterMetricFamily("derp_packets_dropped", "Packets not delivered.", labels=["reason", "kind"])
    dropped = CounterMetricFamily("derp_bytes_dropped", "Bytes of those packets.", labels=["reason", "kind"])
    for reason in DropReason:
        for kind in PacketKind:
            labels = [reason.name.lower(), kind.name.lower()]
            packets.add_metric(labels, counters.packets_dropped[reason * 2 + kind])
            dropped.add_metric(labels, counters.bytes_dropped[reason * 2 + kind])
    yield packets
    yield dropped
    gone = CounterMetricFamily("derp_peer_gone", "PeerGone notices to clients.", labels=["reason"])
    gone.add_metric(["disconnected"], counters.peer_gone_disconnected_frames)
    gone.add_metric(["not_here"], counters.peer_gone_not_here_frames)
    yield gone
    yield _rtt(counters)
    errors = counters.tcp_rtt[ERROR_BUCKET]
    yield CounterMetricFamily("derp_tcp_rtt_errors", "Clients of which the kernel told no round-trip time.", errors)
    families: tuple[tuple[str, str, str, Mapping[str, int]], ...] = (
        ("derp_tls_requests", "HTTP requests by TLS version, upgrades included.", "version", reading.tls_requests),
        ("derp_bootstrap_dns", "Requests for /bootstrap-dns.", "outcome", reading.bootstrap),
        ("derp_rejects", "Connections closed at once by a limit.", "limit", reading.rejected),
        ("derp_admission_questions", "Questions whether a client may come in.", "answer", reading.questions),
        ("derp_key_sets", "Key sets of --key-set.", "outcome", reading.key_sets),
        ("derp_quota_acts", "What was done with clients whose quota is used.", "act", reading.quota_acts),
        ("derp_quota_over_bytes", "Bytes that were relayed beyond a quota.", "whose", reading.quota_over_bytes),
        ("derp_health_texts", "Sentences shown to users of clients.", "cause", reading.health_texts),
        ("derp_closed", "Connections that ended.", "reason", reading.closed),
        ("derp_quic_connections", "Connections over QUIC.", "outcome", reading.quic),
        ("derp_quic_dropped", "Datagrams of QUIC that were not served.", "reason", reading.quic_dropped),
        ("derp_stun_requests", "STUN datagrams.", "disposition", reading.stun),
        ("derp_stun_address_family", "STUN requests answered.", "family", reading.stun_family),
    )
    for name, text, label, values in families:
        family = CounterMetricFamily(name, text, labels=[label])
        for value, count in values.items():
            family.add_metric([value], count)
        yield family
