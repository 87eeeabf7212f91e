"""The names, types and shapes that dashboards made for the genuine derper (1.102.5) read."""

import json
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from derp.metrics import RelayStatistics
from derp.relay.counters import Counters, DropReason, PacketKind
from derp.server.varz import debug_vars, vars_page, varz_page

# As a genuine derper shows them, by type; what it does not type is under "untyped".
GENUINE = {
    "counter": """bootstrap_dns_published_hits bootstrap_dns_published_misses bootstrap_dns_requests
        bootstrap_dns_queried_domains bootstrap_dns_unpublished_percent_misses
        bootstrap_dns_unpublished_hits bootstrap_dns_unpublished_misses derp_accepts derp_bytes_received derp_bytes_sent
        derp_packets_received_kind derp_tcp_rtt derp_total_dup_client_conns derp_got_ping derp_home_moves_in
        derp_home_moves_out derp_multiforwarder_created derp_multiforwarder_deleted
        derp_packet_forwarder_delete_other_value derp_packets_forwarded_in derp_packets_forwarded_out
        derp_packets_received derp_packets_sent derp_peer_gone_disconnected_frames derp_peer_gone_not_here_frames
        derp_sclient_write_timeouts derp_sent_pong derp_unknown_frames derp_bytes_dropped derp_packets_dropped
        derp_websocket_accepts stun_addrfamily stun_requests tls_listener_accepted_connections
        tls_listener_rejected_connections uptime_sec""",
    "gauge": """derp_clients_local derp_clients_remote derp_clients_total derp_current_connections
        derp_current_dup_client_conns derp_current_dup_client_keys derp_current_file_descriptors
        derp_current_home_connections derp_current_notideal_connections derp_memstats_sys0 derp_watchers
        derper_tls_active_version""",
    "histogram": "derp_buffered_write_frames derp_mesh_update_batch_size derp_mesh_update_loop_count",
    "untyped": """derp_average_queue_duration_ms derper_tls_request_version node_boot_time_seconds
        process_start_unix_time version""",
}
JSON_NAMES = """
    accepts average_queue_duration_ms bytes_received bytes_sent counter_buffered_write_frames
    counter_mesh_update_batch_size counter_mesh_update_loop_count counter_packets_received_kind counter_tcp_rtt
    counter_total_dup_client_conns gauge_clients_local gauge_clients_remote gauge_clients_total
    gauge_current_connections gauge_current_dup_client_conns gauge_current_dup_client_keys
    gauge_current_file_descriptors gauge_current_home_connections gauge_current_notideal_connections
    gauge_memstats_sys0 gauge_watchers got_ping home_moves_in home_moves_out multiforwarder_created
    multiforwarder_deleted packet_forwarder_delete_other_value packets_forwarded_in packets_forwarded_out
    packets_received packets_sent peer_gone_disconnected_frames peer_gone_not_here_frames sclient_write_timeouts
    sent_pong unknown_frames version"""


