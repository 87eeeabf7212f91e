"""The routers of two workers, joined by hand: what one says is read to the other."""

from collections.abc import Sequence
from typing import Any

import pytest

from derp.protocol.frames import HEADER, FrameType, encode_frame
from derp.protocol.messages import SendPacket, encode
from derp.protocol.siblings import BATCH, BATCH_HEAD_BYTES, CONTROL, parse_control
from derp.relay.clients import Client
from derp.relay.counters import Counters, DropReason
from derp.relay.forward import relay_forwarded, relay_packets
from derp.relay.mailbox import Mailbox
from derp.relay.siblings import MAX_HELD_BYTES, Arrivals, Place, SiblingRoute, WorkerRouter, count_unsent

OWN = b"R" * 32


class Wire:
    held_bytes = 0


class Side:
    """One worker, and the link to the other."""

    def __init__(self, slot: int) -> None:
        self.router = WorkerRouter(OWN, Place(slot, slot, 2), queue_depth=8, queue_bytes=1 << 20)
        self.link = SiblingRoute(OWN, 1 - slot, Wire())
        self.arrivals = Arrivals(self.router, 0.0)

    def connect(self, key: bytes, *, is_mesh_peer: bool = False, is_own: bool = False) -> Client:
        number = self.router.next_number()
        client = Client(key, number, object(), 0.0, address="192.0.2.7", port=number, is_own=is_own)
        client.is_mesh_peer = is_mesh_peer
        self.router.register(client)
        return client

    def send(self, source: Client, *frames: bytes) -> None:
        buffer = bytearray(b"".join(frames))
        if source.is_duplicate:
            self.router.note_writer(source)
        assert relay_packets(buffer, memoryview(buffer), 0, len(buffer), source, self.router, 0.0) == len(buffer)

    def said(self) -> bytes:
        """What waits for the other worker."""
        said = b"".join(self.link.pending)
        assert len(said) == self.link.pending_bytes
        self.link.pending.clear()
        self.link.pending_bytes = 0
        self.link.is_dirty = False
        return said


class Pair:
    def __init__(self) -> None:
        self.sides = Side(0), Side(1)
        for side in self.sides:
            side.router.add_sibling(side.link)

    def settle(self) -> None:
        """Read to each what the other said, until both have said all."""
        heard = True
        while heard:
            heard = False
            for side, other in (self.sides, self.sides[::-1]):
                said = side.said()
                heard = heard or bool(said)
                hear(other, said)


def hear(side: Side, said: bytes) -> None:
    buffer, at = bytearray(said), 0
    while at < len(buffer):
        kind, length = HEADER.unpack_from(buffer, at)
        stop = at + 5 + length
        if kind == BATCH:
            side.arrivals.begin(bytes(buffer[at + 5 : at + BATCH_HEAD_BYTES]))
            start = at + BATCH_HEAD_BYTES
            view = memoryview(buffer)
            assert relay_packets(buffer, view, start, stop, side.arrivals.source, side.arrivals, 0.0) == stop
        else:
            assert kind == CONTROL
            act(side, parse_control(bytes(buffer[at + 5 : stop])))
        at = stop


def act(side: Side, items: Sequence[Any]) -> None:
    name, *rest = items
    calls = {
        "came": side.router.sibling_came,
        "left": side.router.sibling_left,
        "has": side.router.sibling_has,
        "went": side.router.sibling_went,
        "wrote": side.router.sibling_wrote,
    }
    calls[name](side.link, *rest)


