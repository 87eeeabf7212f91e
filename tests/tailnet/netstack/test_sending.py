"""The sending half alone: windows, the persist timer, probes, time-outs."""

import pytest

from tailnet.netstack.limits import Counters, Limits
from tailnet.netstack.sending import Mode, Sender

MSS = 1000
ISS = 500


def sender(window: int = 100_000, *, sack: bool = True, rtt: float = 0.1) -> Sender:
    made = Sender(ISS, MSS, Limits(min_send_bytes=50_000, max_send_bytes=200_000), Counters())
    made.begin(MSS, sack=sack, window=window, seq=0, now=0.0)
    if rtt:
        made.rtt.add(rtt)
        made.board.min_rtt = rtt
    return made


def sizes(one: Sender, budget: int = 100, now: float = 0.0) -> list[int]:
    return [len(sent.payload) for sent in one.take(budget, now)]


def ack(one: Sender, number: int, now: float, window: int = 100_000, *blocks: tuple[int, int]) -> None:
    """An acknowledgement of so many bytes."""
    absolute = [(ISS + 1 + a, ISS + 1 + b) for a, b in blocks]
    one.on_ack(ISS + 1 + number, 0, window, absolute, 0, now)


def test_segments_are_full_and_the_rest_follows() -> None:
    one = sender()
    assert one.queue(bytes(2500)) == 2500
    assert sizes(one) == [1000, 1000, 500]
    assert one.queue(b"x") == 1
    assert sizes(one) == [1], "Nagle is off"


def test_writes_of_any_size_are_one_stream() -> None:
    one = sender(window=1 << 20)
    one.cubic.cwnd = 1 << 20
    written = b""
    for number, size in enumerate([1, 3000, 999, 1, 1, 1024, 1025, 5000, 10, 70_000]):
        piece = bytes([number]) * size
        assert one.queue(piece if number % 2 else bytearray(piece)) == size
        written += piece
    assert b"".join(sent.payload for sent in one.take(1000, 0.0)) == written


def test_the_window_of_congestion_is_a_bound() -> None:
    one = sender()
    one.queue(bytes(40_000))
    assert len(sizes(one)) == 10
    assert one.cwnd_limited
    ack(one, 2000, 0.1)
    assert len(sizes(one, now=0.1)) == 4, "slow start: two for each"


def test_the_budget_is_a_bound() -> None:
    one = sender()
    one.queue(bytes(40_000))
    assert len(sizes(one, budget=3)) == 3


def test_the_peers_window_is_a_bound() -> None:
    one = sender(window=3500)
    one.queue(bytes(40_000))
    assert sizes(one) == [1000, 1000, 1000], "500 is less than half of the largest window"
    ack(one, 3000, 0.1, 3500)
    assert sizes(one) == [1000, 1000, 1000]


def test_a_window_below_a_segment_is_filled_by_half_of_the_largest() -> None:
    one = sender(window=600)
    one.queue(bytes(1000))
    assert sizes(one) == [600]


def test_the_buffer_is_bounded_and_tells_when_there_is_room() -> None:
    one = sender()
    assert one.queue(bytes(60_000)) == 50_000
    assert one.queue(b"x") == 0
    assert not one.unblocked()
    taken = one.take(10, 0.0)
    ack(one, 10_000, 0.1)
    ack(one, 10_000, 0.1)
    assert len(taken) == 10
    for number in range(2, 6):
        one.take(100, 0.1 * number)
        ack(one, one.board.nxt - ISS - 1, 0.1 * number + 0.1)
    assert one.unblocked()
    assert not one.unblocked(), "once"


def test_the_fin_rides_on_the_last_segment() -> None:
    one = sender()
    one.queue(bytes(1500))
    one.fin_queued = True
    taken = one.take(10, 0.0)
    assert [sent.fin for sent in taken] == [False, True]
    assert taken[1].end - taken[1].start == 501
    assert not one.has_work()
    alone = sender()
    alone.fin_queued = True
    assert [(sent.payload, sent.fin) for sent in alone.take(10, 0.0)] == [(b"", True)]


def test_a_shut_window_is_probed_less_and_less_often() -> None:
    one = sender(window=0)
    one.queue(b"data")
    assert sizes(one) == []
    now, waits = 0.0, []
    for _ in range(12):
        at = one.timeout_at()
        assert at is not None
        waits.append(at - now)
        now = at
        assert one.on_timeout(now)
        assert one.probe_window
        one.probe_window = False
        ack(one, 0, now, 0)
        assert sizes(one, now=now) == []
    assert waits[0] == pytest.approx(0.3)
    assert waits == sorted(waits)
    assert max(waits) == 60.0
    ack(one, 0, now, 5000)
    assert sizes(one, now=now) == [4]


