"""The relays of a region, in the order in which a client tries them.  Layer L3.

Facts: the genuine client walks the nodes of a region in map order and stays with the first one that answers; it tells
a node that is not the first which one would have been.  Unlike it, a node that accepts TCP but fails afterwards (TLS,
upgrade, handshake) does not end the walk here: users lose hours to relays that are half alive.
Next hop: dial.py for one relay.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from derp.client.dial import RelayAddress
from derp.errors import ConnectError, RemoteProtocolError, TransportError, TransportTimeout
from derp.map import DEFAULT_DERP_PORT, DERPRegion

# As a genuine client: this long for the TCP connection to a node, as long as there is another one to try.
NODE_TCP_SECONDS: Final = 1.5

Outcome = TypeVar("Outcome")
Attempt = Callable[[RelayAddress, float, float | None], Awaitable[Outcome]]


def region_addresses(region: DERPRegion) -> list[RelayAddress]:
    """Every node that relays, in map order.  Raises ConnectError if there is none."""
    addresses = []
    for position, node in enumerate(region.nodes):
        if node.stun_only:
            continue
        addresses.append(
            RelayAddress(
                host=node.host_name,
                port=node.derp_port or DEFAULT_DERP_PORT,
                is_tls=not node.force_http,
                ipv4=node.ipv4,
                ipv6=node.ipv6,
                cert_name=node.cert_name,
                insecure_for_tests=node.insecure_for_tests,
                ideal_node=region.nodes[0].name if position else "",
                name=node.name,
                quic_port=node.quic_port,
            )
        )
    if not addresses:
        what = "only STUN nodes" if region.nodes else "no nodes"
        raise ConnectError(f"{region_label(region)} has {what}: add one that relays to the DERP map")
    return addresses


def region_label(region: DERPRegion) -> str:
    """For messages."""
    return f"DERP region {region.region_id} ({region.region_code or region.region_name or 'without a code'})"


async def walk(
    addresses: Sequence[RelayAddress], attempt: Attempt[Outcome], *, timeout_seconds: float, what: str
) -> Outcome:
    """The result of the first attempt that succeeds; if none does, one error with the reason of each.

    An attempt gets the address, the seconds it may take, and the seconds of those for TCP.  Each gets an equal share of
    what time is left, so that a node which hangs leaves something for the others.
    """
    reasons: list[str] = []
    deadline = trio.current_time() + timeout_seconds
    timeouts_only = True
    for position, address in enumerate(addresses):
        share = (deadline - trio.current_time()) / (len(addresses) - position)
        is_last = position == len(addresses) - 1
        try:
            return await attempt(address, share, None if is_last else NODE_TCP_SECONDS)
        except (TransportError, RemoteProtocolError) as error:
            if len(addresses) == 1:
                raise
            timeouts_only = timeouts_only and isinstance(error, TransportTimeout)
            reasons.append(str(error))
    failure = TransportTimeout if timeouts_only else ConnectError
    raise failure(f"{what}: no relay could be used: {'; '.join(reasons)}")
