"""Two workers in this process, joined as their supervisor joins them; clients on real sockets."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from derp.protocol.frames import HEADER
from derp.protocol.messages import RecvPacket
from derp.protocol.siblings import BATCH, CONTROL, control_frame
from derp.relay.siblings import Place
from derp.server.siblings import ANSWER_SECONDS, STANDING_SECONDS, Answers, Siblings
from tests.derp.server.bare_relay import BareRelay, Peer


class Workers:
    def __init__(self, *sides: BareRelay) -> None:
        self.sides = sides
        self.siblings = [Siblings(side.router, side.reactor) for side in sides]

    def join(self) -> None:
        for one, other in ((0, 1),):
            here, there = socket.socketpair()
            self.siblings[one].add(other, here)
            self.siblings[other].add(one, there)

    def serve(self) -> None:
        """Until nobody has anything to do."""
        for _ in range(1000):
            for side in self.sides:
                for peer in side.peers:
                    peer.wire.flush()
            if not sum(side.reactor.serve_ready() for side in self.sides):
                return
        raise AssertionError("the reactors are busy with nothing")

    def link(self, number: int) -> None:
        """Cut what worker `number` has to its sibling."""
        wire = self.sides[number].router.links[0].wire
        wire.sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def two_workers() -> Iterator[Workers]:
    with BareRelay(place=Place(0, 0, 2)) as left, BareRelay(place=Place(1, 1, 2)) as right:
        workers = Workers(left, right)
        workers.join()
        yield workers


def peer_of(side: BareRelay, workers: Workers, private: int) -> Peer:
    from derp.keys import NodePrivate

    peer = side.connect(private=NodePrivate(private.to_bytes(32, "big")))
    workers.serve()
    return peer


def test_far_more_than_one_receive_arrives_whole_and_in_order() -> None:
    with two_workers() as workers:
        left, right = workers.sides
        a, b = peer_of(left, workers, 1), peer_of(right, workers, 2)
        packets = [os.urandom(60_000) for _ in range(20)]

        a.send_packets(b, *packets)
        got: list[bytes] = []
        for _ in packets:
            workers.serve()
            got += b.read_packets()

        assert got == packets


def test_answers_come_from_all_in_pieces() -> None:
    with two_workers() as workers:
        answer = os.urandom(300_000)
        workers.siblings[1].answerers["what"] = lambda asked: asked + answer
        answers: list[Answers] = []

        workers.siblings[0].ask("what", b"1", answers.append)
        workers.siblings[0].host.flush()
        workers.serve()

        assert answers == [{1: b"1" + answer}]


def test_a_sibling_that_does_not_answer_is_left_out() -> None:
    with two_workers() as workers:
        left, _ = workers.sides
        answers: list[Answers] = []
        workers.siblings[0].ask("what", b"", answers.append)

        left.time += ANSWER_SECONDS - 0.1
        left.reactor.serve_ready()
        assert answers == []
        left.time += 0.2
        left.reactor.serve_ready()

        assert answers == [{}]


def test_a_sibling_that_dies_meanwhile_is_not_waited_for() -> None:
    with two_workers() as workers:
        answers: list[Answers] = []
        workers.siblings[0].ask("what", b"", answers.append)
        workers.link(0)

        workers.serve()

        assert answers == [{}]
        assert [side.router.links for side in workers.sides] == [[], []]


def test_whoever_has_no_siblings_has_all_answers_at_once() -> None:
    with BareRelay(place=Place(0, 0, 2)) as alone:
        answers: list[Answers] = []
        Siblings(alone.router, alone.reactor).ask("what", b"", answers.append)
        assert answers == [{}]


def test_packets_go_on_to_whom_is_here_when_the_sibling_is_gone() -> None:
    with two_workers() as workers:
        left, right = workers.sides
        a, b, c = peer_of(left, workers, 1), peer_of(right, workers, 2), peer_of(left, workers, 3)
        workers.link(1)
        workers.serve()

        a.send_packets(b, b"to nobody")
        a.send_packets(c, b"here")
        workers.serve()

        assert c.read() == [RecvPacket(a.key, b"here")]
        assert b.key not in left.router.members


@pytest.mark.parametrize(
    "said",
    [
        HEADER.pack(0x04, 32) + bytes(32),
        HEADER.pack(CONTROL, 1 << 20),
        HEADER.pack(CONTROL, 1) + b"\x00",
        HEADER.pack(BATCH, 40) + bytes(40) + bytes(8),
    ],
)
def test_what_no_worker_says_ends_the_link_alone(said: bytes) -> None:
    with two_workers() as workers:
        left, _ = workers.sides
        a, c = peer_of(left, workers, 1), peer_of(left, workers, 3)
        workers.sides[1].router.links[0].wire.sock.send(said)

        workers.serve()
        a.send_packets(c, b"still here")
        workers.serve()

        assert left.router.links == []
        assert c.read() == [RecvPacket(a.key, b"still here")]


def test_each_knows_how_the_other_stands() -> None:
    with two_workers() as workers:
        left, right = workers.sides
        one, other = workers.siblings
        assert (one.connection_count, one.problem) == (0, None)
        other.read_standing = lambda: (7, "no packet comes back")

        for side in (left, right):
            side.time += STANDING_SECONDS
            side.reactor.serve_ready()
        workers.serve()
        assert (one.connection_count, one.problem) == (7, "worker 1: no packet comes back")

        workers.link(1)
        workers.serve()
        assert (one.connection_count, one.problem) == (0, None)


def test_words_of_a_newer_version_are_read_past() -> None:
    with two_workers() as workers:
        left, right = workers.sides
        heard: list[object] = []
        workers.siblings[0].told["known"] = heard.append
        right.router.tell_siblings(control_frame("unheard of", 1, [2]) + control_frame("known", 3))
        right.reactor.flush()

        workers.serve()

        assert heard == [3]
        assert len(left.router.links) == 1
