"""What happens to agents, for whoever runs the control plane (layer L3): GET /api/v2/admin/events.

Closed unless `events` or a webhook is set, and to all but administrators.  A reader begins with after=0, or with
after=now for what comes next, and gives each time the `next` of the answer before; `wait` has the answer wait for an
event.  Each event has the id that the webhook gives it, and stays for as long as `keep_events` says.
Next hop: services/events.py.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request

from tailnet.api.answers import Body, GoTime
from tailnet.api.guards import Administrator, ServicesOf, query_of
from tailnet.refusals import Refused, Validation
from tailnet.services.events import MOST_EVENTS, Events

router = APIRouter(prefix="/api/v2/admin", tags=["events"])

NOW: Final = "now"
# Below what proxies give a silent answer.
MAX_WAIT_SECONDS: Final = 50
# The store's numbers have eight bytes.
_MAX_NUMBER: Final = (1 << 63) - 1


class AgentEvent(Body):
    """Something that happened to an agent.  `data` names it, its workspace and its owner as they were called then."""

    id: UUID
    type: str
    timestamp: GoTime
    data: Mapping[str, Any]


class EventsAnswer(Body):
    """The oldest events behind `after`.  `missed`: some of them were kept no longer."""

    events: Sequence[AgentEvent]
    next: int
    missed: bool


_After = Annotated[str | None, Query(description="The `next` of the answer before; 0, or now for what comes next.")]
_Limit = Annotated[str | None, Query(description="At most so many.", json_schema_extra={"type": "integer"})]
_Wait = Annotated[str | None, Query(description="Seconds to wait for one.", json_schema_extra={"type": "integer"})]


@router.get("/events")
async def events(
    request: Request,
    services: ServicesOf,
    user: Administrator,
    after: _After = None,
    limit: _Limit = None,
    wait: _Wait = None,
) -> EventsAnswer:
    """What happened to agents: connected, disconnected, ready, start_failed, stats, app_health."""
    if not services.config.keeps_events:
        raise Refused(404, "This server keeps no events.", "Start it with --events, or with a webhook.")
    return await answer_events(services.events, query_of(request))


async def answer_events(events: Events, query: Mapping[str, str]) -> EventsAnswer:
    """One page.  Raises Refused, StoreError."""
    limit = _number(query, "limit", MOST_EVENTS, 1, MOST_EVENTS)
    wait_seconds = _number(query, "wait", 0, 0, MAX_WAIT_SECONDS)
    if query.get("after") == NOW:
        after = (await events.page(_MAX_NUMBER, 1)).newest
    else:
        after = _number(query, "after", 0, 0, _MAX_NUMBER)
    page = await events.page(after, limit, wait_seconds)
    return EventsAnswer(
        events=[AgentEvent(id=event.id, type=event.type, timestamp=event.at, data=event.data) for event in page.events],
        next=page.events[-1].number if page.events else after,
        missed=0 < after < page.oldest - 1,
    )


def _number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if text.isascii() and text.isdecimal() and len(text) <= 19 and least <= int(text) <= most:
        return int(text)
    wanted = f"Must be an integer from {least} to {most}" + (", or now." if name == "after" else ".")
    raise Refused(400, "Invalid query parameters.", f"{name} is {text[:80]!r}.", (Validation(name, wanted),))
