"""Settings of the relay (layer L2): relay.py the value, setting.py and parse.py what a setting is, settings.py the
rows, sources.py where they come from, files.py and tls.py what they name, load.py the way to the value, reload.py the
way to the next one.

Callers need two things: `load_config(...)` for a program, `RelayConfig(...)` for an embedder or a test.
"""

from derp.config.files import load_mesh_key, load_private_key, load_rate_config
from derp.config.load import load_config
from derp.config.relay import AcmeConfig, MeshPeer, RelayConfig, RelayRules, ServerConfig, TlsConfig
from derp.config.reload import Changes, compare
from derp.relay.limits import Rate

__all__ = [
    "AcmeConfig",
    "Changes",
    "MeshPeer",
    "Rate",
    "RelayConfig",
    "RelayRules",
    "ServerConfig",
    "TlsConfig",
    "compare",
    "load_config",
    "load_mesh_key",
    "load_private_key",
    "load_rate_config",
]
