"""Weights of regions, and what clients that choose as stock ones do make of them."""

import random

import pytest

from derp.map import DERPHomeParams, DERPMap
from derp.netcheck.report import History, Report
from derp.netcheck.steering import steered
from tests.derp.netcheck.maps import derp_map, region

MAP = derp_map(region(1), region(2), region(3))


def scores(weighed: DERPMap) -> dict[int, float]:
    return dict(weighed.home_params.region_score) if weighed.home_params is not None else {}


def test_twice_the_weight_is_half_as_far_and_others_stay() -> None:
    weighed = steered(MAP, weights={1: 2.0, 2: 0.5}, drain=[3])
    assert scores(weighed) == {1: 0.5, 2: 2.0}
    assert [weighed.regions[each].no_measure_no_home for each in (1, 2, 3)] == [False, False, True]
    again = steered(weighed, weights={1: 1.0}, drain=[])
    assert scores(again) == {2: 2.0}
    assert again.regions == weighed.regions
    assert steered(weighed, weights={1: 1.0, 2: 1.0}, drain=[]).home_params is None
    assert DERPMap.parse(weighed.to_json()) == weighed
    for wrong in ({"weights": {9: 2.0}, "drain": ()}, {"weights": {}, "drain": (9,)}):
        with pytest.raises(KeyError):
            steered(MAP, **wrong)  # type: ignore[arg-type]  # as called


def reports(weights: list[dict[int, float]], drains: list[list[int]]) -> list[list[int]]:
    """Homes of 300 clients, who are everywhere and whose latencies jitter, by hour of weights: 60 reports each."""
    chance = random.Random(5)
    moves: list[list[int]] = []
    for _ in range(300):
        near = {each: chance.uniform(0.005, 0.2) for each in (1, 2, 3)}
        history, now, counts = History(), 1000.0, []
        for weight, drain in zip(weights, drains, strict=True):
            asked = steered(MAP, weights=weight, drain=drain)
            before, moved = history.home, 0
            for _ in range(60):
                now += 60.0
                open_regions = [each for each in near if not asked.regions[each].no_measure_no_home]
                seen = {each: near[each] * chance.uniform(1.0, 1.05) for each in open_regions}
                home = history.settle(Report(udp=True, region_seconds=seen), asked, started=now, now=now).preferred
                moved += bool(before) and home != before
                before = home
            counts.append(moved)
        moves.append(counts)
    return moves


def test_a_change_of_weights_moves_no_client_twice_in_its_hour() -> None:
    hours = reports([{}, {1: 2.0}, {1: 2.0}, {1: 0.25, 3: 2.0}, {}], [[], [], [], [], []])
    assert max(count for counts in hours for count in counts) <= 1
    assert sum(counts[1] for counts in hours) > 30, "a preference is followed"
    assert sum(counts[0] + counts[2] for counts in hours) <= 3, "of 300, by jitter, at the edge between two regions"


def test_a_drained_region_is_left_at_the_next_report_and_nobody_comes_back_before_it_is_open() -> None:
    hours = reports([{}, {}, {}], [[], [2], [2]])
    assert max(count for counts in hours for count in counts) <= 1
    assert sum(counts[1] for counts in hours) > 60
    assert sum(counts[2] for counts in hours) == 0


def test_scores_of_a_map_that_are_not_named_stay() -> None:
    scored = DERPMap(MAP.regions, DERPHomeParams({3: 4.0}))
    assert scores(steered(scored, weights={1: 4.0}, drain=[])) == {1: 0.25, 3: 4.0}
