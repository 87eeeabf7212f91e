"""Containers as they change: an agent's messages reach a browser one by one, and every way it ends."""

import json
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from tailnet.api.containers_watch import WATCHING
from tailnet.node.membership import open_agent
from tailnet.server.server import CoordinatorServer
from tailnet.services import agent_http as agent_http_module
from tailnet.services.agent_http import MAX_ANSWER_BYTES
from tests.support.fake_agent import Answer, open_fake_agent
from tests.support.seeds import agent_token, fill, make_id, peer_id, seed_document, user_token
from tests.support.tailnet_driver import RefusedUpgrade, dial, wait_for
from tests.support.text_sockets import open_text_socket
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
TARGET = f"/api/v2/workspaceagents/{MAIN}/containers/watch"
ALICE = user_token("alice")


def said(name: str) -> str:
    return json.dumps({"containers": [{"name": name}], "devcontainers": None})


async def refusal(server: CoordinatorServer, token: str = ALICE, **headers: str) -> tuple[int, str]:
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, TARGET, token, **headers)
    return refused.value.answer.status, refused.value.answer.json()["message"]


async def test_each_message_is_one(server: CoordinatorServer) -> None:
    more = trio.Event()

    async def watch(socket: WebSocketConnection) -> None:
        await socket.send_message(said("one"))
        await more.wait()
        await socket.send_message(said("two"))
        await socket.send_message(said("x" * 1_000_000))

    async with open_fake_agent(url_of(server)) as agent:
        agent.watch = watch
        async with open_text_socket(server, TARGET, ALICE) as socket:
            first = await socket.read()
            assert (first["containers"][0]["name"], first["devcontainers"]) == ("one", None)
            more.set()
            assert (await socket.read())["containers"][0]["name"] == "two"
            assert len((await socket.read())["containers"][0]["name"]) == 1_000_000
            assert await socket.end() == (1000, "the agent ended it")
        assert agent.asked == ["GET /api/v0/containers/watch"]
        await wait_for(lambda: not server.own_node.stream_count)


async def wait(socket: WebSocketConnection) -> None:
    await socket.send_message(said("one"))
    with pytest.raises(ConnectionClosed):
        await socket.get_message()


@pytest.mark.parametrize("message", ["nonsense", '{"containers": 5}', b"\xff", "[" * 100_000])
async def test_what_is_not_understood_ends_it(server: CoordinatorServer, message: str | bytes) -> None:
    async def watch(socket: WebSocketConnection) -> None:
        await socket.send_message(message)

    async with open_fake_agent(url_of(server)) as agent:
        agent.watch = watch
        async with open_text_socket(server, TARGET, ALICE) as socket:
            code, reason = await socket.end()
    assert code == 1011
    assert reason.startswith("the agent's answer")


async def test_a_message_without_end_ends_it(server: CoordinatorServer) -> None:
    async def watch(socket: WebSocketConnection) -> None:
        await socket.send_message("x" * (MAX_ANSWER_BYTES + 1))

    async with open_fake_agent(url_of(server)) as agent:
        agent.watch = watch
        async with open_text_socket(server, TARGET, ALICE) as socket:
            assert (await socket.end())[0] == 1000


async def test_how_else_it_ends(server: CoordinatorServer) -> None:
    document: Any = seed_document()
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["read"]}
    fill(server.store, {**document, "grants": [grant]})
    async with open_fake_agent(url_of(server)) as agent:
        agent.watch = wait
        async with open_text_socket(server, TARGET, user_token("bob")) as socket:
            await socket.read()
            fill(server.store, {**document, "grants": [{**grant, "rights": []}]})
            assert await socket.end() == (1008, "authorization withdrawn")
        async with open_text_socket(server, TARGET, ALICE) as socket:
            await socket.read()
        await wait_for(lambda: not server.own_node.stream_count)
        async with open_text_socket(server, TARGET, ALICE) as socket:
            await socket.read()
            server.own_node.close()
            assert await socket.end() == (1001, "the server leaves")


async def test_what_is_refused_before_the_upgrade(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    state = 'Agent state is "timeout", it must be in the "connected" state.'
    assert await refusal(server) == (400, state)
    assert (await refusal(server, ""))[0] == 401
    assert (await refusal(server, Origin="https://evil.example"))[0] == 403
    monkeypatch.setattr(agent_http_module, "DIAL_SECONDS", 1.0)
    async with open_fake_agent(url_of(server)) as agent:
        asked = "GET /api/v0/containers/watch"
        agent.answers[asked] = Answer(403, {"message": "Dev Container feature not enabled."})
        assert await refusal(server) == (403, "Dev Container feature not enabled.")
        agent.answers[asked] = Answer(404, b"404 page not found")
        assert (await refusal(server))[0] == 404
        agent.answers[asked] = Answer(200, b"no websocket")
        assert (await refusal(server))[0] == 502
        agent.is_silent = True
        assert await refusal(server) == (408, WATCHING)


async def test_an_agent_that_serves_nothing_there(server: CoordinatorServer) -> None:
    async with open_agent(url_of(server), agent_token("main"), MAIN, is_direct=False):
        assert await refusal(server) == (500, "Internal error dialing workspace agent.")
