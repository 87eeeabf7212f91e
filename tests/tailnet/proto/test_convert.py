"""Conversions: round trips, the forms genuine peers insist on, and fields that make no sense."""

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from derp.keys import NodePublic
from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from tailnet.errors import MalformedField
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet

ID_TEXT = "aaaaaaaa-aaaa-4aaa-aaaa-123456789abc"
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
TEXT = st.text(max_size=12)


@given(st.uuids())
def test_ids_round_trip(value: uuid.UUID) -> None:
    assert convert.peer_id(value.bytes) == value


@pytest.mark.parametrize("raw", [b"", b"\0" * 15, b"\0" * 17, ID_TEXT.encode()])
def test_ids_of_other_lengths_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedField, match=f"16 bytes, got {len(raw)}"):
        convert.peer_id(raw)


@given(st.binary(min_size=32, max_size=32))
def test_node_keys_round_trip(raw: bytes) -> None:
    wire = convert.node_key_bytes(NodePublic(raw))
    assert wire == b"np" + raw
    assert convert.node_key(wire) == NodePublic(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"np", b"\0" * 34, b"\0" * 32, b"np" + b"\0" * 31, b"np" + b"\0" * 33, b"nP" + b"\0" * 32]
)
def test_node_keys_in_other_forms_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedField, match="node"):
        convert.node_key(raw)


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_round_trip(value: datetime) -> None:
    stamp = convert.timestamp(value)
    assert convert.moment(stamp) == value
    # The package's own conversion is the second opinion.
    assert stamp.ToDatetime(UTC) == value


def test_moments_of_other_zones_are_the_same_instant() -> None:
    there = datetime(2024, 9, 1, 12, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert convert.timestamp(there) == Timestamp(seconds=1725172200)


def test_a_moment_without_zone_is_refused() -> None:
    with pytest.raises(MalformedField, match="tzinfo"):
        convert.timestamp(datetime(2024, 1, 1))


@pytest.mark.parametrize(
    "stamp",
    [
        Timestamp(seconds=(1 << 63) - 1),
        Timestamp(seconds=-(1 << 63)),
        Timestamp(seconds=253402300800),
        Timestamp(nanos=-1),
        Timestamp(nanos=1_000_000_000),
    ],
)
def test_senseless_timestamps_are_refused(stamp: Timestamp) -> None:
    with pytest.raises(MalformedField, match="timestamp"):
        convert.moment(stamp)


def test_gos_zero_time_is_the_first_moment() -> None:
    assert convert.moment(Timestamp(seconds=-62135596800)) == datetime.min.replace(tzinfo=UTC)


@given(st.integers(-(10**18), 10**18))
def test_durations_round_trip(nanos: int) -> None:
    assert convert.duration_from_nanos(nanos).ToNanoseconds() == nanos


def test_durations_in_seconds() -> None:
    assert convert.duration(1.5) == Duration(seconds=1, nanos=500_000_000)
    assert convert.duration(-0.25) == Duration(nanos=-250_000_000)


NODES = st.builds(
    DERPNode,
    name=TEXT,
    region_id=INT32,
    host_name=TEXT,
    cert_name=TEXT,
    ipv4=TEXT,
    ipv6=TEXT,
    stun_port=INT32,
    stun_only=st.booleans(),
    derp_port=INT32,
    insecure_for_tests=st.booleans(),
    force_http=st.booleans(),
    stun_test_ip=TEXT,
    can_port_80=st.booleans(),
    quic_port=INT32,
)
REGIONS = st.builds(
    DERPRegion,
    region_id=INT32,
    region_code=TEXT,
    region_name=TEXT,
    avoid=st.booleans(),
    embedded_relay=st.booleans(),
    nodes=st.lists(NODES, max_size=2).map(tuple),
)
SCORES = st.dictionaries(INT32, st.floats(allow_nan=False), max_size=3)


@given(st.dictionaries(INT32, REGIONS, max_size=3), SCORES)
def test_derp_maps_round_trip(regions: dict[int, DERPRegion], scores: dict[int, float]) -> None:
    value = DERPMap(regions=regions, home_params=DERPHomeParams(scores))
    wire = convert.derp_map_message(value).SerializeToString()
    assert convert.derp_map(tailnet.DERPMap.FromString(wire)) == value


def test_home_params_are_always_on_the_wire() -> None:
    # Genuine clients dereference them without a check.
    assert convert.derp_map_message(DERPMap()).SerializeToString() == b"\x0a\x00"


def test_no_measure_no_home_travels_as_avoid() -> None:
    message = convert.derp_map_message(DERPMap({7: DERPRegion(region_id=7, no_measure_no_home=True)}))
    assert message.regions[7].avoid


def test_a_port_that_does_not_fit_names_its_node() -> None:
    broken = DERPMap({1: DERPRegion(region_id=1, nodes=(DERPNode(name="1a", derp_port=1 << 31),))})
    with pytest.raises(MalformedField, match="'1a'"):
        convert.derp_map_message(broken)
