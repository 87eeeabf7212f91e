"""One agent for people (layer L3): /agents/{id}, and its stream /agents/{id}/live.

State, apps, metadata, logs, sessions, and what the coordinator says of who reaches it; `?peer=ID` asks why that one
does not.  people_html.py makes it.  Next hops: services/overviews.py,
services/agent_metadata.py, services/logs.py.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tailnet import refusals
from tailnet.api.guards import AgentOfPage, ServicesOf, UserOfPage, page_token_of, query_of
from tailnet.api.page_events import appended, replaced
from tailnet.api.people_html import agent_html, agent_parts, log_lines, metadata_parts
from tailnet.api.sign_in import PageRoute, page
from tailnet.api.sse import EventStream, Source, Told, last_event_id
from tailnet.api.streams import reader_permit
from tailnet.auth.policy import TO_TERMINALS
from tailnet.services.agent_metadata import Snapshot
from tailnet.services.feed import Event
from tailnet.services.overviews import AgentOverview
from tailnet.store.rows import LogLine
from tailnet.types import PeerID

router = APIRouter(prefix="/agents", route_class=PageRoute)

# A page shows the end of the log; the whole of it is a link.
MAX_LINES: Final = 500
_MAX_PEER_CHARS: Final = 80
# Ids of lines have eight bytes.
_MAX_ID_CHARS: Final = 18


@router.get("/{workspaceagent}", include_in_schema=False)
async def agent_page(request: Request, services: ServicesOf, user: UserOfPage, agent: AgentOfPage) -> Response:
    """The page."""
    shown = await services.overviews.of_agent(agent.id)
    if shown is None:
        raise refusals.agent_not_found()
    metadata = await services.metadata.read(agent.id)
    logs = await services.logs.read_last(agent.id, MAX_LINES)
    peer = query_of(request).get("peer", "").strip()[:_MAX_PEER_CHARS]
    sentences: Sequence[str] = ()
    if peer:
        try:
            sentences = services.overviews.why_not(PeerID.parse(peer.lower()), agent.id)
        except ValueError:
            sentences = ["That is no id of a peer: 36 characters such as 01234567-89ab-4cde-8f01-23456789abcd."]
    reach = await services.callers.reach(user, agent.id)
    has_terminal = reach is not None and not reach.rights.isdisjoint(TO_TERMINALS)
    asked, now = (peer, sentences), datetime.now(UTC)
    html = agent_html(
        user.username, agent.workspace_name, shown, metadata.items, logs, now, asked, has_terminal=has_terminal
    )
    return page(html)


@router.get("/{workspaceagent}/live", include_in_schema=False)
async def live(request: Request, services: ServicesOf, agent: AgentOfPage) -> Response:
    """What changes on it, as server-sent events.  `after`: the id of the last line of the log that the page shows."""
    token = page_token_of(request)
    text = query_of(request).get("after", "")
    asked = int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_ID_CHARS else 0
    after = max(last_event_id(request), asked)
    first = await services.logs.read(agent.id, after)
    return EventStream(
        request,
        [
            Source(lambda: services.overviews.follow_agent(agent.id), _overview),
            Source(lambda: services.metadata.follow(agent.id), _metadata),
            Source(lambda: services.logs.follow(agent.id, after, first), _logs),
        ],
        reader_permit(services.callers, token, agent.id),
    )


def _overview(events: Sequence[Event[AgentOverview]]) -> Sequence[Told]:
    return [replaced(agent_parts(events[-1].value))]


def _metadata(events: Sequence[Event[Snapshot]]) -> Sequence[Told]:
    return [replaced(metadata_parts(events[-1].value.items))]


def _logs(lines: Sequence[LogLine]) -> Sequence[Told]:
    return [appended("logs", log_lines(lines), lines[-1].id)] if lines else []
