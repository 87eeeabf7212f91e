"""Settings of the coordinator (layer L2): coordinator.py the value, parse.py the kinds, settings.py the rows, load.py
the way to the value.  The engine is derp/config/setting.py, derp/config/sources.py and derp/config/reload.py.
"""

from derp.config.reload import Changes, compare
from tailnet.config.coordinator import Banner, CoordinatorConfig, WebhookTarget
from tailnet.config.load import load_config
from tailnet.config.settings import SETTINGS

__all__ = ["SETTINGS", "Banner", "Changes", "CoordinatorConfig", "WebhookTarget", "compare", "load_config"]
