"""An agent that a test plays: a real node of ours that enters a real coordinator, with what a test wants at its ports.

async with open_fake_agent(url, "main") as agent:
    agent.answers["GET /api/v0/containers"] = Answer(200, {...})
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio
from trio_websocket import WebSocketConnection, wrap_server_stream

from derp.transport.http import HttpError, Request, ServerHttp
from tailnet.node.membership import Member, open_agent
from tailnet.node.streams import TunnelStream
from tailnet.types import PeerID
from tests.support.seeds import agent_token, peer_id

PTY_PORT, HTTP_PORT = 2, 4

Serve = Callable[[TunnelStream], Awaitable[None]]
Watch = Callable[[WebSocketConnection], Awaitable[None]]


@dataclass
class Answer:
    """What is answered: JSON, or bytes as they are."""

    status: int
    body: object
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class FakeAgent:
    """`answers` by method and path; `serve_raw` takes connections to port 4 before any HTTP, `serve_pty` those to 2."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.connections: Counter[int] = Counter()
        self.is_silent = False  # takes connections to port 4 and says nothing
        self.watch: Watch | None = None  # what is said on the websocket of containers
        self.serve_raw: Serve | None = None
        self.serve_pty: Serve | None = None

    async def serve_http(self, stream: TunnelStream) -> None:
        self.connections[HTTP_PORT] += 1
        async with stream:
            if self.is_silent:
                await trio.sleep_forever()
            if self.serve_raw is not None:
                await self.serve_raw(stream)
                return
            if self.watch is not None:
                async with trio.open_nursery() as nursery:
                    request_for_socket = await wrap_server_stream(nursery, stream)
                    self.asked.append(f"GET {request_for_socket.path}")
                    async with await request_for_socket.accept() as socket:
                        await self.watch(socket)
                return
            http, request = await read_request(stream)
            if request is None:
                return
            self.asked.append(f"{request.method} {request.target}")
            answer = self.answers.get(
                self.asked[-1], Answer(404, b"404 page not found\n", {"Content-Type": "text/plain"})
            )
            await stream.send_all(http.send_response(answer.status, list(answer.headers.items()), answer.encode()))

    async def serve_terminal(self, stream: TunnelStream) -> None:
        self.connections[PTY_PORT] += 1
        async with stream:
            if self.serve_pty is not None:
                await self.serve_pty(stream)


async def read_request(stream: TunnelStream) -> tuple[ServerHttp, Request | None]:
    """The request of a connection; None when it ends before."""
    http = ServerHttp(max_body_bytes=1024)
    while data := await stream.receive_some():
        try:
            request = http.receive_data(data)
        except HttpError:
            return http, None
        if request is not None:
            return http, request
    return http, None


@asynccontextmanager
async def open_fake_agent(
    url: str, name: str = "main", *, token: str = "", agent_id: PeerID | None = None
) -> AsyncIterator[FakeAgent]:
    """Enter as the agent of that name in tests/support/seeds.py, or with that token as the agent of that id."""
    async with (
        open_agent(url, token or agent_token(name), agent_id or peer_id(name), is_direct=False) as member,
        trio.open_nursery() as nursery,
    ):
        agent = FakeAgent(member)
        for port, serve in ((HTTP_PORT, agent.serve_http), (PTY_PORT, agent.serve_terminal)):
            nursery.start_soon(_serve_listener, member, port, serve, nursery)
        yield agent
        nursery.cancel_scope.cancel()


async def _serve_listener(member: Member, port: int, serve: Serve, nursery: trio.Nursery) -> None:
    listener = member.engine.listen(port)
    while True:
        nursery.start_soon(_serve_one, serve, await listener.accept())


async def _serve_one(serve: Serve, stream: TunnelStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the other side went
        await serve(stream)
