"""What an agent asks for over HTTP (layer L3): /api/v2/workspaceagents/me/{manifest,metadata,reinit}.

Newer agents get their manifest by RPC; `metadata` is the oldest one, before scripts had a list.  `reinit` tells an
agent that its workspace was claimed: those of this server belong to somebody from the start, so it waits.
Next hop: services/agent_requests.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tailnet.api.answers import Body, OmitNone
from tailnet.api.guards import CallingAgent, Services, ServicesOf, query_of, token_of
from tailnet.api.sse import EventStream, Source, Told, last_event_id
from tailnet.api.streams import agent_permit
from tailnet.refusals import Refused, agent_unknown
from tailnet.services.feed import Event
from tailnet.services.known_agents import KnownAgent
from tailnet.store.rows import AgentIdentity, App

router = APIRouter(prefix="/api/v2/workspaceagents/me", tags=["agents"])

_WAIT: Final = {"parameters": [{"name": "wait", "in": "query", "schema": {"type": "boolean"}}]}


class Manifest(Body):
    """What an agent runs with."""

    parent_id: OmitNone[UUID]
    agent_id: UUID
    agent_name: str
    owner_name: str
    workspace_id: UUID
    workspace_name: str
    git_auth_configs: int
    vscode_port_proxy_uri: str  # a wildcard host of the control plane's, which this server has none of
    apps: Sequence[Mapping[str, Any]]
    derpmap: Mapping[str, Any]
    derp_force_websockets: bool
    environment_variables: Mapping[str, str] | None
    directory: str
    motd_file: str
    disable_direct_connections: bool
    metadata: Sequence[Mapping[str, Any]]
    scripts: Sequence[Mapping[str, Any]]
    devcontainers: Sequence[Mapping[str, Any]]


class OldManifest(Body):
    """What the oldest agents run with: one start-up script, its time-out in nanoseconds."""

    apps: Sequence[Mapping[str, Any]]
    derpmap: Mapping[str, Any]
    git_auth_configs: int
    environment_variables: Mapping[str, str] | None
    startup_script: str
    startup_script_timeout: int
    directory: str
    motd_file: str
    vscode_port_proxy_uri: str


@router.get("/manifest")
async def manifest(services: ServicesOf, caller: CallingAgent) -> Manifest:
    """The manifest, as GetManifest has it."""
    known = await _known(services, caller)
    config = services.config
    return Manifest(
        parent_id=UUID(bytes=caller.parent_id) if caller.parent_id is not None else None,
        agent_id=UUID(bytes=caller.id),
        agent_name=caller.name,
        owner_name=caller.owner_name,
        workspace_id=caller.workspace_id,
        workspace_name=caller.workspace_name,
        git_auth_configs=len(services.external_auth.providers),
        vscode_port_proxy_uri="",
        apps=[_app(each) for each in known.definitions.apps],
        derpmap=services.derp_maps.current.map.to_json(),
        derp_force_websockets=config.derp_force_websockets,
        environment_variables=dict(known.row.environment) or None,
        directory=known.row.directory,
        motd_file=known.row.motd_path,
        disable_direct_connections=config.disable_direct_connections,
        metadata=[dict(each) for each in known.definitions.metadata],
        scripts=[{"id": str(each.id), **each.definition} for each in known.definitions.scripts],
        devcontainers=[],
    )


@router.get("/metadata")
async def metadata(services: ServicesOf, caller: CallingAgent) -> OldManifest:
    """The oldest manifest.  Its start-up script is the first script that runs on start."""
    known = await _known(services, caller)
    starting = [each.definition for each in known.definitions.scripts if each.definition["run_on_start"]]
    return OldManifest(
        apps=[_app(each) for each in known.definitions.apps],
        derpmap=services.derp_maps.current.map.to_json(),
        git_auth_configs=len(services.external_auth.providers),
        environment_variables=dict(known.row.environment) or None,
        startup_script=starting[0]["script"] if starting else "",
        startup_script_timeout=starting[0]["timeout"] if starting else 0,
        directory=known.row.directory,
        motd_file=known.row.motd_path,
        vscode_port_proxy_uri="",
    )


@router.get("/reinit", response_class=StreamingResponse, openapi_extra=_WAIT)
async def reinit(asked: Request, services: ServicesOf, caller: CallingAgent) -> Response:
    """A stream that would say that the workspace was claimed.

    With `wait` an agent asks whether it is worth waiting: 409, no workspace of this server is claimed later.  Without,
    it gets pings until it hangs up.
    """
    if query_of(asked).get("wait") == "true":
        raise Refused(409, "Workspace is not a prebuilt workspace waiting to be claimed.")
    token = token_of(asked)
    return EventStream(
        asked,
        [Source(lambda: services.requests.claims.follow(last_event_id(asked)), _told)],
        agent_permit(services.callers, token),
    )


def _told(events: Sequence[Event[bytes]]) -> Sequence[Told]:
    return [(event.id, event.value) for event in events]


async def _known(services: Services, caller: AgentIdentity) -> KnownAgent:
    known = await services.requests.read(caller.id)
    if known is None:
        raise agent_unknown()
    return known


def _app(app: App) -> Mapping[str, Any]:
    return {"id": str(app.id), **app.definition, "health": app.health.name.lower()}
