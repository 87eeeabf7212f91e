"""Frames between replicas: byte by byte, with what a later version adds, and with whatever a stranger sends."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.messages import Kind
from tailnet.coordinator.nodes import Node
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.replica.codec import (
    FRAME_OVERHEAD_BYTES,
    MAX_FRAME_BYTES,
    MAX_NUMBER,
    MAX_SHORT_BYTES,
    MAX_TEXT_LENGTH,
    decode_frame,
    encode_frame,
    encode_message,
)
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
from tailnet.types import PeerID

A, B = PeerID(b"A" * 16), PeerID(b"B" * 16)
NODE = Node(b"\x08\x01", b"np" + bytes(32), "discokey:" + "0" * 64, -3, (), ())
DISCO = NODE.disco.encode().hex()
# Each message once, with its bytes: what a release wrote, the next one has to read.
MESSAGES: dict[str, tuple[Message, str]] = {
    "hello": (
        Hello(1, 2, "c", ReplicaID(b"12345678"), "n", 5, 6, 7, b"\1", b"", "r"),
        "9c000102a163c4083132333435363738a16e050607c40101c400a172",
    ),
    "sync": (
        Sync((Want(A, 1, B, 2, 3, 4),), (Known(B, 5, 6),), True),
        "94019196c410" + "41" * 16 + "01c410" + "42" * 16 + "020304c39193c410" + "42" * 16 + "0506",
    ),
    "synced": (Synced(), "9102"),
    "came": (Came((Claim(A, 258),)), "9303c410" + "41" * 16 + "c4080000000000000102"),
    "who": (Who((A, B)), "9204c420" + "41" * 16 + "42" * 16),
    "open": (
        Open(A, 1, B, 2, NODE),
        "9605c410" + "41" * 16 + "01c410" + "42" * 16 + "0294c4020801c4226e70" + "00" * 32 + "d949" + DISCO + "fd",
    ),
    "shut": (Shut(A, 1, B, Kind.LOST), "9506c410" + "41" * 16 + "01c410" + "42" * 16 + "03"),
    "node": (NodeIs(A, 1, 2, None), "9507c410" + "41" * 16 + "0102c0"),
    "gone": (Gone(A, 1, Kind.LOST, "lost"), "9508c410" + "41" * 16 + "0103a46c6f7374"),
    "ready": (Ready(A, 1, (B,)), "9409c410" + "41" * 16 + "01c410" + "42" * 16),
    "beat": (Beat(1, 2, 3, 4, 5, b"d", 6), "980a0102030405c4016406"),
    "tell": (Tell("map", b"x"), "930ba36d6170c40178"),
    "bye": (Bye(30), "920c1e"),
}


# Fields that stand behind those of the first releases, and what they are without.
ADDED: dict[str, dict[str, Any]] = {"hello": {"program": ""}, "beat": {"wall": 0}}


def read(frame: bytes) -> tuple[int, str]:
    """Nodes are compared by what they show: they are equal to themselves alone."""
    seq, messages = decode_frame(frame)
    return seq, repr(messages)


@pytest.mark.parametrize("name", MESSAGES)
def test_bytes_of_each_message(name: str) -> None:
    message, expected = MESSAGES[name]
    encoded = encode_message(message)
    assert encoded.hex() == expected
    assert read(encode_frame(7, [encoded])) == (7, repr([message]))


def test_the_bytes_of_every_message_stand_here() -> None:
    assert {type(message) for message, _ in MESSAGES.values()} == set(get_args(Message))


def test_a_frame_has_all_messages_in_order() -> None:
    messages = [message for message, _ in MESSAGES.values()]
    frame = encode_frame(70_000, [encode_message(message) for message in messages])
    assert read(frame) == (70_000, repr(messages))


def changed(name: str, change: Callable[[list[Any]], object]) -> bytes:
    fields = msgpack.unpackb(encode_message(MESSAGES[name][0]))
    change(fields)
    return encode_frame(1, [msgpack.packb(fields)])


@pytest.mark.parametrize("name", ADDED)
def test_what_the_first_releases_do_not_say_is_unknown(name: str) -> None:
    message, _ = MESSAGES[name]
    unknown = replace(message, **ADDED[name])
    assert read(changed(name, lambda fields: fields.pop())) == (1, repr([unknown]))


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_of_a_later_version_are_skipped(name: str) -> None:
    frame = changed(name, lambda fields: fields.extend([{"new": [1, None]}, b"more"]))
    assert read(frame) == (1, repr([MESSAGES[name][0]]))


def test_fields_of_what_stands_inside_are_skipped_too() -> None:
    frame = changed("sync", lambda fields: (fields[1][0].append(9), fields[3][0].append("new")))
    assert decode_frame(frame) == (1, [MESSAGES["sync"][0]])
    assert read(changed("open", lambda fields: fields[5].append(1))) == (1, repr([MESSAGES["open"][0]]))


def test_codes_of_a_later_version_are_skipped() -> None:
    encoded = [msgpack.packb([200, "new"]), encode_message(Synced()), msgpack.packb([13])]
    assert decode_frame(encode_frame(1, encoded)) == (1, [Synced()])


@pytest.mark.parametrize("name", MESSAGES)
def test_a_field_too_few(name: str) -> None:
    fields = msgpack.unpackb(encode_message(MESSAGES[name][0]))
    for count in range(1, len(fields) - (name in ADDED)):
        with pytest.raises(RemoteProtocolError):
            decode_frame(encode_frame(1, [msgpack.packb(fields[:count])]))


WRONG: dict[str, tuple[str, int, Any]] = {
    "an id of 15 bytes": ("shut", 1, b"A" * 15),
    "an id that is a text": ("shut", 1, "A" * 16),
    "a negative epoch": ("shut", 2, -1),
    "an epoch that is true": ("shut", 2, True),
    "an epoch that is a fraction": ("shut", 2, 1.5),
    "an epoch too large": ("shut", 2, MAX_NUMBER + 1),
    "ids that are cut": ("who", 1, b"A" * 31),
    "more epochs than ids": ("came", 2, bytes(16)),
    "a kind that nobody goes by": ("gone", 3, 1),
    "no kind": ("gone", 3, 77),
    "a reason without end": ("gone", 4, "x" * (MAX_TEXT_LENGTH + 1)),
    "a node that is a number": ("node", 4, 7),
    "a node without fields": ("node", 4, []),
    "a node too large": ("node", 4, [bytes(MAX_NODE_BYTES + 1), b"", "", 1]),
    "a node's key too large": ("node", 4, [b"", bytes(MAX_SHORT_BYTES + 1), "", 1]),
    "a home of 33 bits": ("node", 4, [b"", b"", "", 1 << 32]),
    "wants that are no list": ("sync", 1, b""),
    "a want that is no list": ("sync", 1, [1]),
    "a last that is a number": ("sync", 2, 1),
    "a replica of 7 bytes": ("hello", 4, b"1234567"),
    "a digest too large": ("beat", 6, bytes(MAX_SHORT_BYTES + 1)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused(what: str) -> None:
    name, place, value = WRONG[what]
    with pytest.raises(RemoteProtocolError):
        decode_frame(changed(name, lambda fields: fields.__setitem__(place, value)))


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x90", b"\x92\x01\x02", b"\x92\xff\x90", b"\x92\x01\x91\x90", b"\x92\x01\x91\xc0", b"\x91" * 5000],
)
def test_what_is_no_frame(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_frame(frame)


def test_a_frame_of_64_kib_and_one_byte_more() -> None:
    halves = [encode_message(Tell("", bytes(30_000))) for _ in range(2)]
    room = MAX_FRAME_BYTES - len(encode_frame(1, halves))
    whole = encode_frame(1, [encode_message(Tell("", bytes(30_000 + room))), halves[1]])
    assert len(whole) == MAX_FRAME_BYTES
    assert decode_frame(whole)[0] == 1
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode_frame(whole + b"\0")


def test_what_fits_into_no_frame_is_not_made() -> None:
    largest = MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES
    assert len(encode_message(Tell("", bytes(largest - 6)))) <= largest
    with pytest.raises(LocalProtocolError, match="Tell"):
        encode_message(Tell("", bytes(largest)))
    assert len(encode_message(Open(A, MAX_NUMBER, B, MAX_NUMBER, Node(bytes(MAX_NODE_BYTES), b"", "", 1, (), ()))))


@given(st.data())
def test_damaged_frames_raise_one_error(data: st.DataObject) -> None:
    whole = bytearray(encode_frame(1, [encode_message(message) for message, _ in MESSAGES.values()]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        decode_frame(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


@given(st.binary(max_size=200))
def test_any_bytes_raise_one_error(frame: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_frame(frame)
