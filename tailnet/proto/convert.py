"""Between wire fields and the values the rest of the house speaks: ids, node keys, times, DERP maps.  Layer L1.

Reading raises MalformedField with the reason; the caller knows which peer sent it and what that costs the peer.
Next hop: coordinator/core.py judges nodes, services/derp_maps.py publishes maps.
"""

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from derp.errors import KeyFormatError
from derp.keys import NodePublic
from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from derp.text import error_text
from tailnet.errors import MalformedField
from tailnet.proto.generated import tailnet_pb2 as tailnet

ID_BYTES: Final = 16
# Go's binary form of a node public key: this prefix and the 32 raw bytes.  Genuine peers refuse anything else.
NODE_KEY_PREFIX: Final = b"np"

NANOS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def peer_id(raw: bytes) -> UUID:
    """The id in 16 raw bytes.  Raises MalformedField."""
    if len(raw) != ID_BYTES:
        raise MalformedField(f"an id has {ID_BYTES} bytes, got {len(raw)}")
    return UUID(bytes=raw)


def node_key_bytes(key: NodePublic) -> bytes:
    """The form of Node.key: 34 bytes."""
    return NODE_KEY_PREFIX + key.raw


def node_key(raw: bytes) -> NodePublic:
    """Read Node.key.  Raises MalformedField."""
    if not raw.startswith(NODE_KEY_PREFIX):
        raise MalformedField("a node key starts with the two bytes 'np'")
    try:
        return NodePublic(raw[len(NODE_KEY_PREFIX) :])
    except KeyFormatError as error:
        raise MalformedField(str(error)) from None


def timestamp(moment: datetime) -> Timestamp:
    """A moment with its zone, to the microsecond.  Raises MalformedField without a zone."""
    if moment.tzinfo is None:
        raise MalformedField("a moment without a zone is ambiguous: give it tzinfo")
    delta = moment - _EPOCH
    return Timestamp(seconds=delta.days * 86400 + delta.seconds, nanos=delta.microseconds * 1000)


def moment(stamp: Timestamp) -> datetime:
    """A timestamp as a moment in UTC, cut to the microsecond.  Raises MalformedField outside the years 1 to 9999."""
    if not 0 <= stamp.nanos < NANOS:
        raise MalformedField(f"a timestamp has 0 to {NANOS - 1} nanos, got {stamp.nanos}")
    try:
        return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
    except OverflowError:
        raise MalformedField(f"timestamp {stamp.seconds} s is outside the years 1 to 9999") from None


def duration_from_nanos(nanos: int) -> Duration:
    """Nanoseconds as Go's durations; both parts carry the sign."""
    seconds, rest = divmod(abs(nanos), NANOS)
    sign = -1 if nanos < 0 else 1
    return Duration(seconds=sign * seconds, nanos=sign * rest)


def duration(seconds: float) -> Duration:
    """Seconds as a duration, to the nanosecond."""
    return duration_from_nanos(round(seconds * NANOS))


def derp_map_message(derp_map: DERPMap) -> tailnet.DERPMap:
    """A map for StreamDERPMaps and Manifest.

    home_params is always set, since genuine clients dereference it unchecked.  What the wire has no field for is
    left out; no_measure_no_home implies avoid, the nearest thing it has.  Raises MalformedField on numbers that do
    not fit the wire's 32 bits.
    """
    message = tailnet.DERPMap()
    message.home_params.SetInParent()
    if derp_map.home_params is not None:
        message.home_params.region_score.update(derp_map.home_params.region_score)
    for key, region in derp_map.regions.items():
        target = message.regions[key]
        target.region_id = region.region_id
        target.embedded_relay = region.embedded_relay
        target.region_code = region.region_code
        target.region_name = region.region_name
        target.avoid = region.avoid or region.no_measure_no_home
        target.nodes.extend(_node_message(node) for node in region.nodes)
    return message


def _node_message(node: DERPNode) -> tailnet.DERPMap.Region.Node:
    try:
        return tailnet.DERPMap.Region.Node(
            name=node.name,
            region_id=node.region_id,
            host_name=node.host_name,
            cert_name=node.cert_name,
            ipv4=node.ipv4,
            ipv6=node.ipv6,
            stun_port=node.stun_port,
            stun_only=node.stun_only,
            derp_port=node.derp_port,
            insecure_for_tests=node.insecure_for_tests,
            force_http=node.force_http,
            stun_test_ip=node.stun_test_ip,
            can_port_80=node.can_port_80,
            quic_port=node.quic_port,
        )
    except ValueError as error:
        raise MalformedField(f"DERP node {node.name!r}: {error_text(error)}") from None


def derp_map(message: tailnet.DERPMap) -> DERPMap:
    """Read a map from the wire."""
    params = DERPHomeParams(dict(message.home_params.region_score)) if message.HasField("home_params") else None
    return DERPMap(
        regions={key: _region(message.regions[key]) for key in sorted(message.regions)},
        home_params=params,
    )


def _region(message: tailnet.DERPMap.Region) -> DERPRegion:
    return DERPRegion(
        region_id=message.region_id,
        region_code=message.region_code,
        region_name=message.region_name,
        avoid=message.avoid,
        embedded_relay=message.embedded_relay,
        nodes=tuple(_node(node) for node in message.nodes),
    )


def _node(message: tailnet.DERPMap.Region.Node) -> DERPNode:
    return DERPNode(
        name=message.name,
        region_id=message.region_id,
        host_name=message.host_name,
        cert_name=message.cert_name,
        ipv4=message.ipv4,
        ipv6=message.ipv6,
        stun_port=message.stun_port,
        stun_only=message.stun_only,
        derp_port=message.derp_port,
        insecure_for_tests=message.insecure_for_tests,
        force_http=message.force_http,
        stun_test_ip=message.stun_test_ip,
        can_port_80=message.can_port_80,
        quic_port=message.quic_port,
    )
