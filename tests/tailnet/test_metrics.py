"""The page that Prometheus reads: each number of a reading under its own name, the relay's beside them."""

import dataclasses
import platform
import ssl
from math import inf

from prometheus_client.parser import text_string_to_metric_families

from derp import __version__
from derp.close_reason import CloseReason
from derp.config import RelayConfig
from derp.keys import NodePrivate
from derp.server.lobby import Lobby
from derp.server.ports import Ports
from derp.server.relay import Relay
from derp.server.statistics import read_statistics
from derp.transport.reactor import Reactor
from tailnet.coordinator.core import Statistics
from tailnet.coordinator.nodes import Refusal
from tailnet.metrics import (
    CallersReading,
    CoordinatorCollector,
    CoordinatorReading,
    EntranceReading,
    ReplicaReading,
    metrics_page,
)
from tailnet.store.outbox import KindReading
from tailnet.store.outbox_queue import Loss

CORE = Statistics(
    connected_peers=1,
    absent_peers=2,
    tunnels=3,
    connects=4,
    overtaken=5,
    requests=6,
    node_updates=7,
    suppressed_updates=8,
    deliveries=9,
    ready_for_handshake=10,
    departures={"lost": 11, "graceful disconnect": 12},
    refusals={Refusal.TUNNEL: 13, Refusal.NODE_KEY: 14},
)
READING = CoordinatorReading(
    statistics=CORE,
    channels=15,
    agents_connected=16,
    delivered=17,
    overflows=18,
    telemetry_events=19,
    refused_calls=20,
    entrance=EntranceReading(21, 122, 123, 125, 126, 127, 124),
    api_connections=33,
    api_ended={"body_too_slow": 34},
    api_rate_limited=43,
    admin_refused={"wrong_token": 48, "rate": 49},
    identity_proofs={"issued": 44, "rate_limited": 45},
    external_auth={"refreshed": 46},
    external_auth_waiting=47,
    into_agents={"reached": 91},
    into_agents_streams=93,
    into_agents_tunnels=94,
    map_version=22,
    map_failures={"a.json": 23},
    region_factors={"901": 95},
    telemetry_unreadable=24,
    connection_reports=25,
    connection_reports_unreadable=26,
    boundary_logs=27,
    revoked_connections=28,
    revoked_tunnels=29,
    relay_keys_contested=114,
    callers=101,
    held_bytes=102,
    held_bytes_limit=103,
    shed_sockets=104,
    refused_sockets=105,
    reports_delayed=106,
    reports_refused=107,
    health={"disk-full": 2, "log-lost": 0},
    health_measured_at=46.5,
    outbox={"logs": KindReading(33, 34, 35, 36, 37, {Loss.AGENT: 38, Loss.TOTAL: 39})},
    outbox_max_bytes=45,
    store_failures={"locked": 40},
    store_troubles={"full": True, "slow": False},
    store_servers=43,
    store_removed={"logs": 44},
    webhook_tries={"taken": 51},
    webhook_given_up={"expired": 52},
    webhook_waiting=53,
    webhook_oldest_seconds=54.5,
    webhook_gone=True,
    store_changes=41,
    store_transactions=42,
    identities=CallersReading(
        call_out={"yes": 50, "no": 51},
        call_out_seconds=52.5,
        call_out_count=53,
        call_out_asking=54,
        cached={"store": 55, "call_out": 56, "signed": 57},
        signed_refused=58,
        jwks_age_seconds=59.5,
        jwks_keys=60,
        jwks_failures=61,
    ),
    feed_followers={"derp_map": 30},
    feed_drops={("derp_map", "slow"): 31, ("workspaces", "behind"): 32},
)


