"""An agent's HTTP API on port 4: what servers and clients ask it for.  Layer L3.

One request a connection, as everybody who asks has it; nobody proves anything here, since being a peer is the right.
A row of `ROUTES` has a method, a path and what answers.  Bodies are those of the reference, errors {message, detail}.
Next hop: http_ports.py, http_devcontainers.py, http_debug.py, derp/transport/http.py.
"""

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import trio

from derp.errors import TransportError
from derp.text import error_text
from derp.transport.http import HttpError, Request, ServerHttp
from tailnet.agent.context import Context
from tailnet.agent.http_debug import magicsock_text, manifest_shown, netcheck_report, prometheus_text
from tailnet.agent.http_devcontainers import Devcontainers
from tailnet.agent.http_ports import ListeningPorts
from tailnet.go_json import go_json
from tailnet.node.streams import TunnelStream
from tailnet.refusals import Refused
from tailnet.transport.messages import accept_messages

_log = logging.getLogger("tailnet.agent")

REQUEST_SECONDS: Final = 15.0
"""For a head and a body."""
# An engine's command line has 20 seconds, and is asked twice.
ANSWER_SECONDS: Final = 60.0
SEND_SECONDS: Final = 30.0
MAX_HEAD_BYTES: Final = 32 * 1024
# No route has a body worth reading; SDKs send "null" or an empty object.
MAX_BODY_BYTES: Final = 4096
MAX_PASSED_OVER_BYTES: Final = 256 * 1024
PASS_OVER_SECONDS: Final = 1.0
# Each has a task that asks the engine every five seconds.
MAX_WATCHERS: Final = 32
NODE_LOGGERS: Final = ("tailnet.client", "tailnet.node")
JSON: Final = "application/json; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered: JSON if it is no text."""

    body: Any
    status: int = 200

    def encode(self) -> tuple[str, bytes]:
        """Content type and bytes."""
        return (TEXT, self.body.encode()) if isinstance(self.body, str) else (JSON, go_json(self.body))


Respond: TypeAlias = Callable[["AgentHttp", Context, dict[str, str]], Awaitable[Answer]]


class AgentHttp:
    """The API of one agent.  `serve` is called for each connection."""

    def __init__(self) -> None:
        self.ports = ListeningPorts()
        self.devcontainers = Devcontainers()
        self._watchers = 0

    async def serve(self, stream: TunnelStream, context: Context) -> None:
        """One request."""
        http = ServerHttp(MAX_HEAD_BYTES, MAX_BODY_BYTES)
        raw, request = bytearray(), None
        try:
            with trio.move_on_after(REQUEST_SECONDS):
                request = await _read(stream, http, raw)
            if request is None:  # the client left, or said not enough in time
                return
            if _path(request) == WATCH_PATH and request.method == "GET":
                await self._watch(stream, request, bytes(raw), context)
                return
            answer = await self._answer(request, context)
        except HttpError as error:
            answer = _refusal(Refused(error.status, HTTPStatus(error.status).phrase, str(error)))
        except Refused as refused:
            answer = _refusal(refused)
        kind, body = answer.encode()
        headers = [("Content-Type", kind), ("Connection", "close")]
        with trio.move_on_after(SEND_SECONDS):
            await stream.send_all(http.send_response(answer.status, headers, body))
            if request is None:  # of what was not read to its end the rest comes still, and would reset the answer
                await stream.send_eof()
                await _pass_over(stream)

    async def _answer(self, request: Request, context: Context) -> Answer:
        """Raises Refused."""
        for method, path, respond in ROUTES:
            match = path.fullmatch(_path(request))
            if match is None:
                continue
            if request.method != method and (request.method, method) != ("HEAD", "GET"):
                raise Refused(405, "Method not allowed.", f"Here is {method}.")
            with trio.move_on_after(ANSWER_SECONDS):
                return await respond(self, context, match.groupdict())
            raise Refused(503, "The agent has no answer in time.")
        raise Refused(404, "Route not found.")

    async def _watch(self, stream: TunnelStream, request: Request, head: bytes, context: Context) -> None:
        """Raises Refused before the upgrade."""
        if not _is_websocket(request):
            raise Refused(426, "Containers are watched on a websocket.", "Ask with `Upgrade: websocket`, version 13.")
        if self._watchers >= MAX_WATCHERS:
            raise Refused(503, f"{MAX_WATCHERS} watch this agent's containers already.")
        await self.devcontainers.describe(context)  # who cannot be told anything is refused before the upgrade
        self._watchers += 1
        try:
            await accept_messages(stream, head, self._messages(context))
        except TransportError as error:
            _log.info("a watcher of containers was left: %s", error)
        finally:
            self._watchers -= 1

    async def _messages(self, context: Context) -> AsyncGenerator[str, None]:
        """Until the engine is gone."""
        try:
            async with aclosing(self.devcontainers.watch(context)) as changes:
                async for now in changes:
                    yield go_json(now).decode()
        except Refused as refused:
            _log.info("watchers of containers are told no more: %s", refused)


