"""The pages for the person on call (layer L3): /debug/tailnet and /debug/agent?id=ID, as JSON with ?format=json.

Who is connected, which tunnels there are, who was told what and when, how the DERP map is doing; `?a=ID&b=ID` says why
A does not know B; what one agent reported.  For operators only.  Views come from services/inspection.py and
services/agents.py; pages.py makes HTML of the same models.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter
from pydantic import PlainSerializer
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from derp.text import error_text
from tailnet.api.answers import NAME, Body, GoJsonResponse, OmitNone
from tailnet.api.guards import OperatorOnly, ServicesOf, query_of
from tailnet.api.pages import PEER_SORTS, agent_html, tailnet_html
from tailnet.coordinator.explain import PeerView
from tailnet.refusals import Refused
from tailnet.services.agents import AgentHistory
from tailnet.services.inspection import TailnetView
from tailnet.store.rows import (
    AgentStatus,
    AppHealth,
    ConnectionAction,
    ConnectionType,
    LifecycleState,
    RunStage,
    RunStatus,
)
from tailnet.types import PeerID

# More rows than anybody reads; the page says how many there are.
MAX_ROWS: Final = 1_000

# Nothing on the page runs or loads anything, whatever names peers gave themselves.
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
}

router = APIRouter(prefix="/debug", dependencies=[OperatorOnly], tags=["debug"])

# What people read: moments as Python writes them, seconds to a tenth, enums by their names.
PageTime = Annotated[datetime, PlainSerializer(str, return_type=str)]
Tenths = Annotated[float, PlainSerializer(lambda seconds: round(seconds, 1), return_type=float)]


class PeerRow(Body):
    """A peer that is here, or at the end of a tunnel of one that is."""

    peer_id: UUID
    connected: bool
    policy: str
    connected_seconds: Tenths | None
    updated_seconds: Tenths | None
    preferred_derp: int | None
    node_bytes: int
    overtaken_count: int
    tunnels_to: Sequence[UUID]
    tunnels_from: Sequence[UUID]
    told: Sequence[UUID]


class DepartureRow(Body):
    """A peer that left."""

    peer_id: UUID
    left_seconds: Tenths
    kind: str
    reason: str
    refusal: str


class RegionRow(Body):
    """A region of the DERP map."""

    id: int
    code: str
    name: str
    avoid: bool


class SourceRow(Body):
    """Where a part of the DERP map comes from."""

    name: str
    ok: bool
    reason: str
    good_since: PageTime | None
    failures: int


class MapSection(Body):
    """How the DERP map is doing."""

    version: int
    regions: Sequence[RegionRow]
    warnings: Sequence[str]
    sources: Sequence[SourceRow]


class TailnetPage(Body):
    """Everybody.  `explanation` is there when two peers were named."""

    peers_count: int
    connected_count: int
    found_count: OmitNone[int] = None  # of all peers those that `find` takes
    peers: Sequence[PeerRow]
    departures: Sequence[DepartureRow]
    derp_map: MapSection
    not_ready: Sequence[str]
    explanation: OmitNone[Sequence[str]] = None


class AgentRows(Body):
    """What one agent said of itself, and when it was here."""

    id: UUID
    name: str
    workspace_id: UUID
    parent_id: UUID | None
    status: AgentStatus
    lifecycle: Annotated[LifecycleState, NAME]
    version: str
    api_version: str
    expanded_directory: str
    subsystems: Sequence[str]
    logs_bytes: int
    logs_overflowed: bool
    first_connected_at: PageTime | None
    last_connected_at: PageTime | None
    disconnected_at: PageTime | None
    started_at: PageTime | None
    ready_at: PageTime | None


class ConnectionRow(Body):
    """A session that the agent says somebody opened or closed."""

    connection_id: UUID
    action: Annotated[ConnectionAction, NAME]
    type: Annotated[ConnectionType, NAME]
    at: PageTime
    ip: str
    status_code: int
    reason: str
    app_name: str


class AppRow(Body):
    """An app, and what it said it was doing."""

    slug: str
    health: Annotated[AppHealth, NAME]
    said: Sequence[str]


class ScriptRunRow(Body):
    """One run of a script."""

    script: str
    script_id: UUID
    started_at: PageTime
    ended_at: PageTime
    exit_code: int
    stage: Annotated[RunStage, NAME]
    status: Annotated[RunStatus, NAME]


class AgentPage(Body):
    """One agent by its own account."""

    agent: AgentRows
    connections: Sequence[ConnectionRow]
    apps: Sequence[AppRow]
    script_runs: Sequence[ScriptRunRow]


def _described(model: type[Body]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model, "content": {"text/html": {"schema": {"type": "string"}}}}}


@router.get("/tailnet", responses=_described(TailnetPage))
async def tailnet(request: Request, services: ServicesOf) -> Response:
    """Who is connected, tunnels, last updates, and why not.

    `find`: only peers with this in their id or policy; `sort`: by that column, with a leading - downwards.
    """
    query = query_of(request)
    find, sort = query.get("find", "").strip().lower(), query.get("sort", "")
    if sort.removeprefix("-") not in ("", *PEER_SORTS):
        raise Refused(
            400, "There is no such order.", f"sort: want one of {', '.join(PEER_SORTS)}, or - and one of them"
        )
    explanation: list[str] | None = None
    if "a" in query or "b" in query:
        explanation = services.inspection.explain(_peer_id(query, "a"), _peer_id(query, "b"))
    view = services.inspection.describe()
    peers = _arranged(view.peers, find, sort)
    body = _tailnet_page(view, peers, len(peers) if find else None, explanation).model_dump(mode="json")
    if query.get("format") == "json":
        return GoJsonResponse(body, headers=_HEADERS)
    page = tailnet_html(body, query.get("a", ""), query.get("b", ""), find=find, sort=sort)
    return HTMLResponse(page, headers=_HEADERS)


@router.get("/agent", responses=_described(AgentPage))
async def agent(request: Request, services: ServicesOf) -> Response:
    """One agent: what it said when it started, who was on it, what its scripts and apps did."""
    query = query_of(request)
    agent_id = _peer_id(query, "id")
    history = await services.agents.describe_history(agent_id)
    if history is None:
        raise Refused(404, "There is no such agent.", str(agent_id))
    body = _agent_page(history).model_dump(mode="json")
    if query.get("format") == "json":
        return GoJsonResponse(body, headers=_HEADERS)
    return HTMLResponse(agent_html(body), headers=_HEADERS)


def _peer_id(query: dict[str, str], name: str) -> PeerID:
    try:
        return PeerID.parse(query.get(name, "").strip().lower())
    except ValueError as error:
        message = "id has to be an agent's." if name == "id" else "Both a and b have to be peer ids."
        raise Refused(400, message, f"{name}: {error_text(error)}") from None


def _arranged(peers: Sequence[PeerView], find: str, sort: str) -> Sequence[PeerView]:
    """The peers that were asked for, in that order; what is not known comes last."""
    found = [peer for peer in peers if not find or find in str(peer.peer_id) or find in peer.policy]
    if not sort:
        return found

    def value(peer: PeerView) -> Any:
        shown = getattr(peer, sort.removeprefix("-"))
        return len(shown) if isinstance(shown, tuple) else str(shown) if isinstance(shown, PeerID) else shown

    known = [peer for peer in found if value(peer) is not None]
    known.sort(key=value, reverse=sort.startswith("-"))
    return [*known, *(peer for peer in found if value(peer) is None)]


def _tailnet_page(
    view: TailnetView, peers: Sequence[PeerView], found_count: int | None, explanation: Sequence[str] | None
) -> TailnetPage:
    derp_map = view.derp_map
    return TailnetPage(
        peers_count=len(view.peers),
        connected_count=sum(peer.connected for peer in view.peers),
        found_count=found_count,
        peers=[PeerRow.model_validate(each) for each in peers[:MAX_ROWS]],
        departures=[DepartureRow.model_validate(each) for each in view.departures[:MAX_ROWS]],
        derp_map=MapSection(
            version=derp_map.version,
            regions=[
                RegionRow(id=each.region_id, code=each.region_code, name=each.region_name, avoid=each.avoid)
                for each in derp_map.regions
            ],
            warnings=derp_map.warnings,
            sources=[SourceRow.model_validate(each) for each in derp_map.sources],
        ),
        not_ready=view.not_ready,
        explanation=explanation,
    )


def _agent_page(history: AgentHistory) -> AgentPage:
    view, row = history.view, history.view.agent
    return AgentPage(
        agent=AgentRows(
            id=row.id.uuid,
            name=row.name,
            workspace_id=row.workspace_id,
            parent_id=row.parent_id.uuid if row.parent_id is not None else None,
            status=view.status,
            lifecycle=row.lifecycle_state,
            version=row.version,
            api_version=row.api_version,
            expanded_directory=row.expanded_directory,
            subsystems=row.subsystems,
            logs_bytes=row.logs_bytes,
            logs_overflowed=row.logs_overflowed,
            first_connected_at=row.first_connected_at,
            last_connected_at=row.last_connected_at,
            disconnected_at=row.disconnected_at,
            started_at=row.started_at,
            ready_at=row.ready_at,
        ),
        connections=[ConnectionRow.model_validate(each) for each in history.connections],
        apps=[
            AppRow(
                slug=each.slug,
                health=each.health,
                said=[f"{status.created_at} {status.state.name}: {status.message}" for status in each.statuses],
            )
            for each in view.apps
        ],
        script_runs=[
            ScriptRunRow(
                script=script.display_name,
                script_id=script.id,
                started_at=run.started_at,
                ended_at=run.ended_at,
                exit_code=run.exit_code,
                stage=run.stage,
                status=run.status,
            )
            for script in view.scripts
            for run in script.runs
        ],
    )
