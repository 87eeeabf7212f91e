"""Terminals over a real server and a real node: bytes both ways, the same terminal again, and every way it ends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tailnet.api import pty as pty_module
from tailnet.api.pty import MAX_FIRST_BYTES, first_frame
from tailnet.node.membership import open_agent
from tailnet.refusals import NO_SUCH_AGENT, NO_SUCH_RESOURCE, Refused
from tailnet.server.server import CoordinatorServer
from tests.support.fake_agent import open_fake_agent
from tests.support.fake_terminals import Terminals, hold, keys
from tests.support.seeds import agent_token, fill, make_id, peer_id, seed_document, user_token
from tests.support.tailnet_driver import PATIENCE_SECONDS, RefusedUpgrade, connect, dial, wait_for
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
PATH = f"/api/v2/workspaceagents/{MAIN}/pty"
TERMINAL = str(UUID(int=7))
ALICE = user_token("alice")


def target(**query: object) -> str:
    return f"{PATH}?{urlencode({'reconnect': TERMINAL, **query})}"


class Browser:
    """The browser's end."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.seen = b""

    async def press(self, data: str) -> None:
        await self.socket.send_message(keys(data))

    async def until(self, text: bytes) -> None:
        while text not in self.seen:
            message = await self.socket.get_message()
            assert isinstance(message, bytes)
            self.seen += message

    async def end(self) -> tuple[int, str]:
        with suppress(ConnectionClosed):
            while True:
                await self.socket.get_message()
        reason = self.socket.closed
        assert reason is not None
        return reason.code, reason.reason or ""


@asynccontextmanager
async def browser(
    server: CoordinatorServer, at: str | None = None, token: str = ALICE, offers: bytes = b""
) -> AsyncIterator[Browser]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with await connect(server) as stream, trio.open_nursery() as nursery:
            headers = [(b"Cookie", f"coder_session_token={token}".encode())]
            if offers:
                headers.append((b"Sec-WebSocket-Extensions", offers))
            socket = await wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]  # any stream will do
                "tailnet.test",
                at or target(),
                extra_headers=headers,
                max_message_size=1 << 26,
            )
            yield Browser(socket)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def terminals(server: CoordinatorServer) -> AsyncIterator[Terminals]:
    async with open_fake_agent(url_of(server)) as agent:
        played = Terminals()
        agent.serve_pty = played.serve
        yield played


async def test_bytes_both_ways(server: CoordinatorServer) -> None:
    asked = {"height": 24, "width": 100, "command": "bash -l", "container": "c", "container_user": "u"}
    async with terminals(server) as played:
        async with browser(server, target(**asked, backend_type="buffered"), offers=b"permessage-deflate") as user:
            assert ("sec-websocket-extensions", b"permessage-deflate") not in user.socket.handshake_headers
            await user.until(b"$ ")
            assert played.by_id[TERMINAL].first == {
                "ID": TERMINAL,
                "Height": 24,
                "Width": 100,
                "Command": "bash -l",
                "Container": "c",
                "ContainerUser": "u",
                "BackendType": "buffered",
            }
            await user.press("size\r")
            await user.until(b"24 rows, 100 columns")
            await user.socket.send_message(keys("", 50, 132))
            await user.press("size\rgr\u00fc\u00dfe")
            await user.until("50 rows, 132 columns\r\n$ gr\u00fc\u00dfe".encode())
            assert [each["data"] for each in played.requests][-1] == "size\rgr\u00fc\u00dfe", "as it came"
            await user.press("\rexit\r")
            assert await user.end() == (1000, "the terminal ended")
        await wait_for(lambda: not server.own_node.stream_count)


async def test_the_same_terminal_again_and_two_at_one(server: CoordinatorServer) -> None:
    async with terminals(server) as played:
        async with browser(server) as user:
            await user.press("hello")
            await user.until(b"hello")
        async with browser(server) as again, browser(server) as beside:
            await again.until(b"$ hello")
            await beside.until(b"$ hello")
            await again.press(" you")
            await beside.until(b"$ hello you")
        async with browser(server, target(reconnect=str(UUID(int=8)))) as other:
            await other.until(b"$ ")
            assert b"hello" not in other.seen
        assert set(played.by_id) == {TERMINAL, str(UUID(int=8))}


async def test_a_browser_that_reads_nothing_stops_the_output_and_nothing_else(server: CoordinatorServer) -> None:
    beside = target(reconnect=str(UUID(int=8)))
    async with terminals(server) as played, browser(server) as slow, browser(server, beside) as other:
        await slow.until(b"$ ")
        await slow.press("flood\r")
        await other.until(b"$ ")
        stood = -1
        while stood != played.by_id[TERMINAL].flooded_bytes:  # until all buffers on the way are full
            stood = played.by_id[TERMINAL].flooded_bytes
            for number in range(50):
                await other.press("x")
                await other.until(b"x" * (number + 1))
            other.seen = b""
        assert 0 < stood < 32 * 1024 * 1024


