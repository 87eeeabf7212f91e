"""The queue of a slow reader: order, fairness, what is dropped, and bounds that hold whatever is pushed."""

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from derp.protocol.frames import HEADER_BYTES, KEY_BYTES, FrameType, encode_frame
from derp.protocol.messages import ForwardPacket, KeepAlive, PeerGone, Pong, RecvPacket, encode
from derp.protocol.settle import Settle, SettleStep
from derp.relay.counters import Counters, DropReason, PacketKind
from derp.relay.pool import QueuePool
from derp.relay.queue import (
    DISCO_DEPTH,
    MAX_DISCO_FRAME_BYTES,
    MAX_NOTICE_BYTES,
    STEP_BYTES,
    TARGET_SECONDS,
    PacketQueue,
    count_lost,
    frame_starts,
)
from tests.derp.relay.world import disco, key

HEAD = HEADER_BYTES + KEY_BYTES
EVERYTHING = 1 << 40
MAX_WAIT_SECONDS = 0.25


def packet(source: str, size: int = 100, fill: bytes = b"p") -> bytes:
    """A RecvPacket frame of `size` bytes in all."""
    return encode(RecvPacket(key(source), fill * (size - HEAD)))


def disco_packet(source: str, size: int = HEAD + 62, fill: bytes = b"d") -> bytes:
    return encode(RecvPacket(key(source), disco(size - HEAD, fill)))


def new_queue(depth: int = 512, max_bytes: int = 2 * 1024 * 1024) -> tuple[PacketQueue, Counters]:
    counters = Counters()
    queue = PacketQueue(depth, max_bytes, counters, QueuePool(1 << 60), max_wait_seconds=MAX_WAIT_SECONDS)
    return queue, counters


def push(queue: PacketQueue, frames: Iterable[bytes], now: float = 0.0) -> None:
    queue.push_frames(memoryview(b"".join(frames)), now)


def take(queue: PacketQueue, max_bytes: int, now: float = 0.0) -> list[bytes]:
    """Frames one by one, in the order in which they leave."""
    joined = b"".join(queue.take(max_bytes, now))
    return [joined[start:end] for start, end in frame_starts(memoryview(joined))]


def source_of(frame: bytes) -> bytes:
    return frame[HEADER_BYTES:HEAD]


# --- order


def test_a_flow_keeps_its_order_and_notices_go_first() -> None:
    queue, _ = new_queue()
    packets = [packet("a", 100 + number) for number in range(10)]
    push(queue, [packets[0], encode(KeepAlive()), *packets[1:], encode(PeerGone(key("b")))])
    assert queue.push_notice(encode(Pong(b"12345678")))
    assert (len(queue), queue.packets) == (13, 10)
    notices = [encode(KeepAlive()), encode(PeerGone(key("b"))), encode(Pong(b"12345678"))]
    assert queue.notice_bytes == sum(map(len, notices))
    assert take(queue, EVERYTHING) == notices + packets
    assert (len(queue), queue.packets, queue.held_bytes, queue.notice_bytes) == (0, 0, 0, 0)
    assert take(queue, EVERYTHING) == []


def test_what_speaks_of_packets_goes_behind_all_of_them() -> None:
    pool = QueuePool(1 << 60)
    queue = PacketQueue(512, 1 << 20, Counters(), pool)
    settles = [Settle(SettleStep.ASKED, key("c"), key("d"), number).encode() for number in range(2)]
    packets = [packet("a", 100), packet("b", 1000)]
    push(queue, [settles[0], packets[0], settles[1], packets[1], encode(KeepAlive())])
    taken = []
    while one := take(queue, 1):
        taken += one
    assert taken == [encode(KeepAlive()), *packets, *settles]
    assert (len(queue), queue.notice_bytes, pool.held_bytes) == (0, 0, 0)
    push(queue, settles)
    queue.discard(DropReason.WRITE_ERROR)
    assert (len(queue), queue.notice_bytes, pool.held_bytes) == (0, 0, 0)