def got(client: Client) -> list[tuple[int, bytes]]:
    """The frames that wait for a client: type and payload."""
    frames, at = b"".join(client.pending), 0
    client.pending.clear()
    client.pending_bytes = 0
    client.is_dirty = False
    found = []
    while at < len(frames):
        kind, length = HEADER.unpack_from(frames, at)
        found.append((kind, frames[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def hears_of(pair: Pair) -> Client:
    """C at the right, to whom B at the left has sent something: it would hear of B's end."""
    left, right = pair.sides
    b, c = left.connect(B), right.connect(C)
    pair.settle()
    left.send(b, packet(C, b"hello"))
    pair.settle()
    got(c)
    return c


def packet(destination: bytes, content: bytes) -> bytes:
    return encode(SendPacket(destination, content))


A, B, C = (letter * 32 for letter in (b"A", b"B", b"C"))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_packets_of_one_receive_for_clients_of_a_sibling_are_one_batch(pair: Pair) -> None:
    left, right = pair.sides
    source, (b, c) = left.connect(A), (right.connect(B), right.connect(C))
    pair.settle()

    left.send(source, packet(B, b"one"), packet(C, b"two"), packet(B, b"three"))

    assert len(left.link.pending) == 2, "the source's key, and all frames as they were received"
    pair.settle()
    assert got(b) == [(5, A + b"one"), (5, A + b"three")]
    assert got(c) == [(5, A + b"two")]
    assert left.router.counters.packets_received == 3
    assert right.router.counters.packets_received == right.router.counters.packets_forwarded_in == 0


def test_a_batch_ends_where_somebody_else_or_a_client_here_comes_between(pair: Pair) -> None:
    left, right = pair.sides
    a, b, c = left.connect(A), right.connect(B), left.connect(C)
    pair.settle()

    left.send(a, packet(B, b"one"), packet(C, b"here"), packet(B, b"two"))
    left.send(c, packet(B, b"three"))
    pair.settle()

    assert got(b) == [(5, A + b"one"), (5, A + b"two"), (5, C + b"three")]
    assert got(c) == [(5, A + b"here")]


def test_a_presence_between_two_packets_stays_between_them(pair: Pair) -> None:
    left, right = pair.sides
    a, b = left.connect(A), right.connect(B)
    pair.settle()

    buffer = bytearray(packet(B, b"one") + packet(B, b"two"))
    half, view = len(buffer) // 2, memoryview(buffer)
    relay_packets(buffer, view, 0, half, a, left.router, 0.0)
    left.connect(C)
    relay_packets(buffer, view, half, len(buffer), a, left.router, 0.0)
    pair.settle()

    assert got(b) == [(5, A + b"one"), (5, A + b"two")]
    assert C in right.router.routes


def test_a_batch_that_left_is_not_continued_where_words_wait_in_its_place(pair: Pair) -> None:
    left, right = pair.sides
    a, b, c = left.connect(A), right.connect(B), left.connect(C)
    pair.settle()
    left.send(a, packet(B, b"one"))
    pair.settle()

    for word in (b"D" * 32, b"E" * 32):
        left.connect(word)
    left.send(a, packet(C, b"two"), packet(B, b"333"))  # which begins where the first one ended
    pair.settle()

    assert got(b) == [(5, A + b"one"), (5, A + b"333")]
    assert got(c) == [(5, A + b"two")]
    assert {b"D" * 32, b"E" * 32} <= right.router.routes.keys()


def test_whoever_heard_of_a_key_is_told_when_it_leaves_the_other_worker(pair: Pair) -> None:
    left, right = pair.sides
    a, b = left.connect(A), right.connect(B)
    pair.settle()
    left.send(a, packet(B, b"hello"))
    pair.settle()
    got(b)

    left.router.unregister(a)
    pair.settle()

    assert got(b) == [(FrameType.PEER_GONE, A + b"\x00")]
    assert A not in right.router.members


def test_a_link_that_begins_late_tells_all_who_are_here() -> None:
    pair = Pair.__new__(Pair)
    pair.sides = Side(0), Side(1)
    left, right = pair.sides
    b = right.connect(B)
    right.connect(C, is_own=True)
    for side in pair.sides:
        side.router.add_sibling(side.link)
    a = left.connect(A)
    pair.settle()

    left.send(a, packet(B, b"found"), packet(C, b"nobody's"))
    pair.settle()

    assert got(b) == [(5, A + b"found")]
    assert left.router.counters.dropped(DropReason.UNKNOWN_DEST) == 1


def test_a_lost_link_takes_the_keys_behind_it_along_in_portions(pair: Pair) -> None:
    left, right = pair.sides
    for number in range(5):
        right.connect(bytes((number,)) * 32)
    pair.settle()

    assert left.router.forget_some(left.link, 3)
    assert len(left.router.members) == 2
    assert not left.router.forget_some(left.link, 3)
    assert not left.router.members
    assert not left.router.routes
    assert left.router.links == []


class TestOneKeyOnTwoWorkers:
    def test_the_newest_connection_gets_the_packets(self, pair: Pair) -> None:
        left, right = pair.sides
        a, old = left.connect(A), left.connect(B)
        pair.settle()
        new = right.connect(B)
        pair.settle()

        left.send(a, packet(B, b"x"))
        pair.settle()

        assert (got(old), got(new)) == ([], [(5, A + b"x")])
        assert old.is_duplicate
        assert new.is_duplicate

    def test_whoever_wrote_last_gets_them_then(self, pair: Pair) -> None:
        left, right = pair.sides
        a, old, c = left.connect(A), left.connect(B), right.connect(C)
        pair.settle()
        new = right.connect(B)
        pair.settle()

        left.send(old, packet(C, b"I am alive"))
        pair.settle()
        left.send(a, packet(B, b"x"))
        right.send(c, packet(B, b"y"))
        pair.settle()
        assert got(old) == [(5, A + b"x"), (5, C + b"y")]

        right.send(new, packet(C, b"so am I"))
        pair.settle()
        left.send(a, packet(B, b"z"))
        pair.settle()
        assert got(new) == [(5, A + b"z")]
        assert got(old) == []

    def test_when_the_active_one_leaves_the_other_takes_over(self, pair: Pair) -> None:
        left, right = pair.sides
        a, old = left.connect(A), left.connect(B)
        pair.settle()
        new = right.connect(B)
        pair.settle()
        left.send(a, packet(B, b"x"))
        pair.settle()
        assert got(new)

        right.router.unregister(new)
        pair.settle()
        left.send(a, packet(B, b"y"))

        assert got(old) == [(5, A + b"y")], "and nobody was told that the key is gone"
        assert not old.is_duplicate
        assert left.router.duplicate_keys == right.router.duplicate_keys == 0

    def test_a_key_of_both_counts_with_the_elder(self, pair: Pair) -> None:
        left, right = pair.sides
        right.connect(B)
        pair.settle()
        assert right.router.stands_for(B)

        left.connect(B)
        pair.settle()

        assert [side.router.stands_for(B) for side in pair.sides] == [True, False]
        assert left.router.counters.dup_client_conns_total == 1
        assert right.router.counters.dup_client_conns_total == 0

    def test_two_that_alternate_cost_one_word_each_time(self, pair: Pair) -> None:
        left, right = pair.sides
        one = left.connect(B)
        pair.settle()
        right.connect(B)
        pair.settle()

        left.router.note_writer(one)
        left.router.note_writer(one)

        assert len(left.link.pending) == 1

    def test_a_mesh_peer_has_one_everywhere_and_tells_nobody_when_it_writes(self, pair: Pair) -> None:
        left, right = pair.sides
        one = left.connect(B, is_mesh_peer=True)
        pair.settle()
        right.connect(B, is_mesh_peer=True)
        pair.settle()

        left.router.note_writer(one)

        assert left.link.pending == []


class TestLeaving:
    """A worker that is being replaced."""

    def test_packets_for_a_client_on_its_way_follow_it_before_newer_ones(self, pair: Pair) -> None:
        left, right = pair.sides
        moves, a, c = left.connect(B), left.connect(A), right.connect(C)
        pair.settle()
        left.router.is_leaving = True
        left.router.send_off(moves, 0.0)
        left.send(a, packet(B, b"one"), packet(B, b"2"))
        deliver(left)
        right.send(c, packet(B, b"from there"))
        pair.settle()
        deliver(left)

        back = right.connect(B)
        right.send(c, packet(B, b"newer"))
        assert got(back) == [(5, C + b"newer")], "which does not wait for what may come from elsewhere"
        pair.settle()
        left.send(a, packet(B, b"last"))
        pair.settle()

        assert got(back) == [(5, A + b"one"), (5, A + b"2"), (5, C + b"from there"), (5, A + b"last")]
        assert [kind for kind, _ in got(c)] == []

    def test_a_sibling_that_has_not_heard_where_the_client_is_reaches_it_all_the_same(self, pair: Pair) -> None:
        left, right = pair.sides
        moves, c = left.connect(B), right.connect(C)
        pair.settle()
        right.send(c, packet(B, b"on its way"))
        on_its_way = right.said()
        left.router.is_leaving = True
        left.router.send_off(moves, 0.0)
        back = right.connect(B)
        pair.settle()

        hear(left, on_its_way)
        pair.settle()

        assert got(back) == [(5, C + b"on its way")]

    def test_one_that_has_come_to_a_sibling_before_it_is_sent_away_is_reached_there(self, pair: Pair) -> None:
        left, right = pair.sides
        moves, a, c = left.connect(B), left.connect(A), right.connect(C)
        pair.settle()
        left.send(moves, packet(C, b"hello"))
        again = right.connect(B)
        pair.settle()
        got(c)
        left.router.is_leaving = True
        left.router.send_off(moves, 0.0)
        left.send(a, packet(B, b"x"))
        pair.settle()

        assert got(again) == [(5, A + b"x")]
        assert len(left.router.mailboxes) == 0
        assert B not in right.link.keys, "whoever still comes here is sent on, but nobody need"
        assert not again.is_duplicate
        assert got(c) == []

    @pytest.mark.parametrize("is_late", [True, False])
    def test_nobody_hears_that_it_has_gone_if_its_new_worker_s_word_comes_last(self, pair: Pair, is_late: bool) -> None:
        right, c = pair.sides[1], hears_of(pair)
        third = SiblingRoute(OWN, 2, Wire())
        right.router.add_sibling(third)
        came = right.link.keys[B]
        words = [lambda: right.router.sibling_went(right.link, B, 2), lambda: right.router.sibling_came(third, came)]
        for word in words if is_late else words[::-1]:
            word()
            assert got(c) == []
        assert (right.router.routes[B], right.link.keys, right.router._went) == (third, {}, {})

        right.router.sibling_left(third, B)
        assert got(c) == [(FrameType.PEER_GONE, B + b"\x00")]

    def test_a_key_whose_new_worker_is_never_heard_of_has_gone_with_the_old_one(self, pair: Pair) -> None:
        right, c = pair.sides[1], hears_of(pair)
        right.router.add_sibling(SiblingRoute(OWN, 2, Wire()))
        right.router.sibling_went(right.link, B, 2)

        assert not right.router.forget_some(right.link, 10)

        assert got(c) == [(FrameType.PEER_GONE, B + b"\x00")]
        assert right.router._went == {}

    def test_whoever_shows_up_nowhere_has_left(self, pair: Pair) -> None:
        left, right = pair.sides
        moves, a, c = left.connect(B), left.connect(A), right.connect(C)
        pair.settle()
        left.send(moves, packet(C, b"hello"))
        pair.settle()
        got(c)
        left.router.is_leaving = True
        left.router.send_off(moves, 0.0)
        left.send(a, packet(B, b"lost"))
        deliver(left)
        pair.settle()
        assert got(c) == []

        for mailbox in left.router.mailboxes.handle_timeout(100.0):
            left.router.close_mailbox(mailbox)
        pair.settle()

        assert got(c) == [(FrameType.PEER_GONE, B + b"\x00")]
        assert left.router.counters.dropped(DropReason.GONE_DISCONNECTED) == 1


def deliver(side: Side) -> None:
    """What the flush does for a mailbox."""
    for route in side.router.dirty:
        if isinstance(route, Mailbox) and route.pending:
            route.send(route.pending, route.pending_bytes)
            route.pending, route.pending_bytes = [], 0
            route.is_dirty = False
    side.router.dirty = [route for route in side.router.dirty if not isinstance(route, Mailbox)]


class TestOtherRelays:
    def test_a_watcher_hears_of_all_workers(self, pair: Pair) -> None:
        left, right = pair.sides
        a, b = left.connect(A), right.connect(B)
        watcher = left.connect(b"W" * 32, is_mesh_peer=True)
        pair.settle()

        left.router.handle_watch_conns(watcher)
        present = [payload[:32] for kind, payload in got(watcher) if kind == FrameType.PEER_PRESENT]
        assert sorted(present) == sorted([A, B, watcher.key])

        c = right.connect(C)
        pair.settle()
        assert got(watcher) == [(FrameType.PEER_PRESENT, right.router._presence(c)[5:])]

        right.router.unregister(b)
        left.router.unregister(a)
        pair.settle()
        assert sorted(got(watcher)) == sorted((FrameType.PEER_GONE, key + b"\x00") for key in (A, B))

    def test_a_watcher_hears_of_a_key_that_moved_no_end(self, pair: Pair) -> None:
        left, right = pair.sides
        old = left.connect(A)
        watcher = left.connect(b"W" * 32, is_mesh_peer=True)
        left.router.handle_watch_conns(watcher)
        pair.settle()
        got(watcher)

        right.connect(A)
        pair.settle()
        left.router.unregister(old)
        pair.settle()

        assert [kind for kind, _ in got(watcher)] == [FrameType.PEER_PRESENT]

    def test_a_forwarded_packet_reaches_a_client_of_any_worker(self, pair: Pair) -> None:
        left, right = pair.sides
        b = right.connect(B)
        mesh = left.connect(b"W" * 32, is_mesh_peer=True)
        pair.settle()

        buffer = bytearray(
            b"".join(encode_frame(FrameType.FORWARD_PACKET, A + B + content) for content in (b"", b"one", b"two" * 50))
        )
        assert relay_forwarded(buffer, memoryview(buffer), 0, len(buffer), mesh, left.router, 0.0) == len(buffer)
        pair.settle()

        assert got(b) == [(5, A), (5, A + b"one"), (5, A + b"two" * 50)]

    def test_a_key_of_another_relay_goes_there_unless_a_worker_has_it(self, pair: Pair) -> None:
        left, right = pair.sides
        relay = SiblingRoute(b"2" * 32, 9, Wire())
        right_b = right.connect(B)
        pair.settle()

        left.router.add_forwarder(B, relay)
        assert left.router.routes[B] is left.link
        right.router.unregister(right_b)
        pair.settle()
        assert left.router.routes[B] is relay


def test_a_sibling_that_takes_nothing_costs_its_packets_and_no_memory(pair: Pair) -> None:
    left, right = pair.sides
    a = left.connect(A)
    right.connect(B)
    pair.settle()
    left.link.wire.held_bytes = MAX_HELD_BYTES + 1

    left.send(a, packet(B, b"four"), packet(B, b"more"))

    assert left.link.pending == []
    assert left.router.counters.dropped(DropReason.QUEUES_FULL) == 2
    assert sum(left.router.counters.bytes_dropped) == 8


def test_packets_that_come_for_a_client_that_has_left_are_counted(pair: Pair) -> None:
    left, right = pair.sides
    a, b = left.connect(A), right.connect(B)
    pair.settle()
    right.router.unregister(b)  # which the left one has not heard yet

    left.send(a, packet(B, b"late"))
    pair.settle()

    assert right.router.counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == 1


def test_numbers_of_connections_are_of_one_worker_only(pair: Pair) -> None:
    numbers = [{side.router.next_number() for _ in range(10)} for side in pair.sides]

    assert not numbers[0] & numbers[1]


def test_packets_that_a_dead_sibling_did_not_take_are_counted(pair: Pair) -> None:
    left, right = pair.sides
    a = left.connect(A)
    right.connect(B)
    pair.settle()
    left.send(a, packet(B, b"12"), packet(B, b"345"))
    left.connect(C)
    left.send(a, packet(B, b"6789"))
    said = left.said()

    def lost(sent: int) -> tuple[int, int]:
        counters = Counters()
        count_unsent(sent, said, counters)
        return sum(counters.packets_dropped), sum(counters.bytes_dropped)

    assert lost(0) == (3, 9)
    assert lost(BATCH_HEAD_BYTES + 5 + 32 + 2) == (2, 7)
    assert lost(len(said) - 1) == (1, 4)
    assert lost(len(said)) == (0, 0)


def test_presences_say_where_a_client_is(pair: Pair) -> None:
    left, right = pair.sides
    client = left.connect(A)
    pair.settle()

    frame = right.link.keys[A]
    assert frame == left.router._presence(client)
    assert frame[5:37] == A
