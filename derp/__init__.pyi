from derp.client.client import DerpClient as Client
from derp.client.client import open_derp_client as connect
from derp.client.reconnect import ReconnectingClient
from derp.client.reconnect import open_reconnecting_client as connect_forever
from derp.config import RelayConfig, TlsConfig
from derp.errors import ConfigError, DerpError, TransportError
from derp.keys import NodePrivate, NodePublic
from derp.map import DERPMap
from derp.server.server import RelayServer
from derp.server.server import serve_relay as serve

__all__ = [
    "Client",
    "ConfigError",
    "DERPMap",
    "DerpError",
    "NodePrivate",
    "NodePublic",
    "ReconnectingClient",
    "RelayConfig",
    "RelayServer",
    "TlsConfig",
    "TransportError",
    "connect",
    "connect_forever",
    "serve",
]
__version__: str