def test_what_is_taken_is_at_least_one_frame_and_else_no_more_than_the_size() -> None:
    queue, _ = new_queue()
    push(queue, [packet("a", 5000) for _ in range(10)])
    assert len(take(queue, 1)) == 1
    assert len(take(queue, 9999)) == 1
    assert len(take(queue, 10_000)) == 2
    assert len(take(queue, EVERYTHING)) == 6
    push(queue, [encode(Pong(b"12345678")), packet("a", 5000)])
    assert take(queue, 5000) == [encode(Pong(b"12345678"))]


def test_frames_of_one_sender_that_only_look_alike_are_told_apart() -> None:
    """A run is found by one byte of all, then another: whatever makes a length different is seen."""
    full = packet("a", 1000)
    for odd in (
        [packet("a", 999), packet("a", 1001)],  # together as long as two of the others
        [packet("a", 500), packet("a", 500)],
        [packet("a", 1000 + 256), packet("a", 1000 - 256)],
        [disco_packet("a", 1000)],
        [packet("a", 65_000)],
    ):
        for frames in ([*odd, full, full], [full, *odd, full], [full, full, *odd]):
            queue, counters = new_queue()
            assert queue.push_frames(memoryview(b"".join(frames)), 0.0, of_one_source=True)
            left = take(queue, EVERYTHING)
            assert sorted(left) == sorted(frames)
            data = [frame for frame in frames if frame in (full, *odd) and frame[0] == FrameType.RECV_PACKET]
            ordered = [frame for frame in left if frame[0] == FrameType.RECV_PACKET]
            assert ordered == data or disco_packet("a", 1000) in odd
            assert counters.queued_packets == len(data)


def test_a_packet_that_looks_like_many_stays_one() -> None:
    """The shortest and the longest packet have lengths that end alike, and what is inside is its sender's choice."""
    shortest = packet("a", HEAD)
    forged = (packet("b", HEAD) * 2000)[: 64 * 1024]
    longest = encode(RecvPacket(key("a"), forged))
    for frames in ([shortest, longest, shortest], [longest, shortest, longest], [shortest] * 3 + [longest] * 37):
        queue, _ = new_queue(depth=5000, max_bytes=1 << 24)
        assert queue.push_frames(memoryview(b"".join(frames)), 0.0, of_one_source=True)
        assert take(queue, EVERYTHING) == frames


def test_frames_are_copied() -> None:
    # The caller's buffer is the arena, which is overwritten right after.
    queue, _ = new_queue()
    arena = bytearray(packet("a"))
    queue.push_frames(memoryview(arena), 0.0)
    arena[:] = bytes(len(arena))
    assert take(queue, EVERYTHING) == [packet("a")]


# --- what is dropped


def test_a_full_queue_drops_the_oldest() -> None:
    queue, counters = new_queue(depth=3)
    push(queue, [packet("a", 100 + number) for number in range(5)])
    assert [len(frame) for frame in take(queue, EVERYTHING)] == [102, 103, 104]
    assert counters.dropped(DropReason.QUEUE_HEAD) == queue.dropped == 2
    assert sum(counters.bytes_dropped) == 100 + 101 - 2 * HEAD


def test_bytes_are_bounded_too() -> None:
    queue, counters = new_queue(max_bytes=10_000)
    push(queue, [packet(source, 4000) for source in "abc"])
    assert queue.held_bytes == 8000
    push(queue, [packet("a", 10_000, b"4")])
    assert take(queue, EVERYTHING) == [packet("a", 10_000, b"4")]
    assert counters.dropped(DropReason.QUEUE_HEAD) == 3


