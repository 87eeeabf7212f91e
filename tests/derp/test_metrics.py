"""/metrics: every number of a reading under our names."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from derp.keys import NodePrivate
from derp.metrics import CONTENT_TYPE, metrics_page, routed_totals
from derp.relay.counters import Counters, DropReason
from derp.relay.router import Router
from tests.derp.server.test_varz import reading, samples


def page(**changes: object) -> dict[str, float]:
    return samples(metrics_page(lambda: replace(reading(), **changes))().decode())  # type: ignore[arg-type]


def test_every_number_is_shown_once_under_its_name() -> None:
    given = {
        "closed": {"flood": 50},
        "questions": {"unanswered": 49},
        "key_sets": {"taken": 54},
        "requests_refused": 51,
    }
    values, counters = page(**given, certificate_expires_at=52.0, key_set_ends_at=53.0), reading().counters
    expected = {
        "derp_clients": 1, "derp_clients_remote": 2, "derp_connections": 3, "derp_home_connections": 4,
        "derp_not_ideal_connections": 5, "derp_duplicate_keys": 6, "derp_watchers": 8, "derp_queued_packets": 9,
        "derp_reactor_in_trios_place": 1,
        "derp_slow_readers": 10, "derp_packets_sent": 11, "derp_bytes_sent": 12, "derp_connections_accepted": 13,
        "derp_accepts": 34,
        "derp_rejects{rate}": 14, "derp_rejects{connections}": 15, "derp_websocket_accepts": 16,
        "derp_stun_requests{success}": 17, "derp_stun_requests{not_stun}": 18, "derp_stun_requests{read_error}": 19,
        "derp_stun_requests{write_error}": 20, "derp_stun_requests{silent}": 21,
        "derp_stun_address_family{ipv4}": 22, "derp_stun_address_family{ipv6}": 23,
        "derp_bootstrap_dns{requests}": 24, "derp_bootstrap_dns{unpublished_misses}": 28,
        "derp_tls_requests{TLSv1.3}": 29, "derp_tls_requests{TLSv1.2}": 30, "derp_closed{flood}": 50,
        "derp_admission_questions{unanswered}": 49,
        "derp_key_set_ends_timestamp_seconds": 53, "derp_key_sets{taken}": 54,
        "derp_requests_refused": 51, "derp_certificate_expires_timestamp_seconds": 52,
        "derp_packets_received{disco}": 300, "derp_packets_received{other}": 4700,
        "derp_bytes_received": counters.bytes_received, "derp_unknown_frames": counters.unknown_frames,
        "derp_pings_received": counters.got_ping, "derp_pongs_sent": counters.sent_pong,
        "derp_home_moves_in": counters.home_moves_in, "derp_home_moves_out": counters.home_moves_out,
        "derp_duplicate_connections": counters.dup_client_conns_total, "derp_write_timeouts": counters.write_timeouts,
        "derp_notices_dropped": counters.notices_dropped, "derp_queue_seconds": 3.0,
        "derp_queued_packets_sent": 1500, "derp_rate_limited": counters.rate_limited,
        "derp_packets_forwarded_in": counters.packets_forwarded_in,
        "derp_packets_forwarded_out": counters.packets_forwarded_out,
        "derp_peer_gone{disconnected}": counters.peer_gone_disconnected_frames,
        "derp_peer_gone{not_here}": counters.peer_gone_not_here_frames, "derp_tcp_rtt_seconds_bucket{0.01}": 10,
        "derp_tcp_rtt_seconds_bucket{0.02}": 21, "derp_tcp_rtt_seconds_bucket{+Inf}": 108,
        "derp_tcp_rtt_seconds_count": 108, "derp_tcp_rtt_seconds_sum": 4.5, "derp_tcp_rtt_errors": 19,
        "derp_packets_dropped{other}{unknown_dest}": 100, "derp_packets_dropped{disco}{unknown_dest}": 101,
        "derp_bytes_dropped{other}{write_error}": 210,
    }  # fmt: skip
    assert {name: values.get(name) for name in expected} == expected


def test_the_page_is_prometheus_text_with_help_and_types() -> None:
    text = metrics_page(reading)().decode()
    ours = [family for family in text_string_to_metric_families(text) if family.name.startswith("derp_")]
    assert len(ours) > 30
    for family in ours:
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram")
    names = [family.name for family in ours]
    assert len(set(names)) == len(names)
    assert "process_resident_memory_bytes" in text
    assert "python_info" in text
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_without_a_certificate_there_is_no_date_of_one() -> None:
    assert "derp_certificate_expires_timestamp_seconds" not in page(certificate_expires_at=None)


def test_every_reason_to_drop_is_a_label_from_the_start() -> None:
    values = page(counters=Counters())
    for name in ("derp_packets_dropped", "derp_bytes_dropped"):
        drops = {key: value for key, value in values.items() if key.startswith(name)}
        assert len(drops) == 2 * len(DropReason)
        assert set(drops.values()) == {0}


@pytest.mark.parametrize("dropped", [0, 3])
def test_what_left_is_what_came_less_what_did_not_leave(dropped: int) -> None:
    router = Router(NodePrivate.generate().public().raw, queue_depth=1, queue_bytes=1)
    counters = router.counters
    counters.packets_received, counters.bytes_received = 100, 10_000
    counters.packets_forwarded_in, counters.bytes_forwarded_in = 10, 1000
    counters.packets_forwarded_out, counters.bytes_forwarded_out = 20, 2000
    counters.drop(DropReason.QUEUE_HEAD, 0, dropped, 100 * dropped)
    counters.drop(DropReason.WRITE_ERROR, 0, 1, 100)  # on the way to another relay
    counters.mesh_packets_dropped, counters.mesh_bytes_dropped = 1, 100
    assert routed_totals(router, 5, 500) == (85 - dropped, 8500 - 100 * dropped)