def reading() -> RelayStatistics:
    """Every number is another one, so that none can stand in another's place."""
    counters = Counters()
    number = 1000
    for name in Counters.__slots__:
        if isinstance(getattr(counters, name), int):
            number += 1
            setattr(counters, name, number)
    counters.packets_received = 5000
    counters.disco_received = 300
    counters.packets_dropped = list(range(100, 116))
    counters.bytes_dropped = list(range(200, 216))
    counters.tcp_rtt = list(range(10, 20))
    counters.queue_seconds, counters.queued_packets = 3.0, 1500
    counters.tcp_rtt_seconds = 4.5
    counters.queue_average_ms = 2.0
    counters.queue_average_at = 5000 + counters.packets_forwarded_in - counters.queue_entered
    for frames, times in ((1, 3), (12, 2), (500, 1)):
        counters.written_frames.observe(frames, times)
    return RelayStatistics(
        counters=counters,
        clients_local=1,
        clients_remote=2,
        connections=3,
        home_connections=4,
        not_ideal_connections=5,
        duplicate_keys=6,
        duplicate_connections=7,
        watchers=8,
        queued_packets=9,
        queued_bytes=41,
        queued_bytes_limit=42,
        slow_readers=10,
        in_trios_place=True,
        packets_sent=11,
        bytes_sent=12,
        accepted=13,
        rejected={"rate": 14, "connections": 15},
        websocket_accepts=16,
        stun={"success": 17, "not_stun": 18, "read_error": 19, "write_error": 20, "silent": 21},
        stun_family={"ipv4": 22, "ipv6": 23},
        stun_no_local_address=43,
        bootstrap={
            "requests": 24,
            "published_hits": 25,
            "published_misses": 26,
            "unpublished_hits": 27,
            "unpublished_misses": 28,
            "unpublished_percent_misses": 38,
        },
        bootstrap_domains=37,
        tls_requests={"TLSv1.3": 29, "TLSv1.2": 30},
        tls_active={"TLSv1.3": 31},
        rate_bytes_per_second=32,
        rate_burst_bytes=33,
        accepts=34,
        tls_accepted=35,
        tls_rejected=36,
    )


