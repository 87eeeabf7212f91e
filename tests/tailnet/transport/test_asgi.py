"""The HTTP API's server on real sockets: keep-alive, requests that are not its own, bad callers, and its end."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from tailnet.transport.asgi import MAX_BODY_BYTES, ApiServer
from tests.support.tailnet_driver import PATIENCE_SECONDS, read_answer, wait_for

PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
FOREIGN = b"GET /foreign?a=b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class App:
    """Answers with its path and the size of the body; `/slow` when it is told to; `/broken` not at all."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go_on = trio.Event()
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        size, more = 0, True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            size += len(event["body"])
            more = event["more_body"]
        if scope["path"] == "/broken":
            raise ValueError("a defect of the app")
        if scope["path"] == "/slow":
            await self.go_on.wait()
        body = f"{scope['path']} {size}".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.app = App()
        self.api = ApiServer(self.app, lambda target: target.startswith("/foreign"))
        self.nursery = nursery
        self.returned: list[bytes] = []
        self.links: list[Link] = []

    @asynccontextmanager
    async def connect(self, received: bytes = b"") -> AsyncIterator[trio.SocketStream]:
        """A caller whose first bytes were received already, elsewhere."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            stream = await trio.open_tcp_stream(*listener.getsockname())
            sock, address = listener.accept()
        sock.setblocking(False)

        link = Link(sock, address)
        self.links.append(link)

        async def serve() -> None:
            self.returned.append(await self.api.serve(LinkStream(link, received)))

        self.nursery.start_soon(serve)
        with trio.fail_after(PATIENCE_SECONDS):
            async with stream:
                yield stream
        if sock.fileno() >= 0 and self.returned and self.returned[-1]:
            sock.close()


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


async def body_of(stream: trio.SocketStream) -> bytes:
    return (await read_answer(stream)).body


async def test_bytes_received_elsewhere_come_first(world: World) -> None:
    async with world.connect(PAGE[:10]) as stream:
        await stream.send_all(PAGE[10:])
        assert await body_of(stream) == b"/page 0"
        for _ in range(3):
            await stream.send_all(PAGE)
            assert await body_of(stream) == b"/page 0"
        assert world.api.connection_count == 1
    await wait_for(lambda: world.returned)
    assert world.returned == [b""]
    assert world.api.connection_count == 0


@pytest.mark.parametrize("cut", range(1, 24, 4))
async def test_a_request_that_is_not_the_apps_is_handed_back_whole(world: World, cut: int) -> None:
    async with world.connect(PAGE) as stream:
        assert await body_of(stream) == b"/page 0"
        await stream.send_all(FOREIGN[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(FOREIGN[cut:])
        await wait_for(lambda: world.returned)
        assert FOREIGN.startswith(world.returned[0])
        assert b"\r\n" in world.returned[0]
        # The socket is open and the rest, if any, is in it.
        await stream.send_all(b"more")
    assert world.app.paths == ["/page"]
    assert world.api.connection_count == 0


async def test_a_hand_back_loses_no_byte(world: World) -> None:
    flood = FOREIGN + bytes(range(256)) * 800
    async with world.connect(PAGE) as stream:
        assert await body_of(stream) == b"/page 0"
        await stream.send_all(flood)
        await wait_for(lambda: world.returned)
        received, link = world.returned[0], world.links[0]
        while len(received) < len(flood):
            await trio.lowlevel.wait_readable(link.fd)
            received += link.sock.recv(1 << 20)
    assert received == flood


async def test_a_quick_caller_is_handed_back_too(world: World) -> None:
    async with world.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
        await wait_for(lambda: world.app.paths)
        await stream.send_all(FOREIGN)
        await trio.testing.wait_all_tasks_blocked()
        assert world.returned == []
        world.app.go_on.set()
        assert await body_of(stream) == b"/slow 0"
        await wait_for(lambda: world.returned)
        assert world.returned == [FOREIGN]


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    other = b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n"
    async with world.connect(PAGE + other) as stream:
        first = await read_answer(stream)
        second = await read_answer(stream, first.rest)
        assert (first.body, second.body) == (b"/page 0", b"/other 0")
        await stream.send_all(PAGE)
        await stream.send_all(other)
        first = await read_answer(stream)
        second = await read_answer(stream, first.rest)
        assert (first.body, second.body) == (b"/page 0", b"/other 0")


async def test_bodies_that_look_like_requests_are_bodies(world: World) -> None:
    post = b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(FOREIGN)
    async with world.connect(post) as stream:
        await wait_for(lambda: world.app.paths)
        await stream.send_all(FOREIGN)
        assert await body_of(stream) == b"/page %d" % len(FOREIGN)
        await stream.send_all(FOREIGN)
        await wait_for(lambda: world.returned)
        assert world.returned == [FOREIGN]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET /page HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"x" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        PAGE[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: ??\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_bad_requests_end_their_connection_alone(
    world: World, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for received in (raw, PAGE):
        async with world.connect(received) as stream:
            if received is PAGE:
                await body_of(stream)
                await stream.send_all(raw)
            # Some of these are answered, some wait for more, and some are cut off.
            with trio.move_on_after(0.1), suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
    async with world.connect(PAGE) as stream:
        assert await body_of(stream) == b"/page 0"
    await wait_for(lambda: not world.api.connection_count)
    assert "a connection of the API failed" not in caplog.text


@pytest.mark.parametrize("path", ["/page", "/slow", "/broken"])
async def test_callers_that_reset_at_any_time(world: World, path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with world.connect(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as stream:
        await wait_for(lambda: world.app.paths)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    world.app.go_on.set()
    await wait_for(lambda: not world.api.connection_count)
    assert "a connection of the API failed" not in caplog.text


async def test_a_body_has_a_bound(world: World) -> None:
    head = f"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    async with world.connect(head) as stream:
        answered = trio.Event()

        async def read() -> None:
            assert await stream.receive_some()
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with trio.CancelScope() as sending:
                for _ in range(MAX_BODY_BYTES // 65536 + 1):
                    if answered.is_set():
                        sending.cancel()
                    await stream.send_all(bytes(65536))
    await wait_for(lambda: not world.api.connection_count)


async def test_stopping_ends_idle_connections_and_waits_for_the_others(world: World) -> None:
    async with world.connect(PAGE) as idle, world.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as busy:
        await body_of(idle)
        await wait_for(lambda: len(world.app.paths) == 2)
        await world.api.stop()
        assert await idle.receive_some() == b""
        await wait_for(lambda: world.api.connection_count == 1)
        world.app.go_on.set()
        assert await body_of(busy) == b"/slow 0"
        await world.api.wait_idle()
        assert await busy.receive_some() == b""
    await world.api.wait_idle()
