"""The values that cross between replicas."""

import pytest

from tailnet.errors import MalformedField
from tailnet.replica.messages import ReplicaID, portions


@pytest.mark.parametrize("length", [0, 7, 9, 16])
def test_a_replica_id_has_eight_bytes(length: int) -> None:
    with pytest.raises(MalformedField, match=f"got {length}"):
        ReplicaID(bytes(length))


def test_a_replica_id_is_its_bytes_and_shows_as_hex() -> None:
    replica = ReplicaID(bytes(range(8)))
    assert {replica: 1}[ReplicaID(bytes(range(8)))] == 1
    assert f"{replica}" == "0001020304050607"


def test_portions_lose_nothing() -> None:
    assert list(portions(range(7), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(portions([], 3)) == []
