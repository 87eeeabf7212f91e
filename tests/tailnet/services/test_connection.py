"""What clients are told before they dial: settings as they are, and the map of the moment."""

from tailnet.config import CoordinatorConfig
from tailnet.services.connection import describe_connection
from tailnet.services.derp_maps import DerpMaps


def test_settings_and_the_current_map() -> None:
    maps = DerpMaps()
    config = CoordinatorConfig(derp_force_websockets=True, disable_direct_connections=True, hostname_suffix="lan")
    view = describe_connection(config, maps)
    assert (view.derp_force_websockets, view.disable_direct_connections, view.hostname_suffix) == (True, True, "lan")
    assert view.derp_map is maps.current
