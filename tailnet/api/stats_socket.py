"""Reports of the oldest agents (layer L3): a websocket at me/report-stats, where the server asks and the agent answers.

Each interval the server sends `{}`; the agent answers with the JSON of a report, as later ones POST it
(agent_reports.py).  What was not asked for, or is no report, ends it with 1008; an agent that does not answer is ended
with 1011; the other ends are those of api/streams.py.  Next hop: services/agent_requests.py.
"""

from functools import partial
from typing import Final

import trio
from fastapi import APIRouter, WebSocket
from starlette.types import Message

from tailnet import refusals
from tailnet.api.agent_reports import Stats, note_stats
from tailnet.api.authorise import check_origin
from tailnet.api.bodies import MAX_BODY_BYTES, parse_body
from tailnet.api.guards import CallingAgent, Services, ServicesOf, headers_of, token_of
from tailnet.api.streams import (
    GOING_AWAY,
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    End,
    agent_permit,
    serve_until,
)
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity

router = APIRouter(prefix="/api/v2/workspaceagents/me", tags=["agents"])

ASK: Final = "{}\n"
# An agent has its numbers at hand.
ANSWER_SECONDS: Final = 30.0


@router.get("/report-stats", include_in_schema=False)
async def without_upgrade(caller: CallingAgent) -> None:
    """A request that lost its upgrade on the way is told so."""
    raise refusals.upgrade_missing()


@router.websocket("/report-stats")
async def report_stats_by_socket(websocket: WebSocket, services: ServicesOf, caller: CallingAgent) -> None:
    check_origin(headers_of(websocket), services.access_url)
    permit = agent_permit(services.callers, token_of(websocket))
    await websocket.accept()
    await serve_until(
        websocket,
        permit.wait_ended,
        partial(_wait_leaving, services),
        partial(_ask_for_reports, websocket, services, caller),
    )


async def _wait_leaving(services: Services) -> End:
    """Until the server leaves."""
    with services.requests.claims.follow() as follower:
        async for _ in follower:
            pass
    return GOING_AWAY, follower.ended_because


async def _ask_for_reports(websocket: WebSocket, services: Services, caller: AgentIdentity) -> End | None:
    """Until a report is wrong, or none comes; None when the agent left."""
    while True:
        await websocket.send_text(ASK)
        answer = await _receive(websocket, ANSWER_SECONDS)
        if answer is None:
            return INTERNAL_ERROR, f"no report came within {ANSWER_SECONDS:.0f} s"
        if answer["type"] == "websocket.disconnect":
            return None
        text = answer.get("text") or ""
        content = answer.get("bytes") or text.encode("utf-8", "replace")
        if len(content) > MAX_BODY_BYTES:
            return POLICY_VIOLATION, f"a report may have {MAX_BODY_BYTES} bytes"
        if await services.requests.pay(caller, len(content)):
            return POLICY_VIOLATION, "the agent reports more than it may"
        try:
            note_stats(services, caller, parse_body(Stats, content))
        except Refused as refused:
            return POLICY_VIOLATION, str(refused)
        early = await _receive(websocket, services.config.stats_interval_seconds)
        if early is not None:
            return None if early["type"] == "websocket.disconnect" else (POLICY_VIOLATION, "nothing was asked for")


async def _receive(websocket: WebSocket, seconds: float) -> Message | None:
    """The next message, or that it left; None when nothing comes in that time."""
    with trio.move_on_after(seconds):
        return await websocket.receive()
    return None
