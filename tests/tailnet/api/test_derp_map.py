"""The map stream over real sockets: Hypercorn's trio worker and a websocket client."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tailnet.api.app import create_app
from tests.support.api_world import World
from tests.support.seeds import user_token

TOKEN = [("Coder-Session-Token", user_token("alice"))]


@pytest.fixture
async def url(world: World, nursery: trio.Nursery) -> AsyncIterator[str]:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.websocket_ping_interval = 0.01
    shutdown = trio.Event()

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(create_app(world.services), config, shutdown_trigger=shutdown.wait, task_status=task_status)  # type: ignore[arg-type]  # Starlette's and Hypercorn's ASGI types differ in name only

    binds: list[str] = await nursery.start(run)
    with trio.fail_after(60):
        yield binds[0].replace("http", "ws") + "/api/v2/derp-map"
    shutdown.set()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[WebSocketConnection]:
    """A websocket with alice's token, on a stream that is ours to close: the library leaves it open at times."""
    address, _, path = url.removeprefix("ws://").partition("/")
    host, _, port = address.partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream, trio.open_nursery() as nursery:
        socket = await wrap_client_stream(
            nursery,
            stream,
            address,
            f"/{path}",
            extra_headers=[(name.encode(), value.encode()) for name, value in TOKEN],
        )
        yield socket
        # Hanging up without a word, as a killed client does; a polite close would meet the server's quick pings.
        nursery.cancel_scope.cancel()


async def receive(socket: WebSocketConnection) -> dict[str, object]:
    message = await socket.get_message()
    assert isinstance(message, bytes)
    assert message.endswith(b"}\n")
    value = json.loads(message)
    assert isinstance(value, dict)
    return value


async def refused(url: str, headers: list[tuple[str, str]]) -> tuple[int, dict[str, object]]:
    """The answer to a websocket handshake that is turned away, read byte by byte: libraries hide it."""
    address, _, path = url.removeprefix("ws://").partition("/")
    host, _, port = address.partition(":")
    head = [
        f"GET /{path} HTTP/1.1",
        f"Host: {address}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *(f"{name}: {value}" for name, value in headers),
    ]
    received = b""
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all("\r\n".join(head).encode() + b"\r\n\r\n")
        while not received.endswith(b"}\n"):
            chunk = await stream.receive_some()
            assert chunk, received
            received += chunk
    answer, _, body = received.partition(b"\r\n\r\n")
    return int(answer.split()[1]), json.loads(body)


async def test_the_map_at_once_and_on_change(world: World, url: str) -> None:
    async with connected(url) as socket:
        first = await receive(socket)
        assert first == json.loads(world.services.derp_maps.current.json)
        world.services.derp_maps.steer(scores={999: 2.0})
        second = await receive(socket)
        assert second["HomeParams"] == {"RegionScore": {"999": 2.0}}
        # Pings of the server are answered meanwhile; what the client sends is dropped.
        await socket.send_message("hello")
        await socket.ping()
        world.services.derp_maps.steer(scores={})
        assert await receive(socket) == first


async def test_many_streams(world: World, url: str) -> None:
    received: list[object] = []
    settled = [trio.Event() for _ in range(20)]

    async def stream(first: trio.Event) -> None:
        async with connected(url) as socket:
            await receive(socket)
            first.set()
            received.append((await receive(socket))["HomeParams"])

    async with trio.open_nursery() as nursery:
        for event in settled:
            nursery.start_soon(stream, event)
        for event in settled:
            await event.wait()
        world.services.derp_maps.steer(scores={999: 3.0})
    assert received == [{"RegionScore": {"999": 3.0}}] * 20


async def test_a_leaving_server_says_so(world: World, url: str) -> None:
    async with connected(url) as socket:
        await receive(socket)
        world.services.derp_maps.feed.close("canceled")
        with pytest.raises(ConnectionClosed) as caught:
            await socket.get_message()
    assert caught.value.reason.code == 1001


@pytest.mark.parametrize("token", ["", "nonsense"])
async def test_without_a_usable_key(url: str, token: str) -> None:
    status, body = await refused(url, [("Coder-Session-Token", token)] if token else [])
    assert status == 401
    assert str(body["message"]).startswith("You are signed out")
    assert body["detail"]


async def test_other_websites_may_not(url: str) -> None:
    status, body = await refused(url, [*TOKEN, ("Origin", "https://evil.example.com")])
    assert (status, body["message"]) == (403, "This website may not open websockets here.")


async def test_unknown_websockets(url: str) -> None:
    assert await refused(url + "s", TOKEN) == (404, {"message": "Route not found."})


async def test_a_request_that_lost_its_upgrade(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        response = await client.get("/api/v2/derp-map")
    assert response.status_code == 426
    assert "proxy" in response.json()["detail"]
    async with world.client() as client:
        assert (await client.get("/api/v2/derp-map")).status_code == 401
