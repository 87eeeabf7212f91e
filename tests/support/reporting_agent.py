"""An agent of ours (tailnet/client) that says all that agents say of themselves.  No pytest here: browsers' tests and
user stories use it against servers of any kind."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

from google.protobuf.timestamp_pb2 import Timestamp

from derp.keys import NodePrivate
from tailnet.client.coordination import Coordination, make_node, open_coordination
from tailnet.client.rpc import RpcClient, open_rpc_client
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.types import PeerID

AGENT = "/coder.agent.v2.Agent/"
DOOR = "/api/v2/workspaceagents/me/rpc?version=2.8"


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC))
    return stamp


class ReportingAgent:
    """Each method is one report."""

    def __init__(self, rpc: RpcClient, peer_id: PeerID) -> None:
        self.rpc = rpc
        self.peer_id = peer_id
        self.coordination: Coordination

    async def start(self, version: str = "v2.20.0", directory: str = "/home/agent") -> agent.Manifest:
        """As agents do: the manifest, who it is, that it starts."""
        manifest = await self.rpc.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        startup = agent.Startup(
            version=version, expanded_directory=directory, subsystems=[agent.Startup.ENVBOX, agent.Startup.EXECTRACE]
        )
        await self.rpc.call(AGENT + "UpdateStartup", agent.UpdateStartupRequest(startup=startup), agent.Startup)
        await self.lifecycle(agent.Lifecycle.STARTING)
        return manifest

    async def lifecycle(self, state: "agent.Lifecycle.State") -> None:
        request = agent.UpdateLifecycleRequest(lifecycle=agent.Lifecycle(state=state, changed_at=_now()))
        await self.rpc.call(AGENT + "UpdateLifecycle", request, agent.Lifecycle)

    async def meet(self, home_region: int, latencies: Mapping[str, float]) -> None:
        """Say where it is: at home in a relay's region, so far from each."""
        self.coordination = await open_coordination(self.rpc)
        node = make_node(NodePrivate.generate(), self.peer_id, home_region)
        node.derp_latency.update(latencies)
        await self.coordination.announce(node)

    async def log(self, *lines: str, source: UUID | None = None, level: int = agent.Log.INFO) -> None:
        logs = [agent.Log(created_at=_now(), output=line, level=level) for line in lines]  # type: ignore[arg-type]  # its number
        request = agent.BatchCreateLogsRequest(log_source_id=source.bytes if source else b"", logs=logs)
        await self.rpc.call(AGENT + "BatchCreateLogs", request, agent.BatchCreateLogsResponse)

    async def metadata(self, values: Mapping[str, str], error: str = "") -> None:
        results = [
            agent.Metadata(
                key=key, result=agent.WorkspaceAgentMetadata.Result(collected_at=_now(), value=value, error=error)
            )
            for key, value in values.items()
        ]
        request = agent.BatchUpdateMetadataRequest(metadata=results)
        await self.rpc.call(AGENT + "BatchUpdateMetadata", request, agent.BatchUpdateMetadataResponse)

    async def health(self, app_id: UUID, health: "agent.AppHealth") -> None:
        update = agent.BatchUpdateAppHealthRequest.HealthUpdate(id=app_id.bytes, health=health)
        request = agent.BatchUpdateAppHealthRequest(updates=[update])
        await self.rpc.call(AGENT + "BatchUpdateAppHealths", request, agent.BatchUpdateAppHealthResponse)

    async def status(self, slug: str, message: str) -> None:
        request = agent.UpdateAppStatusRequest(
            slug=slug, state=agent.UpdateAppStatusRequest.WORKING, message=message, uri="http://localhost/1"
        )
        await self.rpc.call(AGENT + "UpdateAppStatus", request, agent.UpdateAppStatusResponse)

    async def session(self, ip: str, reason: str) -> None:
        """Somebody opened a session and closed it."""
        from google.protobuf.empty_pb2 import Empty

        ident = uuid4().bytes
        for action in (agent.Connection.CONNECT, agent.Connection.DISCONNECT):
            connection = agent.Connection(
                id=ident, action=action, type=agent.Connection.SSH, timestamp=_now(), ip=ip, reason=reason
            )
            await self.rpc.call(AGENT + "ReportConnection", agent.ReportConnectionRequest(connection=connection), Empty)


@asynccontextmanager
async def open_reporting_agent(url: str, token: str, peer_id: PeerID) -> AsyncIterator[ReportingAgent]:
    """Connected, and silent until told."""
    async with open_rpc_client(url, DOOR, token) as rpc:
        yield ReportingAgent(rpc, peer_id)
