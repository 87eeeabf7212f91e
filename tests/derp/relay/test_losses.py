"""What a queue dropped is known afterwards: of whom, why, when, after how long; of no more senders than is bounded."""

from derp.relay.clients import Client
from derp.relay.counters import Counters, DropReason
from derp.relay.losses import MAX_SENDERS, Losses
from derp.relay.pool import QueuePool
from derp.relay.queue import DISCO_DEPTH, PacketQueue
from tests.derp.relay.test_queue import disco_packet, packet
from tests.derp.relay.world import key

Seen = dict[DropReason, tuple[int, float, float]]


def seen(losses: Losses | None, sender: str = "") -> Seen:
    """(packets, when the last of them, the longest wait) by reason."""
    assert losses is not None
    of = losses.of(key(sender)) if sender else losses.by_reason
    return {reason: (loss.packets, loss.at, loss.seconds) for reason, loss in of.items()}


def test_each_drop_is_noted_with_its_sender_its_bound_and_its_wait() -> None:
    counters, pool = Counters(), QueuePool(1 << 20)
    slow = Client(key("slow"), 1, None, 0.0)
    queue = PacketQueue(4, 50_000, counters, pool, max_wait_seconds=0.25, owner=slow)
    for number in range(6):  # two more than fit, of the bulk sender
        queue.push_frames(packet("bulk", 1000), 10.0 + number / 8)
    assert seen(slow.losses) == seen(slow.losses, "bulk") == {DropReason.QUEUE_HEAD: (2, 10.625, 0.5)}
    queue.push_frames(packet("bulk", 50_001), 10.625)
    queue.push_frames(disco_packet("seeker") * (DISCO_DEPTH + 1), 10.625)
    assert seen(slow.losses)[DropReason.QUEUE_TAIL] == (1, 10.625, 0.0)
    assert seen(slow.losses, "seeker") == {DropReason.QUEUE_HEAD: (1, 10.625, 0.0)}
    queue.discard(DropReason.GONE_DISCONNECTED)  # of one that has gone nobody asks any more
    assert list(seen(slow.losses)) == [DropReason.QUEUE_HEAD, DropReason.QUEUE_TAIL]

    queue = PacketQueue(512, 1 << 20, counters, pool, max_wait_seconds=0.25, owner=slow)
    queue.push_frames(packet("sparse", 100), 20.0)
    queue.push_frames(packet("bulk", 1000) * 30, 20.0)
    queue.take(30_000, 20.5)
    assert seen(slow.losses, "bulk")[DropReason.QUEUE_DELAY] == (29, 20.5, 0.5)
    assert seen(slow.losses, "sparse") == {}, "its newest packet is never late"
    queue.push_frames(packet("other", 5000) * 30, 20.5)
    pool.max_bytes = pool.held_bytes
    assert pool.has_room(1000)
    assert seen(slow.losses, "other") == {DropReason.QUEUES_FULL: (13, 20.5, 0.0)}, "a run"
    lost = slow.packets_lost - 36  # what was discarded
    assert sum(packets for packets, _, _ in seen(slow.losses).values()) == lost == 46


def test_of_many_senders_the_latest_are_told_apart() -> None:
    losses = Losses()
    for number in range(MAX_SENDERS):
        losses.note(key(f"{number}"), DropReason.QUEUE_HEAD, 1, number, 0.5)
    losses.note(key("0"), DropReason.QUEUE_HEAD, 2, 100.0, 0.25)
    losses.note(key("new"), DropReason.QUEUE_HEAD, 1, 101.0, 0.0)
    assert seen(losses, "0") == {DropReason.QUEUE_HEAD: (3, 100.0, 0.5)}
    assert seen(losses, "1") == {}
    assert len(seen(losses, "2")) == len(seen(losses, "new")) == 1
    assert seen(losses) == {DropReason.QUEUE_HEAD: (MAX_SENDERS + 3, 101.0, 0.5)}
