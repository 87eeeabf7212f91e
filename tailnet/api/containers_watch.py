"""Containers on an agent's machine as they change (layer L3): GET .../containers/watch, a websocket.

The agent is reached before the upgrade, so that its refusal is an answer.  Then each of its messages is one of ours, a
text that holds what containers.py answers.  It ends with 1000 when the agent ends it, and with 1011 for a message that
is not understood; the other ends are those of api/streams.py.  Next hop: services/agent_http.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import trio
from fastapi import APIRouter, WebSocket

from tailnet import refusals
from tailnet.api.authorise import check_origin
from tailnet.api.containers import CONTAINERS_PATH, Containers
from tailnet.api.guards import ReadableAgent, ServicesOf, headers_of, token_of
from tailnet.api.into_agent import check_connected, refused_of
from tailnet.api.middleware import exchange_of
from tailnet.api.streams import GOING_AWAY, INTERNAL_ERROR, NORMAL, reader_permit, send_stream
from tailnet.go_json import go_json
from tailnet.services.agent_http import AgentFailed, AgentRefused, Messages, parse_answer
from tailnet.services.feed import patiently
from tailnet.services.own_node import TooMany, Unreachable

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

WATCHING: Final = "Internal error watching agent's containers."


@router.get("/{workspaceagent}/containers/watch", response_model=Containers, response_description="each message")
async def containers_watch(agent: ReadableAgent) -> None:
    """The containers on an agent's machine, whenever they change: a websocket."""
    # A request that lost its upgrade on the way is told so.
    raise refusals.upgrade_missing()


@router.websocket("/{workspaceagent}/containers/watch")
async def watch(websocket: WebSocket, services: ServicesOf, agent: ReadableAgent) -> None:
    check_origin(headers_of(websocket), services.access_url, services.config.cors_origins)
    permit = reader_permit(services.callers, token_of(websocket), agent.id)
    await check_connected(websocket, agent)
    user_id = exchange_of(websocket.scope).caller_id
    try:
        async with services.agent_http.follow(agent.id, user_id, f"{CONTAINERS_PATH}/watch") as messages:
            watcher = _Watcher(messages, services.own_node.closed)
            await send_stream(websocket, watcher.follow, _encode, permit, end_code=lambda: watcher.end_code)
    except (AgentRefused, AgentFailed, Unreachable, TooMany) as error:
        raise refused_of(error, WATCHING) from None


def _encode(found: Containers) -> str:
    return go_json(found.model_dump(mode="json")).decode()


class _Watcher:
    """What an agent says, as `send_stream` follows it."""

    def __init__(self, messages: Messages, leaving: trio.Event) -> None:
        self.ended_because = "the agent ended it"
        self.end_code = NORMAL
        self._messages = messages
        self._leaving = leaving

    @contextmanager
    def follow(self) -> Iterator["_Watcher"]:
        yield self

    def __aiter__(self) -> "_Watcher":
        return self

    async def __anext__(self) -> Containers:
        message: str | bytes | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_leaving, nursery)
            with suppress(trio.EndOfChannel):
                message = await self._messages.receive()
            nursery.cancel_scope.cancel()
        if message is None:
            raise StopAsyncIteration
        try:
            return parse_answer(message, Containers)
        except AgentFailed as error:
            self.end_code, self.ended_because = INTERNAL_ERROR, str(error)
            raise StopAsyncIteration from None

    async def _wait_leaving(self, nursery: trio.Nursery) -> None:
        await self._leaving.wait()
        self.end_code, self.ended_because = GOING_AWAY, "the server leaves"
        nursery.cancel_scope.cancel()

    def sending(self) -> AbstractContextManager[None]:
        return patiently()
