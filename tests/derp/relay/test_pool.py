"""What all queues hold together: the total is kept, the fattest pays, and what is given back is counted back."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from derp.protocol.frames import FrameType, encode_frame
from derp.relay.counters import Counters, DropReason
from derp.relay.pool import RUN_OVERHEAD_BYTES, QueuePool
from derp.relay.queue import MAX_NOTICE_BYTES, PacketQueue
from tests.derp.relay.world import World, disco, key

NOTICE = encode_frame(FrameType.KEEP_ALIVE)


def packet(size: int, source: str = "a", fill: bytes = b"x") -> bytes:
    """A RecvPacket of so many bytes in all."""
    return encode_frame(FrameType.RECV_PACKET, key(source) + fill * (size - 37))


class Relay:
    """Queues that share a pool."""

    def __init__(self, max_bytes: int, count: int, *, shifts: dict[int, int] | None = None) -> None:
        self.pool = QueuePool(max_bytes)
        self.counters = Counters()
        shifts = shifts or {}
        self.queues = [
            PacketQueue(1000, 1 << 20, self.counters, self.pool, shift=shifts.get(number, 0)) for number in range(count)
        ]

    def push(self, number: int, *frames: bytes) -> bool:
        return self.queues[number].push_frames(memoryview(b"".join(frames)), 0.0)

    @property
    def lost(self) -> int:
        return self.counters.dropped(DropReason.QUEUES_FULL)


def test_the_fattest_queue_pays_for_everybody() -> None:
    relay = Relay(100_000, 3)
    for _ in range(6):
        relay.push(0, *[packet(1000)] * 10)
    relay.push(1, *[packet(1000)] * 5)
    assert relay.lost == 0
    relay.push(2, *[packet(1000)] * 30)
    assert [queue.packets for queue in relay.queues] == [60 - relay.lost, 5, 30]
    assert relay.lost == 0
    for _ in range(4):
        relay.push(2, *[packet(500)] * 10)
    # A run gives its memory back when all of it has left.
    assert [queue.packets for queue in relay.queues] == [60 - relay.lost, 5, 70]
    assert relay.lost == 20
    assert relay.pool.held_bytes <= relay.pool.max_bytes


def test_within_it_the_oldest_packet_of_the_fattest_flow_goes_and_disco_last() -> None:
    relay = Relay(5 * (500 + RUN_OVERHEAD_BYTES), 1)
    for one in (packet(500, "a", b"1"), packet(500, "b"), packet(500, "b"), packet(500, "b")):
        relay.push(0, one)
    discos = [encode_frame(FrameType.RECV_PACKET, key("c") + disco(463))] * 10
    relay.push(0, *discos)
    # Disco makes room for disco only where nothing else is left.
    assert relay.counters.packets_dropped[DropReason.QUEUES_FULL * 2] == 4
    assert relay.counters.packets_dropped[DropReason.QUEUES_FULL * 2 + 1] == 5
    assert relay.queues[0].packets == 5


def test_a_link_that_serves_many_is_measured_by_its_own_bound() -> None:
    relay = Relay(100_000, 2, shifts={0: 3})
    relay.push(0, *[packet(1000)] * 40)  # another relay: as fat as a client with 5 of them
    relay.push(1, *[packet(1000)] * 60)
    assert relay.queues[0].packets == 40
    assert relay.queues[1].packets == 60 - relay.lost
    assert relay.lost > 0


def test_notices_displace_packets_and_are_refused_when_only_notices_are_left() -> None:
    size = len(NOTICE) + RUN_OVERHEAD_BYTES
    relay = Relay(100 * size, 2)
    relay.push(0, *[packet(500)] * 30)
    assert all(relay.push(1, NOTICE) for _ in range(100))
    assert (relay.queues[0].packets, len(relay.queues[1])) == (0, 100)
    assert not relay.push(1, NOTICE)
    assert relay.counters.notices_dropped == 1
    assert len(relay.queues[1].take(1 << 20, 0.0)) == 100
    assert relay.pool.held_bytes == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("packet"), st.integers(0, 4), st.integers(37, 9000)),
        st.tuples(st.just("disco"), st.integers(0, 4), st.integers(62, 300)),
        st.tuples(st.just("notice"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("take"), st.integers(0, 4), st.integers(1, 20_000)),
        st.tuples(st.just("discard"), st.integers(0, 4), st.just(0)),
    ),
    max_size=120,
)


@given(steps=STEPS)
def test_the_total_is_kept_and_true_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    relay = Relay(30_000, 5, shifts={4: 2})
    for what, number, size in steps:
        queue = relay.queues[number]
        match what:
            case "packet":
                relay.push(number, packet(size, str(size % 3)))
            case "disco":
                relay.push(number, encode_frame(FrameType.RECV_PACKET, key("d") + disco(size)))
            case "notice":
                relay.push(number, NOTICE)
            case "take":
                queue.take(size, 1.0)
            case _:
                queue.discard(DropReason.GONE_DISCONNECTED)
        held = sum(each.held_bytes + each.notice_bytes + len(each) * RUN_OVERHEAD_BYTES for each in relay.queues)
        assert relay.pool.held_bytes == held <= relay.pool.max_bytes
    for queue in relay.queues:
        queue.take(1 << 30, 1.0)
    assert (relay.pool.held_bytes, relay.pool._by_size, relay.pool._size_classes) == (
        0,
        {n: {} for n in relay.pool._by_size},
        0,
    )


def test_what_is_counted_is_what_python_takes() -> None:
    relay = Relay(1 << 30, 50)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50):
            for size in (100, 400, 1300):
                relay.push(number, *(packet(size, str(source)) for source in range(20) for _ in range(10)))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.85 * relay.pool.held_bytes < taken < 1.15 * relay.pool.held_bytes


def test_a_router_has_one_pool_for_all_its_queues() -> None:
    world = World(queue_total=60_000)
    slow = [world.connect(f"slow {number}") for number in range(40)]
    sender = world.connect("sender")
    for client in slow:
        client.queue = world.router.new_queue(client)
    for _ in range(50):
        for number in range(40):
            world.packet(sender, f"slow {number}", bytes(900))
    assert world.router.pool.held_bytes <= 60_000
    assert max(client.queue.packets for client in slow if client.queue) <= 3, "all are equally fat, and pay alike"
    for client in slow:
        world.leave(client)
    assert world.router.pool.held_bytes == 0


def test_one_notice_bound_of_each_queue_stays() -> None:
    relay = Relay(1 << 30, 1)
    count = MAX_NOTICE_BYTES // len(NOTICE)
    assert [relay.push(0, NOTICE) for _ in range(count + 1)][-2:] == [True, False]
