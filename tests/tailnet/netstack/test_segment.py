"""TCP segments on the wire."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack import ip, segment
from tailnet.netstack.segment import ACK, FIN, RST, SYN, SegmentWriter, SynOptions
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
# The options of a genuine peer's SYN, in its order: MSS 1220, SACK-permitted, timestamps, NOP, window scale 8.
GENUINE_SYN = bytes.fromhex("020404c40402080a0000000100000000") + bytes.fromhex("01030308")
# Of its answer to a SYN without timestamps.
GENUINE_ANSWER = bytes.fromhex("020404c40101040201030308")


@pytest.mark.parametrize(
    ("options", "parsed"),
    [
        (GENUINE_SYN, SynOptions(1220, 8, True)),
        (GENUINE_ANSWER, SynOptions(1220, 8, True)),
        (b"", SynOptions()),
        (b"\0\2\4\1\1", SynOptions()),
        (b"\1\1\1", SynOptions()),
        (b"\2\4\0\1", SynOptions(segment.MIN_MSS)),
        (b"\3\3\x0f", SynOptions(window_scale=14)),
        (b"\xfd\4ab\2\4\4\0", SynOptions(1024)),
        (b"\2", None),
        (b"\2\4\4", None),
        (b"\2\1", None),
        (b"\2\0", None),
        (b"\2\3\4", SynOptions()),
    ],
)
def test_options_of_a_syn(options: bytes, parsed: SynOptions | None) -> None:
    assert segment.parse_syn_options(options) == parsed
    assert segment.parse_syn_options(memoryview(options)) == parsed


@given(st.integers(segment.MIN_MSS, 65535), st.none() | st.integers(0, 14), st.booleans())
def test_options_round_trip(mss: int, scale: int | None, sack: bool) -> None:
    options = SynOptions(mss, scale, sack)
    encoded = segment.encode_syn_options(options)
    assert len(encoded) % 4 == 0
    assert segment.parse_syn_options(encoded) == options


BLOCKS = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), min_size=1, max_size=4)


@given(BLOCKS)
def test_sack_round_trip(blocks: list[tuple[int, int]]) -> None:
    encoded = segment.encode_sack(blocks)
    assert len(encoded) % 4 == 0
    assert len(encoded) <= 40
    assert segment.parse_sack(encoded) == [(a & 0xFFFFFFFF, b & 0xFFFFFFFF) for a, b in blocks]


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        (b"", []),
        (b"\1\1\5\x0a" + bytes(8), [(0, 0)]),
        (b"\5\x0b" + bytes(9), [(0, 0)]),
        (b"\5\x0a" + bytes(7), []),
        (b"\5\1", []),
        (b"\5", []),
        (b"\0\5\x0a" + bytes(8), []),
        (b"\x08\x0a" + bytes(8) + b"\5\x0a" + bytes(8), [(0, 0)]),
    ],
)
def test_odd_sack_options(options: bytes, blocks: list[tuple[int, int]]) -> None:
    assert segment.parse_sack(options) == blocks


@given(st.binary(max_size=60))
def test_any_options(data: bytes) -> None:
    segment.parse_sack(data)
    segment.parse_syn_options(data)


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    st.integers(0, 0x3F),
    st.integers(0, 65535),
    st.binary(max_size=1220),
    st.sampled_from([b"", b"\1\1\1\1", bytes(40)]),
)
def test_what_is_built(seq: int, ack: int, flags: int, window: int, payload: bytes, options: bytes) -> None:
    packet = SegmentWriter(A, B, 1, 65535).build(seq, ack, flags, window, payload, options)
    assert ip.parse_packet(packet) == (ip.TCP, 40, len(packet))
    assert ip.is_intact(packet, 40, ip.TCP)
    version, length, protocol, got_seq, got_ack, got_flags, got_window = segment.RECEIVED.unpack_from(packet)
    assert (version, length, protocol) == (0x60, len(packet) - 40, ip.TCP)
    assert (got_seq, got_ack, got_window) == (seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, window)
    assert got_flags == flags | (20 + len(options)) // 4 << 12
    assert packet[segment.FLOW] == A + B + b"\0\1\xff\xff"
    assert packet[60:] == options + payload


@given(st.integers(0, 1 << 50), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap(near: int, distance: int) -> None:
    assert segment.unwrap((near + distance) & 0xFFFFFFFF, near) == near + distance


@pytest.mark.parametrize(
    ("flags", "payload", "answer"),
    [
        (SYN, b"", (0, 1001, RST | ACK)),
        (SYN, b"abc", (0, 1004, RST | ACK)),
        (FIN, b"", (0, 1001, RST | ACK)),
        (ACK, b"abc", (2000, 0, RST)),
        (SYN | ACK, b"", (2000, 0, RST)),
        (RST, b"", None),
        (RST | ACK, b"", None),
    ],
)
def test_the_reset_of_a_stray_segment(flags: int, payload: bytes, answer: tuple[int, int, int] | None) -> None:
    packet = SegmentWriter(A, B, 7, 9).build(1000, 2000, flags, 0, payload)
    reset = segment.build_reset(packet, 40, len(packet))
    if answer is None:
        assert reset is None
    else:
        assert reset is not None
        assert struct.unpack_from("!HHIIH", reset, 40) == (9, 7, *answer[:2], answer[2] | 0x5000)
        assert ip.is_intact(reset, 40, ip.TCP)
    assert segment.build_reset(packet[:59], 40, 59) is None
