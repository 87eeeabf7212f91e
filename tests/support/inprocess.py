"""Relays in this process with TLS and STUN on free ports, and the DERP map that names them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from derp.config import RelayConfig, TlsConfig
from derp.keys import NodePrivate
from derp.map import DERPMap, DERPNode, DERPRegion
from derp.server.server import RelayServer, serve_relay

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0  # a hang guard, never part of what is asserted


@asynccontextmanager
async def open_relay_here(*, tls: bool | TlsConfig = True, **changes: Any) -> AsyncIterator[RelayServer]:
    """One relay on 127.0.0.1: self-signed TLS, STUN on a free port."""
    settings: dict[str, Any] = {
        "private_key": NodePrivate.generate(),
        "listen": ((HOST, 0),),
        "stun_port": 0,
        "tls": TlsConfig(self_signed=True, hostname=HOST) if tls is True else tls or None,
        "drain_seconds": 0.0,
        "self_check": False,  # its client would be counted with those of the test
    }
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE_SECONDS):
            server: RelayServer = await nursery.start(serve_relay, RelayConfig(**(settings | changes)))
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def port_of(server: RelayServer, kind: str = "derp") -> int:
    """The port of the first listener of this kind: derp (with or without TLS), stun, http."""
    return next(one.port for one in server.listening if one.kind.removesuffix("+tls") == kind)


def node_of(server: RelayServer, region_id: int, letter: str = "a", **changes: Any) -> DERPNode:
    """The relay as a map has it, IPv4 only, pinned if it has TLS."""
    settings: dict[str, Any] = {
        "name": f"{region_id}{letter}",
        "region_id": region_id,
        "host_name": HOST,
        "ipv4": HOST,
        "ipv6": "none",
        "derp_port": port_of(server),
        "stun_port": port_of(server, "stun") if server.config.stun_enabled else -1,
        "cert_name": server.tls.pin if server.tls is not None else "",
        "force_http": server.tls is None,
    }
    return DERPNode(**(settings | changes))


def map_of(*nodes: DERPNode, **region: Any) -> DERPMap:
    """The nodes by their regions; `region`: fields of every region."""
    regions: dict[int, DERPRegion] = {}
    for node in nodes:
        before = regions[node.region_id].nodes if node.region_id in regions else ()
        regions[node.region_id] = DERPRegion(
            node.region_id, f"r{node.region_id}", f"Region {node.region_id}", nodes=(*before, node), **region
        )
    return DERPMap(regions)


@asynccontextmanager
async def open_regions(*region_ids: int, **changes: Any) -> AsyncIterator[tuple[list[RelayServer], DERPMap]]:
    """A relay per region, and their map."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(open_relay_here(**changes)) for _ in region_ids]
        pairs = zip(servers, region_ids, strict=True)
        yield servers, map_of(*(node_of(server, region_id) for server, region_id in pairs))
