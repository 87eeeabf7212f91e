"""The messages of the Coordinate stream as the coordinator's brain takes and gives them.  Layer L1.

Requests are read with google's library as far as needed, responses are written by hand: both ways are the hot path.
From services/tailnet_rpc.py to coordinator/core.py, and back through services/hub.py.
"""

from collections.abc import Sequence
from typing import Any, Final

from tailnet.coordinator.messages import Request, Update
from tailnet.coordinator.nodes import Node
from tailnet.proto.generated import tailnet_pb2 as tailnet

_ID_FIELDS: Final = b"\x0a\x10"  # PeerUpdate.id, 16 bytes


def decode_request(payload: bytes) -> Request:
    """A serialized CoordinateRequest as the core takes it.  Raises DecodeError."""
    # Nearly every request is update_self alone: one field, which is a message of one field, the node.  Looking at the
    # two tags saves making the outer messages and asking them for what they do not hold: a third of the parsing.
    start = _only_field(payload, 0)
    start = _only_field(payload, start) if start else 0
    if start:
        return Request(node=node_value(tailnet.Node.FromString(payload[start:])))
    message = tailnet.CoordinateRequest.FromString(payload)
    request = Request()
    if message.HasField("update_self"):
        request.node = node_value(message.update_self.node)
    if message.HasField("add_tunnel"):
        request.add_tunnel = message.add_tunnel.id
    if message.HasField("remove_tunnel"):
        request.remove_tunnel = message.remove_tunnel.id
    if message.HasField("disconnect"):
        request.disconnect = True
    if message.ready_for_handshake:
        request.ready_for_handshake = [ready.id for ready in message.ready_for_handshake]
    return request


def _only_field(payload: bytes, at: int) -> int:
    """Where the content of field 1 begins, if nothing else lies from `at` to the end and it is below 16 KiB; else 0."""
    size = len(payload) - at
    if size >= 2 and payload[at] == 0x0A:
        if payload[at + 1] == size - 2 < 0x80:
            return at + 2
        if size >= 3 and payload[at + 1] & 0x7F | payload[at + 2] << 7 == size - 3 and payload[at + 1] >> 7:
            return at + 3 if payload[at + 2] < 0x80 else 0
    return 0


def node_value(node: Any) -> Node:
    """A Node message as the core takes it."""
    return Node(
        raw=node.SerializeToString(deterministic=True),
        key=node.key,
        disco=node.disco,
        preferred_derp=node.preferred_derp,
        addresses=tuple(node.addresses),
        allowed_ips=tuple(node.allowed_ips),
    )


def encode_updates(updates: Sequence[Update]) -> bytes:
    """A CoordinateResponse with these peer updates, byte for byte what google's library makes of them.

    By hand, because a node was serialized when it was received (`node_value`): to parse those bytes into a message
    that only wraps them, and to serialize them again, would cost as much as the whole rest of a delivery.
    """
    return b"".join([_encode_update(update) for update in updates])


def _encode_update(update: Update) -> bytes:
    tail = _TAILS.get((update.kind, update.reason)) or _tail(update.kind, update.reason)
    node = update.node
    if node is None:
        body = _ID_FIELDS + update.peer_id + tail
    else:
        raw = node.raw
        body = b"".join((_ID_FIELDS, update.peer_id, b"\x12", _varint(len(raw)), raw, tail))
    return b"\x0a" + _varint(len(body)) + body


# Kind and reason, encoded.  Reasons are a handful of the core's own words.
_TAILS: Final[dict[tuple[int, str], bytes]] = {}
_MAX_TAILS: Final = 64


def _tail(kind: int, reason: str) -> bytes:
    tail = b"\x18" + bytes((kind,))
    if reason:
        encoded = reason.encode()
        tail += b"\x22" + _varint(len(encoded)) + encoded
    if len(_TAILS) < _MAX_TAILS:
        _TAILS[kind, reason] = tail
    return tail


def encode_error(text: str) -> bytes:
    """A CoordinateResponse that holds only an error."""
    encoded = text.encode()
    return b"\x12" + _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)
