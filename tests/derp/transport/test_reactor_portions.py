"""Crowds that come in or leave: a portion of them in each round, and whoever is inside in every round."""

import pytest

from derp.close_reason import CloseReason
from tests.derp.transport.served import Recorder, Served, take_number
from tests.support.wires import PlainWire, socket_pair

pytestmark = pytest.mark.usefixtures("poller")

TURN_SECONDS = 0.0003


def crowd_of(served: Served, count: int, *, is_newcomer: bool) -> list[tuple[Recorder, PlainWire]]:
    """So many whose turn takes a while each, as a login does."""
    crowd = []
    for _ in range(count):
        recorder, wire = served.open()
        recorder.link.is_newcomer = is_newcomer

        def work(recorder: Recorder) -> None:
            served.time += TURN_SECONDS

        recorder.then = work
        crowd.append((recorder, wire))
    return crowd


def serve_portion(served: Served, inside: Recorder, far: PlainWire) -> None:
    """A round in which somebody who is inside has his turn, and of the others a portion."""
    far.write(b"x")
    began, before = served.time, len(inside.data)
    served.reactor.serve_ready()
    assert len(inside.data) == before + 1
    assert served.time - began < 0.001 + TURN_SECONDS


def test_a_crowd_of_newcomers_comes_in_by_and_by_and_the_others_are_served_meanwhile(served: Served) -> None:
    crowd = crowd_of(served, 30, is_newcomer=True)
    for _, wire in crowd:
        wire.write(b"hello")
    inside, far = served.open()
    order: list[Recorder] = []
    batches = 0
    while len(order) < 30:
        serve_portion(served, inside, far)
        batches += 1
        order += [one for one, _ in crowd if one.data and one not in order]
    assert batches > 5
    assert all(one.data == b"hello" for one, _ in crowd)
    assert served.serve() == 0
    for recorder, wire in crowd:  # they are in the set again
        wire.write(b", again")
        served.serve()
        assert recorder.data == b"hello, again"


def test_a_crowd_that_leaves_goes_by_and_by_and_its_last_words_are_heard(served: Served) -> None:
    crowd = crowd_of(served, 30, is_newcomer=False)
    inside, far = served.open()
    for _, wire in crowd:
        wire.write(b"last words")
        wire.close()
    batches = 0
    while served.reactor._patient or not batches:
        serve_portion(served, inside, far)
        batches += 1
    served.serve()
    assert batches > 5
    assert all(one.data == b"last words" for one, _ in crowd)
    assert {reason for one, _ in crowd for reason, _ in one.ends} == {CloseReason.CLOSED_BY_PEER}
    assert list(served.reactor.wires) == [inside.link]


def test_who_waits_for_a_turn_may_be_written_to_paused_and_closed(served: Served) -> None:
    crowd = crowd_of(served, 12, is_newcomer=True)
    for _, wire in crowd:
        wire.write(b"hello")
    served.reactor.serve_ready()
    waiting = [(one, wire) for one, wire in crowd if not one.data]
    assert len(waiting) > 6
    (closed, _), (paused, _), (full, far_full), (gone, far_gone), (released, _) = waiting[:5]
    served.reactor.close(closed.link, CloseReason.HANDSHAKE_TIMEOUT)
    heir, far_heir = take_number(served, closed.link.fd)
    far_heir.write(b"hello from the heir")
    served.reactor.pause(paused.link)
    full.link.send_raw(bytes(1 << 22))
    served.reactor.await_room(full.link)
    far_gone.close()
    served.reactor.release(released.link)
    served.serve()
    assert (closed.data, heir.data, paused.data, full.data) == (b"", b"hello from the heir", b"", b"hello")
    assert (gone.data, [reason for reason, _ in gone.ends]) == (b"hello", [CloseReason.CLOSED_BY_PEER])
    assert released.data == b""
    released.link.close()
    served.reactor.resume(paused.link)
    while not full.writable_count:
        far_full.read()
        served.serve()
    assert paused.data == b"hello"


def test_a_listener_that_can_wait_has_its_turn_among_the_newcomers(served: Served) -> None:
    near, far = socket_pair()
    near.setblocking(False)
    turns: list[int] = []

    def accept() -> None:
        turns.append(len(near.recv(1)))
        served.time += TURN_SECONDS

    served.reactor.watch(near.fileno(), accept, can_wait=True)
    far.send(b"xyz")
    crowd = crowd_of(served, 12, is_newcomer=True)
    for _, wire in crowd:
        wire.write(b"hello")
    served.serve()
    assert turns == [1, 1, 1]
    far.send(b"x")
    for _, wire in crowd:
        wire.write(b"hello")
    while not served.reactor._aside:
        served.reactor.serve_ready()
    served.reactor.unwatch(near.fileno())  # in the set or out of it
    served.serve()
    assert served.reactor._aside == set()
    near.close()
    far.close()
