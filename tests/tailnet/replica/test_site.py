"""Another replica in the graph: as a connection it is itself alone."""

from tailnet.replica.messages import ReplicaID
from tailnet.replica.site import Site


def test_two_of_one_replica_are_two() -> None:
    one: Site[object] = Site(ReplicaID(b"A" * 8))
    other: Site[object] = Site(ReplicaID(b"A" * 8))
    assert len({one, other}) == 2
    assert one.peers == other.peers == {}