def test_a_probe_without_any_answer_is_given_up() -> None:
    one = sender(window=0)
    one.queue(b"data")
    one.take(10, 0.0)
    end = 0.0
    while (at := one.timeout_at()) is not None and one.on_timeout(at):
        end = at
    assert 60 < end < 100


def test_a_sliver_of_a_window_is_used_after_a_while() -> None:
    one = sender(window=10_000)
    one.queue(bytes(8000))
    one.take(100, 0.0)
    one.queue(bytes(2000))
    ack(one, 8000, 0.1, 300)
    assert sizes(one, now=0.1) == []
    at = one.timeout_at()
    assert at is not None
    one.on_timeout(at)
    assert sizes(one, now=at) == [300]


def test_a_time_out_sends_the_first_again_and_backs_off() -> None:
    one = sender()
    one.queue(bytes(5000))
    one.take(100, 0.0)
    now, waits = 0.0, []
    for _ in range(4):
        one._probe_at = None
        at = one.timeout_at()
        assert at is not None
        waits.append(at - now)
        now = at
        assert one.on_timeout(now)
        taken = one.take(100, now)
        assert [sent.start - ISS - 1 for sent in taken] == [0], "one segment"
    assert waits == pytest.approx([0.3, 0.6, 1.2, 2.4])
    assert one.mode is Mode.LOSS
    ack(one, 1000, now + 0.1)
    assert sizes(one, now=now + 0.1) == [1000, 1000], "slow start"
    ack(one, 5000, now + 0.2)
    assert one.mode is Mode.OPEN
    assert one.timeout_at() is None


def test_silence_is_given_up() -> None:
    one = sender()
    one.queue(bytes(5000))
    one.take(100, 0.0)
    end = 0.0
    while True:
        at = one.timeout_at()
        assert at is not None
        if not one.on_timeout(at):
            break
        end = at
        one.take(100, at)
    assert 60 < end < 200
    assert one._counters.rtos < 15


def test_the_tail_is_probed_after_two_round_trips() -> None:
    one = sender()
    one.queue(bytes(3000))
    one.take(100, 1.0)
    assert one.timeout_at() == pytest.approx(1.2)
    one.on_timeout(1.2)
    taken = one.take(100, 1.2)
    assert [sent.start - ISS - 1 for sent in taken] == [2000]
    # The probe tells of the two before it.
    ack(one, 0, 1.3, 100_000, (2000, 3000))
    at = one.timeout_at()
    assert at is not None
    if not one.board.first_lost():
        one.on_timeout(at)
    # What went out is what arrived, while the reduction is spread (RFC 6937).
    assert [sent.start - ISS - 1 for sent in one.take(100, at)] == [0]
    ack(one, 1000, at + 0.1, 100_000, (2000, 3000))
    assert [sent.start - ISS - 1 for sent in one.take(100, at + 0.1)] == [1000]
    assert one._counters.rtos == 0


def test_a_probe_that_repaired_a_loss_is_a_congestion() -> None:
    one = sender()
    one.queue(bytes(4000))
    one.take(100, 1.0)
    ack(one, 2000, 1.1)
    one.on_timeout(1.3)
    assert [sent.start - ISS - 1 for sent in one.take(100, 1.3)] == [3000]
    ack(one, 4000, 1.4)
    before = one.cubic.cwnd
    one.queue(bytes(1000))
    one.take(100, 1.4)
    ack(one, 5000, 1.5)
    assert one.cubic.cwnd < before


def test_without_sack_three_duplicates_are_a_loss() -> None:
    one = sender(sack=False)
    one.queue(bytes(8000))
    one.take(100, 0.0)
    for _ in range(2):
        ack(one, 0, 0.1)
    assert one.mode is Mode.OPEN
    ack(one, 0, 0.1)
    assert one.mode is Mode.RECOVERY
    assert [sent.start - ISS - 1 for sent in one.take(1, 0.1)] == [0]
    ack(one, 3000, 0.2)
    assert [sent.start - ISS - 1 for sent in one.take(1, 0.2)] == [3000], "a partial acknowledgement"
    ack(one, 8000, 0.3)
    assert one.mode is Mode.OPEN


def test_acknowledgements_in_halves_give_no_more() -> None:
    """Ack division: a window that grows by bytes cannot be driven by the number of acknowledgements."""
    whole, halves = sender(), sender()
    for one in (whole, halves):
        one.queue(bytes(40_000))
        one.take(100, 0.0)
    ack(whole, 1000, 0.1)
    for number in range(10, 1001, 10):
        ack(halves, number, 0.1)
    assert halves.cubic.cwnd == whole.cubic.cwnd


def test_a_new_size_of_segments() -> None:
    one = sender()
    one.queue(bytes(3000))
    one.take(2, 0.0)
    one.recut(700)
    assert sizes(one, now=0.1) == [700, 300, 700, 300, 700, 300]
