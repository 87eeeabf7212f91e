"""Who can seal a frame, and for which session."""

import hmac
from itertools import combinations
from random import Random

import pytest

from tailnet.errors import LocalProtocolError
from tailnet.replica.messages import ReplicaID
from tailnet.replica.proof import SEAL_BYTES, ClusterKey, FrameKey

A, B = ReplicaID(b"A" * 8), ReplicaID(b"B" * 8)
KEY = ClusterKey("home", bytes(32))


def test_what_was_sealed_is_opened_by_its_key_alone() -> None:
    key = FrameKey(b"k" * 32)
    sealed = key.seal(b"frame")
    assert key.unseal(sealed) == b"frame"
    assert FrameKey(b"K" * 32).unseal(sealed) is None
    for at in range(len(sealed)):
        assert key.unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
        assert key.unseal(sealed[:at]) is None
    assert len(sealed) == len(b"frame") + SEAL_BYTES


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 500, 65_536])
def test_a_seal_is_the_beginning_of_a_standard_hmac(length: int) -> None:
    random = Random(length)
    key, frame = random.randbytes(32), random.randbytes(length)
    assert FrameKey(key).seal(frame) == frame + hmac.digest(key, frame, "sha256")[:SEAL_BYTES]


def test_every_part_makes_another_key() -> None:
    keys: list[FrameKey | bytes] = [
        KEY.session_key(A, B, b"1", b"2", b""),
        KEY.session_key(B, A, b"2", b"1", b""),
        KEY.session_key(A, B, b"2", b"1", b""),
        KEY.session_key(A, B, b"12", b"", b""),
        KEY.session_key(A, B, b"1", b"2", b"exporter"),
        ClusterKey("away", bytes(32)).session_key(A, B, b"1", b"2", b""),
        ClusterKey("home", bytes(31) + b"1").session_key(A, B, b"1", b"2", b""),
        KEY.greeting_key(A),
        KEY.greeting_key(B),
        KEY.link_proof(b"dialler", A, B, b"1", b"2", b""),
        KEY.link_proof(b"listener", A, B, b"1", b"2", b""),
        KEY.link_proof(b"dialler", B, A, b"1", b"2", b""),
        KEY.link_proof(b"dialler", A, B, b"1", b"2", b"certificate"),
        ClusterKey("away", bytes(32)).greeting_key(A),
    ]
    sealed = [key.seal(b"") if isinstance(key, FrameKey) else FrameKey(key).seal(b"") for key in keys]
    assert all(one != other for one, other in combinations(sealed, 2))


def test_a_key_is_long_and_is_not_shown() -> None:
    with pytest.raises(LocalProtocolError, match="at least 32 bytes, got 31"):
        ClusterKey("home", bytes(31))
    assert "secret" not in repr(ClusterKey("home", b"s" * 32)).replace("ClusterKey", "")
