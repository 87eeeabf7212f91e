"""Records of replicas as bytes."""

import msgpack
import pytest

from tailnet.bus.contract import MAX_RECORD_BYTES, Record, decode_record, encode_record
from tailnet.errors import MalformedField
from tailnet.replica.messages import ReplicaID

OWN = Record(ReplicaID(b"A" * 8), "fra-1", ("10.0.0.5", 3001), "0.1.0", 1.5)


def test_a_record_comes_back() -> None:
    assert decode_record(encode_record(OWN)) == OWN
    without = Record(OWN.replica, "fra-1", None, "0.1.0", 1.5)
    assert decode_record(encode_record(without)) == without


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
        msgpack.packb({"replica": b"A" * 8}),
        bytes(MAX_RECORD_BYTES + 1),
    ],
)
def test_what_is_no_record(encoded: bytes) -> None:
    with pytest.raises(MalformedField):
        decode_record(encoded)
