"""derper's own names for what is counted: /debug/vars (JSON) and /debug/varz (Prometheus).  Layer L3.

Dashboards made for the genuine relay read these.  We leave out what this relay does not have (Go's memory and
goroutines) rather than invent it.  buffered_write_frames is a sample, one flush in half a second: its shape and mean
are right, its count is not that of all writes.  pages.py closes both to strangers; our own names are in
derp/metrics.py; tests/interop/test_derp_metrics.py compares both pages with a genuine relay's.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest

from derp.metrics import RelayStatistics
from derp.relay.counters import DropReason, Histogram, PacketKind
from derp.relay.rtt import RTT_BUCKETS
from derp.transport.platform import boot_time, count_open_files

_GAUGES: Final = "gauge_"
_COUNTERS: Final = "counter_"


def debug_vars(reading: RelayStatistics, started_at: float) -> dict[str, Any]:
    """The page as an object: `derp` with the relay's numbers, and the process's own beside it."""
    counters = reading.counters
    usage = resource.getrusage(resource.RUSAGE_SELF)
    derp: dict[str, Any] = {
        "accepts": reading.accepts,
        "average_queue_duration_ms": round(counters.average_queue_ms(), 3),
        "bytes_received": counters.bytes_received,
        "bytes_sent": reading.bytes_sent,
        "counter_buffered_write_frames": _buckets(counters.written_frames),
        "counter_mesh_update_batch_size": _buckets(counters.mesh_update_batches),
        "counter_mesh_update_loop_count": _buckets(counters.mesh_update_loops),
        "counter_packets_received_kind": {
            "disco": counters.disco_received,
            "other": counters.packets_received - counters.disco_received,
        },
        "counter_tcp_rtt": dict(zip(RTT_BUCKETS, counters.tcp_rtt, strict=True)),
        "counter_total_dup_client_conns": counters.dup_client_conns_total,
        "gauge_clients_local": reading.clients_local,
        "gauge_clients_remote": reading.clients_remote,
        "gauge_clients_total": reading.clients_local + reading.clients_remote,
        "gauge_current_connections": reading.connections,
        "gauge_current_dup_client_conns": reading.duplicate_connections,
        "gauge_current_dup_client_keys": reading.duplicate_keys,
        "gauge_current_file_descriptors": count_open_files(),
        "gauge_current_home_connections": reading.home_connections,
        "gauge_current_notideal_connections": reading.not_ideal_connections,
        "gauge_memstats_sys0": usage.ru_maxrss * 1024,
        "gauge_watchers": reading.watchers,
        "got_ping": counters.got_ping,
        "home_moves_in": counters.home_moves_in,
        "home_moves_out": counters.home_moves_out,
        "multiforwarder_created": counters.multiforwarder_created,
        "multiforwarder_deleted": counters.multiforwarder_deleted,
        "packet_forwarder_delete_other_value": counters.packet_forwarder_delete_other_value,
        "packets_forwarded_in": counters.packets_forwarded_in,
        "packets_forwarded_out": counters.packets_forwarded_out,
        "packets_received": counters.packets_received,
        "packets_sent": reading.packets_sent,
        "peer_gone_disconnected_frames": counters.peer_gone_disconnected_frames,
        "peer_gone_not_here_frames": counters.peer_gone_not_here_frames,
        "rate_limit_per_client_burst_bytes": reading.rate_burst_bytes,
        "rate_limit_per_client_bytes_per_second": reading.rate_bytes_per_second,
        "rate_limit_per_client_waited": counters.rate_limited,
        "sclient_write_timeouts": counters.write_timeouts,
        "sent_pong": counters.sent_pong,
        "unknown_frames": counters.unknown_frames,
        "version": _version(),
    }
    return {
        **{f"counter_bootstrap_dns_{name}": count for name, count in reading.bootstrap.items()},
        "counter_bootstrap_dns_queried_domains": reading.bootstrap_domains,
        "counter_uptime_sec": int(time.time() - started_at),
        "derp": derp,
        "derp_bytes_dropped": _dropped(counters.bytes_dropped),
        "derp_packets_dropped": _dropped(counters.packets_dropped),
        "derp_websocket_accepts": reading.websocket_accepts,
        "derper_tls_request_version": _tls(reading.tls_requests),
        "gauge_derper_tls_active_version": _tls(reading.tls_active),
        "node_boot_time_seconds": boot_time(),
        "process_start_unix_time": int(started_at),
        "stun": {
            "counter_addrfamily": dict(reading.stun_family),
            "counter_no_local_addr": reading.stun_no_local_address,
            "counter_requests": {name: reading.stun.get(name, 0) for name in _STUN_DISPOSITIONS},
        },
        "tls_listener": {
            "counter_accepted_connections": reading.tls_accepted,
            "counter_rejected_connections": reading.tls_rejected,
        },
        "version": _version(),
    }


def vars_page(read: Callable[[], RelayStatistics], started_at: float) -> Callable[[], bytes]:
    """Renders /debug/vars."""
    return lambda: json.dumps(debug_vars(read(), started_at), indent=1, sort_keys=True).encode() + b"\n"


def varz_page(read: Callable[[], RelayStatistics], started_at: float) -> Callable[[], bytes]:
    """Renders /debug/varz: the same numbers in Prometheus' text form, and this process's, whose names all share."""
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    return lambda: generate_latest(process) + ("\n".join(_varz(debug_vars(read(), started_at))) + "\n").encode()


def _varz(page: dict[str, Any]) -> Iterator[str]:
    for name, value in page["derp"].items():
        if name == "version":
            continue
        kind, bare = "counter", name
        if name.startswith(_GAUGES):
            kind, bare = "gauge", name.removeprefix(_GAUGES)
        elif name.startswith(_COUNTERS):
            bare = name.removeprefix(_COUNTERS)
        elif name in _BARE_GAUGES:
            kind = "gauge"
        if name in _HISTOGRAMS:
            yield from _histogram(f"derp_{bare}", value)
            continue
        yield f"# TYPE derp_{bare} {kind}"
        if isinstance(value, dict):
            label = _LABELS[name]
            yield from (f'derp_{bare}{{{label}="{key}"}} {count}' for key, count in value.items())
        else:
            yield f"derp_{bare} {value}"
    for name in ("derp_packets_dropped", "derp_bytes_dropped"):
        yield f"# TYPE {name} counter"
        for row in page[name]:
            yield f'{name}{{reason="{row["reason"]}",kind="{row["kind"]}"}} {row["count"]}'
    labelled = (
        ("derper_tls_request_version", "counter", "version", page["derper_tls_request_version"]),
        ("derper_tls_active_version", "gauge", "version", page["gauge_derper_tls_active_version"]),
        ("stun_requests", "counter", "disposition", page["stun"]["counter_requests"]),
        ("stun_addrfamily", "counter", "family", page["stun"]["counter_addrfamily"]),
    )
    for name, kind, label, values in labelled:
        yield f"# TYPE {name} {kind}"
        yield from (f'{name}{{{label}="{key}"}} {count}' for key, count in values.items())
    plain = {name.removeprefix(_COUNTERS): count for name, count in page.items() if name.startswith(_COUNTERS)}
    plain["stun_no_local_addr"] = page["stun"]["counter_no_local_addr"]
    plain |= {f"tls_listener_{name.removeprefix(_COUNTERS)}": count for name, count in page["tls_listener"].items()}
    plain["derp_websocket_accepts"] = page["derp_websocket_accepts"]
    for name, count in plain.items():
        yield f"# TYPE {name} counter\n{name} {count}"
    for name in ("node_boot_time_seconds", "process_start_unix_time"):
        yield f"# TYPE {name} gauge\n{name} {page[name]}"
    binary = os.path.basename(sys.argv[0]).replace("__main__.py", "") or "derp"
    yield f'# TYPE version gauge\nversion{{version="{page["version"]}",binary="{binary}"}} 1'


def _histogram(name: str, value: dict[str, int]) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    for key, count in value.items():
        yield f"{name}_{key} {count}" if key in ("sum", "count") else f'{name}_bucket{{le="{key}"}} {count}'


def _buckets(histogram: Histogram) -> dict[str, int]:
    """As the genuine page has it: by the bucket's end, then all, and sum and count beside them."""
    buckets = {str(bound): count for bound, count in zip(histogram.bounds, histogram.up_to(), strict=True)}
    return {**buckets, "+Inf": histogram.count, "sum": histogram.total, "count": histogram.count}


