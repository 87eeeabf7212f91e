"""`/` of a coordinator (layer L3): the caller's agents, live, or a form to sign in with, and what this is.

Plain HTML, which live.js keeps up to date by the stream /live.  people_html.py makes it.  Next hop:
services/overviews.py.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tailnet.api.guards import ServicesOf, UserOfPage, page_token_of, query_of, user_of_page
from tailnet.api.health import REFUSED
from tailnet.api.page_events import replaced
from tailnet.api.people_html import agents_html, agents_parts, front_html
from tailnet.api.sign_in import PageRoute, page
from tailnet.api.sse import EventStream, Source, Told
from tailnet.api.streams import user_permit
from tailnet.services.agents import AgentLines
from tailnet.services.feed import Event

router = APIRouter(tags=["health"], responses={"4XX": REFUSED, "5XX": REFUSED}, route_class=PageRoute)

# An offset beyond this is a mistake, or mischief.
_MAX_DIGITS: Final = 9


@router.head("/", include_in_schema=False)
@router.get("/", response_class=HTMLResponse)
async def home(request: Request, services: ServicesOf) -> Response:
    """The agents of whoever is signed in; for others what this is, whether it is well, and where to look."""
    if not page_token_of(request):
        is_empty = not await services.agents.has_users()
        return page(front_html(services.inspection.not_ready(), is_empty=is_empty))
    user = await user_of_page(request)
    text = query_of(request).get("first", "")
    first = int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else 0
    lines = await services.overviews.of_user(user.id, first)
    return page(agents_html(user.username, lines, first, datetime.now(UTC)))


@router.get("/live", include_in_schema=False)
async def live(request: Request, services: ServicesOf, user: UserOfPage) -> Response:
    """What changes on the page of all agents, as server-sent events."""
    token = page_token_of(request)
    return EventStream(
        request,
        [Source(lambda: services.overviews.follow_user(user.id), _told)],
        user_permit(services.callers, token),
    )


def _told(events: Sequence[Event[AgentLines]]) -> Sequence[Told]:
    return [replaced(agents_parts(events[-1].value, 0))]
