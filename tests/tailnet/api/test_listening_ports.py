"""The ports of an agent's machine: what is shown, what is left out, and every answer when it cannot be asked."""

from typing import Any

import httpx
import pytest

from tailnet.api.listening_ports import app_ports
from tailnet.refusals import NO_SUCH_AGENT
from tailnet.server.server import CoordinatorServer
from tailnet.services import agent_http as agent_http_module
from tests.support.api_world import World
from tests.support.fake_agent import Answer, FakeAgent, open_fake_agent
from tests.support.seeds import definitions, fill, peer_id, seed_document, user_token
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
PATH = f"/api/v2/workspaceagents/{MAIN}/listening-ports"
ASKED = "GET /api/v0/listening-ports"


async def get(server: CoordinatorServer, token: str = user_token("alice")) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url_of(server), headers={"Coder-Session-Token": token}) as client:
        return await client.get(PATH, timeout=60)


def listening(*ports: int) -> Answer:
    return Answer(200, {"ports": [{"process_name": "p", "network": "tcp", "port": port} for port in ports]})


async def shown(server: CoordinatorServer, agent: FakeAgent, body: object) -> Any:
    agent.answers[ASKED] = Answer(200, body)
    response = await get(server)
    assert response.status_code == 200, response.text
    return response.json()


async def test_what_is_shown_and_what_is_left_out(server: CoordinatorServer) -> None:
    document: Any = seed_document()
    next(each for each in document["agents"] if each["name"] == "main").update(definitions())
    fill(server.store, document)  # an app is at 13337
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[ASKED] = listening(1, 8, 9, 22, 80, 5432, 8080, 13337, 27018, 65535)
        response = await get(server)
        assert [each["port"] for each in response.json()["ports"]] == [9, 80, 8080, 65535]
        assert response.content.startswith(b'{"ports":[{"process_name":"p","network":"tcp","port":9}')
        assert await shown(server, agent, {"ports": None}) == {"ports": []}
        newer = {"ports": [{"port": 8000, "network": "tcp", "owner": "root"}], "scanned": True}
        assert await shown(server, agent, newer) == {"ports": [{"process_name": "", "network": "tcp", "port": 8000}]}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, {"message": "Could not scan for listening ports."}),
        Answer(404, b"404 page not found"),
        Answer(200, {"ports": [{"port": 70_000}]}),
        Answer(200, b"<html>"),
    ],
)
async def test_an_agent_that_cannot_say(server: CoordinatorServer, answer: Answer) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[ASKED] = answer
        response = await get(server)
    assert (response.status_code, response.json()["message"]) == (500, "Internal error fetching listening ports.")
    assert response.json()["detail"]


async def test_an_agent_that_is_slow(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_http_module, "DIAL_SECONDS", 1.0)
    async with open_fake_agent(url_of(server)) as agent:
        agent.is_silent = True
        response = await get(server)
    assert (response.status_code, response.json()["message"]) == (500, "Internal error fetching listening ports.")


async def test_who_may_look_and_an_agent_that_is_not_there(world: World) -> None:
    async def ask(token: str) -> tuple[int, str]:
        async with world.client(token=token) as client:
            response = await client.get(PATH)
            return response.status_code, response.json()["message"]

    assert (await ask(""))[0] == 401
    assert await ask(user_token("bob")) == (404, NO_SUCH_AGENT)
    state = 'Agent state is "connecting", it must be in the "connected" state.'
    assert await ask(user_token("alice")) == (400, state)


def test_ports_of_apps() -> None:
    urls = ["http://localhost:13337/x", "http://localhost", "", "http://[::1]:8080", "http://x:99999", "http://[", "x"]
    assert app_ports(urls) == {13337, 8080}
