"""What replicas tell each other of ids that were overtaken; server/test_rolling.py has it with whole servers."""

from collections.abc import Sequence

from tailnet.replica.messages import ReplicaID
from tailnet.services.overtakings import Overtakings
from tailnet.types import PeerID
from tests.support.seeds import peer_id

OTHER = ReplicaID(b"2" * 8)


def test_what_is_told_is_heard_and_what_nobody_understands_is_not() -> None:
    told: list[tuple[str, bytes]] = []
    heard: list[tuple[PeerID, Sequence[str]]] = []
    shared = Overtakings(lambda topic, payload: told.append((topic, payload)), lambda *what: heard.append(what))
    for addresses in (["10.0.0.1:80", "[2001:db8::1]:81"], ["10.0.0.1:80"], []):
        shared.tell(peer_id("main"), addresses)
        topic, payload = told[-1]
        assert topic == shared.topic
        shared.hear(OTHER, payload)
        assert heard[-1] == (peer_id("main"), addresses)
    shared.hear(OTHER, payload[:15])
    shared.hear(OTHER, payload + b" \xff c d e")  # a later version may say more
    assert [len(addresses) for _, addresses in heard[3:]] == [2]
    assert shared.greet() == b""
