"""An agent's HTTP API on port 4: its routes, what it refuses, and clients that misbehave."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from derp.transport.http import ClientHttp, Response, exchange
from tailnet.agent import http, http_devcontainers
from tailnet.agent.http import AgentHttp
from tailnet.agent.ports import Service
from tailnet.node.streams import TunnelStream
from tailnet.transport import messages
from tests.support.agents import Served, served
from tests.support.engines import INSPECTED

HTTP_PORT = 4
UPGRADE = (
    f"GET {http.WATCH_PATH} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()


@asynccontextmanager
async def an_api() -> AsyncIterator[Served]:
    async with served(HTTP_PORT, Service("http", AgentHttp().serve)) as agent:
        yield agent


async def ask(agent: Served, target: str, method: str = "GET", body: bytes = b"") -> Response:
    stream = await agent.dial()
    async with stream:
        client = ClientHttp()
        return await exchange(stream, client, client.send_request(method, target, [("Host", "agent")], body))


async def read_all(stream: TunnelStream) -> bytes:
    said = b""
    while data := await stream.receive_some():
        said += data
    return said


async def test_hello_and_what_is_not_there() -> None:
    async with an_api() as agent:
        hello = await ask(agent, "/")
        assert (hello.status, json.loads(hello.body)) == (200, {"message": "Hello from the agent!"})
        assert hello.headers["content-type"] == "application/json; charset=utf-8"
        assert hello.headers["connection"] == "close"
        missing = await ask(agent, "/api/v0/nothing?x=1")
        assert (missing.status, json.loads(missing.body)) == (404, {"message": "Route not found."})
        wrong = await ask(agent, "/api/v0/netcheck", "POST", b"null")
        assert (wrong.status, json.loads(wrong.body)["detail"]) == (405, "Here is GET.")


async def test_listening_ports() -> None:
    """One of this process is the agent's own, and is not shown."""
    async with an_api() as agent:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        own = listener.socket.getsockname()[1]
        script = (
            "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
            "print(s.getsockname()[1], flush=True); sys.stdin.read()"
        )
        async with trio.open_nursery() as nursery:
            other = await nursery.start(lambda task_status: _python(script, task_status))
            port = int(await other.stdout.receive_some())
            answer = await ask(agent, "/api/v0/listening-ports")
            nursery.cancel_scope.cancel()
        found = {each["port"]: each for each in json.loads(answer.body)["ports"]}
        assert found[port].pop("process_name").startswith("python")
        assert found[port] == {"network": "tcp", "port": port}
        assert own not in found
        await listener.aclose()


async def _python(script: str, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, task_status=task_status
    )


async def test_containers(engine: Path) -> None:
    async with an_api() as agent:
        answer = await ask(agent, "/api/v0/containers")
        said = json.loads(answer.body)
        assert answer.status == 200
        assert [each["name"] for each in said["containers"]] == ["web"]
        (devcontainer,) = said["devcontainers"]
        assert devcontainer["workspace_folder"] == "/src"
        assert devcontainer["status"] == "running"
        assert devcontainer["container"] == said["containers"][0]


async def test_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    async with an_api() as agent:
        for method, target in (
            ("GET", "/api/v0/containers"),
            ("POST", "/api/v0/containers/devcontainers/x/recreate"),
        ):
            answer = await ask(agent, target, method)
            said = json.loads(answer.body)
            assert (answer.status, said["message"]) == (403, "Dev Container feature not enabled.")
            assert "no container engine" in said["detail"]


async def test_containers_are_watched(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_devcontainers, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(http_devcontainers, "WATCH_SECONDS", 0.02)
    async with an_api() as agent, trio.open_nursery() as nursery:
        stream = await agent.dial()
        socket = await wrap_client_stream(nursery, stream, "agent", http.WATCH_PATH)
        first = json.loads(await socket.get_message())
        assert [each["running"] for each in first["containers"]] == [True]
        stopped = {**INSPECTED, "State": {"Status": "exited"}}
        (engine / "inspect.new").write_text(json.dumps([stopped]))
        (engine / "inspect.new").rename(engine / "inspect")
        second = json.loads(await socket.get_message())
        assert [each["running"] for each in second["containers"]] == [False]
        assert [each["status"] for each in second["devcontainers"]] == ["stopped"]
        (engine / "ps").unlink()
        with pytest.raises(ConnectionClosed):  # the engine is gone
            await socket.get_message()
        while agent.context.counters.connections["http"]:  # nobody tells
            await trio.lowlevel.checkpoint()
        assert agent.context.counters.failed["http"] == 0


async def test_a_watcher_that_is_none(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_WATCHERS", 0)
    async with an_api() as agent:
        plain = await ask(agent, http.WATCH_PATH)
        assert (plain.status, json.loads(plain.body)["message"]) == (426, "Containers are watched on a websocket.")
        stream = await agent.dial()
        wish = (
            "GET %s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        )
        await stream.send_all(
            (wish % http.WATCH_PATH).encode() + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 503 " in await read_all(stream)


async def test_a_watcher_that_reads_nothing_is_left(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_devcontainers, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(http_devcontainers, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(messages, "SEND_SECONDS", 0.3)
    many = [{**INSPECTED, "Id": str(number), "Name": "/" + "x" * 1000} for number in range(3000)]
    async with an_api() as agent:
        stream = await agent.dial()
        wish = (
            "GET %s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        )
        (engine / "inspect").write_text(json.dumps(many))
        await stream.send_all(
            (wish % http.WATCH_PATH).encode() + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        while not agent.context.counters.connections["http"]:  # nobody tells
            await trio.lowlevel.checkpoint()
        while agent.context.counters.connections["http"]:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"SSH-2.0-x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request(sent: bytes, status: bytes) -> None:
    async with an_api() as agent:
        stream = await agent.dial()
        await stream.send_all(sent)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 " + status)


async def test_one_that_sends_half_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.05)
    async with an_api() as agent:
        stream = await agent.dial()
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        assert await read_all(stream) == b""


async def test_one_that_vanishes_is_no_fault() -> None:
    async with an_api() as agent:
        stream = await agent.dial()
        await stream.send_all(b"GET / HT")
        await stream.send_eof()
        assert await read_all(stream) == b""
        assert agent.context.counters.failed["http"] == 0


async def test_what_is_asked_about_the_network() -> None:
    async with an_api() as agent:
        report = json.loads((await ask(agent, "/api/v0/netcheck")).body)
        assert report["severity"] in ("ok", "warning")
        assert any(each["name"] == "lo" for each in report["interfaces"]["interfaces"])
        assert report["net_info"]["WorkingUDP"] is True
        paths = await ask(agent, "/debug/magicsock")
        assert b"directly by " in paths.body
        assert paths.headers["content-type"] == "text/plain; charset=utf-8"
        assert (await ask(agent, "/debug/magicsock/debug-logging/false")).status == 200
        assert (await ask(agent, "/debug/magicsock/debug-logging/maybe")).status == 404
        counts = (await ask(agent, "/debug/prometheus")).body
        assert b'agent_connections_served_total{service="http"}' in counts
