"""Requests as the core takes them, whatever way they were parsed; responses byte for byte as google's library would."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.messages import Kind, Request, Update
from tailnet.coordinator.nodes import Node
from tailnet.proto.coordination import decode_request, encode_error, encode_updates, node_value
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.types import PeerID
from tests.support.seeds import peer_id

MAIN = peer_id("main")

NODES = st.builds(
    tailnet.Node,
    id=st.integers(-(2**63), 2**63 - 1),
    key=st.binary(max_size=40),
    disco=st.text(max_size=80),
    preferred_derp=st.integers(-1, 1000),
    derp_latency=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=4),
    addresses=st.lists(st.text(max_size=20), max_size=3),
    endpoints=st.lists(st.text(max_size=20), max_size=3),
    short_description=st.sampled_from(["", "x" * 60, "x" * 110, "x" * 16_200, "x" * 16_380, "x" * 17_000]),
)
IDS = st.binary(max_size=17)
REQUESTS = st.builds(
    tailnet.CoordinateRequest,
    update_self=st.none() | st.builds(lambda node: tailnet.CoordinateRequest.UpdateSelf(node=node), st.none() | NODES),
    add_tunnel=st.none() | st.builds(lambda id: tailnet.CoordinateRequest.Tunnel(id=id), IDS),
    remove_tunnel=st.none() | st.builds(lambda id: tailnet.CoordinateRequest.Tunnel(id=id), IDS),
    disconnect=st.none() | st.just(tailnet.CoordinateRequest.Disconnect()),
    ready_for_handshake=st.lists(
        st.builds(lambda id: tailnet.CoordinateRequest.ReadyForHandshake(id=id), IDS), max_size=3
    ),
)


def slowly(message: tailnet.CoordinateRequest) -> Request:
    """The plain reading of a message, field by field."""
    return Request(
        node=node_value(message.update_self.node) if message.HasField("update_self") else None,
        add_tunnel=message.add_tunnel.id if message.HasField("add_tunnel") else None,
        remove_tunnel=message.remove_tunnel.id if message.HasField("remove_tunnel") else None,
        disconnect=message.HasField("disconnect"),
        ready_for_handshake=[each.id for each in message.ready_for_handshake],
    )


def same(request: Request, other: Request) -> bool:
    def fields(value: Request) -> tuple[Any, ...]:
        node = value.node
        return (
            None if node is None else tuple(getattr(node, name) for name in node.__slots__),
            value.add_tunnel,
            value.remove_tunnel,
            value.disconnect,
            list(value.ready_for_handshake),
        )

    return fields(request) == fields(other)


@given(REQUESTS | NODES.map(lambda node: tailnet.CoordinateRequest(update_self={"node": node})))
def test_every_request_is_read_the_same_by_the_short_way(message: tailnet.CoordinateRequest) -> None:
    assert same(decode_request(message.SerializeToString()), slowly(message))


@given(st.binary(max_size=40) | st.builds(lambda tail: b"\x0a" + tail, st.binary(max_size=40)))
def test_every_other_bytes_are_judged_as_googles_library_does(payload: bytes) -> None:
    try:
        expected = slowly(tailnet.CoordinateRequest.FromString(payload))
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_request(payload)
        return
    assert same(decode_request(payload), expected)


def test_lengths_that_lie_are_not_taken_at_their_word() -> None:
    """The short way looks at one or two bytes of a length; these go on, so that the real length is another."""
    node = tailnet.Node(short_description="x" * 124).SerializeToString()
    assert len(node) == 126
    one_byte = b"\x0a\x80" + b"\x0a\x7e" + node
    node = tailnet.Node(short_description="x" * 16_382).SerializeToString()
    assert len(node) == 16_385
    inner = b"\x0a" + bytes([len(node) & 0x7F | 0x80, len(node) >> 7]) + node
    two_bytes = b"\x0a" + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner
    for payload in (one_byte, two_bytes):
        with pytest.raises(DecodeError):
            decode_request(payload)


def test_equal_nodes_are_equal_bytes_whatever_the_order_of_maps() -> None:
    one = tailnet.Node(derp_latency={"a": 1.0, "b": 2.0})
    other = tailnet.Node(derp_latency={"b": 2.0, "a": 1.0})
    assert node_value(one).raw == node_value(other).raw


def test_unknown_fields_of_newer_peers_travel_on() -> None:
    newer = tailnet.Node(id=1).SerializeToString() + b"\xf8\x07\x2a"  # field 127, a varint
    request = decode_request(b"\x0a" + bytes([len(newer) + 2]) + b"\x0a" + bytes([len(newer)]) + newer)
    assert request.node is not None
    assert request.node.raw.endswith(b"\xf8\x07\x2a")


def node_of(raw: bytes) -> Node:
    return Node(raw, b"", "", 0, (), ())


MESSAGES = st.builds(
    tailnet.Node,
    id=st.integers(-(2**63), 2**63 - 1),
    key=st.binary(max_size=40),
    disco=st.text(max_size=200),
    preferred_derp=st.integers(-(2**31), 2**31 - 1),
    endpoints=st.lists(st.text(max_size=40), max_size=6),
    short_description=st.sampled_from(["", "x" * 100, "y" * 127, "z" * 20_000]),
)
UPDATES = st.builds(
    Update,
    st.binary(min_size=16, max_size=16).map(PeerID),
    st.sampled_from(Kind),
    st.none() | MESSAGES.map(lambda message: node_of(message.SerializeToString(deterministic=True))),
    st.text(max_size=200),
)


@given(st.lists(UPDATES, max_size=5))
def test_updates_are_the_bytes_of_googles_library(updates: list[Update]) -> None:
    expected = tailnet.CoordinateResponse()
    for update in updates:
        added = expected.peer_updates.add(id=bytes(update.peer_id), kind=int(update.kind), reason=update.reason)
        if update.node is not None:
            added.node.ParseFromString(update.node.raw)
            added.node.SetInParent()
    assert encode_updates(updates) == expected.SerializeToString(deterministic=True)


def test_lengths_around_the_steps_of_varints() -> None:
    for size in (*range(140), *range(16_300, 16_400), 3_000_000):
        message = tailnet.Node(short_description="x" * size)
        update = Update(MAIN, Kind.NODE, node_of(message.SerializeToString()), "node update")
        [read] = tailnet.CoordinateResponse.FromString(encode_updates([update])).peer_updates
        assert (read.id, read.node, read.kind, read.reason) == (MAIN, message, Kind.NODE, "node update")


@given(st.text(max_size=300))
def test_errors_are_the_bytes_of_googles_library(text: str) -> None:
    expected = tailnet.CoordinateResponse(error=text).SerializeToString()
    assert tailnet.CoordinateResponse.FromString(encode_error(text)).error == text
    assert not text or encode_error(text) == expected
