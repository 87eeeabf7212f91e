"""Does every relay of a map do what clients need?  TLS, STUN, QUIC where the map has it, and packets through each node
and each pair.  Layer L3.

A latency says nothing about whether packets pass, so packets are sent: one to see it pass, a train of small ones for
the delay in queues, a burst for the bandwidth.  Nodes of a region mesh, so each pair is tried in both directions.
Relays with admission need keys that they admit (one key sends to itself, two also cross from node to node), or the
mesh key of the region, which passes admission everywhere.
Used by cli_probe.py; next hop: passage.py for the packets, stun.py, dial.py.
"""

import enum
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final

import trio

from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions, RelayAddress, dial_relay, has_way, open_relay_stream
from derp.client.passage import Passage, PassageError
from derp.client.region import region_addresses
from derp.client.stun import StunClient, open_stun
from derp.errors import ConnectError, RemoteProtocolError, TransportError
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPMap, DERPNode, DERPRegion
from derp.netcheck.plan import StunTarget, stun_target
from derp.transport.stream import mapped_errors

TLS_SECONDS: Final = 10.0
# Certificates of public authorities are renewed 30 days before their end: a week before it, the renewal is broken.
MIN_VALID_SECONDS: Final = 7 * 86_400.0
# One lost datagram is no fault of a relay; three in a row are.
STUN_TRIES: Final = 3
STUN_SECONDS: Final = 1.0
# A public map has 30 regions or so; more at a time would measure this machine's own network.
_REGIONS_AT_ONCE: Final = 8
# Of one region.  Both bounds together keep a map of any size below 100 sockets at a time.
_NODES_AT_ONCE: Final = 8


class ProbeKind(enum.Enum):
    """What was tried."""

    TLS = "tls"
    STUN = "stun"
    QUIC = "quic"
    PACKET = "packet"
    QUEUE_DELAY = "queue_delay"
    BANDWIDTH = "bandwidth"


