"""One reading of everything a running relay counts, for metrics.py.  Layer L3."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from derp.log import dropped_line_count
from derp.metrics import MeshReading, RelayStatistics, TenantReading, routed_totals
from derp.relay.counters import Counters
from derp.relay.limits import DEFAULT_TENANT
from derp.relay.load import DELAY_LIMIT_SECONDS, LoadReading
from derp.server.door import FrontDoor
from derp.server.encryption import KeptElsewhere
from derp.server.limiter import OTHER_TENANTS, PAUSED_BY
from derp.server.lobby import Lobby
from derp.server.ports import Ports
from derp.server.relay import Relay
from derp.server.selfcheck import SelfCheck
from derp.server.session import Greeting
from derp.server.stun import stun_totals

if TYPE_CHECKING:
    from derp.server.certificates import CertificateKeeper


def read_statistics(
    relay: Relay | None,
    lobby: Lobby,
    ports: Ports,
    doors: Iterable[FrontDoor],
    keeper: "CertificateKeeper | KeptElsewhere | None" = None,
    self_check: SelfCheck | None = None,
) -> RelayStatistics:
    """Walks over all clients: made for a scrape, not for a hot path.  Without a relay its rows are zero."""
    doors = tuple(doors)
    return RelayStatistics(
        **(_of_relay(relay) if relay is not None else _NO_RELAY),
        slow_readers=len(lobby.host.blocked),
        in_trios_place=ports.reactor.is_in_trios_place,
        accepted=lobby.accepted_count,
        tls_accepted=lobby.tls_accepted_count,
        tls_rejected=lobby.tls_rejected_count,
        rejected={"rate": lobby.too_fast_count, "connections": lobby.too_many_count},
        closed={reason.value: count for reason, count in lobby.closed_count.items()},
        requests_refused=sum(door.requests_refused for door in doors),
        stun=stun_totals(ports.stun),
        stun_family={family: sum(each.success_count[family] for each in ports.stun) for family in ("ipv4", "ipv6")},
        stun_no_local_address=sum(each.no_local_address_count for each in ports.stun),
        quic=ports.quic.totals() if ports.quic is not None else {},
        quic_dropped=ports.quic.dropped() if ports.quic is not None else {},
        log_lines_dropped=dropped_line_count(),
        certificate_expires_at=ports.certificate_expires_at(),
        renewal_failures=keeper.failures if keeper is not None else None,
        tls_requests=sum((door.tls_requests for door in doors), Counter[str]()),
        self_check=self_check.read() if self_check is not None else None,
        tls_active=_active_tls(relay, lobby, doors),
        load=read_load(relay, lobby, self_check),
    )


def read_load(relay: Relay | None, lobby: Lobby, self_check: SelfCheck | None) -> LoadReading | None:
    """What the relay uses beside what it may; None without one."""
    if relay is None:
        return None
    loop_share, bytes_per_second, packets_per_second = relay.meter.rates()
    node, pool = relay.sessions.limiter.limits.node, relay.router.pool
    return LoadReading(
        connections_share=lobby.connection_count / lobby.max_connections,
        bytes_share=bytes_per_second / node.bytes_per_second if node.bytes_per_second else 0.0,
        packets_share=packets_per_second / node.packets_per_second if node.packets_per_second else 0.0,
        memory_share=pool.held_bytes / pool.max_bytes,
        loop_share=loop_share,
        delay_share=self_check.round_trip_seconds / DELAY_LIMIT_SECONDS if self_check is not None else 0.0,
        bytes_per_second=bytes_per_second,
        packets_per_second=packets_per_second,
    )


def _of_relay(relay: Relay) -> dict[str, Any]:
    router = relay.router
    queues = [client.queue for client in router.clients.values() if client.queue is not None]
    held = sum(queue.packets for queue in queues)
    # The router counted packets that wait for other relays as forwarded, so clients do not wait for them.
    held_for_mesh = sum(route.queue.packets for route in router.mesh_routes() if route.queue is not None)
    packets_sent, bytes_sent = routed_totals(router, held, sum(queue.packet_bytes for queue in queues))
    local = [member for member in router.members.values() if member.connections]
    ours = [member for member in local if router.stands_for(member.key)]
    elsewhere = sum(1 for key in router.elsewhere if not router.members[key].connections)
    own = sum(client.is_own for client in router.clients.values())
    return {
        "counters": router.counters,
        "clients_local": len(ours) - own,
        "clients_remote": len(router.members) - len(local) - elsewhere,
        "connections": len(router.clients) - own,
        "home_connections": router.home_clients,
        "not_ideal_connections": router.not_ideal_clients,
        "duplicate_keys": sum(member.connections[0].is_duplicate for member in ours),
        "duplicate_connections": sum(client.is_duplicate for client in router.clients.values()),
        "watchers": len(router.watchers),
        "queued_packets": held + held_for_mesh,
        "queued_bytes": router.pool.held_bytes,
        "queued_bytes_limit": router.pool.max_bytes,
        "packets_sent": packets_sent,
        "bytes_sent": bytes_sent,
        "accepts": relay.upgrades.accepts,
        "websocket_accepts": relay.upgrades.websocket_accepts,
        "key_sets": relay.key_sets.totals() if relay.key_sets is not None else {},
        "key_set_ends_at": relay.key_sets.ends_at if relay.key_sets is not None else None,
        "questions": relay.sessions.admission.question_totals(),
        "mesh": tuple(
            MeshReading(state.name, state.is_up, state.connects, len(state.route.keys) if state.route else 0)
            for state in relay.mesh_states()
            if not state.is_ourselves
        ),
        "ledger_write_failures": relay.ledger.write_failures if relay.ledger is not None else 0,
        "ledger_waiting_rows": relay.ledger.waiting_rows if relay.ledger is not None else 0,
        "tenants": _tenants(relay),
        "node_limit_bytes_per_second": relay.sessions.limiter.limits.node.bytes_per_second,
        "quota_acts": relay.quotas.acts if relay.quotas is not None else {},
        "quota_over_bytes": relay.quotas.over_bytes if relay.quotas is not None else {},
        "health_texts": relay.sessions.advisor.totals(),
        "rate_bytes_per_second": relay.sessions.limiter.rate.bytes_per_second,
        "rate_burst_bytes": relay.sessions.limiter.rate.burst_bytes,
        "bootstrap": relay.bootstrap.totals(),
        "bootstrap_domains": len(relay.bootstrap.queried),
    }


def _tenants(relay: Relay) -> dict[str, TenantReading]:
    """Those of the limits, with the default one, and all others as one; without limits of tenants, none."""
    limiter, quotas = relay.sessions.limiter, relay.quotas
    limits = limiter.limits
    if not limits.tenants and not limits.node:
        return {}
    waiting = Counter(limiter.label(client.tenant) for client in relay.router.clients.values() if client.wire.paused)
    return {
        name: TenantReading(
            weight=limits.of_tenant(name).weight,
            limit_bytes_per_second=limits.of_tenant(name).rate.bytes_per_second,
            waiting_clients=waiting[name],
            limited={limit: limiter.pauses[name, limit] for limit in PAUSED_BY},
            carried_bytes=quotas.carried_bytes[name] if quotas is not None else 0,
            quota_used_part=quotas.part_of_tenant(name) if quotas is not None and name != OTHER_TENANTS else None,
        )
        for name in dict.fromkeys((*limits.tenants, DEFAULT_TENANT, OTHER_TENANTS))
    }


_NO_RELAY: Final[Mapping[str, Any]] = {
    "counters": Counters(),
    **dict.fromkeys(
        (
            "clients_local",
            "clients_remote",
            "connections",
            "home_connections",
            "not_ideal_connections",
            "duplicate_keys",
            "duplicate_connections",
            "watchers",
            "queued_packets",
            "queued_bytes",
            "queued_bytes_limit",
            "packets_sent",
            "bytes_sent",
        ),
        0,
    ),
}


def _active_tls(relay: Relay | None, lobby: Lobby, doors: Iterable[FrontDoor]) -> Counter[str]:
    """As the genuine relay counts them: connections that became DERP, and the request that is being answered."""
    wires = [client.wire for client in relay.router.clients.values()] if relay is not None else []
    wires += [wire for wire in lobby.waiting if isinstance(wire.session, Greeting)]
    wires += [door.answering for door in doors if door.answering is not None]
    return Counter(version for wire in wires if (version := wire.version()) is not None)
