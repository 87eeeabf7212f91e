"""DERP maps for tests, as decoded JSON and as text."""

import json
from typing import Any


def region(region_id: int, *, code: str = "", host: str = "") -> dict[str, Any]:
    """A region with one node, free of findings."""
    node = {
        "Name": f"{region_id}a",
        "RegionID": region_id,
        "HostName": host or f"derp{region_id}.example.com",
    }
    return {
        "RegionID": region_id,
        "RegionCode": code or f"r{region_id}",
        "RegionName": f"Region {region_id}",
        "Nodes": [node],
    }


def map_text(*region_ids: int, **more: object) -> bytes:
    """A map of these regions; `more` are further fields of the map."""
    return json.dumps({"Regions": {str(each): region(each) for each in region_ids}, **more}).encode()
