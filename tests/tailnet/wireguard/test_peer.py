"""The slots of keys, and what waits for a session."""

from tailnet.wireguard.keypair import KeyPair
from tailnet.wireguard.noise import Remote, TransportKeys
from tailnet.wireguard.peer import MAX_OLD, MAX_STAGED, Pair, Peer


def make() -> Peer:
    return Peer(Remote(b"p" * 32, b"s" * 32))


def pair(peer: Peer) -> Pair:
    return KeyPair(peer, TransportKeys(b"a" * 32, b"b" * 32), 1, 2, 0.0, is_initiator=True)


def slots(peer: Peer) -> tuple[tuple[Pair, ...], Pair | None, Pair | None]:
    return peer.old, peer.current, peer.next


def test_an_initiator_moves_on_at_once() -> None:
    peer = make()
    pairs = [pair(peer) for _ in range(MAX_OLD + 2)]
    for count, each in enumerate(pairs[:-1]):
        assert peer.take_response(each) == []
        assert slots(peer) == (tuple(pairs[:count]), each, None)
    assert peer.take_response(pairs[-1]) == [pairs[0]]
    assert slots(peer) == (tuple(pairs[1:-1]), pairs[-1], None)


def test_a_responder_waits_for_the_first_packet() -> None:
    peer = make()
    first, second, third = (pair(peer) for _ in range(3))
    assert peer.take_initiation(first) == []
    assert slots(peer) == ((), None, first)
    assert peer.take_first_packet() == []
    assert slots(peer) == ((), first, None)
    assert peer.take_initiation(second) == []
    assert slots(peer) == ((), first, second)
    assert peer.take_initiation(third) == [second], "the initiator did not get that response"
    assert peer.take_first_packet() == []
    assert slots(peer) == ((first,), third, None)


def test_both_at_once_keep_what_the_other_sends_with() -> None:
    peer = make()
    old, answered, ours = (pair(peer) for _ in range(3))
    peer.take_response(old)
    peer.take_initiation(answered)
    assert peer.take_response(ours) == []
    assert slots(peer) == ((old, answered), ours, None)


def test_dropping_names_everything() -> None:
    peer = make()
    first, second, third = (pair(peer) for _ in range(3))
    peer.take_response(first)
    peer.take_response(second)
    peer.take_initiation(third)
    assert peer.drop_pairs() == [first, second, third]
    assert slots(peer) == ((), None, None)


def test_the_newest_packets_wait() -> None:
    peer = make()
    waiting = [bytes((number,)) * 3 for number in range(MAX_STAGED + 2)]
    assert peer.stage(map(memoryview, waiting)) == 2
    assert peer.staged_bytes == 3 * MAX_STAGED
    assert peer.take_staged() == waiting[2:]
    assert (peer.take_staged(), peer.staged_bytes) == ([], 0)


def test_what_waits_is_a_copy() -> None:
    peer, buffer = make(), bytearray(b"packet")
    peer.stage([memoryview(buffer)])
    buffer[:] = b"reused"
    assert peer.take_staged() == [b"packet"]


def test_it_shows_no_secret() -> None:
    assert repr(make()) == "<Peer [cHBwc]>"
