"""Metadata of a call: the wire form, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import RemoteProtocolError
from tailnet.rpc.metadata import decode_metadata, encode_metadata

# 0a <len> (0a 03 "key") (12 05 "value")
ONE_PAIR = bytes.fromhex("0a0c 0a036b6579 120576616c7565")


def test_table() -> None:
    assert encode_metadata({"key": "value"}) == ONE_PAIR
    assert decode_metadata(ONE_PAIR) == {"key": "value"}
    assert decode_metadata(b"") == {}
    assert decode_metadata(bytes.fromhex("0a040a001200")) == {"": ""}


@given(st.dictionaries(st.text(max_size=200), st.text(max_size=200), max_size=4))
def test_round_trip(pairs: dict[str, str]) -> None:
    assert decode_metadata(encode_metadata(pairs)) == pairs


def test_the_last_of_two_equal_keys_wins() -> None:
    assert decode_metadata(ONE_PAIR + encode_metadata({"key": "other"})) == {"key": "other"}


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("12 00", "tag 0x12"),
        ("0a", "ends within"),
        ("0a 02 0a", "ends within"),
        ("0a 00", "ends within"),
        ("0a 02 0a00", "ends within"),
        ("0a 04 0a00 0a00", "tag 0x0a"),
        ("0a 04 1200 0a00", "tag 0x12"),
        ("0a 06 0a00 1200 1a00", "more than key and value"),
        ("0a 04 0a01 1200", "ends within|tag"),
        ("0a ffffffffffffffffffff01", "ten bytes"),
    ],
)
def test_refused_as_genuine_servers_do(wire: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_metadata(bytes.fromhex(wire))


@given(st.binary(max_size=40))
def test_any_bytes_are_pairs_or_refused(data: bytes) -> None:
    try:
        pairs = decode_metadata(data)
    except RemoteProtocolError:
        return
    assert all(isinstance(part, str) for pair in pairs.items() for part in pair)
