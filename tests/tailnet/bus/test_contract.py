"""Records of replicas as bytes, and frames behind each other."""

from dataclasses import replace

import msgpack
import pytest
from trio.testing import MockClock

from tailnet.bus.contract import (
    MAX_RECORD_BYTES,
    MAX_REPLICAS,
    Record,
    RecordReader,
    decode_record,
    encode_record,
    join_frames,
    split_frames,
)
from tailnet.errors import MalformedField, RemoteProtocolError
from tailnet.replica.codec import MAX_FRAME_BYTES
from tailnet.replica.messages import ReplicaID

OWN = Record(ReplicaID(b"A" * 8), "fra-1", ("10.0.0.5", 3001), "0.1.0", 1.5, {ReplicaID(b"B" * 8)})


def test_a_record_comes_back() -> None:
    assert decode_record(encode_record(OWN)) == OWN
    without = Record(OWN.replica, "fra-1", None, "0.1.0", 1.5)
    assert decode_record(encode_record(without)) == without
    assert decode_record(encode_record(OWN)).hears == OWN.hears
    assert decode_record(encode_record(without)).hears == set()


def test_an_earlier_version_says_less() -> None:
    earlier = decode_record(msgpack.packb(msgpack.unpackb(encode_record(OWN))[:7]))
    assert (earlier, earlier.hears) == (OWN, set())


def test_a_later_version_may_say_more() -> None:
    assert decode_record(msgpack.packb([*msgpack.unpackb(encode_record(OWN)), "more"])) == OWN


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc1",
        b"\xa1\xff",
        msgpack.packb([1, b"A" * 7, "n", "h", 1, "v", 0.0]),
        msgpack.packb([1, b"A" * 8, "n", "h", 65536, "v", 0.0]),
        msgpack.packb([1, b"A" * 8, "n", "h", 1, "v"]),
        msgpack.packb([1, b"A" * 8, "n", "h", 1, "v", 0.0, 5]),
        msgpack.packb([1, b"A" * 8, "n", "h", 1, "v", 0.0, [5]]),
        msgpack.packb([1, b"A" * 8, "n", "h", 1, "v", 0.0, [b"B" * 7]]),
        msgpack.packb({"replica": b"A" * 8}),
        bytes(MAX_RECORD_BYTES + 1),
    ],
)
def test_what_is_no_record(encoded: bytes) -> None:
    with pytest.raises(MalformedField):
        decode_record(encoded)


async def test_what_no_replica_wrote_is_left_out_and_told_once(
    caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    reader = RecordReader("the store")
    other = replace(OWN, replica=ReplicaID(b"B" * 8))
    for _ in range(2):
        found = reader.read([b"no record", encode_record(OWN), encode_record(other)])
        assert found == {OWN.replica: OWN, other.replica: other}
    assert caplog.text.count("the store has a record that no replica wrote") == 1
    mock_clock.jump(60.0)
    reader.read([b"no record"])
    assert caplog.text.count("the store has a record that no replica wrote") == 2
    many = [encode_record(replace(OWN, replica=ReplicaID(bytes(7) + bytes((n,))))) for n in range(MAX_REPLICAS + 1)]
    assert len(reader.read(many)) == MAX_REPLICAS


def test_frames_behind_each_other_come_apart() -> None:
    frames = [b"", b"one", bytes(MAX_FRAME_BYTES)]
    data = join_frames(frames)
    assert [frame for frame, _ in split_frames(data)] == frames
    assert [end for _, end in split_frames(data[:-1])] == [4, 11], "the rest comes later"
    too_long = join_frames([b"one", bytes(MAX_FRAME_BYTES + 1)])
    found = split_frames(too_long)
    assert next(found) == (b"one", 7)
    with pytest.raises(RemoteProtocolError, match="65,537 bytes"):
        next(found)
