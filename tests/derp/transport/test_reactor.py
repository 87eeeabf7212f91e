"""The reactor on real sockets, driven by serve_ready."""

import logging
import random
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derp.close_reason import CloseReason
from derp.errors import Flood, RemoteProtocolError
from derp.transport.framing import RECEIVE_BYTES
from derp.transport.host import WireEnded
from derp.transport.hostcore import ARENA_BYTES, FLOOD_LOG_SECONDS
from tests.derp.transport.served import Recorder, Served, take_number
from tests.support.wires import PlainWire, socket_pair, tcp_pair

PATIENCE_SECONDS = 60  # a hang guard
pytestmark = pytest.mark.usefixtures("poller")
SMALL = 4096


# --- receiving


def test_what_arrives_is_handed_over(served: Served) -> None:
    a, far_a = served.open()
    b, far_b = served.open()
    far_a.write(b"to a")
    assert served.reactor.serve_ready() == 1
    far_a.write(b", again")
    far_b.write(b"to b")
    assert served.reactor.serve_ready() == 2
    assert served.reactor.serve_ready() == 0
    assert (a.data, b.data) == (b"to a, again", b"to b")


@settings(max_examples=60, deadline=None)
@given(
    record=st.sampled_from((1, 2, 7, 1000, 65_573)),
    parts=st.lists(st.one_of(st.integers(1, 50), st.integers(1, 90_000)), min_size=1, max_size=8),
)
def test_an_unfinished_rest_comes_again_before_what_follows(record: int, parts: list[int]) -> None:
    served = Served()
    recorder, wire = served.open(record)
    other, far_other = served.open(3)
    data = random.Random(7).randbytes(sum(parts))
    at = 0
    for part in parts:
        wire.write(data[at : at + part])
        at += part
        far_other.write(b"abcd")
        served.serve()
        while not wire.flush():
            served.serve()
    served.serve()
    whole = len(data) // record * record
    assert recorder.data == data[:whole]
    assert recorder.link.kept == data[whole:]
    assert other.data == (b"abcd" * len(parts))[: len(parts) * 4 // 3 * 3]
    served.end()


def test_more_at_once_than_the_arena_holds(served: Served) -> None:
    # Each link has a full receive ready: the arena is flushed and used again within the batch.
    flushes: list[int] = []
    served.reactor.flushers.append(lambda: flushes.append(len(open_pieces)))
    open_pieces: list[memoryview] = []
    opened: list[tuple[Recorder, PlainWire]] = []
    for _ in range(12):
        near, far = socket_pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        recorder, wire = served.open(1000, (near, far))
        recorder.then = lambda recorder: open_pieces.append(served.reactor.view[:1])
        wire.write(random.Random(len(opened)).randbytes(RECEIVE_BYTES))
        opened.append((recorder, wire))
    served.reactor.serve_ready()
    assert len(flushes) > 12 * RECEIVE_BYTES // ARENA_BYTES
    while any(not wire.flush() or len(recorder.data) < RECEIVE_BYTES // 1000 * 1000 for recorder, wire in opened):
        served.reactor.serve_ready()
    for number, (recorder, _) in enumerate(opened):
        assert recorder.data == random.Random(number).randbytes(RECEIVE_BYTES)[: len(recorder.data)]


def test_receives_of_a_batch_lie_side_by_side_until_the_flush(served: Served) -> None:
    # Sessions hand slices of the arena to each other's destinations; nothing may overwrite them before.
    seen: list[bytes] = []
    slices: list[memoryview] = []

    def flush() -> None:
        seen.extend(bytes(one) for one in slices)
        slices.clear()

    served.reactor.flushers.append(flush)
    for number in range(20):
        recorder, wire = served.open()

        def keep(recorder: Recorder) -> None:
            slices.append(served.reactor.view[served.reactor._end - recorder.receives[-1] : served.reactor._end])

        recorder.then = keep
        wire.write(bytes([number]) * 5000)
    served.reactor.serve_ready()
    assert sorted(seen) == [bytes([number]) * 5000 for number in range(20)]


def test_who_is_dear_is_read_in_small_pieces_and_everybody_has_a_turn_soon(served: Served) -> None:
    """Twenty sessions whose bytes cost 2 us each, as of the smallest websocket messages, and one that is cheap."""
    flooders: list[tuple[Recorder, PlainWire]] = []
    for _ in range(20):
        recorder, wire = served.open()

        def work(recorder: Recorder) -> None:
            served.time += 2e-6 * recorder.receives[-1]

        recorder.then = work
        flooders.append((recorder, wire))
    cheap, innocent = served.open()

    def round_seconds() -> float:
        for _, wire in flooders:
            wire.write(bytes(1 << 16))
        innocent.write(b"packet")
        heard, began = len(cheap.receives), served.time
        while len(cheap.receives) == heard:
            served.reactor.serve_ready()
        return served.time - began

    assert round_seconds() > 1.0  # nobody knew
    round_seconds()
    rounds = [round_seconds() for _ in range(50)]
    assert max(rounds) < 0.03
    assert sum(rounds) / len(rounds) < 0.02
    # Once their bytes are cheap, they are read in large pieces again.
    for recorder, wire in flooders:
        recorder.then = lambda recorder: None
        while wire.waiting or recorder.receives[-1] < RECEIVE_BYTES // 4:
            wire.write(bytes(1 << 16))
            served.reactor.serve_ready()


def test_floods_are_counted_apart_and_logged_now_and_then(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    def flood(recorder: Recorder) -> None:
        raise Flood("more than anybody sends")

    for wait in (0.0, 0.0, 0.0, FLOOD_LOG_SECONDS):
        served.time += wait
        recorder, wire = served.open()
        recorder.then = flood
        wire.write(b"x")
        served.reactor.serve_ready()
        assert recorder.ends == [(CloseReason.FLOOD, "more than anybody sends")]
    assert [record.getMessage() for record in caplog.records] == [
        "! 127.0.0.1:1 floods and is closed: more than anybody sends",
        "! 127.0.0.1:1 floods and is closed: more than anybody sends (2 more since the last such line)",
    ]


def test_a_session_may_hand_over_to_another_in_the_middle(served: Served) -> None:
    recorder, wire = served.open(record=4)
    second = Recorder(served, recorder.link, record=3)

    def hand_over(first: Recorder) -> None:
        first.link.session = second

    recorder.take_at_most = 4
    recorder.then = hand_over
    wire.write(b"headabcde")
    served.serve()
    assert (recorder.data, second.data, recorder.link.kept) == (b"head", b"abc", b"de")
    wire.write(b"f")
    served.serve()
    assert (second.data, recorder.link.kept) == (b"abcdef", b"")


# --- ends


def test_a_link_ends_once(served: Served) -> None:
    recorder, wire = served.open()
    wire.write(b"last words")
    wire.close()
    served.serve()
    assert recorder.data == b"last words"
    assert recorder.ends == [(CloseReason.CLOSED_BY_PEER, "closed_by_peer")]
    served.reactor.close(recorder.link, CloseReason.STOPPED)
    served.reactor.fail(recorder.link, WireEnded(CloseReason.FLOOD))
    assert len(recorder.ends) == 1
    assert served.reactor.wires == {}


def test_a_reset_ends_a_link(served: Served) -> None:
    near, far = tcp_pair()
    recorder, wire = served.open(1, (near, far))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    served.serve()
    assert recorder.ends == [(CloseReason.SOCKET_FAILED, "receive failed: Connection reset by peer")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RemoteProtocolError("no such frame"), CloseReason.PROTOCOL_ERROR),
        (WireEnded(CloseReason.FLOOD, "too much"), CloseReason.FLOOD),
        (ZeroDivisionError("a defect"), CloseReason.INTERNAL_ERROR),
    ],
)
def test_an_error_ends_its_own_link_only(
    served: Served, error: Exception, reason: CloseReason, caplog: pytest.LogCaptureFixture
) -> None:
    bad, far_bad = served.open()
    good, far_good = served.open()

    def fail(recorder: Recorder) -> None:
        raise error

    bad.then = fail
    far_bad.write(b"x")
    far_good.write(b"one")
    with caplog.at_level(logging.ERROR):
        served.serve()
    assert [ended for ended, _ in bad.ends] == [reason]
    assert far_bad.read() == b""
    assert far_bad.ended
    far_good.write(b"two")
    served.serve()
    assert (good.data, good.ends) == (b"onetwo", [])
    assert [record.exc_info is not None for record in caplog.records] == [True] * (reason is CloseReason.INTERNAL_ERROR)


@pytest.mark.parametrize("error", [RemoteProtocolError("no"), ZeroDivisionError("a defect")])
def test_an_error_while_writing_ends_its_own_link_only(served: Served, error: Exception) -> None:
    recorder, _ = served.open()

    def fail(recorder: Recorder) -> None:
        raise error

    recorder.when_writable = fail
    served.reactor.await_room(recorder.link)
    served.serve()
    assert len(recorder.ends) == 1
    assert served.reactor.blocked == set()


def test_a_session_may_close_other_links_of_the_batch(served: Served) -> None:
    opened = [served.open() for _ in range(10)]

    def close_all(recorder: Recorder) -> None:
        for other, _ in opened:
            served.reactor.close(other.link, CloseReason.DRAINED)

    for recorder, wire in opened:
        recorder.then = close_all
        wire.write(b"x")
    served.serve()
    assert sum(len(recorder.data) for recorder, _ in opened) == 1
    assert all(recorder.ends == [(CloseReason.DRAINED, "")] for recorder, _ in opened)


def test_the_number_of_a_closed_link_belongs_to_its_heir(served: Served) -> None:
    # Plane.flush may find a link that ended in the same batch in which its number was accepted again.
    old, _ = served.open()
    served.reactor.close(old.link, CloseReason.DRAINED)
    heir, far_heir = take_number(served, old.link.fd)
    old.link.kept = b"never to be served"
    old.link.paused = True
    reactor = served.reactor
    misuses: list[Callable[[], None]] = [
        lambda: reactor.close(old.link, CloseReason.FLOOD),
        lambda: reactor.fail(old.link, WireEnded(CloseReason.FLOOD)),
        lambda: reactor.release(old.link),
        lambda: reactor.await_room(old.link),
        lambda: reactor.resume(old.link),
        lambda: reactor.pause(old.link),
    ]
    for misuse in misuses:
        misuse()
        far_heir.write(b"still here ")
        served.serve()
    assert heir.data == b"still here " * 6
    assert (heir.ends, len(old.ends), old.data) == ([], 1, b"")
    assert old.link not in served.reactor.blocked
    assert heir.writable_count == 0


# --- sending


def test_writable_comes_when_all_that_was_left_has_gone(served: Served) -> None:
    recorder, wire = served.open(1, socket_pair(SMALL))
    recorder.link.push(b"x" * 50_000)
    served.reactor.await_room(recorder.link)
    assert served.serve() == 0
    assert served.reactor.blocked == {recorder.link}
    arrived = b""
    while not recorder.writable_count:
        arrived += wire.read()
        served.serve()
    assert arrived + wire.read() == b"x" * 50_000
    assert served.reactor.blocked == set()
    assert served.serve() == 0, "still asks for room"
    assert recorder.writable_count == 1


def test_a_link_that_is_blocked_is_still_read(served: Served) -> None:
    recorder, wire = served.open(1, socket_pair(SMALL))
    recorder.link.push(b"x" * 50_000)
    served.reactor.await_room(recorder.link)
    wire.write(b"hello")
    served.serve()
    assert (recorder.data, recorder.writable_count) == (b"hello", 0)


def test_progress_is_whatever_the_kernel_took(served: Served) -> None:
    """A slow reader whose session has ever more to send is not stuck; one that takes nothing is."""
    served.reactor.write_seconds = 2.0
    recorder, wire = served.open(1, socket_pair(SMALL))
    link = recorder.link
    link.push(b"x" * 20_000)
    served.reactor.await_room(link)
    # With each room it gets, a session pushes more than went: its tail never becomes shorter.
    recorder.when_writable = lambda recorder: link.push(b"y" * 60_000)
    while recorder.writable_count < 10:
        served.time += 1.0
        assert wire.read(), "no progress at all"
        served.serve()
    assert recorder.ends == []
    served.time += 1.9
    wire.write(b"still sending")
    served.serve()
    assert (recorder.ends, link in served.reactor.blocked) == ([], True)
    served.time += 0.1
    served.serve()
    assert [reason for reason, _ in recorder.ends] == [CloseReason.WRITE_TIMEOUT]
    assert (served.reactor.blocked, len(served.reactor.timers)) == (set(), 0)


def test_a_wire_may_have_a_time_of_its_own(served: Served) -> None:
    served.reactor.write_seconds = 2.0
    patient, endless, usual = (served.open(number, socket_pair(SMALL))[0] for number in (1, 2, 3))
    patient.link.write_seconds, endless.link.write_seconds = 30.0, 0.0
    for recorder in (patient, endless, usual):
        recorder.link.push(b"x" * 50_000)
        served.reactor.await_room(recorder.link)
    for seconds, expected in (
        (1.9, [0, 0, 0]),
        (0.1, [0, 0, 1]),
        (27.9, [0, 0, 1]),
        (0.1, [1, 0, 1]),
        (1e6, [1, 0, 1]),
    ):
        served.time += seconds
        served.serve()
        assert [len(recorder.ends) for recorder in (patient, endless, usual)] == expected


def test_one_that_has_room_again_has_no_deadline(served: Served) -> None:
    served.reactor.write_seconds = 2.0
    recorder, wire = served.open(1, socket_pair(SMALL))
    recorder.link.push(b"x" * 50_000)
    served.reactor.await_room(recorder.link)
    while served.reactor.blocked:
        wire.read()
        served.serve()
    served.time += 100.0
    served.serve()
    assert recorder.ends == []


def test_a_tail_left_by_receiving_is_sent_later(served: Served) -> None:
    # A pong that did not fit: nobody but the reactor knows.
    recorder, wire = served.open(1, socket_pair(SMALL))
    recorder.link.push(b"x" * 50_000)
    wire.write(b"hello")
    served.serve()
    assert recorder.link in served.reactor.blocked
    arrived = b""
    while served.reactor.blocked:
        arrived += wire.read()
        served.serve()
    assert arrived + wire.read() == b"x" * 50_000


def test_a_socket_that_fails_while_it_is_blocked(served: Served) -> None:
    recorder, wire = served.open(1, tcp_pair(SMALL))
    recorder.link.push(b"x" * 1_000_000)
    served.reactor.await_room(recorder.link)
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    served.serve()
    assert [reason for reason, _ in recorder.ends] == [CloseReason.SOCKET_FAILED]
    assert served.reactor.blocked == set()


# --- pausing


def test_a_paused_link_keeps_everything(served: Served) -> None:
    recorder, wire = served.open(record=4)
    recorder.then = lambda recorder: served.reactor.pause(recorder.link)
    wire.write(b"one.two.thr")
    served.serve()
    assert recorder.data == b"one.two."
    wire.write(b"ee.four")
    assert served.serve() == 0, "a paused link keeps the reactor busy"
    recorder.then = lambda recorder: None
    served.reactor.resume(recorder.link)
    assert recorder.data == b"one.two."
    served.serve()
    assert recorder.data == b"one.two.three.fo"
    assert recorder.link.kept == b"ur"


def test_what_a_paused_session_left_is_delivered_on_resuming(served: Served) -> None:
    recorder, wire = served.open()
    recorder.take_at_most = 0  # waits for a decision
    wire.write(b"first words")
    served.reactor.serve_ready()
    served.reactor.pause(recorder.link)
    recorder.take_at_most = 1000
    flushed: list[bytes] = []
    served.reactor.flushers.append(lambda: flushed.append(recorder.data))
    served.reactor.resume(recorder.link)
    assert recorder.data == b"first words"
    served.reactor.flush()
    wire.write(b", more")
    served.serve()
    assert recorder.data == b"first words, more"
    assert flushed[0] == b"first words"


def test_delivered_bytes_stay_until_the_next_flush(served: Served) -> None:
    """`resume` and `adopt` come from tasks; the next batch may not overwrite what they handed out."""
    recorder, wire = served.open()
    slices: list[memoryview] = []
    seen: list[bytes] = []

    def flush() -> None:
        seen.extend(bytes(one) for one in slices)
        slices.clear()

    served.reactor.flushers.append(flush)
    recorder.then = lambda recorder: slices.append(served.reactor.view[: recorder.receives[-1]])
    served.reactor.release(recorder.link)
    served.reactor.adopt(recorder.link, b"delivered")
    recorder.then = lambda recorder: None
    wire.write(b"OVERWRITTEN")
    served.reactor.serve_ready()
    assert seen == [b"delivered"]


def test_a_paused_link_whose_peer_is_gone_ends(served: Served) -> None:
    if served.reactor._poller.name == "kqueue":
        pytest.skip("kqueue says nothing of a descriptor of which nothing is asked: it ends when it is read again")
    recorder, wire = served.open(1, tcp_pair())
    served.reactor.pause(recorder.link)
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    served.serve()
    assert recorder.ends == [(CloseReason.CLOSED_BY_PEER, "")]


def test_a_paused_link_may_be_closed(served: Served) -> None:
    recorder, _ = served.open()
    served.reactor.pause(recorder.link)
    recorder.link.kept = b"kept"
    served.reactor.close(recorder.link, CloseReason.DRAINED)
    served.reactor.resume(recorder.link)
    assert recorder.data == b""


# --- other descriptors, other owners


def test_watched_descriptors_are_served(served: Served) -> None:
    near, far = socket_pair()
    got: list[bytes] = []
    served.reactor.watch(near.fileno(), lambda: got.append(near.recv(100)))
    far.send(b"one")
    served.serve()
    served.reactor.unwatch(near.fileno())
    served.reactor.unwatch(near.fileno())
    far.send(b"two")
    assert served.serve() == 0
    assert got == [b"one"]
    assert near.recv(100) == b"two"
    near.close()
    far.close()


def test_a_released_link_is_somebody_elses(served: Served) -> None:
    recorder, wire = served.open()
    recorder.link.push(b"")
    served.reactor.release(recorder.link)
    wire.write(b"not for the reactor")
    assert served.serve() == 0
    served.reactor.close(recorder.link, CloseReason.STOPPED)
    assert recorder.ends == []
    assert recorder.link.sock.recv(100) == b"not for the reactor"
    served.reactor.adopt(recorder.link, b"back, ")
    wire.write(b"again")
    served.serve()
    assert recorder.data == b"back, again"
