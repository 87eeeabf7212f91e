"""A user's workspaces with their agents (layer L3): GET /api/v2/workspaces, and one by its owner's and its own name.

Of others' he sees those that were shared with him: he has a grant to read them.  A workspace here has one build, which
somebody else made, and one resource, which holds its agents; what a control plane knows and we do not (templates,
organizations, schedules) has its empty value.  Next hop: services/agents.py.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request

from tailnet import refusals
from tailnet.api.agents import WorkspaceAgent, agent_body
from tailnet.api.answers import LOWER, Body, GoTime
from tailnet.api.guards import Services, ServicesOf, User, query_of
from tailnet.api.users import is_caller
from tailnet.auth.policy import reads_every_workspace, shared_with
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
    """The caller's workspaces, and those that others share with him, by name; everybody's to who may read all."""
    query = query_of(request)
    wanted = _search(q)
    first, most = _count("offset", query.get("offset", "")), _count("limit", query.get("limit", ""))
    seen = await _readable(services, caller, wanted.get("owner", ""))
    rows = [row for row in seen if _is_wanted(caller, row, wanted)]
    page = rows[first : first + min(most or MAX_WORKSPACES, MAX_WORKSPACES)]
    views = await services.agents.describe_workspaces(page)
    return Workspaces(workspaces=[_body(view) for view in views], count=len(rows))


@router.get("/users/{user}/workspace/{workspacename}")
async def workspace_by_name(services: ServicesOf, caller: User, user: str, workspacename: str) -> Workspace:
    """One workspace of the caller's, or one of another's that he may read."""
    rows = await _readable(services, caller, user)
    named = [row for row in rows if _is_owner(caller, row, user) and row.name.lower() == workspacename.lower()]
    for view in await services.agents.describe_workspaces(named[:1]):
        return _body(view)
    raise refusals.resource_not_found()


async def _readable(services: Services, caller: UserIdentity, owner: str) -> Sequence[WorkspaceRow]:
    """What a caller may read, if he asks for workspaces of this owner ("": of anybody)."""
    if reads_every_workspace(caller) and not is_caller(caller, owner):
        return await services.agents.list_workspaces(None)
    return await services.agents.list_workspaces(caller.id, shared_with(caller))


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
        ("owner" not in wanted or _is_owner(caller, row, wanted["owner"]))
        # A part of the name is enough, as elsewhere.
        and wanted.get("name", "") in row.name.lower()
        and wanted.get("status", row.status.name.lower()) == row.status.name.lower()
    )


def _is_owner(caller: UserIdentity, row: WorkspaceRow, named: str) -> bool:
    if row.owner_id == caller.id:
        return is_caller(caller, named)
    return named.lower() in (row.owner_name.lower(), str(row.owner_id))


def _body(view: WorkspaceView) -> Workspace:
    row = view.row
    times: dict[str, Any] = {"created_at": row.created_at, "updated_at": row.updated_at}
    build = WorkspaceBuild(
        workspace_id=row.id,
        workspace_name=row.name,
        workspace_owner_id=row.owner_id,
        workspace_owner_name=row.owner_name,
        initiator_id=row.owner_id,
        initiator_name=row.owner_name,
        job=ProvisionerJob(created_at=row.created_at, completed_at=row.created_at),
        resources=[WorkspaceResource(created_at=row.created_at, agents=[agent_body(each) for each in view.agents])],
        status=row.status,
        **times,
    )
    failing = [each.agent.id.uuid for each in view.agents if each.unhealthy]
    seen = [each.agent.last_connected_at for each in view.agents if each.agent.last_connected_at is not None]
    return Workspace(
        id=row.id,
        owner_id=row.owner_id,
        owner_name=row.owner_name,
        latest_build=build,
        name=row.name,
        last_used_at=max(seen, default=row.created_at),
        health=WorkspaceHealth(healthy=not failing, failing_agents=failing),
        **times,
    )