async def _read(stream: TunnelStream, http: ServerHttp, raw: bytearray) -> Request | None:
    """The request, and its bytes as they came; None if the client leaves before.  Raises HttpError."""
    while data := await stream.receive_some():
        raw += data
        request = http.receive_data(data)
        if request is not None:
            return request
        if interim := http.continue_response():
            await stream.send_all(interim)
    return None


async def _pass_over(stream: TunnelStream) -> None:
    left = MAX_PASSED_OVER_BYTES
    with trio.move_on_after(PASS_OVER_SECONDS):
        while left > 0 and (data := await stream.receive_some()):
            left -= len(data)


def _path(request: Request) -> str:
    return request.target.partition("?")[0]


def _is_websocket(request: Request) -> bool:
    headers = request.headers
    return (
        headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in headers.get("connection", "").lower()
        and headers.get("sec-websocket-version") == "13"
        and "sec-websocket-key" in headers
    )


def _refusal(refused: Refused) -> Answer:
    said = {"message": refused.message, "detail": refused.detail}
    return Answer({name: text for name, text in said.items() if text}, refused.status)


# --- what answers ---


async def _hello(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer({"message": "Hello from the agent!"})


async def _listening_ports(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    try:
        found = await api.ports.read()
    except OSError as error:
        raise Refused(500, "Could not scan for listening ports.", error_text(error)) from None
    ports = [{"process_name": name, "network": "tcp", "port": port} for port, name in found.items()]
    return Answer({"ports": ports})


async def _containers(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer(await api.devcontainers.describe(context))


async def _recreate(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer(await api.devcontainers.recreate(named["id"], context), 202)


async def _netcheck(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer(netcheck_report(context.engine))


async def _magicsock(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer(magicsock_text(context.engine, trio.current_time()))


async def _debug_logging(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    """Of the node; genuine clients say what they want in the path, as Go reads it."""
    wanted = named["wanted"].lower() in ("1", "t", "true")
    for name in NODE_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if wanted else logging.NOTSET)
    return Answer(f"updated magicsock debug logging to {str(wanted).lower()}")


async def _manifest(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer(manifest_shown(context.manifest))


async def _prometheus(api: AgentHttp, context: Context, named: dict[str, str]) -> Answer:
    return Answer(prometheus_text(context))


WATCH_PATH: Final = "/api/v0/containers/watch"
ROUTES: Final[tuple[tuple[str, re.Pattern[str], Respond], ...]] = tuple(
    (method, re.compile(path), respond)
    for method, path, respond in (
        ("GET", "/", _hello),
        ("GET", "/api/v0/listening-ports", _listening_ports),
        ("GET", "/api/v0/containers", _containers),
        ("POST", r"/api/v0/containers/devcontainers/(?P<id>[^/]+)/recreate", _recreate),
        ("GET", "/api/v0/netcheck", _netcheck),
        ("GET", "/debug/magicsock", _magicsock),
        (
            "GET",
            r"/debug/magicsock/debug-logging/(?P<wanted>1|0|t|f|T|F|true|false|TRUE|FALSE|True|False)",
            _debug_logging,
        ),
        ("GET", "/debug/manifest", _manifest),
        ("GET", "/debug/prometheus", _prometheus),
    )
)
