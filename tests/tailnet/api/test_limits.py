"""Requests are counted per caller and minute, in a table that has a bound."""

import pytest

from tailnet.api import limits
from tailnet.api.limits import CallerLimits, StrangerLimits


def test_a_minute_begins_with_the_first_request() -> None:
    taken = CallerLimits()
    assert [taken.take("alice", 3, now) for now in (100.0, 110.0, 159.0)] == [0, 0, 0]
    # Back when the minute is over, in whole seconds that are never too few.
    assert [taken.take("alice", 3, now) for now in (159.0, 159.5, 159.999)] == [1, 1, 1]
    assert taken.take("alice", 3, 130.2) == 30
    assert taken.take("alice", 3, 160.0) == 0
    assert [taken.take("alice", 3, 161.0) for _ in range(3)] == [0, 0, 59]
    assert taken.refused_count == 5


def test_others_are_not_held_back() -> None:
    taken = CallerLimits()
    assert [taken.take("alice", 1, 0.0) for _ in range(3)] == [0, 60, 60]
    assert taken.take("bob", 1, 0.0) == 0


def test_no_limit() -> None:
    taken = CallerLimits()
    assert {taken.take("alice", 0, 0.0) for _ in range(2000)} == {0}
    assert len(taken) == 0


def test_a_limit_that_was_lowered_holds_at_once() -> None:
    taken = CallerLimits()
    assert [taken.take("alice", 10, 0.0) for _ in range(5)] == [0] * 5
    assert taken.take("alice", 2, 1.0) == 59


def test_only_callers_of_the_last_minute_are_kept() -> None:
    taken = CallerLimits()
    for number in range(100):
        taken.take(f"user {number}", 1, number)
    assert len(taken) == 60


def test_the_table_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CALLERS", 3)
    taken = CallerLimits()
    for number in range(50):
        assert taken.take(f"user {number}", 1, number / 100) == 0
        assert len(taken) <= 4
    assert taken.take("user 49", 1, 1.0) > 0, "the youngest is remembered"
    assert taken.take("user 0", 1, 1.0) == 0, "the oldest may begin anew"


def test_strangers_are_counted_by_network_and_together() -> None:
    taken = StrangerLimits(2, 5)
    assert [taken.take("2001:db8::1", 0.0) for _ in range(3)] == [(0, 0), (0, 0), (2, 60)]
    assert taken.take("2001:db8::ffff:1", 0.0) == (2, 60), "its neighbour of the same 64 bits"
    assert taken.take("2001:db8:0:1::1", 0.0) == (0, 0)
    assert [taken.take("::ffff:192.0.2.1", 1.0), taken.take("::ffff:192.0.2.2", 1.0)] == [(0, 0), (0, 0)]
    assert taken.take("no address", 10.0) == (5, 50)
    assert taken.refused_count == 3
    assert taken.take("192.0.2.9", 60.0) == (0, 0)


def test_whoever_is_over_its_own_limit_takes_nothing_from_others() -> None:
    taken = StrangerLimits(1, 3)
    assert sum(taken.take("192.0.2.1", 0.0) == (0, 0) for _ in range(10)) == 1
    assert [taken.take(f"192.0.2.{number}", 0.0)[1] for number in (2, 3, 4)] == [0, 0, 60]
