"""Frames between replicas as bytes (layer L1): msgpack `[seq, [message, ...]]`, a message is `[code, field, ...]`.

Codes that this version does not know, and fields behind those that it knows, are skipped: a later version adds fields
at the end, and never changes what one means.  Everything else that is not as written here raises RemoteProtocolError,
and ends the session.  A message is encoded once, for however many replicas; replica/pair.py joins them to frames, and
replica/proof.py seals those.
"""

from collections.abc import Callable, Iterable, Sequence
from struct import pack, unpack
from typing import Any, Final

import msgpack

from tailnet.coordinator.messages import Kind
from tailnet.coordinator.nodes import Node
from tailnet.errors import LocalProtocolError, MalformedField, RemoteProtocolError
from tailnet.replica.messages import (
    MAX_NODE_BYTES,
    Beat,
    Bye,
    Came,
    Claim,
    Gone,
    Hello,
    Known,
    Message,
    NodeIs,
    Open,
    Ready,
    ReplicaID,
    Shut,
    Sync,
    Synced,
    Tell,
    Want,
    Who,
)
from tailnet.replica.proof import SEAL_BYTES
from tailnet.types import PEER_ID_BYTES, PeerID

# Everything that one step of the reactor made for one replica, or a part of it; its seal included.
MAX_FRAME_BYTES: Final = 64 * 1024
# Around the messages: two array headers (5 bytes the longest), the number (9) and the seal (16).
FRAME_OVERHEAD_BYTES: Final = 1 + 9 + 5 + SEAL_BYTES
# Names of clusters, replicas, topics and reasons are words; a sentence at the most.
MAX_TEXT_LENGTH: Final = 256
# Keys, nonces and digests have 16 to 34 bytes.
MAX_SHORT_BYTES: Final = 128
MAX_NUMBER: Final = (1 << 63) - 1
_EPOCH_BYTES: Final = 8
_FRAME_START: Final = b"\x92"  # an array of two
# Kept, as each one begins with a buffer of 256 KiB; between calls it holds nothing.
_packer: Final = msgpack.Packer()


def encode_message(message: Message) -> bytes:
    """One message; the same bytes go to every replica that is told.

    Raises LocalProtocolError for one that no receiver would take.
    """
    encoded: bytes = _packer.pack(_FIELDS[type(message)](message))
    if len(encoded) > MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES:
        raise LocalProtocolError(f"a {type(message).__name__} of {len(encoded)} bytes fits into no frame")
    return encoded


def encode_frame(seq: int, messages: Sequence[bytes]) -> bytes:
    """A frame of encoded messages."""
    return b"".join((_FRAME_START, _packer.pack(seq), _packer.pack_array_header(len(messages)), *messages))


def decode_frame(frame: bytes) -> tuple[int, list[Message]]:
    """The number and the messages that this version knows.  Raises RemoteProtocolError."""
    if len(frame) > MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"a frame has {len(frame)} bytes, limit {MAX_FRAME_BYTES}")
    try:
        outer = msgpack.unpackb(frame)
    except ValueError as error:  # what msgpack raises, and what text that is no UTF-8 does
        raise RemoteProtocolError(f"a frame that is no msgpack ({type(error).__name__})") from error
    if type(outer) is not list or len(outer) < 2 or type(outer[1]) is not list:
        raise RemoteProtocolError("a frame is [seq, [message, ...]]")
    messages: list[Message] = []
    for one in outer[1]:
        if type(one) is not list or not one:
            raise RemoteProtocolError("a message is [code, field, ...]")
        code = one[0]
        read = _READERS.get(code) if type(code) is int else None
        if read is None:
            _number(code)
            continue
        try:
            messages.append(read(one))
        except (IndexError, MalformedField, ValueError) as error:
            raise RemoteProtocolError(f"message {one[0]} is malformed ({type(error).__name__})") from error
    return _number(outer[0]), messages


# Writing: the code of each message, and its fields.


def _node_fields(node: Node | None) -> list[Any] | None:
    return None if node is None else [node.raw, node.key, node.disco, node.preferred_derp]


def _packed_ids(peer_ids: Iterable[bytes]) -> bytes:
    return b"".join(peer_ids)


def _packed_epochs(claims: Sequence[Claim]) -> bytes:
    return pack(f">{len(claims)}Q", *(claim.epoch for claim in claims))


_FIELDS: Final[dict[type, Callable[[Any], list[Any]]]] = {
    Hello: lambda m: [
        *(0, m.lowest_version, m.highest_version, m.cluster, m.replica, m.name, m.clock, m.peer_count),
        *(m.capabilities, m.nonce, m.echo, m.program),
    ],
    Sync: lambda m: [1, [list(want) for want in m.wants], m.last, [list(known) for known in m.known]],
    Synced: lambda m: [2],
    Came: lambda m: [3, _packed_ids(claim.peer_id for claim in m.claims), _packed_epochs(m.claims)],
    Who: lambda m: [4, _packed_ids(m.peer_ids)],
    Open: lambda m: [5, m.src, m.epoch, m.dst, m.version, _node_fields(m.node)],
    Shut: lambda m: [6, m.src, m.epoch, m.dst, int(m.kind)],
    NodeIs: lambda m: [7, m.peer_id, m.epoch, m.version, _node_fields(m.node)],
    Gone: lambda m: [8, m.peer_id, m.epoch, int(m.kind), m.reason],
    Ready: lambda m: [9, m.src, m.epoch, _packed_ids(m.dsts)],
    Beat: lambda m: [10, m.clock, m.sent_seq, m.heard_seq, m.peer_count, m.load, m.map_digest, m.wall],
    Tell: lambda m: [11, m.topic, m.payload],
    Bye: lambda m: [12, m.seconds],
}
KINDS: Final = tuple(_FIELDS)  # of messages


