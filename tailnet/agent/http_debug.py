"""What an agent says of itself to whoever looks for a fault: its network, its paths, its counts.  Layer L3.

The report has the reference's shape: a severity, warnings, and what was found.  Called by http.py.
"""

import fcntl
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from derp.text import MASK
from tailnet.agent.context import Context
from tailnet.node.engine import Engine
from tailnet.proto.generated.agent_pb2 import Manifest

# A packet of the tunnel with all its heads; what is smaller cuts them in two, or loses them.
NEEDED_MTU: Final = 1378
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_SYS: Final = Path("/sys/class/net")
_IPV6: Final = Path("/proc/net/if_inet6")


def netcheck_report(engine: Engine | None) -> dict[str, Any]:
    """The agent's health as far as its network goes; without a place in the tailnet there is less to say."""
    interfaces = list(_interfaces())
    small = [
        {
            "code": "EIF01",
            "message": f"Network interface {name} has MTU {mtu} (less than {NEEDED_MTU}), "
            "which may cause problems with direct connections",
        }
        for name, mtu, _ in interfaces
        if mtu < NEEDED_MTU
    ]
    listed = [{"name": name, "mtu": mtu, "addresses": addresses} for name, mtu, addresses in interfaces]
    severity = "warning" if small else "ok"
    found = {"severity": severity, "warnings": small, "dismissed": False, "interfaces": listed}
    net_info = {
        "PreferredDERP": (engine.relays.home if engine is not None else None) or 0,
        "WorkingUDP": bool(engine is not None and engine.local_endpoints),
        "Endpoints": [str(each) for each in engine.local_endpoints] if engine is not None else [],
    }
    return {"severity": severity, "warnings": [], "dismissed": False, "net_info": net_info, "interfaces": found}


def _interfaces() -> Iterator[tuple[str, int, list[str]]]:
    addresses: dict[str, list[str]] = {}
    if _IPV6.exists():
        for line in _IPV6.read_text().splitlines():
            raw, _, bits, _, _, name = line.split()
            addresses.setdefault(name, []).append(f"{IPv6Address(bytes.fromhex(raw))}/{int(bits, 16)}")
    for _, name in socket.if_nameindex():
        mtu = _SYS / name / "mtu"
        if mtu.exists():
            yield name, int(mtu.read_text()), _ipv4(name) + addresses.get(name, [])


def _ipv4(interface: str) -> list[str]:
    """Its first address; Linux alone is asked."""
    wish = struct.pack("256s", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            address, mask = (fcntl.ioctl(asked, number, wish)[20:24] for number in (_SIOCGIFADDR, _SIOCGIFNETMASK))
        except OSError:  # it has none
            return []
    return [f"{IPv4Address(address)}/{int.from_bytes(mask, 'big').bit_count()}"]


def magicsock_text(engine: Engine | None, now: float) -> str:
    """A line for each peer: which way leads there, and when its session began."""
    if engine is None:
        return "the agent has no place in the tailnet\n"
    core = engine.core
    lines = [
        f"home region {engine.relays.home}",
        f"endpoints {' '.join(map(str, engine.local_endpoints)) or 'none'}",
        f"datagrams that a full queue or a socket did not take: {engine.lost_datagrams}",
    ]
    for peer in core.device.peers:
        known = core.paths.find(peer.public)
        way = "no way is known"
        if known is not None and known.best is not None and known.is_trusted(now):
            way = f"directly by {known.best}, {known.best_seconds * 1000:.1f} ms"
        elif known is not None and (region := core.paths.region_of(known)) is not None:
            way = f"by region {region}"
        at = peer.last_handshake_at
        lines.append(
            f"peer {peer.public.hex()[:10]}: {way}; {'no session' if at is None else f'session {now - at:.0f} s'}"
        )
    return "\n".join(lines) + "\n"


def manifest_shown(manifest: Manifest | None) -> dict[str, Any]:
    """What the coordinator told the agent to be, without what may be secret: values of variables, and secrets."""
    if manifest is None:
        return {}
    shown: dict[str, Any] = MessageToDict(manifest, preserving_proto_field_name=True)
    for name in shown.get("environment_variables", {}):
        shown["environment_variables"][name] = MASK
    for secret in shown.get("secrets", ()):
        secret["value"] = MASK
    return shown


class _Counts(Collector):
    """Those of the agent's counters; its names are the reference's where that has one."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        counters = self._context.counters
        sessions = GaugeMetricFamily("agent_sessions", "Open now.", labels=["kind"])
        for kind, count in counters.sessions.items():
            sessions.add_metric([kind.value], count)
        yield sessions
        for name, told, counts in (
            ("agent_connections_served", "By service.", counters.served),
            ("agent_connections_refused", "For want of room.", counters.refused),
            ("agent_connections_failed", "By an error of the service.", counters.failed),
        ):
            family = CounterMetricFamily(name, told, labels=["service"])
            for service, count in counts.items():
                family.add_metric([service], count)
            yield family
        if self._context.engine is not None:
            lost = self._context.engine.lost_datagrams
            yield CounterMetricFamily("agent_lost_datagrams", "Not taken by a queue or a socket.", value=lost)


def prometheus_text(context: Context) -> str:
    """The agent's counts, for Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Counts(context))
    return generate_latest(registry).decode()
