"""Stock clients follow scores: the genuine netcheck library on the maps that steering makes."""

from typing import Any

import pytest

from derp.map import DERPMap
from derp.netcheck.load import STEP_FACTOR
from derp.netcheck.steering import PREFER_WEIGHT, pushed_away, steered
from tests.interop.test_derp_netcheck import region
from tests.support.crowd import START, play
from tests.support.inprocess import open_regions
from tests.support.netchecks import genuine

pytestmark = pytest.mark.interop

MAP = DERPMap({one: region(one) for one in (1, 2, 3)})


async def homes(steps: list[tuple[DERPMap, dict[int, float]]]) -> list[int]:
    """Where a stock client is at home after each report: one in 30 s, with these milliseconds."""
    reports = [
        {
            "at": 30.0 * number,
            "map": derp_map.to_json(),
            "seconds": {str(region_id): each / 1000 for region_id, each in milliseconds.items()},
        }
        for number, (derp_map, milliseconds) in enumerate(steps)
    ]
    answer: list[int] = await genuine("history", map=MAP.to_json(), reports=reports)
    return answer


async def test_a_stock_client_moves_by_the_score_and_not_within_its_hysteresis() -> None:
    near = {1: 40.0, 2: 59.0, 3: 200.0}
    steps = [pushed_away(MAP, {1: round(STEP_FACTOR**level, 6)}) for level in (0, 1, 2, 3, 4, 5, 5, 0, 0)]
    # It leaves when region 2 looks a third nearer: 59 < 2/3 x 40 x 1.2 ** 5, and not before.  When the score is gone,
    # it stays: 40 ms is not a third less than 59.
    assert await homes([(each, near) for each in steps]) == [1, 1, 1, 1, 1, 2, 2, 2, 2]


async def test_a_difference_of_less_than_ten_milliseconds_moves_nobody() -> None:
    full = pushed_away(MAP, {1: round(STEP_FACTOR**9, 6)})
    assert await homes([(MAP, {1: 1.5, 2: 2.0}), (full, {1: 1.5, 2: 2.0})]) == [1, 1]
    assert await homes([(MAP, {1: 3.0, 2: 4.0}), (full, {1: 3.0, 2: 4.0})]) == [1, 2]


async def test_who_has_no_home_yet_takes_the_preferred_region() -> None:
    preferred = steered(MAP, weights={2: PREFER_WEIGHT}, drain=())
    assert await homes([(preferred, {1: 20.0, 2: 30.0})]) == [2]
    assert await homes([(MAP, {1: 20.0, 2: 30.0})]) == [1]


async def test_a_drained_region_is_left_at_the_next_report() -> None:
    """On sockets: of a drained region the library asks nothing."""
    async with open_regions(1, 2) as (_, both):
        at_home = steered(both, weights={1: 1000.0}, drain=())
        drained = steered(at_home, weights={}, drain=(1,))
        answers = await genuine("report", steps=[{"map": each.to_json()} for each in (at_home, drained, drained)])
    assert [each["preferred"] for each in answers] == [1, 2, 2]
    assert [set(each["region_seconds"]) for each in answers] == [{"1", "2"}, {"2"}, {"2"}]


async def test_a_crowd_of_stock_clients_leaves_a_full_region_as_ours_say() -> None:
    """Twenty of the clients of tests/support/crowd.py, report by report."""
    played = play({1: 150, 2: 150, 3: 150}, hours=1)
    moved = [each for each in played.clients if len(set(each.homes)) > 1][:10]
    stayed = [each for each in played.clients if len(set(each.homes)) == 1][:10]
    assert len(moved) == len(stayed) == 10
    for client in (*moved, *stayed):
        reports: list[dict[str, Any]] = [
            {"at": at - START, "map": derp_map.to_json(), "seconds": {str(one): each for one, each in seen.items()}}
            for at, derp_map, seen in zip(played.times, played.maps, client.seen, strict=True)
        ]
        assert await genuine("history", map=played.maps[0].to_json(), reports=reports) == client.homes
