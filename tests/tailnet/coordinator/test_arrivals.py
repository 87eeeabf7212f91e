"""Who waits for the answer to his upgrade: the line's pace and order, and fights, in virtual time."""

import pytest

from tailnet.coordinator import arrivals
from tailnet.coordinator.arrivals import Fights, Line
from tests.support.seeds import peer_id

A, B = peer_id("main"), peer_id("gpu")


def play(line: Line[int], until: float) -> list[tuple[float, int, bool]]:
    """Ring when it wants to be, up to a time."""
    found = []
    while (at := line.next_timeout()) is not None and at <= until:
        found += [(at, visitor, comes_in) for visitor, comes_in in line.handle_timeout(at)]
    return found


def test_nobody_waits_where_no_storm_is() -> None:
    line = Line[int](10.0, 100.0)
    assert [line.admits(100.0) for _ in range(11)] == [True] * 10 + [False]
    assert line.next_timeout() is None
    assert all(line.admits(100.0 + number / 8) for number in range(1, 50))


def test_the_oldest_comes_in_first_at_the_rate_and_who_waited_too_long_tries_again() -> None:
    line = Line[int](10.0, 0.0)
    assert sum(line.admits(0.0) for _ in range(100)) == 10
    for number in range(100):
        assert line.join(number, 0.0)
    line.leave(3)
    assert not line.admits(0.5)  # nobody overtakes the line, though a token is there
    played = play(line, 60.0)
    inside = [number for _, number, comes_in in played if comes_in]
    later = [number for _, number, comes_in in played if not comes_in]
    assert [*inside, *later] == [number for number in range(100) if number != 3]
    assert len(inside) in (49, 50, 51)
    assert all(sum(comes_in and at <= until for at, _, comes_in in played) <= 10 * until + 1 for until in range(1, 6))
    assert {round(at, 1) for at, _, comes_in in played if not comes_in} == {5.0}
    assert len(line) == 0


def test_a_process_that_was_stopped_lets_in_whom_it_can_before_it_sends_others_away() -> None:
    line = Line[int](4.0, 0.0)
    while line.admits(0.0):
        pass
    for number in range(6):
        line.join(number, 0.0)
    assert [(number, comes_in) for number, comes_in in line.handle_timeout(1000.0)] == [
        *((number, True) for number in range(4)),
        *((number, False) for number in (4, 5)),
    ]


def test_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_WAITING", 2)
    line = Line[int](1.0, 0.0)
    assert [line.join(number, 0.0) for number in range(3)] == [True, True, False]
    line.leave(0)
    assert line.join(4, 0.0)


def test_each_overtaking_doubles_the_hold_until_there_is_peace() -> None:
    fights = Fights[str]()
    now, holds = 0.0, []
    for number in range(9):
        fights.note(A, [f"10.0.0.{number % 2}:1"], now)
        holds.append(fights.hold_until(A) - now)
        now = fights.hold_until(A)
    assert holds == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    [fight] = fights.current(now)
    assert (fight.peer_id, fight.count, sorted(fight.addresses)) == (A, 9, ["10.0.0.0:1", "10.0.0.1:1"])
    assert fights.hold_until(B) == 0.0
    later = now + arrivals.PEACE_SECONDS + 1
    assert fights.current(later) == []
    fights.note(A, ["10.0.0.1:1"], later)
    assert fights.hold_until(A) == later + 0.5
    assert fights.current(later) == []  # once is no fight


def test_a_fight_may_go_on_for_ever() -> None:
    fights = Fights[str]()
    for number in range(2_000):
        fights.note(A, (), number * arrivals.MAX_HOLD_SECONDS)
    [fight] = fights.current(fights.hold_until(A))
    assert (fight.count, fight.hold_seconds) == (2_000, arrivals.MAX_HOLD_SECONDS)


def test_who_waits_is_told_when_the_hold_is_over_and_few_of_one_id_wait() -> None:
    fights = Fights[str]()
    for _ in range(3):
        fights.note(A, (), 10.0)
    assert fights.next_timeout() is None
    assert [fights.join(f"visitor{number}", A) for number in range(9)] == [True] * 8 + [False]
    fights.leave("visitor2")
    fights.leave("a stranger")
    assert fights.join("another", A)
    assert fights.next_timeout() == 12.0
    assert fights.handle_timeout(11.9) == []
    assert len(fights.handle_timeout(12.0)) == 8
    assert (len(fights), fights.next_timeout()) == (0, None)
    assert not fights._waiting_of


def test_ids_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_FIGHTS", 3)
    fights = Fights[str]()
    ids = [peer_id(name) for name in "abcde"]
    for each in ids:
        fights.note(each, (), 0.0)
    assert [fights.hold_until(each) > 0 for each in ids] == [False, False, True, True, True]
