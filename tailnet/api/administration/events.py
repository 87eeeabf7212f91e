"""What happens to agents, for whoever comes with a token of an administrator (layer L3): see api/events.py."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tailnet.api.administration.guards import Administrator, ServicesOf
from tailnet.api.administration.requests import parameters
from tailnet.api.answers import GoJsonResponse
from tailnet.api.events import MAX_WAIT_SECONDS, EventsAnswer, answer_events
from tailnet.api.guards import query_of
from tailnet.errors import AdministrationError, Fault
from tailnet.refusals import Refused

router = APIRouter()

_QUERY = {
    "after": "the `next` of the answer before; 0, or now for what comes next",
    "limit": "at most so many",
    "wait": f"seconds to wait for one, at most {MAX_WAIT_SECONDS}",
}


@router.get(
    "/events", tags=["events"], operation_id="events", response_model=EventsAnswer, openapi_extra=parameters(_QUERY)
)
async def events(request: Request, services: ServicesOf, caller: Administrator) -> Response:
    """What happened to agents: connected, disconnected, ready, start_failed, stats, app_health."""
    if services.events is None or not services.events.is_on:
        raise AdministrationError(Fault.NOT_FOUND, "this server keeps no events: start it with --events or a webhook")
    try:
        answer = await answer_events(services.events, query_of(request))
    except Refused as refused:
        problems = [(each.field, each.detail) for each in refused.validations]
        raise AdministrationError(Fault.INVALID, refused.detail, problems) from None
    return GoJsonResponse(answer.model_dump(mode="json"))
