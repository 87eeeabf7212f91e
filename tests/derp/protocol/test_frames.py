"""The numbers of the protocol as the genuine one writes them, and the cutting of streams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import RemoteProtocolError
from derp.protocol import frames
from derp.protocol.frames import HEADER_BYTES, FrameReader, FrameType, PeerGoneReason, PeerPresentFlags, encode_frame

frame_lists = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=80)), max_size=8)


def test_the_numbers_are_those_of_the_field() -> None:
    # Written out again on purpose: a slip in frames.py would otherwise go round trip unnoticed.
    assert {member.name: member.value for member in FrameType} == {
        "SERVER_KEY": 0x01,
        "CLIENT_INFO": 0x02,
        "SERVER_INFO": 0x03,
        "SEND_PACKET": 0x04,
        "RECV_PACKET": 0x05,
        "KEEP_ALIVE": 0x06,
        "NOTE_PREFERRED": 0x07,
        "PEER_GONE": 0x08,
        "PEER_PRESENT": 0x09,
        "FORWARD_PACKET": 0x0A,
        "WATCH_CONNS": 0x10,
        "CLOSE_PEER": 0x11,
        "PING": 0x12,
        "PONG": 0x13,
        "HEALTH": 0x14,
        "RESTARTING": 0x15,
    }
    assert [int(reason) for reason in PeerGoneReason] == [0x00, 0x01, 0xF0]
    assert [int(flag) for flag in PeerPresentFlags] == [1, 2, 4, 8]
    assert "DERP🔑".encode() == frames.MAGIC
    assert (frames.MAX_SEND_BYTES, frames.MAX_FORWARD_BYTES) == (65568, 65600)
    assert (frames.MIN_CLIENT_INFO_BYTES, frames.MAX_CLIENT_INFO_BYTES) == (56, 262144)
    assert (frames.MAX_SERVER_KEY_BYTES, frames.MAX_SERVER_INFO_BYTES) == (1024, 1048600)
    assert (frames.MIN_PING_BYTES, frames.MAX_PING_BYTES) == (8, 1000)
    assert (frames.MAX_CLIENT_FRAME_BYTES, frames.MAX_UNKNOWN_BYTES) == (1048576, 1048576)
    assert frames.PROTOCOL_VERSION == 2


def test_a_frame_is_a_type_a_length_and_its_bytes() -> None:
    assert encode_frame(0x12, b"12345678").hex() == "1200000008" + b"12345678".hex()
    assert encode_frame(FrameType.KEEP_ALIVE).hex() == "0600000000"


@given(frame_lists, st.data())
def test_streams_survive_any_cut(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = FrameReader(80), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [(frame_type, bytes(payload)) for frame_type, payload in reader.receive_data(stream[start:end])]
    assert got == sent
    assert reader.trailing_data() == b""


@given(frame_lists, st.integers(0, 84))
def test_what_is_not_yet_a_frame_is_kept(sent: list[tuple[int, bytes]], kept: int) -> None:
    unfinished = encode_frame(0x04, bytes(80))[:kept]
    reader = FrameReader(80)
    got = reader.receive_data(b"".join(encode_frame(*frame) for frame in sent) + unfinished)
    assert len(got) == len(sent)
    assert reader.trailing_data() == unfinished


def test_payloads_outlive_later_receives() -> None:
    reader = FrameReader(100)
    ((_, first),) = reader.receive_data(encode_frame(1, b"first") + b"\x02")
    ((_, second),) = reader.receive_data(encode_frame(2, b"second")[1:])
    assert (bytes(first), bytes(second)) == (b"first", b"second")
    assert first.readonly


@pytest.mark.parametrize("limit", [0, 5, 1 << 20])
def test_a_frame_above_the_limit_is_refused_at_its_head(limit: int) -> None:
    assert len(FrameReader(limit).receive_data(encode_frame(0x99, bytes(limit)))) == 1
    head = encode_frame(0x99, bytes(limit + 1))[:HEADER_BYTES]
    with pytest.raises(RemoteProtocolError, match=f"0x99 announces {limit + 1} bytes, limit {limit}"):
        FrameReader(limit).receive_data(head)


def test_a_byte_at_a_time_is_linear() -> None:
    # Each receive may look at the buffer at most once more when a frame is complete: counted, not timed.
    class Counting(FrameReader):
        looks = 0

        def receive_data(self, data: bytes | bytearray | memoryview) -> list[tuple[int, memoryview]]:
            before = self._needed
            got = super().receive_data(data)
            self.looks += got != [] or self._needed != before
            return got

    reader = Counting(1 << 20)
    stream = encode_frame(0x04, bytes(5000))
    got = [frame for i in range(len(stream)) for frame in reader.receive_data(stream[i : i + 1])]
    assert len(got) == 1
    assert reader.looks == 2  # the head, the whole


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_are_frames_or_an_error(pieces: list[bytes]) -> None:
    reader, total = FrameReader(64), 0
    try:
        for piece in pieces:
            total += sum(HEADER_BYTES + len(payload) for _, payload in reader.receive_data(piece))
    except RemoteProtocolError:
        return
    assert total + len(reader.trailing_data()) == sum(map(len, pieces))
