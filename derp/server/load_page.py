"""/debug/load: how near this relay is to its limits, for whoever steers clients between regions.  Layer L3.

Closed to strangers as all of /debug/ (pages.py).  With several workers the nearest limit of any of them counts
(together.py).  Who reads it: client/load.py.
"""

import json
from collections.abc import Callable

from derp.metrics import RelayStatistics
from derp.relay.load import LOAD_PATH
from derp.server.pages import Page


def load_pages(read: Callable[[], RelayStatistics]) -> dict[str, Page]:
    """The page by its path, for a server with a relay.  `load` and `limit` are the nearest limit; all else is for
    people."""

    def render() -> bytes:
        reading = read()
        load = reading.load
        assert load is not None, "a server without a relay has no such page"
        limit, share = load.highest
        told = {
            "load": round(share, 4),
            "limit": limit,
            "shares": {name: round(each, 4) for name, each in load.shares.items()},
            "connections": reading.connections,
            "home_connections": reading.home_connections,
            "bytes_per_second": round(load.bytes_per_second),
            "packets_per_second": round(load.packets_per_second),
        }
        return json.dumps(told, indent=1).encode() + b"\n"

    return {LOAD_PATH: Page("how near its limits, JSON", "application/json", render)}