MAPS = {
    "tailnet_derp_map_version": 22,
    "tailnet_derp_map_failures_total{a.json}": 23,
    "tailnet_derp_region_factor{901}": 95,
}
ENTRANCE = {
    "tailnet_refused_at_door_total": 21,
    "tailnet_upgrades_put_off_total": 122,
    "tailnet_upgrades_waiting": 123,
    "tailnet_strangers_put_off_total": 125,
    "tailnet_strangers_waiting": 126,
    "tailnet_upgrades_waiting_bytes": 127,
    "tailnet_peer_fights": 124,
}
CALLERS = {
    "tailnet_auth_questions_total{yes}": 50,
    "tailnet_auth_questions_total{no}": 51,
    "tailnet_auth_question_seconds_sum": 52.5,
    "tailnet_auth_question_seconds_count": 53,
    "tailnet_auth_questions_waiting": 54,
    "tailnet_auth_cached{store}": 55,
    "tailnet_auth_cached{call_out}": 56,
    "tailnet_auth_cached{signed}": 57,
    "tailnet_auth_signed_refused_total": 58,
    "tailnet_auth_jwks_age_seconds": 59.5,
    "tailnet_auth_jwks_keys": 60,
    "tailnet_auth_jwks_failures_total": 61,
}


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("tailnet_")
    }


def build_row(product: str) -> str:
    versions = (__version__, platform.python_version(), ssl.OPENSSL_VERSION.split()[1])
    labels = dict(zip(("version", "python", "openssl"), versions, strict=True))
    return f"{product}_build_info" + "".join(f"{{{labels[name]}}}" for name in sorted(labels))


def page(reading: CoordinatorReading) -> str:
    reactor = Reactor()
    config = RelayConfig(private_key=NodePrivate.generate())
    lobby = Lobby(reactor, config)
    relay = Relay(config, reactor, lobby)
    lobby.count_closed(CloseReason.DRAINED)
    try:
        return metrics_page(lambda: reading, lambda: read_statistics(relay, lobby, Ports(reactor, None), []))().decode()
    finally:
        reactor._poller.close()


def test_every_number_has_its_name() -> None:
    found = samples(page(READING))
    assert [name for name in found if name.startswith("tailnet_build_info")] == [build_row("tailnet")]
    assert found == {
        build_row("tailnet"): 1,
        "tailnet_health{disk-full}": 2,
        "tailnet_health{log-lost}": 0,
        "tailnet_health_measured_timestamp_seconds": 46.5,
        "tailnet_peers": 1,
        "tailnet_absent_peers": 2,
        "tailnet_tunnels": 3,
        "tailnet_connects_total": 4,
        "tailnet_takeovers_total": 5,
        "tailnet_requests_total": 6,
        "tailnet_node_updates_total": 7,
        "tailnet_suppressed_updates_total": 8,
        "tailnet_ready_for_handshake_total": 10,
        "tailnet_departures_total{lost}": 11,
        "tailnet_departures_total{graceful disconnect}": 12,
        "tailnet_refusals_total{tunnel}": 13,
        "tailnet_refusals_total{node_key}": 14,
        "tailnet_channels": 15,
        "tailnet_agents_connected": 16,
        "tailnet_deliveries_total": 17,
        "tailnet_overflows_total": 18,
        "tailnet_feed_followers{derp_map}": 30,
        "tailnet_feed_drops_total{derp_map}{slow}": 31,
        "tailnet_feed_drops_total{workspaces}{behind}": 32,
        "tailnet_telemetry_events_total": 19,
        "tailnet_refused_calls_total": 20,
        "tailnet_api_connections": 33,
        "tailnet_api_connections_ended_total{body_too_slow}": 34,
        "tailnet_api_rate_limited_total": 43,
        "tailnet_admin_refused_total{wrong_token}": 48,
        "tailnet_admin_refused_total{rate}": 49,
        "tailnet_identity_proofs_total{issued}": 44,
        "tailnet_identity_proofs_total{rate_limited}": 45,
        "tailnet_external_auth_total{refreshed}": 46,
        "tailnet_external_auth_waiting": 47,
        "tailnet_into_agents_total{reached}": 91,
        "tailnet_into_agents_streams": 93,
        "tailnet_into_agents_tunnels": 94,
        "tailnet_telemetry_unreadable_total": 24,
        "tailnet_connection_reports_total": 25,
        "tailnet_connection_reports_unreadable_total": 26,
        "tailnet_boundary_logs_total": 27,
        "tailnet_revoked_connections_total": 28,
        "tailnet_revoked_tunnels_total": 29,
        "tailnet_relay_keys_contested_total": 114,
        "tailnet_callers": 101,
        "tailnet_held_bytes": 102,
        "tailnet_held_bytes_max": 103,
        "tailnet_shed_sockets_total": 104,
        "tailnet_refused_sockets_total": 105,
        "tailnet_reports_delayed_total": 106,
        "tailnet_reports_refused_total": 107,
        "tailnet_outbox_max_bytes": 45,
        "tailnet_outbox_reports{logs}": 33,
        "tailnet_outbox_bytes{logs}": 34,
        "tailnet_outbox_oldest_seconds{logs}": 35,
        "tailnet_outbox_written_total{logs}": 36,
        "tailnet_outbox_merged_total{logs}": 37,
        "tailnet_outbox_lost_total{logs}{agent}": 38,
        "tailnet_outbox_lost_total{logs}{total}": 39,
        "tailnet_store_failures_total{locked}": 40,
        "tailnet_store_trouble{full}": 1,
        "tailnet_store_trouble{slow}": 0,
        "tailnet_store_servers": 43,
        "tailnet_store_removed_total{logs}": 44,
        "tailnet_webhook_tries_total{taken}": 51,
        "tailnet_webhook_given_up_total{expired}": 52,
        "tailnet_webhook_events": 53,
        "tailnet_webhook_oldest_seconds": 54.5,
        "tailnet_webhook_gone": 1,
        "tailnet_store_changes_total": 41,
        "tailnet_store_transactions_total": 42,
        **CALLERS,
        **ENTRANCE,
        **MAPS,
    }


