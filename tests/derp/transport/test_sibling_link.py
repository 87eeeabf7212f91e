import os
import socket

from derp.close_reason import CloseReason
from derp.transport.host import WireEnded
from derp.transport.reactor import Reactor
from derp.transport.sibling_link import SiblingLink


class Sink:
    """A session that is told of its end."""

    def __init__(self) -> None:
        self.ended_by: CloseReason | None = None

    def received(self, at: int, end: int) -> int:
        return end

    def writable(self) -> None:
        pass

    def ended(self, reason: CloseReason, text: str) -> None:
        self.ended_by = reason


def linked() -> tuple[Reactor, SiblingLink, socket.socket, Sink]:
    near, far = socket.socketpair()
    far.setblocking(False)
    reactor, link, sink = Reactor(), SiblingLink(near, "worker 1"), Sink()
    link.session = sink
    reactor.add(link)
    return reactor, link, far, sink


def read_all(reactor: Reactor, far: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        try:
            received += far.recv(1 << 20)
        except BlockingIOError:
            assert reactor.serve_ready(1.0), "nothing more comes"
    return received


def test_it_takes_everything_and_sends_it_in_order() -> None:
    reactor, link, far, _ = linked()
    parts = [os.urandom(1 << 20) for _ in range(5)]

    for part in parts:
        assert link.send([part[:1000], part[1000:]], len(part)) == len(part)
        assert not link.blocked
    assert link.held_bytes > 3 << 20

    assert read_all(reactor, far, 5 << 20) == b"".join(parts)
    while link.held_bytes:
        reactor.serve_ready(1.0)
    assert not reactor.serve_ready(), "an empty link is not waited for"
    link.send([b"more"], 4)
    assert far.recv(10) == b"more"
    reactor.end()
    far.close()


def test_more_pieces_than_one_call_takes_are_sent_as_well() -> None:
    reactor, link, far, _ = linked()
    pieces = [bytes((number % 256,)) for number in range(3000)]

    assert link.send(pieces, 3000) == 3000
    assert read_all(reactor, far, 3000) == b"".join(pieces)
    reactor.end()
    far.close()


def test_what_was_not_sent_can_be_counted_when_the_other_side_is_gone() -> None:
    reactor, link, far, sink = linked()
    whole = os.urandom(4 << 20)
    link.send([whole], len(whole))
    got = far.recv(1000)
    far.close()

    reactor.serve_ready(1.0)

    assert sink.ended_by in (CloseReason.CLOSED_BY_PEER, CloseReason.SOCKET_FAILED)
    sent, held = link.take_held()
    assert held == whole
    assert len(got) <= sent < len(whole)
    assert link.take_held() == (0, b"")
    reactor.end()


def test_a_send_to_nobody_raises_nothing() -> None:
    reactor, link, far, _ = linked()
    far.close()
    try:
        link.send([b"lost"], 4)
    except WireEnded as error:
        raise AssertionError("its host would count these bytes as packets of its own") from error
    assert link.take_held() == (0, b"lost")
    reactor.end()
