"""Which RPCs exist: path -> classes, shape, and the API minor that brought them.  Layer L1.

`/me/rpc` serves TAILNET and AGENT together; the paths of clients serve TAILNET alone.  rpc/connection.py takes one of
the tables as "what this door answers" and says code 12 to every other path, as genuine peers understand it.
Next hop: services/tailnet_rpc.py finds the code behind a path.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet


class RpcKind(enum.Enum):
    """How many messages travel each way."""

    UNARY = "one request, one response"
    SERVER_STREAM = "one request, any number of responses"
    BIDI = "any number both ways"


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC.  `minor`: the 2.<minor> that first lists it.  It informs, it forbids nothing: a genuine client of 2.0
    calls RefreshResumeToken."""

    path: str
    request: type[Message]
    response: type[Message]
    kind: RpcKind
    minor: int


def _table(service: str, *rows: tuple[str, type[Message], type[Message], RpcKind, int]) -> Mapping[str, Rpc]:
    rpcs = [Rpc(f"/{service}/{name}", request, response, kind, minor) for name, request, response, kind, minor in rows]
    return {rpc.path: rpc for rpc in rpcs}


# The paths of RPCs whose code is no entry of a table of its own.
COORDINATE: Final = "/coder.tailnet.v2.Tailnet/Coordinate"
STREAM_DERP_MAPS: Final = "/coder.tailnet.v2.Tailnet/StreamDERPMaps"
REFRESH_RESUME_TOKEN: Final = "/coder.tailnet.v2.Tailnet/RefreshResumeToken"  # noqa: S105  # the name of an RPC
POST_TELEMETRY: Final = "/coder.tailnet.v2.Tailnet/PostTelemetry"
WORKSPACE_UPDATES: Final = "/coder.tailnet.v2.Tailnet/WorkspaceUpdates"

_UNARY, _STREAM, _BIDI = RpcKind.UNARY, RpcKind.SERVER_STREAM, RpcKind.BIDI

TAILNET: Final = _table(
    "coder.tailnet.v2.Tailnet",
    ("PostTelemetry", tailnet.TelemetryRequest, tailnet.TelemetryResponse, _UNARY, 2),
    ("StreamDERPMaps", tailnet.StreamDERPMapsRequest, tailnet.DERPMap, _STREAM, 0),
    ("RefreshResumeToken", tailnet.RefreshResumeTokenRequest, tailnet.RefreshResumeTokenResponse, _UNARY, 3),
    ("Coordinate", tailnet.CoordinateRequest, tailnet.CoordinateResponse, _BIDI, 0),
    ("WorkspaceUpdates", tailnet.WorkspaceUpdatesRequest, tailnet.WorkspaceUpdate, _STREAM, 3),
)

AGENT: Final = _table(
    "coder.agent.v2.Agent",
    ("GetManifest", agent.GetManifestRequest, agent.Manifest, _UNARY, 0),
    ("GetServiceBanner", agent.GetServiceBannerRequest, agent.ServiceBanner, _UNARY, 0),
    ("UpdateStats", agent.UpdateStatsRequest, agent.UpdateStatsResponse, _UNARY, 0),
    ("UpdateLifecycle", agent.UpdateLifecycleRequest, agent.Lifecycle, _UNARY, 0),
    ("BatchUpdateAppHealths", agent.BatchUpdateAppHealthRequest, agent.BatchUpdateAppHealthResponse, _UNARY, 0),
    ("UpdateStartup", agent.UpdateStartupRequest, agent.Startup, _UNARY, 0),
    ("BatchUpdateMetadata", agent.BatchUpdateMetadataRequest, agent.BatchUpdateMetadataResponse, _UNARY, 0),
    ("BatchCreateLogs", agent.BatchCreateLogsRequest, agent.BatchCreateLogsResponse, _UNARY, 0),
    ("GetAnnouncementBanners", agent.GetAnnouncementBannersRequest, agent.GetAnnouncementBannersResponse, _UNARY, 1),
    (
        "ScriptCompleted",
        agent.WorkspaceAgentScriptCompletedRequest,
        agent.WorkspaceAgentScriptCompletedResponse,
        _UNARY,
        3,
    ),
    (
        "GetResourcesMonitoringConfiguration",
        agent.GetResourcesMonitoringConfigurationRequest,
        agent.GetResourcesMonitoringConfigurationResponse,
        _UNARY,
        4,
    ),
    (
        "PushResourcesMonitoringUsage",
        agent.PushResourcesMonitoringUsageRequest,
        agent.PushResourcesMonitoringUsageResponse,
        _UNARY,
        4,
    ),
    ("ReportConnection", agent.ReportConnectionRequest, Empty, _UNARY, 4),
    ("CreateSubAgent", agent.CreateSubAgentRequest, agent.CreateSubAgentResponse, _UNARY, 6),
    ("DeleteSubAgent", agent.DeleteSubAgentRequest, agent.DeleteSubAgentResponse, _UNARY, 6),
    ("ListSubAgents", agent.ListSubAgentsRequest, agent.ListSubAgentsResponse, _UNARY, 6),
    ("ReportBoundaryLogs", agent.ReportBoundaryLogsRequest, agent.ReportBoundaryLogsResponse, _UNARY, 7),
    ("UpdateAppStatus", agent.UpdateAppStatusRequest, agent.UpdateAppStatusResponse, _UNARY, 8),
    ("PushContextState", agent.PushContextStateRequest, agent.PushContextStateResponse, _UNARY, 10),
)

# What the agent's door answers.
TAILNET_AND_AGENT: Final[Mapping[str, Rpc]] = {**TAILNET, **AGENT}
