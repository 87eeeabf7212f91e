"""Varints: the forms of genuine writers, and what readers tolerate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import RemoteProtocolError
from tailnet.rpc.varint import decode_varint, encode_varint

U64 = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (16383, "ff7f"),
        (16384, "808001"),
        (65536, "808004"),
        (1 << 32, "8080808010"),
        ((1 << 64) - 1, "ffffffffffffffffff01"),
    ],
)
def test_table(value: int, wire: str) -> None:
    assert encode_varint(value).hex() == wire
    assert decode_varint(bytes.fromhex(wire), 0) == (value, len(wire) // 2)


@given(U64, st.binary(max_size=3), st.binary(max_size=3))
def test_round_trip_inside_other_bytes(value: int, before: bytes, behind: bytes) -> None:
    data = before + encode_varint(value) + behind
    assert decode_varint(data, len(before)) == (value, len(data) - len(behind))


@given(U64)
def test_each_byte_is_needed(value: int) -> None:
    with pytest.raises(IndexError):
        decode_varint(encode_varint(value)[:-1], 0)


def test_longer_forms_are_read_and_high_bits_dropped() -> None:
    assert decode_varint(b"\x81\x80\x00", 0) == (1, 3)
    # Ten bytes carry 70 bits; genuine readers keep 64 of them.
    assert decode_varint(b"\xff" * 9 + b"\x7f", 0) == ((1 << 64) - 1, 10)


def test_eleven_bytes_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="ten bytes"):
        decode_varint(b"\x80" * 10 + b"\x01", 0)
