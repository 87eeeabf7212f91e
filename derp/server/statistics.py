"""One reading of everything a running relay counts, for metrics.py.  Layer L3."""

from collections.abc import Iterable

from derp.metrics import RelayStatistics, routed_totals
from derp.server.door import FrontDoor
from derp.server.listener import AcceptGate
from derp.server.relay import Relay
from derp.server.stun import StunResponder, stun_totals


def read_statistics(
    relay: Relay,
    gate: AcceptGate,
    doors: Iterable[FrontDoor],
    stun: Iterable[StunResponder],
    certificate_expires_at: float | None = None,
) -> RelayStatistics:
    """Walks over all clients: made for a scrape, not for a hot path."""
    router = relay.router
    stun, doors = tuple(stun), tuple(doors)
    queues = [client.queue for client in router.clients.values() if client.queue is not None]
    held = sum(queue.packets for queue in queues)
    # What waits for other relays was counted as forwarded, so it is no part of what clients still wait for.
    held_for_mesh = sum(route.queue.packets for route in router.mesh_routes() if route.queue is not None)
    packets_sent, bytes_sent = routed_totals(router, held, sum(queue.packet_bytes for queue in queues))
    local = sum(1 for member in router.members.values() if member.connections)
    return RelayStatistics(
        counters=router.counters,
        clients_local=local,
        clients_remote=len(router.members) - local,
        connections=len(router.clients),
        home_connections=router.home_clients,
        not_ideal_connections=router.not_ideal_clients,
        duplicate_keys=router.duplicate_keys,
        duplicate_connections=sum(client.is_duplicate for client in router.clients.values()),
        watchers=len(router.watchers),
        queued_packets=held + held_for_mesh,
        slow_readers=len(relay.reactor.blocked),
        packets_sent=packets_sent,
        bytes_sent=bytes_sent,
        accepted=gate.accepted_count,
        rejected={"rate": gate.too_fast_count, "connections": gate.too_many_count},
        closed={reason.value: count for reason, count in relay.plane.closed_count.items()},
        requests_refused=sum(door.requests_refused for door in doors),
        websocket_accepts=sum(door.websocket_accepts for door in doors),
        stun=stun_totals(stun),
        stun_family={family: sum(each.success_count[family] for each in stun) for family in ("ipv4", "ipv6")},
        certificate_expires_at=certificate_expires_at,
        rate_bytes_per_second=relay.plane.rate.client_bytes_per_second,
        rate_burst_bytes=relay.plane.rate.client_burst_bytes,
        bootstrap=relay.bootstrap.totals(),
        tls_versions=relay.plane.tls_versions,
        tls_active=_active_tls(relay),
    )


def _active_tls(relay: Relay) -> dict[str, int]:
    active: dict[str, int] = {}
    for client in relay.router.clients.values():
        version = client.link.version()
        if version is not None:
            active[version] = active.get(version, 0) + 1
    return active
