"""Calls at a time: order, cancelling, calls that ask for more or fail, and what cancelled ones leave behind."""

import math

import pytest

from derp.transport.timers import Timers


def test_calls_come_in_the_order_of_their_times_and_then_of_asking() -> None:
    timers, called = Timers(), list[str]()
    timers.call_at(3.0, lambda: called.append("three"))
    timers.call_at(1.0, lambda: called.append("one"))
    timers.call_at(1.0, lambda: called.append("one again"))
    assert timers.next_at == 1.0
    assert not timers.run_due(0.9)
    assert timers.run_due(1.0)
    assert called == ["one", "one again"]
    assert timers.next_at == 3.0
    assert timers.run_due(100.0)
    assert called[2:] == ["three"]
    assert timers.next_at == math.inf
    assert not timers.run_due(1000.0)


def test_a_cancelled_timer_does_not_call() -> None:
    timers, called = Timers(), list[str]()
    timer = timers.call_at(1.0, lambda: called.append("cancelled"))
    timers.call_at(2.0, lambda: called.append("kept"))
    timer.cancel()
    timer.cancel()
    assert len(timers) == 1
    assert not timers.run_due(1.5), "nothing was called"
    assert timers.run_due(2.0)
    assert called == ["kept"]
    timer.cancel()
    assert len(timers) == 0


def test_one_that_is_due_may_cancel_another_that_is_due() -> None:
    timers, called = Timers(), list[str]()
    timers.call_at(1.0, lambda: second.cancel())
    second = timers.call_at(1.0, lambda: called.append("second"))
    third = timers.call_at(1.0, lambda: called.append("third"))
    assert timers.run_due(1.0)
    assert called == ["third"]
    third.cancel()  # it was called: nothing to cancel, and nothing to count
    assert len(timers) == 0


def test_a_call_that_asks_again_at_once_does_not_hold_everybody_up() -> None:
    timers, count = Timers(), [0]

    def again() -> None:
        count[0] += 1
        timers.call_at(0.0, again)

    timers.call_at(0.0, again)
    timers.call_at(0.0, again)
    timers.call_at(1.0, lambda: count.append(0))
    assert timers.run_due(1.0)
    assert count == [2, 0], "also who is due later than what is asked for again has had its turn"
    assert timers.next_at == 0.0
    assert timers.run_due(1.0), "also where time stands still"
    assert count[0] == 4


def test_what_a_call_raises_leaves_the_others_due() -> None:
    timers, called = Timers(), list[str]()

    def fail() -> None:
        raise ValueError("a defect")

    timers.call_at(1.0, fail)
    timers.call_at(1.0, lambda: called.append("behind it"))
    with pytest.raises(ValueError, match="a defect"):
        timers.run_due(1.0)
    assert called == []
    assert timers.run_due(1.0)
    assert called == ["behind it"]


def test_a_deadline_that_moves_for_ever_leaves_no_heap_behind() -> None:
    timers, called = Timers(), list[int]()
    kept = [timers.call_at(1e9, lambda: None) for _ in range(10)]
    timer = timers.call_at(0.0, lambda: called.append(0))
    for number in range(1, 10_000):
        timer.cancel()
        timer = timers.call_at(float(number), lambda number=number: called.append(number))  # type: ignore[misc]
        assert len(timers) == len(kept) + 1
        assert len(timers._heap) <= 100
    assert timers.run_due(9_999.0)
    assert called == [9_999]
