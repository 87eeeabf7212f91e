from tailnet.client.coordination import Coordination, open_coordination
from tailnet.client.rpc import RpcClient
from tailnet.client.rpc import open_rpc_client as connect_rpc
from tailnet.client.workspaces import open_workspaces
from tailnet.config import CoordinatorConfig
from tailnet.errors import ConfigError, RpcError, TailnetError
from tailnet.node.aio import connect_asyncio
from tailnet.node.tunnel import connect
from tailnet.server.server import CoordinatorServer
from tailnet.server.server import serve_coordinator as serve
from tailnet.types import PeerID

__all__ = [
    "ConfigError",
    "Coordination",
    "CoordinatorConfig",
    "CoordinatorServer",
    "PeerID",
    "RpcClient",
    "RpcError",
    "TailnetError",
    "connect",
    "connect_asyncio",
    "connect_rpc",
    "open_coordination",
    "open_workspaces",
    "serve",
]
__version__: str
