"""A user's story over HTTP against a running server: an agent is there in the store, it connects, and whoever owns it
reads it back through every GET of the API, follows its logs and watches its metadata.  Who the agent is, the caller
says: ours or one on the genuine layers."""

import json
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import httpx
import trio
from trio_websocket import open_websocket_url

from tests.support.openapi_document import document
from tests.support.seeds import definitions, make_id
from tests.support.tailnet_servers import Agent, Seed, Server, User, running_server

SECONDS = 30.0  # a hang guard
# httpx leaves generators of its own behind when a stream is left, for which trio has a warning.
LEFT_STREAMS = "ignore:Async generator 'http(core|x):ResourceWarning"
API = "/api/v2/workspaceagents"
EDITOR = make_id("editor of main")
# More than one page of the store and of one message.
LINES = [f"line {number}" for number in range(1_200)]
# What is asked for, and what the answer is where it is no 200: nobody set a provider up.
QUERIES = {f"{API}/me/external-auth": "?match=github.com", f"{API}/me/gitauth": "?url=github.com"}
WANTED = {
    f"{API}/me/external-auth": 404,
    f"{API}/me/gitauth": 404,
}
# What only administrators may ask.
OF_ADMINISTRATORS = "/api/v2/admin/"
# Agents may be told all of it, and are told nothing while they wait.
ENDLESS = {f"{API}/me/reinit"}
# What is asked inside an agent: those of the story have no ports (tests/tailnet/server/test_into_agents.py has).
INSIDE = {f"{API}/{{workspaceagent}}/{name}" for name in ("listening-ports", "containers")}
SOCKETS_ONLY = {
    "/api/v2/derp-map",
    f"{API}/{{workspaceagent}}/watch-metadata-ws",
    f"{API}/{{workspaceagent}}/containers/watch",
}


class Agents(Protocol):
    """What the story has an agent do, once it is connected and said that it is ready."""

    async def log(self, *lines: str) -> None: ...

    async def metadata(self, values: Mapping[str, str]) -> None: ...

    async def healthy(self, app_id: UUID) -> None: ...


class Reader:
    """The owner."""

    def __init__(self, url: str, user: User, agent: Agent) -> None:
        self.url, self.user, self.agent = url, user, agent
        self.path = f"{API}/{agent.id}"
        self.headers = {"Coder-Session-Token": user.token}

    async def get(self, path: str, token: str = "") -> httpx.Response:
        headers = {"Coder-Session-Token": token} if token else self.headers
        async with httpx.AsyncClient(base_url=self.url, headers=headers) as client:
            return await client.get(path)

    async def until(self, holds: Callable[[Any], bool]) -> Any:
        """The agent as the API shows it, once that holds: what agents say is answered before the store has it."""
        async with httpx.AsyncClient(base_url=self.url, headers=self.headers) as client:
            with trio.move_on_after(SECONDS):
                while True:
                    answer = await client.get(self.path)
                    assert answer.status_code == 200, answer.text
                    shown = answer.json()
                    if holds(shown):
                        return shown
                    await trio.sleep(0.05)
        raise AssertionError(f"it never held: {shown}")

    @asynccontextmanager
    async def events(self, path: str) -> AsyncIterator[AsyncGenerator[tuple[str, Any], None]]:
        """Server-sent events: (type, data)."""
        async with (
            httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=SECONDS) as client,
            client.stream("GET", path) as answer,
        ):
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"

            async def read() -> AsyncGenerator[tuple[str, Any], None]:
                kind = ""
                async for line in answer.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        yield kind, json.loads(value)

            lines = read()
            yield lines
            await lines.aclose()

    def socket(self, path: str) -> AbstractAsyncContextManager[Any]:
        headers = [(b"Coder-Session-Token", self.user.token.encode())]
        return open_websocket_url(self.url.replace("http", "ws", 1) + path, extra_headers=headers)


@contextmanager
def open_scene(folder: Path) -> Iterator[tuple[Server, User, Agent]]:
    """A server with a user and the agent that he owns."""
    seed = Seed()
    alice = seed.add_user("alice")
    agent = seed.add_agent(alice)
    seed.definitions[agent.id] = definitions()
    key = folder / "secrets.key"
    key.write_text(b64encode(bytes(32)).decode())
    environment = {"TAILNET_SECRETS_KEY_FILE": str(key)}
    with running_server("ours", folder / "server", seed, environment=environment) as server:
        yield server, alice, agent


async def tell_story(
    url: str, user: User, agent: Agent, connect: Callable[[], AbstractAsyncContextManager[Agents]]
) -> None:
    """The whole of it, in a scene of `open_scene`."""
    reader = Reader(url, user, agent)
    before = (await reader.get(reader.path)).json()
    assert (before["status"], before["lifecycle_state"], before["version"]) == ("connecting", "created", "")
    assert before["health"] == {"healthy": False, "reason": "agent has not yet connected"}
    assert "first_connected_at" not in before
    async with connect() as connected:
        shown = await reader.until(lambda body: body["lifecycle_state"] == "ready" and "latency" in body)
        check_connected(shown)
        await reader_follows_logs(reader, connected)
        await reader_watches_metadata(reader, connected)
        await connected.healthy(EDITOR)
        shown = await reader.until(lambda body: body["apps"][0]["health"] == "healthy")
        assert shown["logs_length"] >= sum(map(len, LINES))
        await read_every_get(reader)
    gone = await reader.until(lambda body: body["status"] == "disconnected")
    assert gone["health"] == {"healthy": False, "reason": "agent has lost connection"}
    assert gone["disconnected_at"] >= gone["last_connected_at"] >= gone["first_connected_at"]
    assert gone["apps"] == shown["apps"], "what it reported stays"


