"""The relay's totals: all there from the start, drops kept by reason and kind."""

import pytest

from derp.relay.counters import Counters, DropReason, Histogram, PacketKind


def test_everything_starts_at_zero() -> None:
    counters = Counters()
    for name in Counters.__slots__:
        value = getattr(counters, name)
        if isinstance(value, Histogram):
            value = value.count
        assert value == 0 or set(value) == {0}, name
    assert len(counters.packets_dropped) == len(counters.bytes_dropped) == len(DropReason) * len(PacketKind)


def test_drops_are_kept_by_reason_and_kind() -> None:
    counters = Counters()
    for number, reason in enumerate(DropReason):
        counters.drop(reason, PacketKind.OTHER, 1 + number, 100 * (1 + number))
        counters.drop(reason, PacketKind.DISCO, 10, 5)
    assert [counters.dropped(reason) for reason in DropReason] == [11 + number for number in range(8)]
    assert counters.packets_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.OTHER] == 4
    assert counters.bytes_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.OTHER] == 400
    assert counters.bytes_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.DISCO] == 5


def test_reasons_have_the_names_that_dashboards_read() -> None:
    names = (
        "unknown_dest unknown_dest_on_fwd gone_disconnected queue_head queue_tail write_error queues_full queue_delay"
    )
    assert " ".join(reason.name.lower() for reason in DropReason) == names
    assert [kind.name.lower() for kind in PacketKind] == ["other", "disco"]


def test_a_histogram_counts_what_is_not_above_each_bound() -> None:
    histogram = Histogram(0, 1, 5, 10)
    for value in (0, 1, 1, 3, 10, 11, 4000):
        histogram.observe(value)
    histogram.observe(5, times=2)
    histogram.observe(20, times=2)
    assert histogram.up_to() == [1, 3, 6, 7]
    assert (histogram.count, histogram.total) == (11, 1 + 1 + 3 + 10 + 11 + 4000 + 10 + 40)


def test_histograms_have_the_bounds_that_dashboards_read() -> None:
    counters = Counters()
    assert counters.written_frames.bounds == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 50, 100)
    assert counters.mesh_update_batches.bounds == (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert counters.mesh_update_loops.bounds == (0, 1, 2, 5, 10, 20, 50, 100)


def test_the_average_queue_time_moves_as_the_genuine_one() -> None:
    counters = Counters()
    assert counters.average_queue_ms() == 0.0
    # three packets, of which two had to queue
    counters.packets_received, counters.queue_entered = 3, 2
    counters.note_queued(0.1)
    counters.note_queued(0.2)
    assert counters.average_queue_ms() == pytest.approx(10 * 0.9 + 20)
    assert (counters.queue_seconds, counters.queued_packets) == (pytest.approx(0.3), 2)
    # those that did not queue are packets of 0 ms, whichever way they came
    counters.packets_received += 1
    counters.packets_forwarded_in += 1
    assert counters.average_queue_ms() == pytest.approx(29 * 0.81)
    assert counters.average_queue_ms() == pytest.approx(29 * 0.81)  # looking changes nothing
    counters.packets_received += 1
    counters.queue_entered += 1
    counters.note_queued(1.0)
    assert counters.average_queue_ms() == pytest.approx(29 * 0.81 * 0.9 + 100)
    counters.packets_received += 10**9
    assert counters.average_queue_ms() == 0.0
