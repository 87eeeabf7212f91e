"""Terminals in a browser (layer L3): GET /api/v2/workspaceagents/{id}/pty, a websocket to port 2 of the agent.

Binary messages are carried both ways as they come; the server adds the first frame, which names the terminal.  Who
comes with the same `reconnect` finds the same one.  A browser that does not read stops the agent's output, and the
other way round, until one of the two has had its time.  An agent that cannot be reached is 1011 after the upgrade, as
browsers show no other answer; the other ends are those of api/streams.py.  Next hop: services/own_node.py.
"""

import json
import struct
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Final
from uuid import UUID

import trio
from fastapi import APIRouter, Query, WebSocket

from tailnet import refusals
from tailnet.api.authorise import check_origin
from tailnet.api.guards import Services, ServicesOf, TerminalAgent, headers_of, query_of, token_of
from tailnet.api.into_agent import check_connected
from tailnet.api.middleware import exchange_of
from tailnet.api.streams import GOING_AWAY, INTERNAL_ERROR, NORMAL, UNSUPPORTED, End, serve_until, terminal_permit
from tailnet.errors import StoreError
from tailnet.node.streams import TunnelStream
from tailnet.refusals import Refused, Validation
from tailnet.services.own_node import TooMany, Unreachable
from tailnet.store.rows import AgentIdentity

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

PTY_PORT: Final = 2
# The agent reads length and text with one call each, so that both have to come in one packet.
MAX_FIRST_BYTES: Final = 1_180
_SIDE: Final = 80  # columns and rows, where none are asked for
_LENGTH: Final = struct.Struct("<H")
_PIECE_BYTES: Final = 32 * 1024
# Keys, and what is pasted, are some dozens of messages; each costs some 100 us.  Who sends more waits.
MESSAGES_PER_SECOND: Final = 500
# The connection to the agent has room for half a megabyte.  While a message waits, nobody hears the browser leave.
SEND_SECONDS: Final = 30.0
_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def first_frame(query: Mapping[str, str]) -> bytes:
    """What names the terminal to the agent, from the parameters of a request.  Raises Refused."""
    wrong: list[Validation] = []
    named = {
        "ID": _uuid(query.get("reconnect", ""), wrong),
        "Height": _side("height", query.get("height", ""), wrong),
        "Width": _side("width", query.get("width", ""), wrong),
        "Command": query.get("command", ""),
        "Container": query.get("container", ""),
        "ContainerUser": query.get("container_user", ""),
        "BackendType": query.get("backend_type", ""),
    }
    text = json.dumps(named, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    if len(text) + _LENGTH.size > MAX_FIRST_BYTES:
        wrong.append(Validation("command", f"All parameters together may have some {MAX_FIRST_BYTES - 150} bytes."))
    if wrong:
        raise Refused(400, "Invalid query parameters.", validations=tuple(wrong))
    return _LENGTH.pack(len(text)) + text


def _uuid(text: str, wrong: list[Validation]) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        wrong.append(Validation("reconnect", 'Query param "reconnect" must be a valid UUID'))
        return ""


def _side(name: str, text: str, wrong: list[Validation]) -> int:
    if not text:
        return _SIDE
    value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else -1
    if not 0 <= value < 1 << 16:
        wrong.append(Validation(name, f'Query param "{name}" must be an unsigned 16-bit integer'))
    return value


@router.get("/{workspaceagent}/pty", include_in_schema=False)
async def pty_without_upgrade(agent: TerminalAgent) -> None:
    """A request that lost its upgrade on the way is told so."""
    raise refusals.upgrade_missing()


@router.websocket("/{workspaceagent}/pty")
async def pty(
    websocket: WebSocket,
    services: ServicesOf,
    agent: TerminalAgent,
    reconnect: Annotated[str | None, Query(description="A UUID: the same finds the same terminal")] = None,
    height: Annotated[str | None, Query(description="Rows; 80 without")] = None,
    width: Annotated[str | None, Query(description="Columns; 80 without")] = None,
    command: Annotated[str | None, Query(description="What runs in it; the user's shell without")] = None,
    container: Annotated[str | None, Query(description="A container to run it in, by name or id")] = None,
    container_user: Annotated[str | None, Query(description="The user to run it as in that container")] = None,
    backend_type: Annotated[str | None, Query(description="screen or buffered; as the agent likes without")] = None,
) -> None:
    """Open a terminal on an agent's machine."""
    check_origin(headers_of(websocket), services.access_url, services.config.cors_origins)
    first = first_frame(query_of(websocket))
    permit = terminal_permit(services.callers, token_of(websocket), agent.id)
    await websocket.accept()
    await serve_until(
        websocket,
        permit.wait_ended,
        partial(_wait_leaving, services),
        partial(_serve, websocket, services, agent, first),
    )


async def _wait_leaving(services: Services) -> End:
    await services.own_node.closed.wait()
    return GOING_AWAY, "the server leaves"


async def _serve(websocket: WebSocket, services: Services, agent: AgentIdentity, first: bytes) -> End | None:
    """Until one side ends; None when the browser left."""
    user_id = exchange_of(websocket.scope).caller_id
    try:
        await check_connected(websocket, agent)
        async with services.own_node.dial(agent.id, PTY_PORT, user_id) as stream:
            await stream.send_all(first)
            return await _carry(websocket, stream)
    except (Refused, StoreError, TooMany, Unreachable) as error:
        reason = error.message if isinstance(error, Refused) else str(error)
        return INTERNAL_ERROR, f"dial workspace agent: {reason}"
    except _BROKEN:
        return INTERNAL_ERROR, "the connection to the agent broke"


async def _carry(websocket: WebSocket, stream: TunnelStream) -> End | None:
    end: End | None = None
    async with trio.open_nursery() as nursery:

        async def to_agent() -> None:
            nonlocal end
            end = await _send_keys(websocket, stream)
            nursery.cancel_scope.cancel()

        nursery.start_soon(to_agent)
        try:
            while output := await stream.receive_some(_PIECE_BYTES):
                # A message that is cut off ends the connection without a goodbye; how long one may take is bounded.
                with trio.CancelScope(shield=True):
                    await websocket.send_bytes(output)
            end = NORMAL, "the terminal ended"
        except _BROKEN:
            end = INTERNAL_ERROR, "the connection to the agent broke"
        nursery.cancel_scope.cancel()
    return end


async def _send_keys(websocket: WebSocket, stream: TunnelStream) -> End | None:
    """What the browser sends, to the agent; None when it left."""
    began, count = trio.current_time(), 0
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        keys = message.get("bytes")
        if keys is None:
            return UNSUPPORTED, "a terminal takes binary messages"
        count += 1
        if count > MESSAGES_PER_SECOND:
            await trio.sleep_until(began + 1.0)
        if trio.current_time() - began >= 1.0:
            began, count = trio.current_time(), 1
        with trio.move_on_after(SEND_SECONDS) as patience:
            try:
                await stream.send_all(keys)
            except _BROKEN:
                return INTERNAL_ERROR, "the connection to the agent broke"
        if patience.cancelled_caught:
            return INTERNAL_ERROR, "the agent takes nothing any more"