def _dropped(values: list[int]) -> list[dict[str, Any]]:
    rows = [
        {"reason": reason.name.lower(), "kind": kind.name.lower(), "count": values[reason * 2 + kind]}
        for reason in DropReason
        for kind in PacketKind
    ]
    # Panels name this reason.  In the genuine relay a key may have several connections and no active one; here one is
    # always active, so the row is a constant of the page and nobody counts it.
    return rows + [{"reason": "dup_client", "kind": kind.name.lower(), "count": 0} for kind in PacketKind]


def _tls(versions: Mapping[str, int]) -> dict[str, int]:
    # OpenSSL says TLSv1.3 where the genuine relay's label is 1.3
    return {version.removeprefix("TLSv"): count for version, count in versions.items()}


@cache
def _version() -> str:
    try:
        return version("tailnet-derp")
    except PackageNotFoundError:
        return "unknown"


_STUN_DISPOSITIONS: Final = ("success", "not_stun", "read_error", "write_error")
_HISTOGRAMS: Final = (
    "counter_buffered_write_frames",
    "counter_mesh_update_batch_size",
    "counter_mesh_update_loop_count",
)
_LABELS: Final = {"counter_packets_received_kind": "kind", "counter_tcp_rtt": "le"}
_BARE_GAUGES: Final = (
    "average_queue_duration_ms",
    "rate_limit_per_client_bytes_per_second",
    "rate_limit_per_client_burst_bytes",
)