# Reading: one message, its code in front.


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise RemoteProtocolError("a number is out of its range, or is none")
    return value


def _numbers(values: tuple[Any, ...]) -> tuple[int, ...]:
    """At a third of what a call for each costs."""
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_NUMBER:
            raise RemoteProtocolError("a number is out of its range, or is none")
    return values


def _bytes(value: Any, limit: int = MAX_SHORT_BYTES) -> bytes:
    if type(value) is not bytes or len(value) > limit:
        raise RemoteProtocolError(f"expected at most {limit} bytes")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT_LENGTH:
        raise RemoteProtocolError(f"expected a text of at most {MAX_TEXT_LENGTH} characters")
    return value


def _id(value: Any) -> PeerID:
    return PeerID(_bytes(value))


def _ids(value: Any) -> tuple[PeerID, ...]:
    packed = _bytes(value, MAX_FRAME_BYTES)
    if len(packed) % PEER_ID_BYTES:
        raise RemoteProtocolError(f"ids have {PEER_ID_BYTES} bytes each, got {len(packed)} in all")
    return tuple(PeerID(packed[at : at + PEER_ID_BYTES]) for at in range(0, len(packed), PEER_ID_BYTES))


def _claims(ids: Any, epochs: Any) -> tuple[Claim, ...]:
    peer_ids = _ids(ids)
    packed = _bytes(epochs, MAX_FRAME_BYTES)
    if len(packed) != _EPOCH_BYTES * len(peer_ids):
        raise RemoteProtocolError(f"{len(peer_ids)} ids and {len(packed)} bytes of epochs")
    numbers = unpack(f">{len(peer_ids)}Q", packed)
    return tuple(Claim(peer_id, _number(epoch)) for peer_id, epoch in zip(peer_ids, numbers, strict=True))


def _node(value: Any) -> Node | None:
    if value is None:
        return None
    if type(value) is not list:
        raise RemoteProtocolError("a node is [bytes, key, disco, preferred_derp]")
    raw, key, disco, home = value[0], value[1], value[2], value[3]
    if type(home) is not int or not -(1 << 31) <= home < 1 << 31:
        raise RemoteProtocolError("preferred_derp has 32 bits")
    # Whose addresses it has was judged where it came in.
    return Node(_bytes(raw, MAX_NODE_BYTES), _bytes(key), _text(disco), home, (), ())


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise RemoteProtocolError("expected a list")
    return value


def _want(value: Any) -> Want:
    want = _list(value)
    return Want(_id(want[0]), _number(want[1]), _id(want[2]), _number(want[3]), _number(want[4]), _number(want[5]))


def _known(value: Any) -> Known:
    known = _list(value)
    return Known(_id(known[0]), _number(known[1]), _number(known[2]))


def _hello(m: list[Any]) -> Hello:
    return Hello(
        *(_number(m[1]), _number(m[2]), _text(m[3]), ReplicaID(_bytes(m[4])), _text(m[5])),
        *(_number(m[6]), _number(m[7]), _number(m[8]), _bytes(m[9]), _bytes(m[10])),
        program=_text(m[11]) if len(m) > 11 else "",  # the first releases do not say it
    )


def _sync(m: list[Any]) -> Sync:
    if type(m[2]) is not bool:
        raise RemoteProtocolError("`last` of a Sync is true or false")
    return Sync(tuple(map(_want, _list(m[1]))), tuple(map(_known, _list(m[3]))), m[2])


def _beat(m: list[Any]) -> Beat:
    wall = m[7] if len(m) > 7 else 0  # the first releases do not say it
    clock, sent_seq, heard_seq, peer_count, load, wall = _numbers((*m[1:6], wall))
    return Beat(clock, sent_seq, heard_seq, peer_count, load, _bytes(m[6]), wall)


def _leaving(value: Any) -> Kind:
    kind = Kind(_number(value))
    if kind not in (Kind.DISCONNECTED, Kind.LOST):
        raise RemoteProtocolError(f"nobody goes by {kind.name}")
    return kind


_READERS: Final[dict[int, Callable[[list[Any]], Message]]] = {
    0: _hello,
    1: _sync,
    2: lambda m: Synced(),
    3: lambda m: Came(_claims(m[1], m[2])),
    4: lambda m: Who(_ids(m[1])),
    5: lambda m: Open(_id(m[1]), _number(m[2]), _id(m[3]), _number(m[4]), _node(m[5])),
    6: lambda m: Shut(_id(m[1]), _number(m[2]), _id(m[3]), _leaving(m[4])),
    7: lambda m: NodeIs(_id(m[1]), _number(m[2]), _number(m[3]), _node(m[4])),
    8: lambda m: Gone(_id(m[1]), _number(m[2]), _leaving(m[3]), _text(m[4])),
    9: lambda m: Ready(_id(m[1]), _number(m[2]), _ids(m[3])),
    10: _beat,
    11: lambda m: Tell(_text(m[1]), _bytes(m[2], MAX_FRAME_BYTES)),
    12: lambda m: Bye(_number(m[1])),
}
