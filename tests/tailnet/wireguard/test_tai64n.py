"""Time stamps: the genuine bytes, and that they only ever rise."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.wireguard.tai64n import STEP_NANOSECONDS, encode_tai64n, next_stamp
from tests.vectors.wireguard import VECTORS


@pytest.mark.parametrize("vector", VECTORS["tai64n"])
def test_stamps_are_the_genuine_ones(vector: dict[str, Any]) -> None:
    assert encode_tai64n(vector["unix_s"] * 1_000_000_000 + vector["nanos"]).hex() == vector["tai64n"]


@given(st.lists(st.integers(0, 10**19), min_size=1, max_size=20))
def test_each_stamp_is_larger_whatever_the_clock_does(clock: list[int]) -> None:
    last = b""
    for now in clock:
        stamp, says = next_stamp(now, last)
        assert len(stamp) == 12
        assert stamp > last
        assert encode_tai64n(says) == stamp
        assert int.from_bytes(stamp[8:], "big") % STEP_NANOSECONDS == 0
        last = stamp


def test_a_clock_that_runs_is_not_overtaken() -> None:
    first, _ = next_stamp(5_000_000_000, b"")
    assert next_stamp(5_000_000_001, first)[1] == 5_000_000_000 + STEP_NANOSECONDS
    assert next_stamp(9_000_000_000, first)[1] == 9_000_000_000