async def test_an_agent_that_reads_nothing_stops_the_keys(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pty_module, "SEND_SECONDS", 1.0)
    async with open_fake_agent(url_of(server)) as agent:
        agent.serve_pty = hold
        async with browser(server) as user, trio.open_nursery() as nursery:
            sent = 0

            async def press_on() -> None:
                nonlocal sent
                with suppress(ConnectionClosed):
                    while True:
                        await user.socket.send_message(b"x" * 500_000)
                        sent += 500_000

            nursery.start_soon(press_on)
            assert await user.end() == (1011, "the agent takes nothing any more")
        assert 0 < sent < 64_000_000
        await wait_for(lambda: not server.own_node.stream_count)


async def test_how_it_ends(server: CoordinatorServer, nursery: trio.Nursery) -> None:
    async with browser(server) as early:
        reason = 'dial workspace agent: Agent state is "timeout", it must be in the "connected" state.'
        assert await early.end() == (1011, reason)
    async with terminals(server):
        async with browser(server) as user:
            await user.press("break\r")
            assert await user.end() == (1011, "the connection to the agent broke")
        async with browser(server) as user:
            await user.socket.send_message("text")
            assert await user.end() == (1003, "a terminal takes binary messages")
        async with browser(server) as user:
            await user.until(b"$ ")
            nursery.start_soon(server.drain)
            assert await user.end() == (1001, "the server leaves")


async def test_an_agent_that_serves_no_terminals(server: CoordinatorServer) -> None:
    async with open_agent(url_of(server), agent_token("main"), MAIN, is_direct=False), browser(server) as user:
        code, reason = await user.end()
    assert (code, reason) == (1011, "dial workspace agent: the peer refused it")


async def test_the_right_is_withdrawn(server: CoordinatorServer) -> None:
    document: Any = seed_document()
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["application-connect"]}
    fill(server.store, {**document, "grants": [grant]})
    async with terminals(server), browser(server, token=user_token("bob")) as user:
        await user.until(b"$ ")
        await user.press("flood\r")
        await user.until(b"xxx")
        fill(server.store, {**document, "grants": [{**grant, "rights": ["read"]}]})
        assert await user.end() == (1008, "authorization withdrawn"), "reading is not enough"


@pytest.mark.parametrize(
    ("rights", "status", "message"),
    [
        (["read", "update"], 404, NO_SUCH_RESOURCE),
        ([], 404, NO_SUCH_AGENT),
        (["ssh"], 101, ""),
        (["application-connect"], 101, ""),
    ],
)
async def test_who_may(server: CoordinatorServer, rights: list[str], status: int, message: str) -> None:
    document: Any = seed_document()
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": rights}
    fill(server.store, {**document, "grants": [grant]})
    if status == 101:
        async with browser(server, token=user_token("bob")) as user:
            assert (await user.end())[0] == 1011
        return
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, target(), user_token("bob"))
    assert (refused.value.answer.status, refused.value.answer.json()["message"]) == (status, message)


async def test_other_websites_and_strangers(server: CoordinatorServer) -> None:
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, target(), ALICE, Origin="https://evil.example")
    assert refused.value.answer.status == 403
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, target(), "")
    assert (refused.value.answer.status, refused.value.answer.json()["message"][:19]) == (401, "You are signed out ")
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, PATH, ALICE)
    assert refused.value.answer.json()["validations"][0]["field"] == "reconnect"


async def test_who_types_too_fast_waits(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty_module, "MESSAGES_PER_SECOND", 10)
    async with terminals(server), browser(server) as user:
        await user.until(b"$ ")
        began = trio.current_time()
        for number in range(25):
            await user.press(chr(97 + number))
        await user.until(b"abcdefghijklmnopqrstuvwxy")
        assert trio.current_time() - began >= 1.0, "and nothing is lost"


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ({}, ["reconnect"]),
        ({"reconnect": "x"}, ["reconnect"]),
        ({"height": "-1"}, ["reconnect", "height"]),
        ({"reconnect": TERMINAL, "height": "x", "width": "65536"}, ["height", "width"]),
        ({"reconnect": TERMINAL, "width": "\u00b2"}, ["width"]),
        ({"reconnect": TERMINAL, "command": "x" * 2_000}, ["command"]),
    ],
)
def test_parameters_that_are_wrong(query: dict[str, str], fields: list[str]) -> None:
    with pytest.raises(Refused, match="Invalid query parameters") as caught:
        first_frame(query)
    assert [each.field for each in caught.value.validations] == fields


def test_the_first_frame() -> None:
    frame = first_frame({"reconnect": TERMINAL.upper(), "width": "65535"})
    said = json.loads(frame[2:])
    assert int.from_bytes(frame[:2], "little") == len(frame) - 2
    assert (said["ID"], said["Height"], said["Width"], said["Command"]) == (TERMINAL, 80, 65535, "")
    longest = first_frame({"reconnect": TERMINAL, "command": "x" * 1_000})
    assert len(longest) <= MAX_FIRST_BYTES
