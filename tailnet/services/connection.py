"""What a client needs to know before it dials an agent (layer L3): asked by api/connection.py."""

from dataclasses import dataclass

from tailnet.config import CoordinatorConfig
from tailnet.services.derp_maps import DerpMaps, PublishedMap


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """What a client is told.  Today it is the same for every agent."""

    derp_map: PublishedMap
    derp_force_websockets: bool  # relays are reached by websocket from the first try on
    disable_direct_connections: bool  # all traffic goes through relays
    hostname_suffix: str  # of the names that agents have in the tailnet; empty: none


def describe_connection(config: CoordinatorConfig, derp_maps: DerpMaps) -> ConnectionView:
    """What the settings and the current map say."""
    return ConnectionView(
        derp_maps.current, config.derp_force_websockets, config.disable_direct_connections, config.hostname_suffix
    )