class Outcome(enum.Enum):
    """SKIPPED: could not be tried from here, which says nothing about the relay."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One thing tried.  `to`: the node where packets come out, `node`: where they go in; for others `to` is empty.

    values: what was measured, by name, each with its unit: seconds, expires_at (Unix time), bytes_per_second,
    median_seconds, worst_seconds, sent_packets, lost_packets.
    """

    kind: ProbeKind
    region_id: int
    region: str
    node: str
    outcome: Outcome
    to: str = ""
    reason: str = ""
    family: int = 0  # 4 or 6 for STUN
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What to try.  keys: none (fresh ones), one, or two that the relays admit.  mesh_key: of all regions of the map.

    bandwidth_bytes, delay_packets: per pair of nodes; 0 leaves that probe out.  dial: as for other clients.
    """

    keys: Sequence[NodePrivate] = ()
    mesh_key: MeshKey | None = None
    bandwidth_bytes: int = 1_000_000
    delay_packets: int = 20
    min_valid_seconds: float = MIN_VALID_SECONDS
    dial: DialOptions = field(default_factory=DialOptions)


def is_good(results: Iterable[ProbeResult]) -> bool:
    """Whether something was tried, and nothing of it was bad."""
    outcomes = {result.outcome for result in results}
    return Outcome.GOOD in outcomes and Outcome.BAD not in outcomes


async def probe_map(derp_map: DERPMap, options: ProbeOptions | None = None) -> list[ProbeResult]:
    """Try everything once; never raises for what relays do.  Regions in the order of their ids."""
    options = options or ProbeOptions()
    results: dict[int, list[ProbeResult]] = {region_id: [] for region_id in derp_map.region_ids()}
    limiter = trio.CapacityLimiter(_REGIONS_AT_ONCE)

    async def probe(region: DERPRegion, into: list[ProbeResult]) -> None:
        async with limiter:
            into += await _probe_region(region, options)

    async with trio.open_nursery() as nursery:
        for region_id, into in results.items():
            nursery.start_soon(probe, derp_map.regions[region_id], into)
    return [result for region_id in results for result in results[region_id]]


async def _probe_region(region: DERPRegion, options: ProbeOptions) -> list[ProbeResult]:
    alone: list[list[ProbeResult]] = [[] for _ in region.nodes]
    limiter = trio.CapacityLimiter(_NODES_AT_ONCE)
    async with open_stun() as stun, trio.open_nursery() as nursery:

        async def probe(node: DERPNode, into: list[ProbeResult]) -> None:
            async with limiter:
                if not node.stun_only and not node.force_http:
                    into.append(await _probe_tls(region, node, options))
                    if node.quic_port:
                        into.append(await _probe_quic(region, node, options))
                into += await probe_stun(stun, region, node)

        for node, into in zip(region.nodes, alone, strict=True):
            nursery.start_soon(probe, node, into)
    results = [result for into in alone for result in into]
    # One after the other: the same two keys are used again, and a burst would spoil another one's delay.
    relays = [node for node in region.nodes if not node.stun_only]
    working: list[DERPNode] = []
    for node in relays:
        passed = await _probe_packets(region, node, node, options)
        results += passed
        if passed[0].outcome is Outcome.GOOD:
            working.append(node)
    for node in relays:
        for to in relays:
            if node is not to:
                results += await _probe_pair(region, node, to, working, options)
    return results


# --- one node ---


async def _probe_tls(region: DERPRegion, node: DERPNode, options: ProbeOptions) -> ProbeResult:
    draft = _draft(ProbeKind.TLS, region, node)
    address = region_addresses(_only(region, node))[0]
    started = trio.current_time()
    try:
        if not has_way(address, options.dial):
            return _without_way(draft, address)
        with mapped_errors(f"TLS with {address.label()} within {TLS_SECONDS:g} s", connecting=True):
            with trio.fail_after(TLS_SECONDS):
                stream, facts = await open_relay_stream(address, options.dial)
    except TransportError as error:
        return replace(draft, outcome=Outcome.BAD, reason=str(error))
    values = {"seconds": trio.current_time() - started}
    await trio.aclose_forcefully(stream)
    expires_at = facts.expires_at()
    if expires_at is None:
        return replace(draft, values=values)
    values["expires_at"] = expires_at
    left = expires_at - time.time()
    if left < options.min_valid_seconds:
        days = f"{left / 86_400:.1f} days"
        return replace(
            draft,
            outcome=Outcome.BAD,
            values=values,
            reason=f"its certificate expires in {days}: renew it, and see why that did not happen by itself",
        )
    return replace(draft, values=values)


async def _probe_quic(region: DERPRegion, node: DERPNode, options: ProbeOptions) -> ProbeResult:
    """Whether the relay takes DERP clients where the map says that it does: nodes that try it in vain lose time."""
    draft = _draft(ProbeKind.QUIC, region, node)
    if find_spec("aioquic") is None:
        return replace(draft, outcome=Outcome.SKIPPED, reason="cannot be tried from here: install tailnet-derp[quic]")
    address = region_addresses(_only(region, node))[0]
    started = trio.current_time()
    try:
        dial = replace(options.dial, only_quic=True)
        dialled = await dial_relay(address, dial, timeout_seconds=TLS_SECONDS)
    except TransportError as error:
        reason = f"{error}: is UDP port {node.quic_port} open, and --quic on? Else take QUICPort out of the map"
        return replace(draft, outcome=Outcome.BAD, reason=reason)
    values = {"seconds": trio.current_time() - started}
    await dialled.aclose()
    return replace(draft, values=values)


async def probe_stun(stun: StunClient, region: DERPRegion, node: DERPNode) -> list[ProbeResult]:
    """Ask one node by each family that the map gives it; empty where it has no STUN.  Never raises for what it does."""
    targets = [target for target in (stun_target(node, family) for family in (4, 6)) if target is not None]
    addresses: dict[StunTarget, tuple[Any, ...]] = {}
    failures: dict[StunTarget, ConnectError] = {}
    for target in targets:
        try:
            addresses[target] = await stun.resolve(target)
        except ConnectError as error:
            failures[target] = error
    results = []
    for target in targets:
        draft = replace(_draft(ProbeKind.STUN, region, node), family=target.family)
        if target in addresses:
            results.append(await _ask_stun(stun, draft, target, addresses[target]))
        elif addresses:
            # A name without an address of this family is no fault, as long as it has one of the other.
            reason = f"{target.host} has no IPv{target.family} address, and the map states none"
            results.append(replace(draft, outcome=Outcome.SKIPPED, reason=reason))
        else:
            results.append(replace(draft, outcome=Outcome.BAD, reason=str(failures[target])))
    return results


async def _ask_stun(stun: StunClient, draft: ProbeResult, target: StunTarget, address: tuple[Any, ...]) -> ProbeResult:
    for _ in range(STUN_TRIES):
        try:
            with trio.move_on_after(STUN_SECONDS), await stun.send(target.family, address) as answers:
                answer = await answers.receive()
                return replace(draft, values={"seconds": answer.seconds})
        except ConnectError as error:
            return replace(draft, outcome=Outcome.SKIPPED, reason=f"cannot be tried from here: {error}")
    return replace(
        draft,
        outcome=Outcome.BAD,
        reason=f"no answer to {STUN_TRIES} requests on UDP port {target.port}: is the port open, and STUN on?",
    )


# --- packets ---


async def _probe_pair(
    region: DERPRegion, node: DERPNode, to: DERPNode, working: Sequence[DERPNode], options: ProbeOptions
) -> list[ProbeResult]:
    draft = replace(_draft(ProbeKind.PACKET, region, node), to=to.name, outcome=Outcome.SKIPPED)
    broken = [one.name for one in (node, to) if one not in working]
    if broken:
        # What is wrong stands at the node itself; the mesh is not to blame, and each try would take 10 s.
        return [replace(draft, reason=f"{' and '.join(broken)} alone must be good first: see there")]
    if len(_keys(options)) == 1:
        return [replace(draft, reason="from node to node needs a second --key-file, or --mesh-psk-file")]
    return await _probe_packets(region, node, to, options)


async def _probe_packets(region: DERPRegion, node: DERPNode, to: DERPNode, options: ProbeOptions) -> list[ProbeResult]:
    draft = replace(_draft(ProbeKind.PACKET, region, node), to=to.name)
    if options.mesh_key is not None and (node.force_http or node.insecure_for_tests):
        reason = "without verified TLS somebody else could answer and get the mesh key: use --key-file for this node"
        return [replace(draft, outcome=Outcome.SKIPPED, reason=reason)]
    keys = _keys(options)
    try:
        address = region_addresses(_only(region, node))[0]
        if not has_way(address, options.dial):
            return [_without_way(draft, address)]
        if len(keys) == 1:
            async with _client(region, node, keys[0], options) as both:
                return await _measure(Passage(both, both, keys[0], keys[0]), draft, options)
        sender, receiver = keys
        async with _client(region, to, receiver, options) as far, _client(region, node, sender, options) as near:
            return await _measure(Passage(near, far, sender, receiver), draft, options)
    except (TransportError, RemoteProtocolError) as error:
        return [replace(draft, outcome=Outcome.BAD, reason=str(error))]


def _keys(options: ProbeOptions) -> list[NodePrivate]:
    """One or two; the mesh key passes admission, so that any key will do beside it."""
    given = list(options.keys[:2])
    if given and options.mesh_key is None:
        return given
    return [*given, NodePrivate.generate(), NodePrivate.generate()][:2]


def _client(
    region: DERPRegion, node: DERPNode, key: NodePrivate, options: ProbeOptions
) -> AbstractAsyncContextManager[DerpClient]:
    return open_derp_client(
        _only(region, node),
        key,
        mesh_key=options.mesh_key,
        is_prober=True,
        app_name="derp probe",
        options=options.dial,
    )


async def _measure(passage: Passage, draft: ProbeResult, options: ProbeOptions) -> list[ProbeResult]:
    try:
        seconds = await passage.first_packet()
    except PassageError as error:
        return [replace(draft, outcome=Outcome.BAD, reason=f"{error}: {_why_nothing_came(draft)}")]
    results = [replace(draft, values={"seconds": seconds})]
    if options.delay_packets:
        results.append(await _measure_delay(passage, draft, options.delay_packets))
    if options.bandwidth_bytes:
        results.append(await _measure_bandwidth(passage, draft, options.bandwidth_bytes))
    return results


def _why_nothing_came(draft: ProbeResult) -> str:
    node, to = draft.node, draft.to
    if node == to:
        return "the relay takes packets and gives none out"
    # A relay forwards to those whose clients it watches, and it watches whom it dials itself.
    return (
        f"{node} and {to} are not meshed in this direction: is {to} in the --mesh-with of {node}, can {node} reach it "
        "there, and have both the same --mesh-psk-file?"
    )


async def _measure_delay(passage: Passage, draft: ProbeResult, count: int) -> ProbeResult:
    draft = replace(draft, kind=ProbeKind.QUEUE_DELAY)
    delays = sorted(await passage.delays(count))
    values: dict[str, float] = {"sent_packets": count, "lost_packets": count - len(delays)}
    if delays:
        values |= {"median_seconds": delays[len(delays) // 2], "worst_seconds": delays[-1]}
    if len(delays) < count:
        reason = f"{count - len(delays)} of {count} small packets were lost although nothing else was sent"
        return replace(draft, outcome=Outcome.BAD, reason=reason, values=values)
    return replace(draft, values=values)


async def _measure_bandwidth(passage: Passage, draft: ProbeResult, size: int) -> ProbeResult:
    draft = replace(draft, kind=ProbeKind.BANDWIDTH)
    burst = await passage.burst(size)
    values: dict[str, float] = {
        "sent_packets": burst.sent_packets,
        "lost_packets": burst.sent_packets - burst.received_packets,
    }
    if burst.seconds > 0:
        values["bytes_per_second"] = burst.received_bytes / burst.seconds
    if burst.stalled:
        reason = f"only {burst.received_bytes} of {size} bytes arrived: the relay drops or stops, see its drop counters"
        return replace(draft, outcome=Outcome.BAD, reason=reason, values=values)
    return replace(draft, values=values)


# --- below ---


def _draft(kind: ProbeKind, region: DERPRegion, node: DERPNode) -> ProbeResult:
    code = region.region_code or str(region.region_id)
    return ProbeResult(kind, region.region_id, code, node.name, Outcome.GOOD)


def _without_way(draft: ProbeResult, address: RelayAddress) -> ProbeResult:
    stated = " and ".join(text for text in (address.ipv4, address.ipv6) if text not in ("", "none")) or address.host
    reason = f"cannot be tried from here: this machine has no route to {stated}"
    return replace(draft, outcome=Outcome.SKIPPED, reason=reason)


def _only(region: DERPRegion, node: DERPNode) -> DERPRegion:
    return replace(region, nodes=(node,))