def test_one_sender_leaves_half_of_the_bytes_to_others_but_may_have_one_packet() -> None:
    queue, counters = new_queue(max_bytes=10_000)
    numbered = [packet("a", 1000, bytes([65 + number])) for number in range(9)]
    push(queue, numbered)
    assert take(queue, EVERYTHING) == numbered, "while there are none it has everything"
    push(queue, [packet("b", 100), *numbered])
    assert sorted(take(queue, EVERYTHING)) == sorted([packet("b", 100), *numbered[4:]])
    push(queue, [packet("b", 100), packet("a", 1000), packet("a", 9000)])
    assert take(queue, EVERYTHING) == [packet("b", 100), packet("a", 9000)]
    assert counters.dropped(DropReason.QUEUE_HEAD) == sum(counters.packets_dropped) == 5


def test_a_packet_above_the_whole_bound_drops_nothing_but_itself() -> None:
    queue, counters = new_queue(max_bytes=10_000)
    push(queue, [packet("a", 4000), packet("a", 10_001), packet("b", 10_001)])
    assert take(queue, EVERYTHING) == [packet("a", 4000)]
    assert counters.dropped(DropReason.QUEUE_TAIL) == sum(counters.packets_dropped) == 2


def test_the_bulk_sender_pays_not_the_others() -> None:
    queue, counters = new_queue(depth=10)
    push(queue, [packet("small", 100), *(packet("bulk", 1000 + number) for number in range(9))])
    push(queue, [packet("small", 101), packet("new", 102), packet("bulk", 2000)])
    left = take(queue, EVERYTHING)
    assert [len(frame) for frame in left if source_of(frame) == key("small")] == [100, 101]
    assert [len(frame) for frame in left if source_of(frame) == key("new")] == [102]
    assert [len(frame) for frame in left if source_of(frame) == key("bulk")] == [*range(1003, 1009), 2000]
    assert counters.dropped(DropReason.QUEUE_HEAD) == 3


def test_among_equals_the_oldest_packet_goes() -> None:
    queue, _ = new_queue(depth=4)
    push(queue, [packet(name) for name in "abcdef"])
    assert [source_of(frame) for frame in take(queue, EVERYTHING)] == [key(name) for name in "cdef"]


def test_drops_are_counted_by_kind_and_towards_the_mesh() -> None:
    queue, counters = new_queue(depth=1)
    forward = encode(ForwardPacket(key("a"), key("b"), b"x" * 50))
    forward_disco = encode(ForwardPacket(key("a"), key("b"), disco(3000)))  # too long for the disco queue
    push(queue, [forward, forward_disco, packet("a", HEAD + 10), packet("a")])
    head = 2 * DropReason.QUEUE_HEAD
    assert counters.packets_dropped[head : head + 2] == [2, 1]
    assert counters.bytes_dropped[head + PacketKind.OTHER] == 60
    assert counters.bytes_dropped[head + PacketKind.DISCO] == 3000
    assert (counters.mesh_packets_dropped, counters.mesh_bytes_dropped) == (2, 3050)


def test_discard_counts_what_was_left() -> None:
    queue, counters = new_queue()
    push(queue, [packet("a", HEAD + 7), packet("b", HEAD + 8), disco_packet("a"), encode(KeepAlive())])
    assert queue.packet_bytes == 7 + 8 + 62
    queue.discard(DropReason.GONE_DISCONNECTED)
    gone = 2 * DropReason.GONE_DISCONNECTED
    assert counters.packets_dropped[gone : gone + 2] == [2, 1]
    assert counters.bytes_dropped[gone : gone + 2] == [15, 62]
    assert (len(queue), queue.held_bytes, queue.notice_bytes, queue.packet_bytes) == (0, 0, 0, 0)
    assert take(queue, EVERYTHING) == []
    push(queue, [packet("a")])
    assert take(queue, EVERYTHING) == [packet("a")]