def samples(text: str) -> dict[str, float]:
    """Every number of a page by name and labels; the parser's ending of counters is taken off again."""
    return {
        (sample.name.removesuffix("_total") if family.type == "counter" else sample.name)
        + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_name_of_the_genuine_page_is_there_with_its_type() -> None:
    text = varz_page(reading, 0.0)().decode()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    for kind, names in GENUINE.items():
        for name in names.split():
            assert name in types, name
            assert kind in (types[name], "untyped"), name


def test_values_are_each_where_they_belong() -> None:
    values = samples(varz_page(reading, 0.0)().decode())
    counters = reading().counters
    expected = {
        "derp_clients_local": 1, "derp_clients_remote": 2, "derp_clients_total": 3, "derp_current_connections": 3,
        "derp_current_home_connections": 4, "derp_current_notideal_connections": 5, "derp_current_dup_client_keys": 6,
        "derp_current_dup_client_conns": 7, "derp_watchers": 8, "derp_packets_sent": 11, "derp_bytes_sent": 12,
        "derp_accepts": 34, "tls_listener_accepted_connections": 35, "tls_listener_rejected_connections": 36,
        "derp_websocket_accepts": 16, "stun_requests{success}": 17, "stun_requests{not_stun}": 18,
        "stun_requests{read_error}": 19, "stun_requests{write_error}": 20, "stun_addrfamily{ipv4}": 22,
        "stun_addrfamily{ipv6}": 23, "stun_no_local_addr": 43, "bootstrap_dns_requests": 24,
        "bootstrap_dns_published_hits": 25,
        "bootstrap_dns_published_misses": 26, "bootstrap_dns_unpublished_hits": 27,
        "bootstrap_dns_unpublished_misses": 28, "bootstrap_dns_unpublished_percent_misses": 38,
        "bootstrap_dns_queried_domains": 37, "derper_tls_request_version{1.3}": 29,
        "derper_tls_request_version{1.2}": 30, "derper_tls_active_version{1.3}": 31,
        "derp_rate_limit_per_client_bytes_per_second": 32, "derp_rate_limit_per_client_burst_bytes": 33,
        "derp_rate_limit_per_client_waited": counters.rate_limited,
        "derp_packets_received_kind{disco}": 300, "derp_packets_received_kind{other}": 4700,
        "derp_average_queue_duration_ms": 2.0, "derp_tcp_rtt{10ms}": 10, "derp_tcp_rtt{inf}": 17,
        "derp_tcp_rtt{non-tcp}": 18, "derp_tcp_rtt{error}": 19,
        "derp_sclient_write_timeouts": counters.write_timeouts,
        "derp_total_dup_client_conns": counters.dup_client_conns_total,
        "derp_buffered_write_frames_bucket{0}": 0, "derp_buffered_write_frames_bucket{1}": 3,
        "derp_buffered_write_frames_bucket{10}": 3, "derp_buffered_write_frames_bucket{15}": 5,
        "derp_buffered_write_frames_bucket{100}": 5, "derp_buffered_write_frames_bucket{+Inf}": 6,
        "derp_buffered_write_frames_sum": 527, "derp_buffered_write_frames_count": 6,
        "derp_mesh_update_batch_size_bucket{1000}": 0, "derp_mesh_update_loop_count_sum": 0,
    }  # fmt: skip
    same = """bytes_received packets_received got_ping sent_pong unknown_frames home_moves_in home_moves_out
        multiforwarder_created multiforwarder_deleted packet_forwarder_delete_other_value packets_forwarded_in
        packets_forwarded_out peer_gone_disconnected_frames peer_gone_not_here_frames"""
    expected |= {f"derp_{name}": getattr(counters, name) for name in same.split()}
    assert {name: values[name] for name in expected} == expected


def test_all_kinds_of_drop_exist_from_the_start() -> None:
    empty = replace(reading(), counters=Counters())
    values = samples(varz_page(lambda: empty, 0.0)().decode())
    for name in ("derp_packets_dropped", "derp_bytes_dropped"):
        drops = {key: value for key, value in values.items() if key.startswith(name)}
        assert len(drops) == 18
        assert set(drops.values()) == {0}
        assert f"{name}{{unknown_dest}}{{disco}}" in drops
    full = samples(varz_page(reading, 0.0)().decode())
    assert [full[f"derp_packets_dropped{{dup_client}}{{{kind}}}"] for kind in ("disco", "other")] == [0, 0]
    for reason in DropReason:
        for kind in PacketKind:
            at = reason * 2 + kind
            assert full[f"derp_packets_dropped{{{reason.name.lower()}}}{{{kind.name.lower()}}}"] == 100 + at
            assert full[f"derp_bytes_dropped{{{reason.name.lower()}}}{{{kind.name.lower()}}}"] == 200 + at


def test_the_json_page_has_the_genuine_shape() -> None:
    page = json.loads(vars_page(reading, 1_700_000_000.0)())
    assert set(JSON_NAMES.split()) <= set(page["derp"])
    assert page["stun"] == {
        "counter_addrfamily": {"ipv4": 22, "ipv6": 23},
        "counter_no_local_addr": 43,
        "counter_requests": {"success": 17, "not_stun": 18, "read_error": 19, "write_error": 20},
    }
    assert page["tls_listener"] == {"counter_accepted_connections": 35, "counter_rejected_connections": 36}
    assert page["derper_tls_request_version"] == {"1.3": 29, "1.2": 30}
    assert page["gauge_derper_tls_active_version"] == {"1.3": 31}
    assert page["counter_bootstrap_dns_requests"] == 24
    assert page["process_start_unix_time"] == 1_700_000_000
    assert page["counter_uptime_sec"] > 0
    histogram = page["derp"]["counter_buffered_write_frames"]
    bounds = [*range(11), 15, 20, 25, 50, 100]
    assert set(histogram) == {*map(str, bounds), "+Inf", "sum", "count"}
    assert (histogram["10"], histogram["+Inf"], histogram["sum"], histogram["count"]) == (3, 6, 527, 6)
    assert 0 < page["node_boot_time_seconds"] < page["counter_uptime_sec"] + 1_700_000_000.0
    assert isinstance(page["version"], str)


def test_this_process_is_on_the_page_under_the_names_that_all_exporters_share() -> None:
    values = samples(varz_page(reading, 0.0)().decode())
    assert values["process_open_fds"] > 0
    assert values["process_resident_memory_bytes"] > 1_000_000
    assert values["process_start_time_seconds"] > values["node_boot_time_seconds"]


def test_the_average_of_nothing_is_zero() -> None:
    empty = replace(reading(), counters=Counters())
    assert debug_vars(empty, 0.0)["derp"]["average_queue_duration_ms"] == 0.0
