"""Peer ids and their addresses."""

import uuid
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import MalformedField
from tailnet.types import CODER_SERVICE_PREFIX, TAILSCALE_SERVICE_PREFIX, PeerID

EXAMPLE = "aaaaaaaa-aaaa-aaaa-aaaa-123456789abc"


@given(st.binary(min_size=16, max_size=16))
def test_text_is_that_of_a_uuid(raw: bytes) -> None:
    peer_id = PeerID(raw)
    assert str(peer_id) == str(uuid.UUID(bytes=raw))
    assert PeerID.parse(str(peer_id)) == PeerID.parse(str(peer_id).upper()) == peer_id


def test_raw_bytes_find_the_same_entry() -> None:
    table: dict[bytes, str] = {PeerID(b"0123456789abcdef"): "found"}
    assert table[b"0123456789abcdef"] == "found"
    table = {b"0123456789abcdef": "found"}
    assert table[PeerID(b"0123456789abcdef")] == "found"


@pytest.mark.parametrize("length", [0, 15, 17, 36])
def test_other_lengths_are_no_ids(length: int) -> None:
    with pytest.raises(MalformedField, match=f"got {length}"):
        PeerID(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        EXAMPLE[:-1],
        EXAMPLE + "a",
        EXAMPLE.replace("-", ""),
        "{" + EXAMPLE + "}",
        "urn:uuid:" + EXAMPLE,
        EXAMPLE.replace("c", "g"),
        EXAMPLE.replace("9abc", "9 bc"),
        EXAMPLE.replace("9abc", "9\u0661bc"),
        "aaaaaaaaa-aaa-aaaa-aaaa-123456789abc",
        "aaaaaaaa-aaaa-aaaa-aaaa-12345678-abc",
    ],
)
def test_other_texts_are_no_ids(text: str) -> None:
    with pytest.raises(MalformedField, match="looks like"):
        PeerID.parse(text)


def test_addresses_follow_from_the_id() -> None:
    peer_id = PeerID.parse(EXAMPLE)
    assert peer_id.address(TAILSCALE_SERVICE_PREFIX) == IPv6Address("fd7a:115c:a1e0:aaaa:aaaa:1234:5678:9abc")
    assert peer_id.address(CODER_SERVICE_PREFIX) == IPv6Address("fd60:627a:a42b:aaaa:aaaa:1234:5678:9abc")


def test_repr_is_readable() -> None:
    assert repr(PeerID.parse(EXAMPLE)) == f"PeerID({EXAMPLE})"
