"""Containers of an agent's machine: fields, labels, the agent's own errors, and who may have one built anew."""

import json
from typing import Any
from uuid import UUID

import httpx
import pytest

from tailnet.api.containers import parse_labels
from tailnet.refusals import NO_SUCH_AGENT, Refused
from tailnet.server.server import CoordinatorServer
from tailnet.services import agent_http as agent_http_module
from tests.support.api_world import World
from tests.support.fake_agent import Answer, open_fake_agent
from tests.support.seeds import fill, make_id, peer_id, seed_document, user_token
from tests.tailnet.client.test_rpc import url_of

MAIN = peer_id("main")
PATH = f"/api/v2/workspaceagents/{MAIN}/containers"
ASKED = "GET /api/v0/containers"
DEV = str(UUID(int=5))
RECREATE = f"{PATH}/devcontainers/{DEV}/recreate"

CONTAINER = {
    "created_at": "2024-01-02T03:04:05.123456789Z",
    "id": "abc",
    "name": "web",
    "image": "nginx",
    "labels": {"a": "1", "b": "2"},
    "running": True,
    "ports": [{"port": 80, "network": "tcp", "host_ip": "0.0.0.0", "host_port": 8080}, {"port": 81, "network": "udp"}],
    "status": "running",
    "volumes": {"/x": "/y"},
}
DEVCONTAINER = {
    "id": DEV,
    "name": "dev",
    "workspace_folder": "/w",
    "config_path": "/w/.devcontainer/devcontainer.json",
    "subagent_id": None,
    "status": "running",
    "dirty": False,
    "container": CONTAINER,
    "agent": {"id": DEV, "name": "sub", "directory": "/d"},
    "error": "e",
}
EVERYTHING = {"devcontainers": [DEVCONTAINER], "containers": [CONTAINER], "warnings": ["w"]}


async def ask(
    server: CoordinatorServer, path: str = PATH, method: str = "GET", token: str = user_token("alice")
) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url_of(server), headers={"Coder-Session-Token": token}) as client:
        return await client.request(method, path, timeout=60)


async def test_every_field_comes_through(server: CoordinatorServer) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[ASKED] = Answer(200, {**EVERYTHING, "newer": 1})
        assert (await ask(server)).content == json.dumps(EVERYTHING, separators=(",", ":")).encode() + b"\n"
        agent.answers[ASKED] = Answer(200, {"containers": None, "devcontainers": None, "warnings": None})
        assert (await ask(server)).content == b'{"devcontainers":null,"containers":[]}\n'
        bare = {"id": DEV, "name": "d", "workspace_folder": "/w", "status": "stopped", "dirty": True}
        agent.answers[ASKED] = Answer(200, {"containers": [], "devcontainers": [bare]})
        assert (await ask(server)).json()["devcontainers"] == [{**bare, "subagent_id": None}]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["one", "two"]),
        ("?label=a=1", ["one"]),
        ("?label=a=1&label=b=2", []),
        ("?label=c=", []),
        ("?label=a=2", []),
    ],
)
async def test_labels_leave_containers_out(server: CoordinatorServer, query: str, names: list[str]) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        both = [{"name": "one", "labels": {"a": "1"}}, {"name": "two", "labels": None}]
        agent.answers[ASKED] = Answer(200, {"containers": both, "devcontainers": [DEVCONTAINER]})
        found = (await ask(server, PATH + query)).json()
    assert [each["name"] for each in found["containers"]] == names
    assert len(found["devcontainers"]) == 1, "which labels do not filter"


@pytest.mark.parametrize("text", ["a", "a=b=c", "", "="])
def test_labels(text: str) -> None:
    if text == "=":
        assert parse_labels([text]) == {"": ""}
        return
    with pytest.raises(Refused, match="Invalid label format"):
        parse_labels([text])


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (Answer(403, {"message": "Dev Container feature not enabled."}), 403, "Dev Container feature not enabled."),
        (Answer(404, b"404 page not found\n"), 404, 'unexpected non-JSON response ""'),
        (Answer(200, {"containers": [{"id": 5}]}), 500, "Internal error fetching containers."),
        (Answer(200, b"nonsense"), 500, "Internal error fetching containers."),
    ],
)
async def test_what_an_agent_may_answer(server: CoordinatorServer, answer: Answer, status: int, message: str) -> None:
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[ASKED] = answer
        response = await ask(server)
    assert (response.status_code, response.json()["message"]) == (status, message)


async def test_an_agent_that_is_slow_or_serves_nothing(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_http_module, "DIAL_SECONDS", 1.0)
    async with open_fake_agent(url_of(server)) as agent:
        agent.is_silent = True
        response = await ask(server)
        assert (response.status_code, response.json()["message"]) == (408, "Internal error fetching containers.")


async def test_recreating(server: CoordinatorServer) -> None:
    asked = f"POST /api/v0/containers/devcontainers/{DEV}/recreate"
    async with open_fake_agent(url_of(server)) as agent:
        agent.answers[asked] = Answer(202, {"message": "Devcontainer recreation initiated", "detail": "Started."})
        response = await ask(server, RECREATE, "POST")
        assert response.status_code == 202
        assert response.content == b'{"message":"Devcontainer recreation initiated","detail":"Started."}\n'
        agent.answers[asked] = Answer(409, {"message": "Unable to recreate transitioning devcontainer"})
        response = await ask(server, RECREATE, "POST")
        assert (response.status_code, response.json()["message"]) == (
            409,
            "Unable to recreate transitioning devcontainer",
        )
        odd = await ask(server, f"{PATH}/devcontainers/a%3Fb%20c/recreate", "POST")
        assert odd.status_code == 404
        assert agent.asked[-1] == "POST /api/v0/containers/devcontainers/a%3Fb%20c/recreate"


async def test_who_may(world: World) -> None:
    document: Any = seed_document()
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["read"]}
    document["grants"] = [grant]
    fill(world.store, document)

    async def request(path: str, method: str, token: str) -> tuple[int, str]:
        async with world.client(token=token) as client:
            response = await client.request(method, path)
            return response.status_code, response.json()["message"]

    state = 'Agent state is "connecting", it must be in the "connected" state.'
    assert (await request(PATH, "GET", ""))[0] == 401
    assert await request(PATH, "GET", user_token("bob")) == (400, state), "he may read"
    assert await request(RECREATE, "POST", user_token("bob")) == (403, "Forbidden.")
    assert await request(RECREATE, "POST", user_token("alice")) == (400, state)
    others = RECREATE.replace(str(MAIN), str(peer_id("web")))
    assert await request(others, "POST", user_token("alice")) == (404, NO_SUCH_AGENT)
    assert await request(f"{PATH}?label=a", "GET", user_token("alice")) == (400, "Invalid label format")
