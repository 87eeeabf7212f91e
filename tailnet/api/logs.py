"""What an agent's scripts printed (layer L3): GET /api/v2/workspaceagents/{id}/logs, and its older name startup-logs.

Without `follow` all lines as one JSON array, or as text with `format=text`.  With `follow` a websocket of text
messages, each an array of lines, the first at once; its ends are those of api/streams.py.  Next hop: services/logs.py.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC
from functools import lru_cache
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, WebSocket
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse

from tailnet import refusals
from tailnet.api.answers import CONTENT_TYPE, Body, GoTime
from tailnet.api.authorise import check_origin
from tailnet.api.guards import ReadableAgent, Services, ServicesOf, headers_of, query_of, token_of
from tailnet.api.streams import reader_permit, send_stream
from tailnet.go_json import go_json
from tailnet.refusals import Refused, Validation
from tailnet.store.rows import AgentIdentity, LogLine

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

LevelName = Literal["trace", "debug", "info", "warn", "error"]
# By the wire's number; 0, which is not stored, is information.
_LEVELS: Final[tuple[LevelName, ...]] = ("info", "trace", "debug", "info", "warn", "error")
_NUMBER: Final = "Must be an integer greater than or equal to zero"
# The store's ids have eight bytes.
_MAX_ID: Final = (1 << 63) - 1
# Encoded once for all who follow: 4,096 lines of 256 bytes each, as start-up scripts print them, are a megabyte.
_ENCODED_LINES: Final = 4_096


class LogItem(Body):
    """One line.  `id` rises over all agents."""

    id: int
    created_at: GoTime
    output: str
    level: LevelName
    source_id: UUID


class _Asked:
    """What a request wants."""

    def __init__(self, asked: HTTPConnection) -> None:
        query = query_of(asked)
        self.after = _after(query.get("after", ""))
        self.follow = "follow" in query
        format_name = query.get("format", "") or "json"
        if format_name not in ("json", "text"):
            valid = Validation("format", 'Format must be either "json" or "text".')
            raise Refused(400, "Invalid format parameter.", 'Allowed values are "json" and "text".', (valid,))
        self.text = format_name == "text"
        if self.text and self.follow:
            raise Refused(
                400, "Text format is not supported with follow mode.", "Use format=json or leave the follow out."
            )


def _after(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        wrong = f'Query param "after" must be an integer greater than or equal to zero, got "{text[:80]}".'
        raise Refused(400, "Invalid query parameters.", wrong, (Validation("after", _NUMBER),))
    return min(int(text), _MAX_ID)


_After = Annotated[
    str | None, Query(description="Only lines with a greater id.", json_schema_extra={"type": "integer"})
]
_Before = Annotated[str | None, Query(description="Ignored, as everywhere.", json_schema_extra={"type": "integer"})]
_Follow = Annotated[str | None, Query(description="Its presence asks for a websocket of what comes, too.")]
_NoCompression = Annotated[str | None, Query(description="Its presence turns compression of the websocket off.")]
_Format = Annotated[str | None, Query(description="json (as it is without) or text; text does not follow.")]


_TEXT: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/{workspaceagent}/logs", response_model=Sequence[LogItem], responses=_TEXT)
async def logs(
    request: Request,
    services: ServicesOf,
    agent: ReadableAgent,
    after: _After = None,
    before: _Before = None,
    follow: _Follow = None,
    no_compression: _NoCompression = None,
    format: _Format = None,  # the parameter's name
) -> Response:
    """The lines that an agent's scripts printed."""
    asked = _Asked(request)
    if asked.follow:
        raise refusals.upgrade_missing()
    return await _all_lines(services, agent, asked)


@router.get("/{workspaceagent}/startup-logs", response_model=Sequence[LogItem], deprecated=True)
async def startup_logs(
    request: Request,
    services: ServicesOf,
    agent: ReadableAgent,
    after: _After = None,
    before: _Before = None,
    follow: _Follow = None,
    no_compression: _NoCompression = None,
) -> Response:
    """The older name of logs."""
    return await logs(request, services, agent)


@router.websocket("/{workspaceagent}/logs")
@router.websocket("/{workspaceagent}/startup-logs")
async def follow_logs(websocket: WebSocket, services: ServicesOf, agent: ReadableAgent) -> None:
    check_origin(headers_of(websocket), services.access_url, services.config.cors_origins)
    asked = _Asked(websocket)
    if not asked.follow:
        # What is no stream is answered like any other request, as the upgrade was asked for only.
        await websocket.send_denial_response(await _all_lines(services, agent, asked))
        return
    token = token_of(websocket)
    # Before the upgrade, so that a store that is away is a status and no close code.
    first = await services.logs.read(agent.id, asked.after)
    await send_stream(
        websocket,
        lambda: services.logs.follow(agent.id, asked.after, first),
        _message,
        reader_permit(services.callers, token, agent.id),
    )


async def _all_lines(services: Services, agent: AgentIdentity, asked: _Asked) -> Response:
    first = await services.logs.read(agent.id, asked.after)
    pages = services.logs.pages(agent.id, first)
    if not asked.text:
        return StreamingResponse(_json(pages), media_type=CONTENT_TYPE)
    names = await services.logs.source_names(agent.id)
    return StreamingResponse(_text(pages, agent.name, names), media_type="text/plain; charset=utf-8")


async def _json(pages: AsyncIterator[Sequence[LogLine]]) -> AsyncIterator[str]:
    before = "["
    async for lines in pages:
        yield before + ",".join(map(_encoded, lines))
        before = ","
    yield "[]\n" if before == "[" else "]\n"


async def _text(
    pages: AsyncIterator[Sequence[LogLine]], agent_name: str, names: Mapping[str, str]
) -> AsyncIterator[str]:
    async for lines in pages:
        yield "".join(
            f"{line.created_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} [{_level(line)}] "
            f"[agent.{agent_name}|{names.get(str(line.source_id), line.source_id)}] {line.output}\n"
            for line in lines
        )


def _message(lines: Sequence[LogLine]) -> str:
    return f"[{','.join(map(_encoded, lines))}]\n"


@lru_cache(_ENCODED_LINES)
def _encoded(line: LogLine) -> str:
    item = LogItem(
        id=line.id, created_at=line.created_at, output=line.output, level=_level(line), source_id=line.source_id
    )
    body: dict[str, Any] = item.model_dump(mode="json")
    return go_json(body).decode().rstrip("\n")


def _level(line: LogLine) -> LevelName:
    return _LEVELS[line.level] if 0 < line.level < len(_LEVELS) else _LEVELS[0]
