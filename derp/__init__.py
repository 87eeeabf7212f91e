"""A DERP v2 relay, its client and its tools.  Stands alone: never imports `tailnet`.

    from derp import serve, connect, Client, RelayConfig, NodePrivate
Start reading at CONTRIBUTING.md (the house) and server/server.py (the service).  The names are loaded when they are
first asked for: a relay that starts reads only what it serves with, and clients wait for that.  Types: __init__.pyi.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

# The name here -> the file it lives in and its name there.
_PLACES: Final = {
    "Client": ("derp.client.client", "DerpClient"),
    "ConfigError": ("derp.errors", "ConfigError"),
    "DERPMap": ("derp.map", "DERPMap"),
    "DerpError": ("derp.errors", "DerpError"),
    "NodePrivate": ("derp.keys", "NodePrivate"),
    "NodePublic": ("derp.keys", "NodePublic"),
    "ReconnectingClient": ("derp.client.reconnect", "ReconnectingClient"),
    "RelayConfig": ("derp.config", "RelayConfig"),
    "RelayServer": ("derp.server.server", "RelayServer"),
    "TlsConfig": ("derp.config", "TlsConfig"),
    "TransportError": ("derp.errors", "TransportError"),
    "connect": ("derp.client.client", "open_derp_client"),
    "connect_forever": ("derp.client.reconnect", "open_reconnecting_client"),
    "serve": ("derp.server.server", "serve_relay"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("tailnet-derp")
        except PackageNotFoundError:
            return "0+unknown"  # a source tree that was never installed
    if name not in _PLACES:
        raise AttributeError(f"module 'derp' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, "__version__"])
