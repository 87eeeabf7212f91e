"""What an agent's metadata scripts say, live (layer L3): .../{id}/watch-metadata (SSE) and watch-metadata-ws.

Each event holds all of an agent's metadata: at once, on change, and each five seconds.  Over the websocket an event is
a text message `{"type":"data","data":[...]}`, whose client may send nothing.  Next hop: services/agent_metadata.py;
the forms are those of sse.py and streams.py.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Literal

from fastapi import APIRouter, WebSocket
from starlette.requests import Request
from starlette.responses import Response

from tailnet import refusals
from tailnet.api.answers import Body
from tailnet.api.authorise import check_origin
from tailnet.api.guards import ReadableAgent, ServicesOf, headers_of, token_of
from tailnet.api.sse import MEDIA_TYPE, EventStream, Source, Told, last_event_id
from tailnet.api.streams import reader_permit, send_stream
from tailnet.go_json import go_json, go_time
from tailnet.services.agent_metadata import STORE_FAILED, MetadataView, Snapshot
from tailnet.services.feed import Event

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

_NEVER: Final = "0001-01-01T00:00:00Z"


class MetadataResult(Body):
    """What a script said last; `age` in seconds."""

    collected_at: str
    age: int
    value: str
    error: str


class MetadataDescription(Body):
    """A script; its numbers as the template has them."""

    display_name: str
    key: str
    script: str
    interval: int
    timeout: int


class AgentMetadataItem(Body):
    """A script and its last result."""

    result: MetadataResult
    description: MetadataDescription


class ServerSentEvent(Body):
    """An event over a websocket."""

    type: Literal["data", "error"]
    data: Sequence[AgentMetadataItem]


_EVENTS: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}}


@router.get("/{workspaceagent}/watch-metadata", response_class=Response, responses=_EVENTS)
async def watch_metadata(request: Request, services: ServicesOf, agent: ReadableAgent) -> Response:
    """What an agent's metadata scripts say, as server-sent events."""
    token, after = token_of(request), last_event_id(request)
    return EventStream(
        request,
        [Source(lambda: services.metadata.follow(agent.id, after), _told)],
        reader_permit(services.callers, token, agent.id),
        _goodbye,
    )


@router.get("/{workspaceagent}/watch-metadata-ws", response_model=ServerSentEvent)
async def watch_metadata_without_upgrade(agent: ReadableAgent) -> Response:
    """The same over a websocket."""
    raise refusals.upgrade_missing()


@router.websocket("/{workspaceagent}/watch-metadata-ws")
async def watch_metadata_ws(websocket: WebSocket, services: ServicesOf, agent: ReadableAgent) -> None:
    check_origin(headers_of(websocket), services.access_url, services.config.cors_origins)
    token = token_of(websocket)
    await send_stream(
        websocket,
        lambda: services.metadata.follow(agent.id),
        _message,
        reader_permit(services.callers, token, agent.id),
        last_message=_last_message,
        is_one_way=True,
    )


def _told(events: Sequence[Event[Snapshot]]) -> Sequence[Told]:
    newest = events[-1]
    return [(newest.id, _encoded(newest.value))]


def _message(events: Sequence[Event[Snapshot]]) -> str:
    return f'{{"type":"data","data":{_encoded(events[-1].value).decode()[:-1]}}}\n'


def _goodbye(reason: str) -> tuple[str, str]:
    if reason == STORE_FAILED:
        return STORE_FAILED, "The server cannot read its store. Please try again."
    return "The stream ended.", reason


def _last_message(reason: str) -> str:
    message, detail = _goodbye(reason)
    return go_json({"type": "error", "data": {"message": message, "detail": detail}}).decode()


# Once for all who follow.  Of an agent with the most scripts a snapshot is a megabyte.
@lru_cache(maxsize=16)
def _encoded(snapshot: Snapshot) -> bytes:
    return go_json([_item(view).model_dump(mode="json") for view in snapshot.items])


def _item(view: MetadataView) -> AgentMetadataItem:
    collected_at = go_time(view.collected_at) if view.collected_at is not None else _NEVER
    return AgentMetadataItem(
        result=MetadataResult(collected_at=collected_at, age=view.age, value=view.value, error=view.error),
        description=MetadataDescription.model_validate(view),
    )
