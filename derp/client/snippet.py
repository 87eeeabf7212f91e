"""A DERP map for a relay that is running: what it really answers to, not what somebody believes.  Layer L3.

Trust, STUN and DERP are each tried as a client would, with the very map that is about to be given out.
Used by `derp map snippet`.  Next hop: dial.py, stun.py, mapsource.py.
"""

from dataclasses import dataclass, replace
from typing import Final

import trio

from derp.client.client import open_derp_client
from derp.client.dial import DialOptions, RelayAddress, dial_relay, open_relay_stream
from derp.client.mapsource import map_of_relay
from derp.client.region import region_addresses
from derp.client.stun import open_stun
from derp.config.load import is_local
from derp.errors import ConnectError, RemoteProtocolError, TransportError
from derp.keys import NodePrivate, NodePublic
from derp.map import DEFAULT_DERP_PORT, STUN_DISABLED, DERPMap, DERPNode, DERPRegion
from derp.netcheck.lint import errors, lint
from derp.netcheck.plan import stun_target
from derp.transport.stream import mapped_errors

CONNECT_SECONDS: Final = 10.0
# Three requests a second apart: one lost datagram must not switch STUN off in a map.
_STUN_TRIES: Final = 3
_STUN_SECONDS: Final = 1.0
# For a handshake whose first packets are lost, which are sent again after 0.2, 0.6 and 1.4 s.
_QUIC_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Snippet:
    """A map of one relay that works from here, and what its reader should know."""

    derp_map: DERPMap
    notes: tuple[str, ...]


async def make_snippet(
    base: DERPMap, private_key: NodePrivate | None = None, options: DialOptions | None = None
) -> Snippet:
    """Fill in what the relay of `base` (see map_of_relay) leaves open: CertName, and STUNPort -1 if none answers.

    Raises ConnectError or TransportTimeout when no client could use the relay, whatever the map says: nothing answers,
    TLS fails, or what answers is no relay.
    """
    options = options or DialOptions()
    (region,) = base.regions.values()
    (node,) = region.nodes
    notes: list[str] = []
    if is_local(node.host_name):
        notes.append(f"{node.host_name} leads to the relay from this machine only: give the URL that others will use")
    if node.force_http:
        notes.append(
            "plain HTTP: only Coder's clients read ForceHTTP, all others speak TLS; give the relay a certificate "
            "(--cert-mode)"
        )
    elif node.cert_name:
        await _shake_hands(region, node, options)
    else:
        node = await _with_trust(region, node, options, notes)
    await _upgrade(replace(region, nodes=(node,)), options)
    node = await _with_quic(await _with_stun(node, notes), region, options, notes)
    region = replace(region, nodes=(node,))
    await _log_in(region, private_key, options, notes)
    derp_map = replace(base, regions={region.region_id: region})
    # What this machine can use others may not: see netcheck/lint.py.
    notes += [f"mistake: {mistake}" for mistake in errors(lint(derp_map.to_json()))]
    return Snippet(derp_map, tuple(notes))


def snippet_base(url: str, *, pin: str, stun_port: int, region_id: int, code: str, name: str) -> DERPMap:
    """What the URL and the operator say.  Raises ConfigError."""
    return map_of_relay(url, pin=pin, stun_port=stun_port, region_id=region_id, code=code, name=name)


async def _with_trust(region: DERPRegion, node: DERPNode, options: DialOptions, notes: list[str]) -> DERPNode:
    """The node as it is if its certificate is trusted here, else with the pin of the certificate it shows."""
    try:
        await _shake_hands(region, node, options)
    except ConnectError as error:
        refused = error
    else:
        return node
    pin = await _shake_hands(region, replace(node, insecure_for_tests=True), options)
    pinned = replace(node, cert_name=pin)
    # A pin does not heal everything: an expired certificate, another name, a chain behind it.
    await _shake_hands(region, pinned, options)
    notes.append(
        f"its certificate is pinned, because this machine does not trust it ({refused}); nobody vouches for what was "
        "seen just now: compare the pin with the one that the relay printed when it started"
    )
    return pinned


async def _shake_hands(region: DERPRegion, node: DERPNode, options: DialOptions) -> str:
    """TLS once; the pin of the leaf."""
    address: RelayAddress = region_addresses(replace(region, nodes=(node,)))[0]
    with mapped_errors(f"TLS with {address.label()}", connecting=True), trio.fail_after(CONNECT_SECONDS):
        stream, facts = await open_relay_stream(address, options)
    await trio.aclose_forcefully(stream)
    return facts.leaf_pin()


async def _with_stun(node: DERPNode, notes: list[str]) -> DERPNode:
    targets = [target for family in (4, 6) if (target := stun_target(node, family)) is not None]
    async with open_stun() as stun:
        for _ in range(_STUN_TRIES):
            for target in targets:
                with trio.move_on_after(_STUN_SECONDS):
                    try:
                        await stun.ask(target)
                    except TransportError:
                        continue
                    return node
    if targets:
        notes.append(
            f"no STUN answer on UDP port {targets[0].port}, so the map says that there is none (STUNPort -1): open the "
            "port, or name another with --stun-port"
        )
    return replace(node, stun_port=STUN_DISABLED)


async def _with_quic(node: DERPNode, region: DERPRegion, options: DialOptions, notes: list[str]) -> DERPNode:
    """With QUICPort if DERP over QUIC answers beside the TCP port.  Few relays have it, so nobody is told if not."""
    if node.force_http:
        return node
    node_with = replace(node, quic_port=node.derp_port or DEFAULT_DERP_PORT)
    address = region_addresses(replace(region, nodes=(node_with,)))[0]
    try:
        dialled = await dial_relay(address, replace(options, only_quic=True), timeout_seconds=_QUIC_SECONDS)
    except TransportError:
        return node
    await trio.aclose_forcefully(dialled.stream)
    notes.append("DERP over QUIC answers there too (QUICPort): genuine clients pass over it, ours try it first")
    return node_with


async def _upgrade(region: DERPRegion, options: DialOptions) -> None:
    """Raises ConnectError if somebody else answers there than a relay."""
    address = region_addresses(region)[0]
    try:
        dialled = await dial_relay(address, options, timeout_seconds=CONNECT_SECONDS)
    except ConnectError as error:
        raise ConnectError(f"no relay answers at {address.label()}: {error}") from error
    await trio.aclose_forcefully(dialled.stream)


async def _log_in(region: DERPRegion, private_key: NodePrivate | None, options: DialOptions, notes: list[str]) -> None:
    private = private_key or NodePrivate.generate()
    try:
        async with open_derp_client(region, private, options=options, is_prober=True, app_name="derp map") as client:
            notes.append(f"the relay is {NodePublic(client.server_key)}")
    except (TransportError, RemoteProtocolError) as error:
        who = "the key of --key-file" if private_key else "a key that nobody knows"
        hint = "" if private_key else "; to come as a client that it admits, name one with --key-file"
        notes.append(f"it is a relay, but {who} was turned away: {error}{hint}")
