"""IPv6 headers and the Internet checksum."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import LocalProtocolError
from tailnet.netstack import ip
from tailnet.netstack.limits import Drop
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
# A genuine node's TSMP ping: next header 99, hop limit 64, 9 bytes.
GENUINE = bytes.fromhex(
    "6000000000096340fd7a115ca1e00000000000000000000afd7a115ca1e00000000000000000000b70deadbeef01020304"
)


def plain_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(word for (word,) in struct.iter_unpack("!H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=3000), st.integers(0, 1 << 40))
def test_the_sum_is_that_of_the_words(data: bytes, start: int) -> None:
    assert ip.checksum_sum(data, start) == (plain_sum(data) + start) % 65535
    assert ip.checksum_sum(memoryview(data), start) == ip.checksum_sum(data, start)


@pytest.mark.parametrize("size", [382, 383, 384, 385, 386, 390, 1219, 1220, 1240])
def test_thirds_are_cut_at_words(size: int) -> None:
    data = bytes(range(256)) * 6
    assert ip.checksum_sum(data[:size]) == plain_sum(data[:size]) % 65535


def test_a_checksum_is_never_zero() -> None:
    assert ip.finish_checksum(0) == 0xFFFF
    assert ip.finish_checksum(65535) == 0xFFFF
    assert ip.finish_checksum(65534) == 1


@given(st.binary(min_size=8, max_size=1240), st.integers(0, 1239), st.integers(1, 255))
def test_what_is_built_is_intact_until_it_is_changed(payload: bytes, place: int, change: int) -> None:
    packet = ip.build_checked(A, B, ip.UDP, payload[:6] + bytes(2) + payload[8:], 6)
    assert ip.is_intact(packet, ip.HEADER_BYTES, ip.UDP)
    assert plain_sum(A + B + struct.pack("!II", len(payload), ip.UDP) + packet[40:]) == 0xFFFF
    changed = bytearray(packet)
    changed[40 + place % len(payload)] ^= change
    assert not ip.is_intact(changed, ip.HEADER_BYTES, ip.UDP)


def test_a_genuine_packet() -> None:
    assert ip.parse_packet(GENUINE) == (ip.TSMP, 40, 49)
    assert ip.build_packet(A, B, ip.TSMP, GENUINE[40:]) == GENUINE
    assert ip.parse_packet(GENUINE + bytes(7)) == (ip.TSMP, 40, 49), "padding is cut off"


def with_headers(*headers: tuple[int, bytes], protocol: int = ip.UDP, rest: bytes = b"12345678") -> bytes:
    """Extension headers, each with its protocol number, before `rest`."""
    numbers = [number for number, _ in headers] + [protocol]
    chain = b"".join(bytes((following,)) + body for (_, body), following in zip(headers, numbers[1:], strict=True))
    return ip.build_packet(A, B, numbers[0], chain + rest)


EIGHT, SIXTEEN = bytes((0,)) + bytes(6), bytes((1,)) + bytes(14)


@pytest.mark.parametrize(
    ("packet", "parsed"),
    [
        (b"", Drop.TRUNCATED),
        (GENUINE[:39], Drop.TRUNCATED),
        (GENUINE[:-1], Drop.TRUNCATED),
        (b"\x45" + GENUINE[1:], Drop.NOT_IPV6),
        (with_headers((ip.HOP_BY_HOP, EIGHT)), (ip.UDP, 48, 56)),
        (with_headers((ip.HOP_BY_HOP, EIGHT), (ip.DESTINATION_OPTIONS, SIXTEEN)), (ip.UDP, 64, 72)),
        (with_headers((ip.FRAGMENT, EIGHT)), Drop.FRAGMENT),
        (with_headers((ip.HOP_BY_HOP, EIGHT), (ip.FRAGMENT, EIGHT)), Drop.FRAGMENT),
        (with_headers((ip.ROUTING, EIGHT)), Drop.EXTENSION_HEADER),
        (with_headers(protocol=ip.NO_NEXT_HEADER), Drop.EXTENSION_HEADER),
        (with_headers(*[(ip.DESTINATION_OPTIONS, EIGHT)] * 4), (ip.UDP, 72, 80)),
        (with_headers(*[(ip.DESTINATION_OPTIONS, EIGHT)] * 5), Drop.EXTENSION_HEADER),
        (with_headers((ip.HOP_BY_HOP, b"\xff" + bytes(6))), Drop.TRUNCATED),
        (with_headers(protocol=ip.HOP_BY_HOP, rest=b"1234567"), Drop.TRUNCATED),
    ],
)
def test_parsing(packet: bytes, parsed: object) -> None:
    assert ip.parse_packet(packet) == parsed
    assert ip.parse_packet(memoryview(packet)) == parsed


@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_a_reason(data: bytes) -> None:
    parsed = ip.parse_packet(data)
    if not isinstance(parsed, Drop):
        _, offset, end = parsed
        assert 40 <= offset <= end <= len(data)


@pytest.mark.parametrize(
    ("address", "may"),
    [(A, True), (bytes(16), False), (bytes(15) + b"\1", False), (b"\xff\x02" + bytes(14), False)],
)
def test_who_may_be_a_source(address: bytes, may: bool) -> None:
    assert ip.may_be_source(address) is may


def test_addresses_of_another_length_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="16 bytes"):
        ip.build_packet(A[:4], B, ip.TCP, b"")