def test_who_is_not_asked_is_not_shown() -> None:
    nobody = CallersReading({}, 0.0, 0, 0, {"store": 1}, None, None, 0, 0)
    found = samples(page(dataclasses.replace(READING, identities=nobody)))
    assert [name for name in found if name.startswith("tailnet_auth")] == ["tailnet_auth_cached{store}"]


def test_the_reading_is_taken_when_somebody_asks() -> None:
    taken = []

    def read() -> CoordinatorReading:
        taken.append(1)
        return dataclasses.replace(READING, channels=len(taken))

    collector = CoordinatorCollector(read)
    for asked in (1, 2):
        [value] = [family.samples[0].value for family in collector.collect() if family.name == "tailnet_channels"]
        assert value == asked


def test_the_relay_and_the_process_are_on_the_same_page() -> None:
    names = {family.name for family in text_string_to_metric_families(page(READING))}
    assert {"process_open_fds", "python_info"} <= names
    assert any(name.startswith("derp_") for name in names)


def test_a_server_with_others_tells_of_them_and_one_alone_does_not() -> None:
    others = ReplicaReading(
        links={"session": 1, "silent": 2},
        missing=3,
        sessions=4,
        ends={"gap": 5},
        messages={("node", "sent"): 6},
        queued_bytes=7,
        sync_count=12,
        sync_seconds=0.5,
        mended={"node": 13},
        remote_peers=8,
        wanted_absent_peers=14,
        claims={"taken": 15},
        clock_jumps=9,
        silences=16,
        delays=((0.5, 17), (inf, 18)),
        delay_seconds=19.0,
        sleeps=10,
        refused_links=11,
        failed_links=20,
        bus_trouble=True,
    )

    def told(reading: CoordinatorReading) -> dict[str, float]:
        families = CoordinatorCollector(lambda: reading).collect()
        samples = [sample for family in families for sample in family.samples]
        return {
            "/".join((each.name.removeprefix("tailnet_replica_"), *each.labels.values())): each.value
            for each in samples
            if each.name.startswith("tailnet_replica_")
        }

    assert told(READING) == {}
    assert told(dataclasses.replace(READING, replicas=others)) == {
        "links/session": 1,
        "links/silent": 2,
        "missing": 3,
        "sessions_begun_total": 4,
        "sessions_total/gap": 5,
        "messages_total/node/sent": 6,
        "sync_seconds_count": 12,
        "sync_seconds_sum": 0.5,
        "mended_total/node": 13,
        "wanted_absent_peers": 14,
        "claims_total/taken": 15,
        "silence_total": 16,
        "delivery_seconds_bucket/0.5": 17,
        "delivery_seconds_bucket/+Inf": 35,
        "delivery_seconds_count": 35,
        "delivery_seconds_sum": 19.0,
        "queue_bytes": 7,
        "remote_peers": 8,
        "clock_jumps_total": 9,
        "sleeps_total": 10,
        "refused_links_total": 11,
        "failed_links_total": 20,
        "bus_trouble": 1,
    }
