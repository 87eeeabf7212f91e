"""One agent as its owner sees it (layer L3): GET /api/v2/workspaceagents/{id}.

The body is the API's WorkspaceAgent, key by key.  What a control plane knows and we do not (resource, troubleshooting
URL, display apps) has its empty value.  Next hop: services/agents.py, whose AgentView is put into this shape.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter

from tailnet import refusals
from tailnet.api.answers import LOWER, Body, GoTime, OmitEmpty, OmitNone
from tailnet.api.guards import ReadableAgent, ServicesOf
from tailnet.services.agents import AgentView
from tailnet.store.rows import AgentStatus, AppHealth, AppState, LifecycleState, LogSource, RunStatus

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

# Resources are the control plane's; an id that is none is the only honest one.
_NO_ID = UUID(int=0)


class Health(Body):
    """Whether an agent is well, and if not, why."""

    healthy: bool
    reason: OmitEmpty[str]


class AppStatusBody(Body):
    """What an app said it was doing."""

    id: UUID
    created_at: GoTime
    workspace_id: UUID
    agent_id: UUID
    app_id: UUID
    state: Annotated[AppState, LOWER]
    message: str
    uri: str
    icon: str = ""
    needs_user_attention: bool = False


class Healthcheck(Body):
    """How an agent looks after an app."""

    url: str
    interval: int
    threshold: int


class WorkspaceApp(Body):
    """An app of an agent."""

    id: UUID
    url: str
    external: bool
    slug: str
    display_name: str
    command: OmitEmpty[str]
    icon: OmitEmpty[str]
    subdomain: bool
    subdomain_name: OmitEmpty[str]
    sharing_level: str
    healthcheck: Healthcheck
    group: str
    hidden: bool
    open_in: str
    tooltip: str
    health: Annotated[AppHealth, LOWER]
    statuses: Sequence[AppStatusBody]


class WorkspaceScript(Body):
    """A script of an agent; `timeout` in nanoseconds.  The last two are absent until it ran."""

    id: UUID
    log_source_id: UUID
    log_path: str
    script: str
    cron: str
    run_on_start: bool
    run_on_stop: bool
    start_blocks_login: bool
    timeout: int
    display_name: str
    exit_code: OmitNone[int] = None
    status: OmitNone[Annotated[RunStatus, LOWER]] = None


class LogSourceBody(Body):
    """Where lines of an agent's logs come from."""

    workspace_agent_id: UUID
    id: UUID
    created_at: GoTime
    display_name: str
    icon: str


class Latency(Body):
    """How far a relay region is."""

    preferred: bool
    latency_ms: float


class WorkspaceAgent(Body):
    """Everything that is known of an agent."""

    id: UUID
    parent_id: UUID | None
    created_at: GoTime
    updated_at: GoTime
    lifecycle_state: Annotated[LifecycleState, LOWER]
    name: str
    resource_id: UUID = _NO_ID
    instance_id: OmitEmpty[str]
    architecture: str
    operating_system: str
    environment_variables: Mapping[str, str] | None
    logs_length: int
    logs_overflowed: bool
    version: str
    api_version: str
    connection_timeout_seconds: int
    troubleshooting_url: str = ""
    subsystems: Sequence[str]
    display_apps: Sequence[str] = ()
    display_order: int = 0
    directory: OmitEmpty[str]
    expanded_directory: OmitEmpty[str]
    first_connected_at: OmitNone[GoTime] = None
    last_connected_at: OmitNone[GoTime] = None
    disconnected_at: OmitNone[GoTime] = None
    started_at: OmitNone[GoTime] = None
    ready_at: OmitNone[GoTime] = None
    status: AgentStatus
    health: Health
    apps: Sequence[WorkspaceApp]
    scripts: Sequence[WorkspaceScript]
    startup_script_behavior: Literal["blocking", "non-blocking"]
    log_sources: Sequence[LogSourceBody]
    latency: OmitEmpty[Mapping[str, Latency]]


@router.get("/{workspaceagent}")
async def workspace_agent(services: ServicesOf, agent: ReadableAgent) -> WorkspaceAgent:
    """Everything that is known of an agent."""
    view = await services.agents.describe(agent.id)
    if view is None:
        raise refusals.agent_not_found()
    return agent_body(view)


def agent_body(view: AgentView) -> WorkspaceAgent:
    """An agent as the API shows it."""
    row = view.agent
    return WorkspaceAgent(
        id=row.id.uuid,
        parent_id=row.parent_id.uuid if row.parent_id is not None else None,
        created_at=row.created_at,
        updated_at=row.updated_at,
        lifecycle_state=row.lifecycle_state,
        name=row.name,
        instance_id=row.instance_id,
        architecture=row.architecture,
        operating_system=row.operating_system,
        environment_variables=row.environment or None,
        logs_length=row.logs_bytes,
        logs_overflowed=row.logs_overflowed,
        version=row.version,
        api_version=row.api_version,
        connection_timeout_seconds=row.connection_timeout_seconds,
        subsystems=[each.lower() for each in row.subsystems],
        directory=row.directory,
        expanded_directory=row.expanded_directory,
        first_connected_at=row.first_connected_at,
        last_connected_at=row.last_connected_at,
        disconnected_at=view.disconnected_at,
        started_at=row.started_at,
        ready_at=row.ready_at,
        status=view.status,
        health=Health(healthy=not view.unhealthy, reason=view.unhealthy),
        apps=[WorkspaceApp.model_validate(each) for each in view.apps],
        scripts=[WorkspaceScript.model_validate(each) for each in view.scripts],
        startup_script_behavior="blocking" if view.start_blocks_login else "non-blocking",
        log_sources=[_log_source(each) for each in view.log_sources],
        latency={
            name: Latency(preferred=each.preferred, latency_ms=each.seconds * 1000)
            for name, each in view.latencies.items()
        },
    )


def _log_source(source: LogSource) -> LogSourceBody:
    return LogSourceBody(
        workspace_agent_id=source.agent_id.uuid,
        id=source.id,
        created_at=source.created_at,
        display_name=source.display_name,
        icon=source.icon,
    )
