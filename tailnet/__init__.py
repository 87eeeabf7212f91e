"""The tailnet coordinator, its DERP-map service and its HTTP API.  May import `derp`, never the reverse.

    from tailnet import serve, CoordinatorConfig, connect, connect_rpc, open_coordination
The names are loaded when they are first asked for.  Types: __init__.pyi.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

# The name here -> the file it lives in and its name there.
_PLACES: Final = {
    "ConfigError": ("tailnet.errors", "ConfigError"),
    "Coordination": ("tailnet.client.coordination", "Coordination"),
    "CoordinatorConfig": ("tailnet.config", "CoordinatorConfig"),
    "CoordinatorServer": ("tailnet.server.server", "CoordinatorServer"),
    "PeerID": ("tailnet.types", "PeerID"),
    "RpcClient": ("tailnet.client.rpc", "RpcClient"),
    "RpcError": ("tailnet.errors", "RpcError"),
    "TailnetError": ("tailnet.errors", "TailnetError"),
    "connect": ("tailnet.node.tunnel", "connect"),
    "connect_asyncio": ("tailnet.node.aio", "connect_asyncio"),
    "connect_rpc": ("tailnet.client.rpc", "open_rpc_client"),
    "open_coordination": ("tailnet.client.coordination", "open_coordination"),
    "open_workspaces": ("tailnet.client.workspaces", "open_workspaces"),
    "serve": ("tailnet.server.server", "serve_coordinator"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("tailnet-derp")
        except PackageNotFoundError:
            return "0+unknown"  # a source tree that was never installed
    if name not in _PLACES:
        raise AttributeError(f"module 'tailnet' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, "__version__"])
