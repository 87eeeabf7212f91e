"""Settings of the relay (layer L2): relay.py the value, parse.py the kinds, settings.py the names, load.py the sources.

Callers need two things: `load_config(...)` for a program, `RelayConfig(...)` for an embedder or a test.
"""

from derp.config.load import load_config, load_mesh_key, load_private_key, load_rate_config
from derp.config.relay import AcmeConfig, MeshPeer, RateConfig, RelayConfig, TlsConfig

__all__ = [
    "AcmeConfig",
    "MeshPeer",
    "RateConfig",
    "RelayConfig",
    "TlsConfig",
    "load_config",
    "load_mesh_key",
    "load_private_key",
    "load_rate_config",
]