def check_connected(shown: Any) -> None:
    assert shown["status"] == "connected"
    assert shown["health"] == {"healthy": True}
    assert shown["version"].startswith("v2.")
    assert shown["api_version"].startswith("2.")
    assert shown["expanded_directory"] == "/home/agent"
    assert shown["started_at"] <= shown["ready_at"]
    assert shown["startup_script_behavior"] == "blocking"
    assert [app["slug"] for app in shown["apps"]] == ["editor", "shell"]
    assert "disconnected_at" not in shown
    ((region, latency),) = shown["latency"].items()
    assert region == "Embedded relay"
    assert (latency["preferred"], latency["latency_ms"] > 0) == (True, True)


async def reader_follows_logs(reader: Reader, connected: Agents) -> None:
    """Some lines are there, others come while somebody reads: each once, in order, over websocket and afterwards."""
    await connected.log(*LINES[:1_100])
    with trio.fail_after(SECONDS):
        async with (
            reader.socket(f"{reader.path}/logs?follow&after=0&no_compression") as socket,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(lambda: connected.log(*LINES[1_100:]))
            followed: list[Any] = []
            while not followed or followed[-1]["output"] != LINES[-1]:
                followed += json.loads(await socket.get_message())
    ids = [each["id"] for each in followed]
    assert ids == sorted(set(ids))
    outputs = [each["output"] for each in followed if each["output"].startswith("line ")]
    assert outputs == LINES
    for name in ("logs", "startup-logs"):
        assert (await reader.get(f"{reader.path}/{name}")).json() == followed
        after = ids[-3]
        assert (await reader.get(f"{reader.path}/{name}?after={after}")).json() == followed[-2:]
    text = (await reader.get(f"{reader.path}/logs?format=text")).text
    assert text.splitlines()[-1].endswith(f"[info] [agent.{reader.agent.name}|External] {LINES[-1]}")


async def reader_watches_metadata(reader: Reader, connected: Agents) -> None:
    """Over server-sent events and over a websocket alike: at once, and again when it changes."""
    path = f"{reader.path}/watch-metadata"

    def value(items: Any) -> str:
        found: str = next(each["result"]["value"] for each in items if each["description"]["key"] == "cpu")
        return found

    with trio.fail_after(SECONDS):
        async with reader.events(path) as events, reader.socket(f"{path}-ws") as socket:
            kind, first = await anext(events)
            assert kind == "data"
            assert json.loads(await socket.get_message())["type"] == "data"
            assert [each["description"]["key"] for each in first] == ["cpu", "disk"]
            await connected.metadata({"cpu": "42 %"})
            while value((await anext(events))[1]) != "42 %":
                pass
            while value(json.loads(await socket.get_message())["data"]) != "42 %":
                pass


async def read_every_get(reader: Reader) -> None:
    """Every GET of the description that an agent or its owner may ask, found there: a new one is read without a line
    here."""
    asked = 0
    for path, methods in document()["paths"].items():
        operation = methods.get("get", {})
        caller = operation.get("x-caller")
        if caller not in ("user", "agent") or path in ENDLESS | INSIDE or path.startswith(OF_ADMINISTRATORS):
            continue
        asked += 1
        target = path.replace("{workspaceagent}", str(reader.agent.id)).replace("{user}", "me")
        target = target.replace("{workspacename}", reader.agent.workspace_name).replace("{provider}", "github")
        assert "{" not in target, "the story does not know what stands there"
        token = reader.agent.token if caller == "agent" else ""
        is_socket = set(operation["responses"]) & {"101", "200"} == {"101"} or path in SOCKETS_ONLY
        if path.endswith("/watch-metadata"):
            continue  # read above
        answer = await reader.get(target + QUERIES.get(path, ""), token)
        wanted = 426 if is_socket else WANTED.get(path, 200)
        assert answer.status_code == wanted, f"{path}: {answer.status_code} {answer.text[:300]}"
        assert answer.headers["x-request-id"]
        if path == "/api/v2/derp-map":
            async with reader.socket(target) as socket:
                assert json.loads(await socket.get_message())["Regions"]
    assert asked >= 18
    workspaces = (await reader.get("/api/v2/workspaces")).json()
    (workspace,) = (each for each in workspaces["workspaces"] if each["name"] == reader.agent.workspace_name)
    by_name = (await reader.get(f"/api/v2/users/me/workspace/{reader.agent.workspace_name}")).json()
    shown = (await reader.get(reader.path)).json()
    for each in (workspace, by_name):
        (inside,) = each["latest_build"]["resources"][0]["agents"]
        volatile = {"last_connected_at", "updated_at"}
        assert {key: inside[key] for key in inside if key not in volatile} == {
            key: shown[key] for key in shown if key not in volatile
        }
    generic = (await reader.get(f"{API}/connection")).json()
    assert generic == (await reader.get(f"{reader.path}/connection")).json()
    assert "999" in generic["derp_map"]["Regions"]
    assert (await reader.get("/api/v2/buildinfo")).json()["agent_api_version"]
    assert (await reader.get("/api/v2/users/me")).json()["username"] == reader.user.username
