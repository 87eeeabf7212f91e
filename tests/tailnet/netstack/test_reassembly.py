"""Bytes in any order become the stream; overlaps change nothing; pieces are bounded."""

from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack.reassembly import Reassembly

STREAM = bytes(i * 7 % 251 for i in range(4000))
BASE = 1 << 33


def put(reassembly: Reassembly, start: int, end: int, data: bytes = STREAM) -> bool:
    return reassembly.add(BASE + start, memoryview(data)[start:end])


RANGES = st.lists(st.tuples(st.integers(0, 3999), st.integers(1, 900)), max_size=60)


@given(RANGES, st.integers(1, 5000))
def test_any_order_gives_the_stream(ranges: list[tuple[int, int]], limit: int) -> None:
    reassembly = Reassembly(BASE, 4096)
    covered = [False] * 4000
    for start, size in ranges:
        end = min(start + size, 4000)
        assert put(reassembly, start, end)
        covered[start:end] = [True] * (end - start)
        prefix = covered.index(False) if False in covered else 4000
        assert reassembly.nxt == BASE + prefix
        ahead = [(a - BASE, b - BASE) for a, b in reassembly.blocks()]
        for first, last in ahead:
            assert all(covered[first:last])
            assert first > prefix
        if end > prefix and start > prefix and ahead:
            assert ahead[0][0] <= start < end <= ahead[0][1], "the newest segment's block is first"
        assert bool(reassembly.pieces) == any(covered[prefix:])
    whole = b""
    while chunk := reassembly.read(limit):
        assert len(chunk) <= limit
        whole += chunk
    assert whole == STREAM[: reassembly.nxt - BASE]
    assert reassembly.waiting == 0


def test_what_came_first_stays() -> None:
    reassembly = Reassembly(BASE, 10)
    put(reassembly, 10, 20)
    put(reassembly, 5, 30, bytes(4000))
    put(reassembly, 0, 40, b"\xff" * 4000)
    assert reassembly.read(100) == b"\xff" * 5 + bytes(5) + STREAM[10:20] + bytes(10) + b"\xff" * 10


def test_blocks_are_the_four_newest() -> None:
    reassembly = Reassembly(BASE, 10)
    for start in (10, 30, 50, 70, 90):
        put(reassembly, start, start + 10)
    put(reassembly, 60, 70)
    assert [(a - BASE, b - BASE) for a, b in reassembly.blocks()] == [(50, 80), (90, 100), (30, 40)]


def test_pieces_are_bounded() -> None:
    reassembly = Reassembly(BASE, 3)
    assert all(put(reassembly, at, at + 1) for at in (10, 20, 30))
    assert not put(reassembly, 40, 41)
    assert put(reassembly, 31, 32), "what joins a piece is no new one"
    assert put(reassembly, 0, 10)
    assert reassembly.nxt == BASE + 11
    assert put(reassembly, 40, 41), "there is room again"


def test_tiny_segments_are_put_together() -> None:
    """Each alone would cost 34 bytes of overhead."""
    for order in (range(1, 2000), range(1999, 0, -1)):
        reassembly = Reassembly(BASE, 4096)
        for at in order:
            put(reassembly, at, at + 1)
        put(reassembly, 0, 1)
        assert len(reassembly._chunks) < 20
        assert reassembly.read(5000) == STREAM[:2000]
