"""Asking an agent's own HTTP API, at port 4 of its tailnet address.  Layer L3.

One request a connection, as the reference's clients do.  An agent is somebody else's machine: it has DIAL_SECONDS for
its whole answer, MAX_ANSWER_BYTES for the body, and what it says is text of others.  Asked by api/containers.py and
api/listening_ports.py; next hop: own_node.py.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import trio
from pydantic import BaseModel, ValidationError

from derp.client.client import open_background
from derp.errors import DerpError, TransportError
from derp.transport.http import ClientHttp, exchange
from derp.transport.stream import reason_of
from tailnet.errors import TailnetError
from tailnet.refusals import Refused, Validation, shown_reason
from tailnet.services.own_node import DIAL_SECONDS, OwnNode
from tailnet.transport.messages import RefusedUpgrade, serve_messages
from tailnet.types import PeerID

Messages: TypeAlias = trio.MemoryReceiveChannel[str | bytes]
M = TypeVar("M", bound=BaseModel)

HTTP_PORT: Final = 4
# As much as genuine clients take of one message about containers: some thousand of them.
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_MAX_VALIDATIONS: Final = 20
# What an agent may not say in our name: browsers and SDKs would sign their user out.
_NOT_PASSED_ON: Final = frozenset({401, 407})
_BROKEN: Final = (DerpError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class AgentFailed(TailnetError):
    """The agent was reached and gave no answer that can be used; the text says why.  `is_late`: none came in time."""

    def __init__(self, reason: str, *, is_late: bool = False) -> None:
        super().__init__(reason)
        self.is_late = is_late


class AgentRefused(TailnetError):
    """The agent answered with an error, which `refused` has, fit to be passed on."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(str(refused))
        self.refused = refused


class AgentHttp:
    """Asks agents.  Every method raises Unreachable, TooMany, AgentFailed and AgentRefused."""

    def __init__(self, node: OwnNode) -> None:
        self._node = node

    async def ask(self, agent_id: PeerID, user_id: str, path: str, answer: type[M], method: str = "GET") -> M:
        """What an agent answers there, as `answer`: keys that it has no field for are newer agents'."""
        deadline = trio.current_time() + DIAL_SECONDS
        async with self._node.dial(agent_id, HTTP_PORT, user_id) as stream:
            http = ClientHttp(max_body_bytes=MAX_ANSWER_BYTES)
            headers = [("Host", host_of(agent_id)), ("Accept", "application/json"), ("Connection", "close")]
            request = http.send_request(method, path, headers + ([("Content-Length", "0")] if method != "GET" else []))
            with trio.move_on_at(deadline):
                try:
                    response = await exchange(stream, http, request)
                except _BROKEN as error:
                    raise AgentFailed(reason_of(error)) from None
                if response.status >= 300:
                    raise AgentRefused(read_refusal(response.status, response.headers, response.body))
                return parse_answer(response.body, answer)
        raise AgentFailed(f"the agent did not answer within {DIAL_SECONDS:g} s", is_late=True)

    @asynccontextmanager
    async def follow(self, agent_id: PeerID, user_id: str, path: str) -> AsyncIterator[Messages]:
        """What an agent says there on a websocket, message by message, until it ends; none waits here."""
        deadline = trio.current_time() + DIAL_SECONDS
        async with self._node.dial(agent_id, HTTP_PORT, user_id) as stream, open_background() as nursery:
            messages: Messages | None = None
            with trio.move_on_at(deadline):
                try:
                    messages = await nursery.start(serve_messages, stream, host_of(agent_id), path, MAX_ANSWER_BYTES)
                except RefusedUpgrade as error:
                    raise AgentRefused(read_refusal(error.status, error.headers, error.body)) from None
                except TransportError as error:
                    raise AgentFailed(str(error)) from None
            if messages is None:
                raise AgentFailed(f"the agent did not answer within {DIAL_SECONDS:g} s", is_late=True)
            async with messages:
                yield messages


def host_of(agent_id: PeerID) -> str:
    """What stands in Host: agents look at no name."""
    return f"{agent_id}:{HTTP_PORT}"


def parse_answer(content: bytes | str, answer: type[M]) -> M:
    """One JSON object of an agent.  Raises AgentFailed."""
    try:
        return answer.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise AgentFailed(f"the agent's answer is not understood: {place}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise AgentFailed("the agent's answer is no JSON") from None


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    """An agent's error, to be passed on; of one that is no error body the beginning is its detail."""
    if not 400 <= status < 600 or status in _NOT_PASSED_ON:
        return Refused(502, "The agent gave an answer that is not passed on.", f"Its status is {status}.")
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        kind = shown_reason(headers.get("content-type", ""))
        shown = shown_reason(body[:800].decode("utf-8", "replace").strip())
        return Refused(status, f'unexpected non-JSON response "{kind}"', shown)
    listed = said.get("validations")
    fields = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return Refused(
        status,
        shown_reason(said["message"]),
        shown_reason(str(said.get("detail") or "")),
        tuple(
            Validation(shown_reason(str(each.get("field", ""))), shown_reason(str(each.get("detail", ""))))
            for each in fields[:_MAX_VALIDATIONS]
        ),
    )
