"""Which frames travel as datagrams, and frames that come in pieces with packets between them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import RemoteProtocolError
from derp.protocol.frames import (
    HEADER,
    HEADER_BYTES,
    MAX_CLIENT_FRAME_BYTES,
    FrameReader,
    FrameType,
    encode_frame,
)
from derp.protocol.quic import DATAGRAM_BYTES, ResetTokens, StreamFrames, cut, is_packet, is_reset

KEY = bytes(32)
PING = encode_frame(FrameType.PING, bytes(8))
PACKET = encode_frame(FrameType.RECV_PACKET, KEY + b"packet")
FULL = encode_frame(FrameType.SEND_PACKET, bytes(DATAGRAM_BYTES - HEADER_BYTES))
LARGE = encode_frame(FrameType.SEND_PACKET, bytes(DATAGRAM_BYTES - HEADER_BYTES + 1))
FRAMES = st.lists(st.sampled_from((PING, PACKET, FULL, LARGE)))


@pytest.mark.parametrize(
    ("frames", "datagrams", "pieces"),
    [
        ((), [], []),
        ((PACKET,), [PACKET], []),
        ((FULL, LARGE), [FULL], [LARGE]),
        ((PING, PACKET, PING, PING), [PACKET], [PING, PING + PING]),
        ((b"GET /derp HTTP/1.1\r\n\r\n", PACKET), [], [b"GET /derp HTTP/1.1\r\n\r\n" + PACKET]),
        ((PACKET, PING[:3]), [PACKET], [PING[:3]]),
    ],
)
def test_packets_that_fit_travel_as_datagrams(
    frames: tuple[bytes, ...], datagrams: list[bytes], pieces: list[bytes]
) -> None:
    assert cut(b"".join(frames)) == (datagrams, pieces)


def test_a_peer_without_datagrams_gets_everything_in_the_stream() -> None:
    assert cut(PING + PACKET, 0) == ([], [PING + PACKET])


@given(FRAMES)
def test_no_frame_is_lost_or_changed(frames: list[bytes]) -> None:
    datagrams, pieces = cut(memoryview(b"".join(frames)))
    assert datagrams == [frame for frame in frames if frame in (PACKET, FULL)]
    assert b"".join(pieces) == b"".join(frame for frame in frames if frame in (PING, LARGE))


@pytest.mark.parametrize(
    ("datagram", "is_one"),
    [
        (PACKET, True),
        (PACKET[:-1], False),
        (PACKET + b"x", False),
        (PACKET + PACKET, False),
        (encode_frame(FrameType.RECV_PACKET, KEY[1:]), False),
        (encode_frame(FrameType.SEND_PACKET, KEY), False),
        (b"", False),
    ],
)
def test_a_datagram_is_one_whole_packet(datagram: bytes, is_one: bool) -> None:
    assert is_packet(datagram, FrameType.RECV_PACKET) is is_one


@given(FRAMES, st.integers(1, 9))
def test_frames_are_given_out_whole_however_they_come(frames: list[bytes], size: int) -> None:
    reader, stream, got = StreamFrames(), b"".join(frames), b""
    for at in range(0, len(stream), size):
        whole = reader.receive_data(stream[at : at + size])
        got += whole
        assert stream.startswith(got)
        assert len(got) in {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    assert got == stream


def test_packets_count_from_server_info_on() -> None:
    reader = StreamFrames()
    reader.receive_data(PING)
    assert not reader.is_open
    info = encode_frame(FrameType.SERVER_INFO, bytes(30))
    assert reader.receive_data(info[:-1]) == b""
    assert not reader.is_open
    assert reader.receive_data(info[-1:]) == info
    assert reader.is_open


def test_a_frame_longer_than_any_is_not_waited_for() -> None:
    reader = StreamFrames()
    longest = HEADER.pack(FrameType.HEALTH, MAX_CLIENT_FRAME_BYTES) + b"begun"
    assert reader.receive_data(PING + longest) == PING
    too_long = HEADER.pack(FrameType.HEALTH, MAX_CLIENT_FRAME_BYTES + 1) + b"begun"
    assert StreamFrames().receive_data(PING + too_long) == PING + too_long
    with pytest.raises(RemoteProtocolError, match="announces 1048577 bytes"):
        FrameReader(MAX_CLIENT_FRAME_BYTES).receive_data(too_long)


def test_a_refusal_of_http_is_passed_on_as_it_is() -> None:
    reader = StreamFrames()
    assert reader.receive_data(b"HTTP/1.1 403 ") == b"HTTP/1.1 403 "
    assert reader.receive_data(PING[:2]) == PING[:2]


def test_a_reset_is_understood_by_whom_it_is_for_and_follows_from_the_key() -> None:
    tokens, again, other = (ResetTokens(key, os.urandom) for key in (b"one", b"one", b"another"))
    for size in (22, 40, 1400):
        datagram = b"\x40" + bytes(size - 1)
        reset = tokens.reset(datagram, b"name")
        assert reset is not None
        assert reset[0] & 0xC0 == 0x40
        assert len(reset) == min(size - 1, 42)
        assert is_reset(reset, again.token(b"name"))
        assert not is_reset(reset, again.token(b"eman"))
        assert not is_reset(reset, other.token(b"name"))
        assert not is_reset(reset, b"")
    assert tokens.reset(b"\x40" + bytes(20), b"name") is None
    assert tokens.reset(b"\xc0" + bytes(50), b"name") is None
