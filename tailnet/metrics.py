"""The coordinator's counters as Prometheus metrics, with the embedded relay's beside them.  Layer L2.

Read when somebody scrapes; nothing is kept here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from derp.metrics import RelayCollector, RelayStatistics, build_info, histogram, plain
from tailnet.coordinator.core import Statistics
from tailnet.store.outbox import KindReading

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


@dataclass(frozen=True, slots=True)
class CallersReading:
    """What is counted of those who say who is calling; empty or None of those whom the settings do not name."""

    call_out: Mapping[str, int]  # questions to --auth-url, by their end
    call_out_seconds: float  # of all that were asked
    call_out_count: int
    call_out_asking: int  # now
    cached: Mapping[str, int]  # answers in memory, by who gave them
    signed_refused: int | None
    jwks_age_seconds: float | None
    jwks_keys: int
    jwks_failures: int


@dataclass(frozen=True, slots=True)
class ReplicaReading:
    """What a replica counts of the others."""

    links: Mapping[str, int]  # others by state, now
    missing: int  # others that should be here and are not, now
    sessions: int  # that began
    ends: Mapping[str, int]  # of sessions, by reason
    messages: Mapping[tuple[str, str], int]  # by kind and direction
    queued_bytes: int  # for all others, now
    sync_count: int  # comparisons that were answered
    sync_seconds: float  # how long that took, of all
    mended: Mapping[str, int]  # by them, within sessions, by what was wrong
    remote_peers: int  # that share tunnels with ours, now
    wanted_absent_peers: int  # whom a tunnel of ours waits for, now
    claims: Mapping[str, int]  # of others on peers that are known here, by result
    clock_jumps: int
    silences: int  # of others
    delays: Sequence[tuple[float, int]]  # of beats: upper limits in seconds, and how many there were up to each
    delay_seconds: float  # of all
    sleeps: int  # times that this process was stopped and others were excused
    refused_links: int
    failed_links: int  # by defects of ours
    bus_trouble: bool  # now


@dataclass(frozen=True, slots=True)
class EntranceReading:
    """What is counted of peers that come in."""

    refused: int
    put_off: int  # told to try again, since too many came
    waiting: int  # for the answer to their upgrade, now
    strangers_put_off: int  # the same of those who were not known
    strangers_waiting: int
    held_bytes: int  # of requests that wait, now
    fights: int  # ids that processes take from each other, now


@dataclass(frozen=True, slots=True)
class CoordinatorReading:
    """One reading.  Counts since the start, unless said otherwise."""

    statistics: Statistics
    channels: int  # RPC connections, now
    agents_connected: int  # agents whose connection drives their status, now
    delivered: int  # peer updates handed to receivers
    overflows: int  # peers dropped because they did not read
    telemetry_events: int
    telemetry_unreadable: int  # calls whose events did not decode
    connection_reports: int
    connection_reports_unreadable: int
    boundary_logs: int
    refused_calls: int
    entrance: EntranceReading
    api_connections: int  # HTTP connections of the API, now
    api_ended: Mapping[str, int]  # those that this server ended or turned away, by reason
    api_rate_limited: int  # requests of users over their limit
    admin_refused: Mapping[str, int]  # requests to administration that were turned away at its door, by reason
    identity_proofs: Mapping[str, int]  # of cloud instances, by outcome
    external_auth: Mapping[str, int]  # what happened to links, by outcome
    external_auth_waiting: int  # requests of agents that wait for a link, now
    revoked_connections: int  # sent away since their token or their agent was withdrawn
    revoked_tunnels: int
    relay_keys_contested: int  # announcements of keys that another tenant's peer had
    callers: int  # agents and users that have sockets, or had some a minute ago
    held_bytes: int  # for all sockets: unfinished messages, requests in hand, what is not read
    held_bytes_limit: int
    shed_sockets: int  # closed since they, or all, held too much
    refused_sockets: int  # of callers that had as many as one may
    reports_delayed: int
    reports_refused: int
    into_agents: Mapping[str, int]  # dials by the server's own node, by outcome
    into_agents_streams: int  # now
    into_agents_tunnels: int  # now
    map_version: int
    map_failures: Mapping[str, int]
    region_factors: Mapping[str, float]  # how many times as far regions look by their load, of those that are followed
    feed_followers: Mapping[str, int]  # by kind of feed, now
    feed_drops: Mapping[tuple[str, str], int]  # by kind of feed and reason
    health: Mapping[str, int]  # by code: 0 well, 1 a warning, 2 an error; empty before the first run
    health_measured_at: float  # POSIX seconds; 0 before the first run
    outbox: Mapping[str, KindReading]  # by kind of report
    outbox_max_bytes: int  # what all kinds may have together
    store_failures: Mapping[str, int]  # by trouble
    store_troubles: Mapping[str, bool]  # by trouble: whether it has it now
    store_servers: int  # that use the store now
    store_removed: Mapping[str, int]  # rows, by what they were
    webhook_tries: Mapping[str, int]  # by outcome
    webhook_given_up: Mapping[str, int]  # events that were never taken, by reason
    webhook_waiting: int  # events, now
    webhook_oldest_seconds: float  # how long the oldest waits, now
    webhook_gone: bool  # the receiver answered 410, now
    store_changes: int  # that tasks waited for, or that were written behind
    store_transactions: int  # in which they were committed
    identities: CallersReading
    replicas: ReplicaReading | None = None  # of a server that has a bus


class CoordinatorCollector(Collector):
    """Gives prometheus-client one reading per scrape."""

    def __init__(self, read: Callable[[], CoordinatorReading]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        reading = self._read()
        core = reading.statistics
        yield build_info("tailnet")
        gauges: tuple[tuple[str, str, float], ...] = (
            ("tailnet_peers", "Peers that coordinate.", core.connected_peers),
            ("tailnet_absent_peers", "Peers that are not here but at the end of a tunnel.", core.absent_peers),
            ("tailnet_tunnels", "Tunnels.", core.tunnels),
            ("tailnet_channels", "RPC connections.", reading.channels),
            ("tailnet_callers", "Agents and users with RPC connections.", reading.callers),
            ("tailnet_held_bytes", "Memory that RPC connections hold.", reading.held_bytes),
            ("tailnet_held_bytes_max", "Memory that they may hold together.", reading.held_bytes_limit),
            ("tailnet_api_connections", "HTTP connections of the API.", reading.api_connections),
            ("tailnet_into_agents_streams", "Requests and terminals inside agents.", reading.into_agents_streams),
            ("tailnet_into_agents_tunnels", "Agents that the server's own node reaches.", reading.into_agents_tunnels),
            ("tailnet_agents_connected", "Agents that are connected.", reading.agents_connected),
            ("tailnet_derp_map_version", "Changes of the DERP map since the start.", reading.map_version),
        )
        yield from plain(GaugeMetricFamily, gauges)
        text = "How many times as far a region looks to clients, by the load of its relays."
        yield _each(GaugeMetricFamily("tailnet_derp_region_factor", text, labels=["region"]), reading.region_factors)
        counters: tuple[tuple[str, str, float], ...] = (
            ("tailnet_connects", "Coordinate calls.", core.connects),
            ("tailnet_takeovers", "Calls that ended an older one of their peer.", core.overtaken),
            ("tailnet_requests", "CoordinateRequests.", core.requests),
            ("tailnet_node_updates", "Nodes that peers sent.", core.node_updates),
            ("tailnet_suppressed_updates", "Nodes that said nothing new.", core.suppressed_updates),
            ("tailnet_deliveries", "Peer updates given to receivers.", reading.delivered),
            ("tailnet_overflows", "Peers dropped because they did not read.", reading.overflows),
            ("tailnet_ready_for_handshake", "Handshakes announced.", core.ready_for_handshake),
            ("tailnet_telemetry_events", "Telemetry events received.", reading.telemetry_events),
            ("tailnet_telemetry_unreadable", "Telemetry calls that did not decode.", reading.telemetry_unreadable),
            ("tailnet_connection_reports", "Connections that agents reported.", reading.connection_reports),
            (
                "tailnet_connection_reports_unreadable",
                "Reports of connections that said nothing of use.",
                reading.connection_reports_unreadable,
            ),
            ("tailnet_boundary_logs", "Lines that agents' boundaries logged.", reading.boundary_logs),
            ("tailnet_refused_calls", "Calls refused because a connection had too many.", reading.refused_calls),
            ("tailnet_api_rate_limited", "Requests of users over their limit.", reading.api_rate_limited),
            (
                "tailnet_revoked_connections",
                "RPC connections whose rights were withdrawn.",
                reading.revoked_connections,
            ),
            ("tailnet_revoked_tunnels", "Tunnels whose rights were withdrawn.", reading.revoked_tunnels),
            (
                "tailnet_relay_keys_contested",
                "Announcements of a node key that another tenant's peer had.",
                reading.relay_keys_contested,
            ),
            ("tailnet_shed_sockets", "RPC connections closed for the memory they held.", reading.shed_sockets),
            ("tailnet_refused_sockets", "RPC connections of callers that had too many.", reading.refused_sockets),
            ("tailnet_reports_delayed", "Reports answered later, for an agent sent too many.", reading.reports_delayed),
            ("tailnet_reports_refused", "Reports refused, for an agent sent far too many.", reading.reports_refused),
        )
        yield from plain(CounterMetricFamily, counters)
        yield from _entrance_metrics(reading.entrance)
        yield from _labelled_metrics(reading)
        yield GaugeMetricFamily(
            "tailnet_external_auth_waiting",
            "Requests of agents that wait until an account is linked.",
            value=reading.external_auth_waiting,
        )
        yield from _feed_metrics(reading)
        yield from _health_metrics(reading)
        yield from _webhook_metrics(reading)
        yield from _store_metrics(reading)
        yield from _callers_metrics(reading.identities)
        if reading.replicas is not None:
            yield from _replica_metrics(reading.replicas)


def _entrance_metrics(reading: EntranceReading) -> Iterable[Metric]:
    gauges: tuple[tuple[str, str, float], ...] = (
        ("tailnet_upgrades_waiting", "RPC connections that wait to be let in.", reading.waiting),
        ("tailnet_strangers_waiting", "RPC connections of unknown callers that wait.", reading.strangers_waiting),
        ("tailnet_upgrades_waiting_bytes", "Memory of requests that wait to be let in.", reading.held_bytes),
        ("tailnet_peer_fights", "Peer ids that processes take from each other.", reading.fights),
    )
    yield from plain(GaugeMetricFamily, gauges)
    counters: tuple[tuple[str, str, float], ...] = (
        ("tailnet_refused_at_door", "RPC connections turned away.", reading.refused),
        ("tailnet_upgrades_put_off", "RPC connections told to try again.", reading.put_off),
        ("tailnet_strangers_put_off", "Those of unknown callers told to.", reading.strangers_put_off),
    )
    yield from plain(CounterMetricFamily, counters)


def _replica_metrics(reading: ReplicaReading) -> Iterable[Metric]:
    yield _each(GaugeMetricFamily("tailnet_replica_links", "Other replicas.", labels=["state"]), reading.links)
    families: tuple[tuple[str, str, str, Mapping[str, int]], ...] = (
        ("tailnet_replica_sessions", "Sessions with others that ended.", "end", reading.ends),
        ("tailnet_replica_mended", "What a comparison found wrong that should not be.", "what", reading.mended),
        ("tailnet_replica_claims", "Claims of others on peers that are known here.", "result", reading.claims),
    )
    for name, text, label, values in families:
        yield _each(CounterMetricFamily(name, text, labels=[label]), values)
    text = "Messages between replicas."
    yield _each(CounterMetricFamily("tailnet_replica_messages", text, labels=["code", "direction"]), reading.messages)
    yield SummaryMetricFamily(
        "tailnet_replica_sync_seconds",
        "How long comparisons with others took.",
        count_value=reading.sync_count,
        sum_value=reading.sync_seconds,
    )
    text = "How long what others say is on its way, by their beats, which wait in the same queues."
    yield histogram("tailnet_replica_delivery_seconds", text, reading.delays, reading.delay_seconds)
    gauges: tuple[tuple[str, str, float], ...] = (
        ("tailnet_replica_missing", "Other replicas that should be here and are not.", reading.missing),
        ("tailnet_replica_queue_bytes", "What waits for other replicas.", reading.queued_bytes),
        ("tailnet_replica_remote_peers", "Peers elsewhere that share tunnels with ours.", reading.remote_peers),
        ("tailnet_replica_wanted_absent_peers", "Peers that ours wait for.", reading.wanted_absent_peers),
        ("tailnet_replica_bus_trouble", "Whether the bus cannot be used.", reading.bus_trouble),
    )
    yield from plain(GaugeMetricFamily, gauges)
    counters: tuple[tuple[str, str, float], ...] = (
        ("tailnet_replica_sessions_begun", "Sessions with others that began.", reading.sessions),
        ("tailnet_replica_silence", "Replicas of which nothing was heard for six seconds.", reading.silences),
        ("tailnet_replica_clock_jumps", "Times that the cluster's clock was ahead of ours.", reading.clock_jumps),
        ("tailnet_replica_sleeps", "Times that this process was stopped for a while.", reading.sleeps),
        ("tailnet_replica_refused_links", "Connections that did not prove to be replicas.", reading.refused_links),
        ("tailnet_replica_failed_links", "Links with others that ended by a defect.", reading.failed_links),
    )
    yield from plain(CounterMetricFamily, counters)


def _labelled_metrics(reading: CoordinatorReading) -> Iterable[Metric]:
    families: tuple[tuple[str, str, str, Mapping[str, int]], ...] = (
        ("tailnet_departures", "Peers that left.", "reason", reading.statistics.departures),
        (
            "tailnet_refusals",
            "Requests refused.",
            "reason",
            {r.name.lower(): n for r, n in reading.statistics.refusals.items()},
        ),
        (
            "tailnet_api_connections_ended",
            "HTTP connections that the server ended or turned away.",
            "reason",
            reading.api_ended,
        ),
        (
            "tailnet_admin_refused",
            "Requests to administration that were turned away at its door.",
            "reason",
            reading.admin_refused,
        ),
        ("tailnet_derp_map_failures", "Reads of a DERP map that failed.", "source", reading.map_failures),
        ("tailnet_identity_proofs", "Proofs of cloud instances.", "outcome", reading.identity_proofs),
        ("tailnet_into_agents", "Tries to reach into an agent, by outcome.", "outcome", reading.into_agents),
        ("tailnet_external_auth", "Links to providers, and what became of them.", "outcome", reading.external_auth),
    )
    for name, text, label, values in families:
        yield _each(CounterMetricFamily(name, text, labels=[label]), values)


def _webhook_metrics(reading: CoordinatorReading) -> Iterable[Metric]:
    tries = _each(
        CounterMetricFamily("tailnet_webhook_tries", "Events that were posted, by outcome.", labels=["outcome"]),
        reading.webhook_tries,
    )
    given_up = _each(
        CounterMetricFamily("tailnet_webhook_given_up", "Events that were never taken.", labels=["reason"]),
        reading.webhook_given_up,
    )
    yield from (tries, given_up)
    yield GaugeMetricFamily("tailnet_webhook_events", "Events that wait for the receiver.", reading.webhook_waiting)
    yield GaugeMetricFamily(
        "tailnet_webhook_oldest_seconds", "How long the oldest event waits.", reading.webhook_oldest_seconds
    )
    yield GaugeMetricFamily("tailnet_webhook_gone", "Whether the receiver wants no more (410).", reading.webhook_gone)


def _feed_metrics(reading: CoordinatorReading) -> Iterable[Metric]:
    yield _each(
        GaugeMetricFamily("tailnet_feed_followers", "Streams that follow a feed.", labels=["feed"]),
        reading.feed_followers,
    )
    text = "Followers of a feed dropped because they did not keep up."
    yield _each(CounterMetricFamily("tailnet_feed_drops", text, labels=["feed", "reason"]), reading.feed_drops)


def _health_metrics(reading: CoordinatorReading) -> Iterable[Metric]:
    yield _each(
        GaugeMetricFamily(
            "tailnet_health", "What /health found at its last run: 0 well, 1 a warning, 2 an error.", labels=["code"]
        ),
        reading.health,
    )
    yield GaugeMetricFamily(
        "tailnet_health_measured_timestamp_seconds", "When that was.", value=reading.health_measured_at
    )


def _store_metrics(reading: CoordinatorReading) -> Iterable[Metric]:
    waiting = GaugeMetricFamily("tailnet_outbox_reports", "Reports of agents that wait to be written.", labels=["kind"])
    size = GaugeMetricFamily("tailnet_outbox_bytes", "Bytes of reports that wait to be written.", labels=["kind"])
    oldest = GaugeMetricFamily("tailnet_outbox_oldest_seconds", "How long the oldest report waits.", labels=["kind"])
    written = CounterMetricFamily("tailnet_outbox_written", "Reports that were written.", labels=["kind"])
    merged = CounterMetricFamily("tailnet_outbox_merged", "Reports replaced by newer ones meanwhile.", labels=["kind"])
    for kind, counts in reading.outbox.items():
        waiting.add_metric([kind], counts.waiting)
        size.add_metric([kind], counts.waiting_bytes)
        oldest.add_metric([kind], counts.oldest_seconds)
        written.add_metric([kind], counts.written)
        merged.add_metric([kind], counts.merged)
    yield from (waiting, size, oldest, written, merged)
    yield GaugeMetricFamily(
        "tailnet_outbox_max_bytes", "Bytes that may wait, of all kinds.", value=reading.outbox_max_bytes
    )
    lost = CounterMetricFamily("tailnet_outbox_lost", "Reports that were given up.", labels=["kind", "reason"])
    for kind, counts in reading.outbox.items():
        for loss, count in counts.lost.items():
            lost.add_metric([kind, loss.value], count)
    yield lost
    yield _each(
        GaugeMetricFamily("tailnet_store_trouble", "Whether the store cannot be used, and why.", labels=["trouble"]),
        reading.store_troubles,
    )
    yield GaugeMetricFamily("tailnet_store_servers", "Servers that use this store.", value=reading.store_servers)
    yield _each(
        CounterMetricFamily("tailnet_store_removed", "Rows removed since nobody keeps them.", labels=["what"]),
        reading.store_removed,
    )
    yield _each(
        CounterMetricFamily("tailnet_store_failures", "What the store failed at.", labels=["trouble"]),
        reading.store_failures,
    )
    yield CounterMetricFamily(
        "tailnet_store_changes", "Changes that the store's writer carried out.", value=reading.store_changes
    )
    yield CounterMetricFamily(
        "tailnet_store_transactions", "Transactions in which it committed them.", value=reading.store_transactions
    )


def _callers_metrics(reading: CallersReading) -> Iterable[Metric]:
    yield _each(
        GaugeMetricFamily("tailnet_auth_cached", "Answers to who is calling in memory.", labels=["source"]),
        reading.cached,
    )
    if reading.call_out:
        questions = CounterMetricFamily("tailnet_auth_questions", "Questions to the control plane.", labels=["end"])
        yield _each(questions, reading.call_out)
        yield SummaryMetricFamily(
            "tailnet_auth_question_seconds",
            "How long they took.",
            count_value=reading.call_out_count,
            sum_value=reading.call_out_seconds,
        )
        yield GaugeMetricFamily(
            "tailnet_auth_questions_waiting", "Questions without an answer yet.", value=reading.call_out_asking
        )
    if reading.jwks_age_seconds is not None and reading.signed_refused is not None:
        yield GaugeMetricFamily(
            "tailnet_auth_jwks_age_seconds", "Since the signing keys were read.", value=reading.jwks_age_seconds
        )
        yield GaugeMetricFamily("tailnet_auth_jwks_keys", "Keys of signed tokens.", value=reading.jwks_keys)
        yield CounterMetricFamily("tailnet_auth_jwks_failures", "Failed reads of them.", value=reading.jwks_failures)
        yield CounterMetricFamily(
            "tailnet_auth_signed_refused", "Signed tokens that are good for nothing.", value=reading.signed_refused
        )


def _each(family: Family, values: Mapping[str, float] | Mapping[tuple[str, str], float]) -> Family:
    """A family with a value for each label, or for each two."""
    for label, value in values.items():
        family.add_metric([label] if isinstance(label, str) else label, value)
    return family


def metrics_page(
    read: Callable[[], CoordinatorReading], read_relay: Callable[[], RelayStatistics]
) -> Callable[[], bytes]:
    """A function that renders /metrics."""
    registry = CollectorRegistry()
    registry.register(CoordinatorCollector(read))
    registry.register(RelayCollector(read_relay))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return lambda: generate_latest(registry)
