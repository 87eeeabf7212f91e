"""Batches, and the numbers that travel."""

from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.messages import MAX_BATCH_BYTES, Kind, Update, batches
from tests.tailnet.coordinator.playbook import make_node, peer_id


def update(size: int) -> Update:
    node = make_node("n" * size) if size else None
    return Update(peer_id("A"), Kind.NODE if size else Kind.LOST, node, "init")


def test_kinds_have_the_numbers_of_the_schema() -> None:
    assert {kind.name: int(kind) for kind in Kind} == {
        "NODE": 1,
        "DISCONNECTED": 2,
        "LOST": 3,
        "READY_FOR_HANDSHAKE": 4,
    }


@given(st.lists(st.integers(0, MAX_BATCH_BYTES + 10) | st.integers(0, 3000), max_size=60))
def test_batches_keep_order_and_bound(sizes: list[int]) -> None:
    updates = [update(size) for size in sizes]
    cut = list(batches(updates))
    assert [one for batch in cut for one in batch] == updates
    for batch in cut:
        assert batch
        held = sum(len(one.node.raw) for one in batch if one.node is not None)
        assert len(batch) == 1 or held <= MAX_BATCH_BYTES


def test_batches_are_as_few_as_fit() -> None:
    assert [len(batch) for batch in batches([update(1000)] * 100)] == [61, 39]
    assert [len(batch) for batch in batches([update(10), update(MAX_BATCH_BYTES), update(10)])] == [1, 1, 1]
    assert list(batches([])) == []
