"""Who waits for the answer to his upgrade: the line's pace and order, and fights, in virtual time."""

import pytest

from tailnet.coordinator import arrivals
from tailnet.coordinator.arrivals import (
    MAX_REQUEST_BYTES,
    PATIENCE_SECONDS,
    STRANGERS_BYTES,
    WAITER_BYTES,
    Fights,
    Line,
    Room,
    Strangers,
)
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


def test_room_is_bounded_and_given_back() -> None:
    room = Room(10)
    assert [room.take(6), room.take(5), room.take(4)] == [True, False, True]
    room.give(6)
    assert (room.held, room.take(6)) == (4, True)


FLOOD = [f"203.0.113.{number}" for number in range(20)]


def play_storm(*, flood_per_step: int) -> tuple[list[float], list[float]]:
    """1,500 known callers at once in the fifth second, and one newcomer each 50 ms, for ten seconds.

    Returns how long each waited; infinity: it was told to try again.
    """
    line, strangers, step = Line[int](1_000.0, 0.0), Strangers[int](1_000.0, 0.0), 0.005
    came: dict[int, float] = {}
    known: list[float] = []
    newcomers: list[float] = []

    def turn(visitor: int, now: float, comes_in: bool = True) -> None:
        waited = now - came.pop(visitor) if comes_in else float("inf")
        if visitor < 10_000:
            strangers.make_way(now)
            known.append(waited)
        elif visitor < 20_000:
            newcomers.append(waited)

    for number in range(3_000):
        now = number * step
        for each, comes_in in line.handle_timeout(now):
            turn(each, now, comes_in)
        for each, comes_in in strangers.handle_timeout(now):
            turn(each, now, comes_in)
        for each in range(1_500) if number == 1_000 else ():
            came[each] = now
            if line.admits(now):
                turn(each, now)
            else:
                assert line.join(each, now)
        flood = [20_000 + number * flood_per_step + each for each in range(flood_per_step)] if number < 2_000 else []
        newcomer = [10_000 + number] if number % 10 == 0 and number < 2_000 else []
        for each in (*flood, *newcomer):
            came[each] = now
            address = "198.51.100.1" if each < 20_000 else FLOOD[each % len(FLOOD)]
            if strangers.admits(now):
                turn(each, now)
            elif not strangers.join(each, address, 1_000, now):
                turn(each, now, False)
    assert len(strangers) == strangers.room.held == len(line) == 0
    assert not strangers._queues
    assert not strangers._held
    return known, newcomers


def test_a_flood_of_strangers_costs_known_callers_nothing_and_newcomers_little() -> None:
    """25,000 strangers a second, from 20 addresses."""
    known, calm = play_storm(flood_per_step=0)
    flooded, newcomers = play_storm(flood_per_step=125)
    assert flooded == known
    assert (len(known), known.count(0.0), max(known)) == (1_500, 1_000, pytest.approx(0.5, abs=0.01))
    # Each address has a turn after the other: of 21 with 100 turns a second, once in 0.21 s.
    assert (len(calm), max(calm)) == (200, 0.0)
    assert (len(newcomers), max(newcomers) < PATIENCE_SECONDS) == (200, True)


def test_strangers_have_what_known_callers_leave_and_a_tenth_in_any_case() -> None:
    for known_per_step, expected in ((0, 10_000), (5, 1_000)):
        strangers = Strangers[int](1_000.0, 0.0)
        inside = 0
        for number in range(2_000):
            now = number * 0.005
            for _ in range(known_per_step):
                strangers.make_way(now)
            for each in range(10):
                strangers.join(number * 10 + each, FLOOD[each], 0, now)
            inside += sum(comes_in for _, comes_in in strangers.handle_timeout(now))
        assert inside == pytest.approx(expected, abs=250)


@pytest.mark.parametrize("per_second", [1, 5, 11])
def test_a_slow_pace_is_all_for_strangers_too_where_nobody_is_known(per_second: int) -> None:
    strangers, inside = Strangers[int](float(per_second), 0.0), 0
    for number in range(200 * 20):
        now = number * 0.005
        strangers.join(number, FLOOD[0], 0, now)
        inside += sum(comes_in for _, comes_in in strangers.handle_timeout(now))
    assert inside == pytest.approx(20 * per_second, abs=3)


def test_one_address_has_half_of_the_room_and_the_next_one_a_place() -> None:
    strangers = Strangers[int](1.0, 0.0)
    while strangers.admits(0.0):
        pass
    number = 0
    for address in FLOOD:
        while strangers.join(number, address, MAX_REQUEST_BYTES, 0.0):
            number += 1
        assert strangers.room.held <= STRANGERS_BYTES
    each = MAX_REQUEST_BYTES + WAITER_BYTES
    assert strangers._held[FLOOD[0]] == pytest.approx(STRANGERS_BYTES / 2, abs=each)
    assert strangers.join(number, "198.51.100.1", 0, 0.0)
    for left in range(number + 1):
        strangers.leave(left)
    strangers.leave(number)
    assert (len(strangers), strangers.room.held, strangers.next_timeout()) == (0, 0, None)


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