def test_lost_frames_are_counted_without_notices() -> None:
    counters = Counters()
    frames = [
        packet("a", HEAD),
        encode(KeepAlive()),
        disco_packet("a"),
        encode(ForwardPacket(key("a"), key("b"), b"xy")),
    ]
    count_lost(b"".join(frames), DropReason.WRITE_ERROR, counters)
    lost = 2 * DropReason.WRITE_ERROR
    assert counters.packets_dropped[lost : lost + 2] == [2, 1]
    assert counters.bytes_dropped[lost : lost + 2] == [2, 62]
    assert (counters.mesh_packets_dropped, counters.mesh_bytes_dropped) == (1, 2)


def test_notices_are_bounded() -> None:
    queue, counters = new_queue()
    gone = encode(PeerGone(key("a")))
    fitting = MAX_NOTICE_BYTES // len(gone)
    assert queue.push_frames(memoryview(gone * fitting), 0.0)
    assert not queue.push_notice(gone)
    assert not queue.push_frames(memoryview(gone + packet("a")), 0.0)
    assert (counters.notices_dropped, queue.packets) == (2, 1)
    assert queue.notice_bytes <= MAX_NOTICE_BYTES
    assert len(take(queue, EVERYTHING)) == fitting + 1
    assert queue.push_notice(gone)


def test_a_mesh_peer_may_have_a_larger_bound_of_notices() -> None:
    queue = PacketQueue(1, 1000, Counters(), QueuePool(1 << 60), max_notice_bytes=2 * MAX_NOTICE_BYTES)
    assert queue.push_notice(bytes(2 * MAX_NOTICE_BYTES))
    assert not queue.push_notice(b"x")


# --- disco apart


def test_disco_has_a_bound_of_its_own_and_takes_no_room_from_data() -> None:
    queue, counters = new_queue(depth=20, max_bytes=2000)
    data = [packet(name) for name in "abcdefghijklmnopqrst"]
    discos = [disco_packet(f"d{number}", fill=bytes([65 + number])) for number in range(DISCO_DEPTH + 5)]
    push(queue, [*data, *discos])
    assert queue.packets == 20 + DISCO_DEPTH
    assert counters.packets_dropped[2 * DropReason.QUEUE_HEAD :][:2] == [0, 5]
    left = take(queue, EVERYTHING)
    assert [frame for frame in left if frame in discos] == discos[5:]
    assert [frame for frame in left if frame in data] == data


def test_a_flood_of_data_takes_no_room_from_disco() -> None:
    queue, counters = new_queue(depth=5, max_bytes=2000)
    push(queue, [disco_packet("d"), *(packet("a", 400) for _ in range(50))])
    assert disco_packet("d") in take(queue, EVERYTHING)
    assert counters.packets_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.DISCO] == 0


def test_what_only_looks_like_disco_queues_with_the_data() -> None:
    queue, counters = new_queue(depth=512, max_bytes=400_000)
    push(queue, [disco_packet("a", 65_000) for _ in range(DISCO_DEPTH)])
    assert queue.held_bytes == 6 * 65_000
    assert counters.packets_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.DISCO] == DISCO_DEPTH - 6
    ordered = [disco_packet("b", MAX_DISCO_FRAME_BYTES + 1), packet("b"), disco_packet("b", 5000)]
    push(queue, ordered)
    assert [frame for frame in take(queue, EVERYTHING) if source_of(frame) == key("b")] == ordered


def test_disco_overtakes_bulk_but_does_not_starve_it() -> None:
    queue, _ = new_queue()
    push(queue, [packet("bulk", 1000) for _ in range(40)])
    take(queue, 1)
    served: Counter[bool] = Counter()
    for _ in range(30):  # disco is never out of packets
        push(queue, [disco_packet("d", 500) for _ in range(10)])
        for frame in take(queue, 3000):
            served[source_of(frame) == key("d")] += len(frame)
    # A byte of disco counts a quarter: four of its bytes for each of the others.
    assert abs(served[True] - 4 * served[False]) <= 4 * 1000 + 4 * 500


