"""Scores by load: when they rise and fall, who has to wait, and that no client moves twice in an hour by them."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from derp.netcheck.load import FULL, MAX_LEVEL, QUIET_SECONDS, STEP_FACTOR, STEP_SECONDS, LoadScores
from tests.derp.netcheck.maps import derp_map, region
from tests.support.crowd import CLIENTS, READ_SECONDS, START, Played, play

HOUR = 3600.0
# As JSON reads 1e999.
BOUNDLESS = {
    "changed_at": None,
    "rising": [],
    "regions": {"1": {"level": float("inf"), "load": 0, "because": "", "first_at": None, "read_at": None}},
}


@dataclass
class Days:
    """A core that is driven in virtual time, with a reading of each region every 15 s."""

    loads: dict[int, float | None]  # None: its page is away
    has_others: bool = False
    now: float = START
    changes: list[tuple[float, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = LoadScores(self.now)
        others = (99,) if self.has_others else ()
        self.core.follow(derp_map(*map(region, (*self.loads, *others))), self.loads)

    def read(self) -> None:
        for region_id, load in self.loads.items():
            if load is None:
                self.core.note_away(region_id, "connection refused")
            else:
                self.core.note(region_id, load, "loop", self.now)

    def go_on(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += READ_SECONDS
            self.read()
            changed = self.core.handle_timeout(self.now)
            if changed:
                self.changes.append((self.now, changed))

    @property
    def levels(self) -> dict[int, float]:
        return {region_id: factor for region_id, factor in self.core.factors.items() if factor != 1}


def test_a_full_region_rises_step_by_step_to_an_end_and_others_stay() -> None:
    days = Days({1: 1.0, 2: 0.2})
    days.go_on(45)
    assert days.levels == {}, "a minute has to pass"
    days.go_on(45)
    assert days.levels == {1: STEP_FACTOR}
    days.go_on(STEP_SECONDS - 30)
    assert days.levels == {1: STEP_FACTOR}
    days.go_on(45)
    assert days.levels == {1: STEP_FACTOR**2}
    days.go_on(10 * QUIET_SECONDS)
    assert days.levels == {1: round(STEP_FACTOR**MAX_LEVEL, 6)}


def test_it_rises_no_more_when_clients_have_left_and_falls_only_after_an_hour_at_ease() -> None:
    days = Days({1: 0.95, 2: 0.2})
    days.go_on(90)
    days.loads[1] = 0.8
    days.go_on(2 * QUIET_SECONDS)
    assert days.levels == {1: STEP_FACTOR}, "between the thresholds it stays where it is"
    days.loads[1] = 0.3
    days.go_on(300)
    assert days.levels == {}
    back = Days({1: 0.95, 2: 0.2})
    back.go_on(90)
    back.loads[1] = 0.3
    back.go_on(QUIET_SECONDS - 60)
    assert back.levels == {1: STEP_FACTOR}, "not within the hour"
    back.go_on(120)
    assert back.levels == {}


@pytest.mark.parametrize(("low", "high", "rises"), [(0.7, 1.0, False), (0.8, 1.2, True)])
def test_a_load_that_jumps_to_and_fro_counts_as_its_mean(low: float, high: float, rises: bool) -> None:
    days = Days({1: low, 2: 0.1})
    for turn in range(400):
        days.loads[1] = high if turn % 2 else low
        days.go_on(READ_SECONDS)
    assert bool(days.levels) is rises
    assert all(regions == [1] for _, regions in days.changes)
    assert len(days.changes) <= MAX_LEVEL, "and never falls in between"


def test_the_first_reading_alone_decides_nothing() -> None:
    days = Days({1: 1.0, 2: 0.1})
    days.go_on(READ_SECONDS)
    days.loads[1] = 0.5
    days.go_on(QUIET_SECONDS)
    assert days.changes == []


def test_a_relay_that_says_nothing_beside_another_is_named() -> None:
    core = LoadScores(START)
    core.follow(derp_map(region(1)), {1})
    core.note(1, 0.5, "loop", START, "node 1b: connection refused")
    assert "not all of its relays say it: node 1b: connection refused" in core.explain(START)[0]
    core.note(1, 0.5, "loop", START)
    assert "not all" not in core.explain(START)[0]


def test_a_region_whose_page_is_away_keeps_its_score_and_says_so() -> None:
    days = Days({1: 1.0, 2: 0.1})
    days.go_on(90)
    days.loads[1] = None
    days.go_on(24 * QUIET_SECONDS)
    assert days.levels == {1: STEP_FACTOR}
    line = days.core.explain(days.now)[0]
    assert line.startswith("Region 1 looks 1.2 times as far by its load: 100% of its limit (loop), read 950")
    assert line.endswith("so its score stays: connection refused.")
    days.loads[1] = 0.2
    days.go_on(300)
    assert days.levels == {}


def test_when_all_are_full_nothing_changes_unless_there_is_another_region() -> None:
    days = Days({1: 0.97, 2: 1.0})
    days.go_on(5 * QUIET_SECONDS)
    assert days.changes == []
    assert days.core.explain(days.now)[-1].startswith("No region has room")
    with_others = Days({1: 0.97, 2: 1.0}, has_others=True)
    with_others.go_on(90)
    assert with_others.levels == {1: STEP_FACTOR, 2: STEP_FACTOR}, "together, so nobody moves between them"


def test_who_became_full_by_those_who_came_waits_for_an_hour_and_nothing_comes_and_goes() -> None:
    days = Days({1: 1.0, 2: 0.2, 3: 0.2})
    days.go_on(90)
    days.loads |= {1: 0.5, 2: 1.0}
    days.go_on(QUIET_SECONDS - 60)
    assert days.changes == [(START + 75, [1])]
    assert "for another" in days.core.explain(days.now)[-1]
    days.go_on(120)
    assert days.levels == {2: STEP_FACTOR}
    assert len(days.changes) == 2


def test_a_restart_forgets_nothing_and_a_clock_put_back_holds_nothing_up() -> None:
    days = Days({1: 1.0, 2: 0.2})
    days.go_on(90)
    saved = json.loads(json.dumps(days.core.save()))
    again = LoadScores.restore(saved, days.now)
    assert again.save() == days.core.save()
    assert again.factors == days.core.factors
    for wrong in ({}, {"changed_at": None, "rising": [], "regions": {"1": 5}}, {"changed_at": "x"}, BOUNDLESS):
        with pytest.raises(ValueError, match="is not as it was saved"):
            LoadScores.restore(wrong, days.now)
    days.loads[1], days.now = 0.1, START - 1e6
    days.go_on(QUIET_SECONDS + STEP_SECONDS + 60)
    assert days.levels == {}, "while it runs, too"
    early = LoadScores.restore(saved, START - 1e6)
    early.follow(derp_map(region(1), region(2)), (1, 2))
    assert early.handle_timeout(START - 1e6) == []
    for second in range(0, int(QUIET_SECONDS) + 60, 15):
        early.note(1, 0.1, "loop", START - 1e6 + second)
        early.handle_timeout(START - 1e6 + second)
    assert early.factors == {}


def test_a_rise_goes_on_that_was_taken_over_before_the_map_was_whole() -> None:
    days = Days({1: 1.0, 2: 0.2})
    days.go_on(90)
    again = LoadScores(days.now)
    again.follow(derp_map(region(99)), (1, 2))  # a server knows its own relay first
    assert again.join(LoadScores.restore(days.core.save(), days.now))
    again.follow(derp_map(region(1), region(2)), (1, 2))
    days.core = again
    days.go_on(STEP_SECONDS + 60)
    assert days.levels == {1: round(STEP_FACTOR**2, 6)}


def test_a_drained_region_is_no_room_and_keeps_its_score_until_it_is_open_again() -> None:
    days = Days({1: 1.0, 2: 0.1})
    days.go_on(90)
    drained = derp_map(region(1), region(2, no_measure_no_home=True))
    days.core.follow(drained, (1, 2))
    days.go_on(QUIET_SECONDS)
    assert days.levels == {1: STEP_FACTOR}, "there is nowhere to go"
    days.core.follow(derp_map(region(2)), (1, 2))
    days.go_on(QUIET_SECONDS)
    days.core.follow(derp_map(region(1), region(2)), (1, 2))
    assert days.levels == {1: STEP_FACTOR}
    days.go_on(60)
    assert days.levels == {1: round(STEP_FACTOR**2, 6)}


def test_nonsense_counts_as_full_and_never_as_room() -> None:
    core = LoadScores(START)
    core.follow(derp_map(region(1), region(2)), (1, 2))
    core.note(1, float("nan"), "x", START)
    core.note(1, float("inf"), "x", START + 15)
    core.note(2, -5.0, "x", START)
    core.note(9, 1.0, "nobody asked", START)
    assert "Region 1 looks as far as the map says: 1000% of its limit (x)" in core.explain(START + 15)[0]
    assert "0% of its limit" in core.explain(START)[1]
    assert len(core.explain(START)) == 2


# --- clients that choose as stock ones do


def closest(played: Played) -> float:
    """The shortest time between two moves of one client."""
    return min((b - a for each in played.moves() for a, b in pairwise(each)), default=99 * QUIET_SECONDS)


def test_clients_leave_a_full_region_until_it_has_room_and_none_moves_twice_within_an_hour() -> None:
    played = play({1: 150, 2: 150, 3: 150}, hours=2)
    assert closest(played) >= HOUR
    assert played.at_home(-1)[1] < FULL * 150
    assert sum(map(len, played.moves())) < CLIENTS / 2, "and no more of them than had to"
    assert played.at_home(-1) == played.at_home(60), "then all is quiet"
    assert set(played.core.factors) == {1}


def test_two_regions_that_are_both_full_do_not_play_ball_with_their_clients() -> None:
    played = play({1: 120, 2: 30, 3: 60}, hours=2.5)
    assert closest(played) >= HOUR
    assert max(map(len, played.moves())) == 1
    assert played.at_home(-1) == played.at_home(60)
    assert set(played.core.factors) == {1}


def test_a_region_that_others_fill_rises_an_hour_later() -> None:
    played = play({1: 170, 2: 170, 3: 20}, hours=2.5)
    assert closest(played) >= HOUR
    assert max(map(len, played.moves())) <= 2
    assert set(played.core.factors) == {1, 3}
