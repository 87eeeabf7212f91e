"""A user's workspaces with their agents (layer L3): GET /api/v2/workspaces, and one by its owner's and its own name.

Nobody sees those of others.  A workspace here has one build, which somebody else made, and one resource, which holds
its agents; what a control plane knows and we do not (templates, organizations, schedules) has its empty value.  Next
hop: services/agents.py.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request

from tailnet import refusals
from tailnet.api.agents import WorkspaceAgent, agent_body
from tailnet.api.answers import LOWER, Body, GoTime
from tailnet.api.guards import ServicesOf, User, query_of
from tailnet.api.users import is_caller
from tailnet.refusals import Refused, Validation
from tailnet.services.agents import WorkspaceView
from tailnet.store.rows import UserIdentity, WorkspaceRow, WorkspaceStatus

router = APIRouter(prefix="/api/v2", tags=["workspaces"])

_NO_ID: Final = UUID(int=0)
# Of one answer: an agent with its definitions is some ten kilobytes.
MAX_WORKSPACES: Final = 100
_NUMBER: Final = "Must be an integer greater than or equal to zero"
_KEYS: Final = ("owner", "name", "status")


class ProvisionerJob(Body):
    """The job that built it, which was not ours."""

    id: UUID = _NO_ID
    created_at: GoTime
    completed_at: GoTime
    status: Literal["succeeded"] = "succeeded"


class WorkspaceResource(Body):
    """What the agents of a workspace run on."""

    id: UUID = _NO_ID
    created_at: GoTime
    job_id: UUID = _NO_ID
    workspace_transition: Literal["start"] = "start"
    type: str = ""
    name: str = ""
    hide: bool = False
    icon: str = ""
    agents: Sequence[WorkspaceAgent]
    daily_cost: int = 0


class WorkspaceBuild(Body):
    """The one build that is known of a workspace."""

    id: UUID = _NO_ID
    created_at: GoTime
    updated_at: GoTime
    workspace_id: UUID
    workspace_name: str
    workspace_owner_id: UUID
    workspace_owner_name: str
    template_version_id: UUID = _NO_ID
    build_number: int = 1
    transition: Literal["start"] = "start"
    initiator_id: UUID
    initiator_name: str
    job: ProvisionerJob
    reason: Literal["initiator"] = "initiator"
    resources: Sequence[WorkspaceResource]
    status: Annotated[WorkspaceStatus, LOWER]
    daily_cost: int = 0


class WorkspaceHealth(Body):
    """Whether all agents are well, and which are not."""

    healthy: bool
    failing_agents: Sequence[UUID]


class Workspace(Body):
    """A workspace."""

    id: UUID
    created_at: GoTime
    updated_at: GoTime
    owner_id: UUID
    owner_name: str
    owner_avatar_url: str = ""
    organization_id: UUID = _NO_ID
    organization_name: str = ""
    template_id: UUID = _NO_ID
    template_name: str = ""
    template_display_name: str = ""
    template_icon: str = ""
    latest_build: WorkspaceBuild
    outdated: bool = False
    name: str
    last_used_at: GoTime
    health: WorkspaceHealth
    automatic_updates: Literal["never"] = "never"
    allow_renames: bool = False
    favorite: bool = False


class Workspaces(Body):
    """A page of workspaces; `count` is that of all."""

    workspaces: Sequence[Workspace]
    count: int


_Search = Annotated[str, Query(description="Words `key:value`: owner, name, status; a word without a key is a name.")]
_Limit = Annotated[str | None, Query(description="At most so many.", json_schema_extra={"type": "integer"})]
_Offset = Annotated[str | None, Query(description="Leave out so many.", json_schema_extra={"type": "integer"})]


@router.get("/workspaces")
async def workspaces(
    request: Request, services: ServicesOf, caller: User, q: _Search = "", limit: _Limit = None, offset: _Offset = None
) -> Workspaces:
    """The caller's workspaces, by name."""
    query = query_of(request)
    wanted = _search(q)
    first, most = _count("offset", query.get("offset", "")), _count("limit", query.get("limit", ""))
    rows = [row for row in await services.agents.list_workspaces(caller.id) if _is_wanted(caller, row, wanted)]
    page = rows[first : first + min(most or MAX_WORKSPACES, MAX_WORKSPACES)]
    views = await services.agents.describe_workspaces(page)
    return Workspaces(workspaces=[_body(caller, view) for view in views], count=len(rows))


@router.get("/users/{user}/workspace/{workspacename}")
async def workspace_by_name(services: ServicesOf, caller: User, user: str, workspacename: str) -> Workspace:
    """One workspace of the caller's."""
    if is_caller(caller, user):
        rows = await services.agents.list_workspaces(caller.id)
        named = [row for row in rows if row.name.lower() == workspacename.lower()]
        for view in await services.agents.describe_workspaces(named[:1]):
            return _body(caller, view)
    raise refusals.resource_not_found()


def _count(name: str, text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        detail = f'Query param "{name}" must be an integer greater than or equal to zero, got "{text[:80]}".'
        raise Refused(400, "Invalid query parameters.", detail, (Validation(name, _NUMBER),))
    return int(text or 0)


def _search(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split():
        key, colon, value = word.partition(":")
        if not colon:
            key, value = "name", word
        if key.lower() not in _KEYS:
            wrong = Validation("q", f'"{key[:80]}" is not a valid query param; known are {", ".join(_KEYS)}.')
            raise Refused(400, "Invalid workspace search query.", validations=(wrong,))
        found[key.lower()] = value.strip('"').lower()
    return found


def _is_wanted(caller: UserIdentity, row: WorkspaceRow, wanted: dict[str, str]) -> bool:
    return (
        ("owner" not in wanted or is_caller(caller, wanted["owner"]))
        # A part of the name is enough, as elsewhere.
        and wanted.get("name", "") in row.name.lower()
        and wanted.get("status", row.status.name.lower()) == row.status.name.lower()
    )


def _body(owner: UserIdentity, view: WorkspaceView) -> Workspace:
    row = view.row
    times: dict[str, Any] = {"created_at": row.created_at, "updated_at": row.updated_at}
    build = WorkspaceBuild(
        workspace_id=row.id,
        workspace_name=row.name,
        workspace_owner_id=owner.id,
        workspace_owner_name=owner.username,
        initiator_id=owner.id,
        initiator_name=owner.username,
        job=ProvisionerJob(created_at=row.created_at, completed_at=row.created_at),
        resources=[WorkspaceResource(created_at=row.created_at, agents=[agent_body(each) for each in view.agents])],
        status=row.status,
        **times,
    )
    failing = [each.agent.id.uuid for each in view.agents if each.unhealthy]
    seen = [each.agent.last_connected_at for each in view.agents if each.agent.last_connected_at is not None]
    return Workspace(
        id=row.id,
        owner_id=owner.id,
        owner_name=owner.username,
        latest_build=build,
        name=row.name,
        last_used_at=max(seen, default=row.created_at),
        health=WorkspaceHealth(healthy=not failing, failing_agents=failing),
        **times,
    )
