"""Maps as values for the netcheck tests."""

from collections.abc import Mapping
from typing import Any

from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion


def node(region_id: int, letter: str = "a", **fields: Any) -> DERPNode:
    settings: dict[str, Any] = {
        "name": f"{region_id}{letter}",
        "region_id": region_id,
        "host_name": f"{letter}{region_id}.example",
    }
    return DERPNode(**(settings | fields))


def region(region_id: int, *nodes: DERPNode, **fields: Any) -> DERPRegion:
    return DERPRegion(region_id, f"r{region_id}", nodes=nodes or (node(region_id),), **fields)


def derp_map(*regions: DERPRegion, scores: Mapping[int, float] | None = None) -> DERPMap:
    home = DERPHomeParams(scores) if scores is not None else None
    return DERPMap({one.region_id: one for one in regions}, home)