# --- fairness


def test_a_sparse_packet_waits_at_most_a_round() -> None:
    queue, _ = new_queue(depth=5000, max_bytes=1 << 24)
    bulk = [f"bulk {number}" for number in range(10)]
    push(queue, [packet(name, 1000 + number) for number, name in enumerate(bulk) for _ in range(100)])
    for _ in range(50):
        push(queue, [packet("sparse", 200)])
        before: list[bytes] = []
        while not before or source_of(before[-1]) != key("sparse"):
            before += take(queue, 1)
        assert max(Counter(map(source_of, before)).values()) == 1


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(HEAD, 3000), min_size=1, max_size=5), min_size=2, max_size=6),
    takes=st.lists(st.integers(1, 20_000), min_size=1, max_size=40),
    refill=st.integers(1, 8),
)
def test_byte_shares_of_busy_flows_are_equal_within_a_packet(
    sizes: list[list[int]], takes: list[int], refill: int
) -> None:
    """Every flow has packets of its own sizes and always a few waiting; they arrive between takes."""
    queue, counters = new_queue(depth=100_000, max_bytes=1 << 28)
    served: Counter[bytes] = Counter()
    waiting: Counter[bytes] = Counter()
    pushed: Counter[bytes] = Counter()
    for amount in takes:
        for number, own in enumerate(sizes):
            name = f"flow {number}"
            # Busy means: at least a packet is left after the take, whatever it serves.
            while waiting[key(name)] <= amount + refill * max(own):
                size = own[pushed[key(name)] % len(own)]
                push(queue, [packet(name, size)])
                pushed[key(name)] += 1
                waiting[key(name)] += size
        for frame in take(queue, amount):
            served[source_of(frame)] += len(frame)
            waiting[source_of(frame)] -= len(frame)
        for one, first in enumerate(sizes):
            for other, second in enumerate(sizes):
                difference = served[key(f"flow {one}")] - served[key(f"flow {other}")]
                assert difference <= max(first) + max(second)
    assert sum(counters.packets_dropped) == 0


@pytest.mark.parametrize("size", [1_000, 20_000, 40_000, 65_536 + HEAD])
def test_one_packet_at_a_time_earns_no_more_than_a_share(size: int) -> None:
    # Its flow is empty after each take, so what it was served must be remembered; forgetting it starved the other.
    queue, _ = new_queue(depth=2000, max_bytes=1 << 24)
    push(queue, [packet("patient", 1300) for _ in range(1500)])
    take(queue, 1)
    served: Counter[bytes] = Counter()
    for _ in range(40):
        if key("eager") not in map(source_of, contents(queue)):
            push(queue, [packet("eager", size)])
        for frame in take(queue, 32 * 1024):
            served[source_of(frame)] += len(frame)
    assert served[key("patient")] >= served[key("eager")] - size - 1300
    assert served[key("eager")] >= min(40 * size, served[key("patient")]) - size - 1300


def test_a_flow_that_was_silent_is_owed_nothing() -> None:
    queue, _ = new_queue(depth=2000, max_bytes=1 << 24)
    push(queue, [packet("early", 1000) for _ in range(200)])
    take(queue, 100_000)
    push(queue, [packet("late", 1000) for _ in range(200)])
    served = Counter(source_of(frame) for frame in take(queue, 100_000))
    assert abs(served[key("late")] - served[key("early")]) <= 2


# --- delay


def test_delay_is_measured() -> None:
    queue, counters = new_queue()
    assert queue.oldest_seconds(5.0) == 0.0
    push(queue, [packet("a")], now=10.0)
    push(queue, [packet("b"), packet("a")], now=12.0)
    assert queue.oldest_seconds(13.0) == 3.0
    take(queue, 1, 14.0)
    assert (counters.queue_seconds, counters.queued_packets) == (4.0, 1)
    take(queue, EVERYTHING, 14.0)
    assert (counters.queue_seconds, counters.queued_packets) == (8.0, 3)
    assert queue.oldest_seconds(20.0) == 0.0


