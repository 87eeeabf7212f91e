"""Which region clients shall choose, as operators want it: weights into a map that every stock client obeys.  Layer L1.

A client multiplies what it measured of a region with its RegionScore before it compares, and leaves its home only for
one that is 10 ms and a third nearer then (netcheck/report.py).  So a change of weights moves a client once at the most.
Relays of one region have no weights: stock clients take the first of a region that answers.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from derp.map import DERPHomeParams, DERPMap

# Twice as welcome is half as far: enough to win over a region that is as near, and none that is next door is left for
# one across an ocean.
PREFER_WEIGHT: Final = 2.0


def steered(derp_map: DERPMap, *, weights: Mapping[int, float], drain: Collection[int]) -> DERPMap:
    """A map in which regions look as near as they weigh, 1 for those that are not named.

    `drain`: regions that nobody shall have as home; clients with their home there leave it at their next report.
    Regions of neither stay as they are.  KeyError: a region that the map does not have.
    """
    before = derp_map.home_params.region_score if derp_map.home_params is not None else {}
    scores = dict(before)
    for region_id, weight in weights.items():
        derp_map.regions[region_id]  # or there is none
        scores.pop(region_id, None)
        if weight != 1.0:
            scores[region_id] = score_of(weight)
    regions = dict(derp_map.regions)
    for region_id in drain:
        regions[region_id] = replace(regions[region_id], no_measure_no_home=True)
    return replace(derp_map, regions=regions, home_params=DERPHomeParams(scores) if scores else None)


def score_of(weight: float) -> float:
    """The RegionScore of a region that is to look `weight` times as near."""
    return round(1 / weight, 6)


def score_in(derp_map: DERPMap, region_id: int) -> float:
    """How many times as far a region looks to clients, who ignore what is not above 0."""
    score = derp_map.home_params.region_score.get(region_id, 0.0) if derp_map.home_params is not None else 0.0
    return score if score > 0 else 1.0


def pushed_away(derp_map: DERPMap, factors: Mapping[int, float]) -> DERPMap:
    """A map in which regions look so many times as far as they did.  Those that the map does not have are ignored."""
    scores = dict(derp_map.home_params.region_score) if derp_map.home_params is not None else {}
    for region_id, factor in factors.items():
        if region_id in derp_map.regions and factor != 1.0:
            scores[region_id] = round(score_in(derp_map, region_id) * factor, 6)
    return replace(derp_map, home_params=DERPHomeParams(scores)) if scores else derp_map
