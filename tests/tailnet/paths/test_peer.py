"""The record of one peer: candidates and their bound, what replaces what."""

from tailnet.paths.endpoint import Endpoint
from tailnet.paths.peer import DOUBT_SECONDS, MAX_CANDIDATES, TRUST_SECONDS, PathPeer

A, B = Endpoint("203.0.113.1", 1), Endpoint("203.0.113.2", 1)


def make(*told: Endpoint) -> PathPeer:
    peer = PathPeer(b"k" * 32, 0.0)
    peer.tell(told, 0.0)
    return peer


def test_candidates_are_bounded() -> None:
    peer = make(*(Endpoint("203.0.113.1", port) for port in range(1, 500)))
    assert len(peer.candidates) == MAX_CANDIDATES
    assert peer.add(B) is None
    peer.call(tuple(Endpoint("203.0.113.3", port) for port in range(1, 33)), 0.0)
    assert len(peer.candidates) == MAX_CANDIDATES
    peer.tell([B], 0.0)
    assert set(peer.candidates) == {B}


def test_coordination_takes_nothing_that_works() -> None:
    peer = make(A, B)
    peer.answered(A, 0.01, 1.0)
    peer.tell([], 2.0)
    assert set(peer.candidates) == {A}
    assert peer.is_trusted(2.0)
    peer.tell([], 100.0)
    assert (peer.candidates, peer.best) == ({}, None)


def test_trust_and_doubt() -> None:
    peer = make(A)
    peer.answered(A, 0.01, 1.0)
    assert peer.is_trusted(1.0 + TRUST_SECONDS)
    assert not peer.is_trusted(1.01 + TRUST_SECONDS)
    peer.pinged_best(2.0)
    peer.pinged_best(2.5)
    assert peer.is_trusted(2.0 + DOUBT_SECONDS - 0.01)
    assert not peer.is_trusted(2.0 + DOUBT_SECONDS)
    peer.answered(A, 0.01, 4.0)
    assert peer.is_trusted(4.0 + DOUBT_SECONDS)


def test_a_slow_path_is_given_its_time() -> None:
    peer = make(A)
    peer.answered(A, 0.6, 1.0)
    peer.pinged_best(2.0)
    assert peer.is_trusted(2.0 + 4 * 0.6 - 0.01)
    assert not peer.is_trusted(2.0 + 4 * 0.6)


def test_who_replaces_whom() -> None:
    peer = make(A, B)
    peer.answered(A, 0.010, 1.0)
    peer.answered(B, 0.011, 1.0)
    assert peer.best == A
    peer.answered(B, 0.005, 1.0)
    assert peer.best == B
    peer.answered(A, 0.5, 1.0 + TRUST_SECONDS + 1)
    assert peer.best == A, "anything replaces what is not trusted"
    peer.answered(Endpoint("203.0.113.9", 1), 0.001, 20.0)
    assert peer.best == A, "it is no candidate any more"


def test_reset_keeps_what_coordination_says() -> None:
    peer = make(A)
    peer.call((B,), 0.0)
    peer.answered(A, 0.01, 1.0)
    peer.reset()
    assert set(peer.candidates) == {A}
    assert peer.best is None
    assert not peer.is_trusted(1.0)


def test_drop_is_of_one() -> None:
    peer = make(A, B)
    peer.answered(A, 0.01, 1.0)
    peer.drop(B)
    assert peer.best == A
    peer.drop(A)
    assert not peer.is_trusted(1.0)
    assert repr(peer) == "<PathPeer [a2tra] by relay>"