def late(counters: Counters) -> int:
    return counters.dropped(DropReason.QUEUE_DELAY)


def test_nothing_older_than_the_limit_leaves_except_the_newest_of_each_sender() -> None:
    queue, counters = new_queue()
    push(queue, [packet("bulk", 1000 + number) for number in range(40)], now=10.0)
    push(queue, [packet("sparse", 300), packet("sparse", 301)], now=10.0)
    push(queue, [packet("bulk", 2000 + number) for number in range(20)], now=10.0 + MAX_WAIT_SECONDS)
    got = take(queue, EVERYTHING, 10.01 + MAX_WAIT_SECONDS)
    assert [len(frame) for frame in got if source_of(frame) == key("bulk")] == list(range(2000, 2020))
    assert [len(frame) for frame in got if source_of(frame) == key("sparse")] == [301]
    assert late(counters) == queue.dropped == sum(counters.packets_dropped) == 41


def test_what_all_leaves_with_the_next_step_is_never_too_late() -> None:
    # It was the socket that took nothing: a phone that slept gets what its peers said meanwhile.
    queue, counters = new_queue()
    packets = [packet("a", 1000, bytes([65 + number])) for number in range(STEP_BYTES // 1000)]
    push(queue, packets, now=10.0)
    assert take(queue, EVERYTHING, 20.0) == packets
    assert late(counters) == 0
    runs = [packet(name, 1000) for name in "abc" for _ in range(20)]
    push(queue, runs, now=30.0)
    left = take(queue, EVERYTHING, 40.0)
    assert len(left) <= STEP_BYTES // 1000
    assert set(map(source_of, left)) == {key("a"), key("b"), key("c")}
    assert late(counters) == len(runs) - len(left)


def test_disco_is_bounded_in_number_and_not_in_time() -> None:
    queue, counters = new_queue()
    push(queue, [disco_packet("d"), *(packet("bulk", 1000) for _ in range(40)), disco_packet("d")], now=10.0)
    assert take(queue, EVERYTHING, 30.0).count(disco_packet("d")) == 2
    assert counters.packets_dropped[2 * DropReason.QUEUE_DELAY + PacketKind.DISCO] == 0 < late(counters)


class Bottleneck:
    """Senders who take turns, and a destination that takes one packet of 1,000 bytes a millisecond."""

    def __init__(self, senders: str) -> None:
        self.queue, self.counters = new_queue(depth=5000, max_bytes=1 << 24)
        self.senders = itertools.cycle(senders)
        self.now = 100.0
        self.waited: list[float] = []

    def run(self, milliseconds: int, packets_in_ten: int) -> None:
        for number in range(milliseconds):
            self.now += 0.001
            for _ in range(packets_in_ten // 10 + (number % 10 < packets_in_ten % 10)):
                push(self.queue, [packet(next(self.senders), 1000)], self.now)
            before = self.counters.queue_seconds
            self.queue.take(1000, self.now)
            self.waited.append(self.counters.queue_seconds - before)


def test_a_burst_that_ends_within_an_interval_loses_nothing() -> None:
    way = Bottleneck("ab")
    push(way.queue, [packet(next(way.senders), 1000) for _ in range(60)], way.now)
    way.run(200, 0)
    assert late(way.counters) == 0
    assert way.counters.queued_packets == 60


def test_a_queue_that_stays_is_thinned_from_its_head_more_and_more_until_it_is_short() -> None:
    way = Bottleneck("ab")
    push(way.queue, [packet(next(way.senders), 1000) for _ in range(60)], way.now)
    way.run(110, 10)  # as much comes as goes: without drops all would wait for 60 ms for ever
    assert late(way.counters) == 0
    drops = []
    for _ in range(8):
        before = late(way.counters)
        way.run(200, 10)
        drops.append(late(way.counters) - before)
    assert drops[0] < drops[1] < drops[2]
    assert drops[-1] == 0
    assert TARGET_SECONDS * 0.8 < max(way.waited[-200:]) <= TARGET_SECONDS
    assert way.counters.queued_packets >= len(way.waited) - 1, "and the way is never idle"


def test_who_has_the_destination_to_himself_loses_nothing_to_time() -> None:
    way = Bottleneck("a")
    push(way.queue, [packet("a", 1000) for _ in range(1000)], way.now)
    way.run(2000, 0)
    assert late(way.counters) == 0
    assert way.counters.queued_packets == 1000


def test_a_sender_that_does_not_listen_is_held_at_the_limit() -> None:
    way = Bottleneck("ab")
    way.run(3000, 25)
    assert MAX_WAIT_SECONDS * 0.9 < max(way.waited[-500:]) <= MAX_WAIT_SECONDS + 0.001
    assert way.counters.queued_packets >= len(way.waited) - 1
    assert late(way.counters) == sum(way.counters.packets_dropped)


# --- bounds of its own memory


def test_many_senders_leave_little_behind() -> None:
    # A socket that takes nothing, and a fleet that sends one packet each: flows come and go by drops alone.
    queue, counters = new_queue(depth=16)
    for number in range(5000):
        push(queue, [packet(f"sender {number}")])
        assert len(queue._heap) == len(queue._flows) <= 2 * 17 + 65
    assert queue.packets == 16
    assert counters.dropped(DropReason.QUEUE_HEAD) == 5000 - 16
    newest = [key(f"sender {number}") for number in range(5000 - 16, 5000)]
    assert [source_of(frame) for frame in take(queue, EVERYTHING)] == newest
    assert (len(queue._heap), len(queue._flows)) == (0, 0)


def contents(queue: PacketQueue) -> list[bytes]:
    """All packets in the queue, each flow in its order."""
    waiting = b"".join(run.frames[run.at :] for flow in queue._flows.values() for run in flow.runs)
    return [waiting[start:end] for start, end in frame_starts(memoryview(waiting))]


DEPTH, MAX_BYTES = 6, 6000
SOURCES = ("a", "b", "c", "d")


class QueueMachine(RuleBasedStateMachine):
    """Random pushes and takes against plain lists: what waits, in which order, what may be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.counters = new_queue(DEPTH, MAX_BYTES)
        self.flows: dict[str, deque[bytes]] = defaultdict(deque)
        self.notices: deque[bytes] = deque()
        self.serial = 0
        self.pushed = self.taken = self.refused = 0

    @initialize()
    def started(self) -> None:
        assert len(self.queue) == 0

    def mark(self) -> bytes:
        self.serial += 1
        return bytes([65 + self.serial % 60])

    @rule(source=st.sampled_from(SOURCES), size=st.one_of(st.integers(HEAD, 300), st.integers(HEAD, MAX_BYTES)))
    def push_data(self, source: str, size: int) -> None:
        self._push(source, packet(source, size, self.mark()))

    @rule(source=st.sampled_from(SOURCES), size=st.integers(HEAD, 500), count=st.integers(2, DEPTH))
    def push_run(self, source: str, size: int, count: int) -> None:
        self._push(source, *(packet(source, size, self.mark()) for _ in range(count)))

    @rule(source=st.sampled_from(SOURCES), count=st.integers(1, 40))
    def push_disco(self, source: str, count: int) -> None:
        for _ in range(count):
            self._push("disco", disco_packet(source, fill=self.mark()))

    @rule()
    def push_too_large(self) -> None:
        before = self.counters.dropped(DropReason.QUEUE_TAIL)
        push(self.queue, [packet("a", MAX_BYTES + 1)])
        self.pushed += 1
        assert self.counters.dropped(DropReason.QUEUE_TAIL) == before + 1

    @rule(count=st.integers(1, 3))
    def push_notices(self, count: int) -> None:
        for _ in range(count):
            notice = encode_frame(FrameType.HEALTH, self.mark() * 20_000)
            if self.queue.push_notice(notice):
                self.notices.append(notice)
            else:
                assert sum(map(len, self.notices)) + len(notice) > MAX_NOTICE_BYTES

    @rule(size=st.one_of(st.just(1), st.integers(1, 10_000)))
    def take(self, size: int) -> None:
        frames = take(self.queue, size)
        total = 0
        for frame in frames:
            assert total < size
            total += len(frame)
            if self.notices:
                assert frame == self.notices.popleft()
                continue
            self.taken += 1
            flow = next(flow for flow in self.flows.values() if flow and flow[0] == frame)
            flow.popleft()
        assert total <= size or len(frames) == 1
        left = [frames[0] for frames in self.flows.values() if frames]
        assert frames or not left
        assert not left or self.notices or total + max(map(len, left)) > size

    def _push(self, name: str, *fresh: bytes) -> None:
        dropped = self.queue.dropped
        push(self.queue, fresh)
        self.pushed += len(fresh)
        self.flows[name].extend(fresh)
        dropped = self.queue.dropped - dropped
        left = contents(self.queue)
        after = {flow: sum(len(one) for one in left if name_of(one) == flow) for flow in SOURCES}
        arriving = sum(map(len, fresh))
        for flow, frames in self.flows.items():
            mine = [one for one in left if name_of(one) == flow]
            last = b""
            while len(frames) > len(mine):
                last = frames.popleft()  # always the oldest
                dropped -= 1
            assert list(frames) == mine, flow
            if last:
                assert (flow == "disco") == (name == "disco"), "data and disco push each other out"
                if flow == "disco":
                    continue
                # Frames of a run arrive one after the other: all but the last count when their own flow pays.
                fat = after | {name: after[name] - (len(fresh[0]) if flow == name else arriving)}
                is_thin = 2 * (fat[flow] + len(last)) <= max(fat.values())
                is_over = flow == name and after[flow] + len(last) > MAX_BYTES // 2
                assert is_over or not is_thin, "a thin flow paid"
        assert dropped == 0, "a drop that nobody felt"

    @invariant()
    def what_waits_is_counted(self) -> None:
        frames = [frame for flow in self.flows.values() for frame in flow]
        assert self.queue.packets == len(frames)
        assert self.queue.held_bytes == sum(map(len, frames))
        assert self.queue.packet_bytes == sum(len(frame) - HEAD for frame in frames)
        assert self.queue.notice_bytes == sum(map(len, self.notices))
        assert len(self.queue) == len(frames) + len(self.notices)
        assert self.pushed == self.taken + sum(self.counters.packets_dropped) + len(frames)

    @invariant()
    def bounds_hold(self) -> None:
        data = [frame for name, flow in self.flows.items() if name != "disco" for frame in flow]
        assert len(data) <= DEPTH
        assert sum(map(len, data)) <= MAX_BYTES
        assert len(self.flows["disco"]) <= DISCO_DEPTH
        assert self.queue.notice_bytes <= MAX_NOTICE_BYTES
        assert len(self.queue._heap) == len(self.queue._flows)


def name_of(frame: bytes) -> str:
    is_disco = frame[HEAD : HEAD + 6] == b"TS\xf0\x9f\x92\xac"
    return "disco" if is_disco else source_of(frame).rstrip(b".").decode()


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_random_histories = QueueMachine.TestCase


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_frames_are_cut_where_they_begin(payloads: list[bytes]) -> None:
    assume(payloads)
    frames = [encode_frame(FrameType.RECV_PACKET, payload) for payload in payloads]
    joined = b"".join(frames)
    assert [joined[start:end] for start, end in frame_starts(memoryview(joined))] == frames
