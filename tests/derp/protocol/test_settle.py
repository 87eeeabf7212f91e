"""The frame by which relays of ours ask each other whether all packets of a client are where they have to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import RemoteProtocolError
from derp.protocol.settle import SETTLE, Settle, SettleStep, parse_settle

KEYS = st.binary(min_size=32, max_size=32)


def test_a_frame_to_the_byte() -> None:
    settle = Settle(SettleStep.ANSWERED, b"k" * 32, b"a" * 32, 0x0102030405060708, 3)
    assert settle.encode() == bytes((SETTLE, 0, 0, 0, 74, 1)) + b"k" * 32 + b"a" * 32 + bytes(range(1, 9)) + b"\x03"


@given(st.sampled_from(SettleStep), KEYS, KEYS, st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_round_trip(step: SettleStep, key: bytes, asker: bytes, number: int, answers: int) -> None:
    settle = Settle(step, key, asker, number, answers)
    assert parse_settle(settle.encode()[5:]) == settle


@pytest.mark.parametrize("payload", [b"", bytes(73), bytes(75), b"\x03" + bytes(73), b"\xff" + bytes(73)])
def test_what_no_relay_of_ours_sends(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_settle(payload)
