"""HTTP calls to a real server on loopback."""

import socket
from functools import partial

import pytest
import trio

from derp.errors import ConnectError, TransportTimeout
from derp.transport.fetch import Fetched, HttpCaller
from tests.derp.server.control_plane import YES, Answer, open_control_plane


async def test_a_post_is_answered_and_says_what_genuine_relays_say() -> None:
    async with open_control_plane(lambda request: (418, b"I am " + request.body)) as site:
        async with HttpCaller(timeout_seconds=5.0) as caller:
            assert await caller.post(site.url, b"a pot", 4096) == Fetched(418, b"I am a pot")
        (request,) = site.requests
        assert (request.method, request.target) == ("POST", "/allow")
        assert "content-type" not in request.headers


async def test_connections_are_kept() -> None:
    async with open_control_plane(lambda request: YES) as site, HttpCaller(timeout_seconds=5.0) as caller:
        for _ in range(3):
            await caller.post(site.url, b"", 4096)
        assert len(site.requests) == 3


async def test_a_body_is_cut_at_the_limit() -> None:
    large: Answer = (200, b"x" * 100_000)
    async with open_control_plane(lambda request: large) as site, HttpCaller(timeout_seconds=5.0) as caller:
        for _ in range(3):
            assert await caller.post(site.url, b"", 4096) == Fetched(200, b"x" * 4096)


async def test_a_redirect_is_not_followed() -> None:
    asked: list[bytes] = []

    async def redirect(stream: trio.SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive_some())
            await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
            asked.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, redirect, 0, host="127.0.0.1"))
        async with HttpCaller(timeout_seconds=5.0) as caller:
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
            assert (await caller.post(url, b"", 4096)).status == 302
        assert len([request for request in asked if request]) == 1
        nursery.cancel_scope.cancel()


async def test_nobody_there_is_a_connect_error_that_names_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/allow"
    async with HttpCaller(timeout_seconds=5.0) as caller:
        with pytest.raises(ConnectError, match=f"{url} cannot be reached: "):
            await caller.post(url, b"", 4096)


async def test_a_server_that_hangs_up_is_a_connect_error() -> None:
    async with open_control_plane(lambda request: None) as site, HttpCaller(timeout_seconds=5.0) as caller:
        with pytest.raises(ConnectError, match="cannot be reached"):
            await caller.post(site.url, b"", 4096)


async def test_a_server_that_speaks_no_http_is_a_connect_error() -> None:
    async def garbage(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\x00\x01 nonsense\r\n\r\n")
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, garbage, 0, host="127.0.0.1"))
        async with HttpCaller(timeout_seconds=5.0) as caller:
            with pytest.raises(ConnectError):
                await caller.post(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/", b"", 4096)
        nursery.cancel_scope.cancel()


async def test_a_server_that_takes_too_long_is_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async with open_control_plane(lambda request: YES) as site, HttpCaller(timeout_seconds=5.0) as caller:
        site.gate = trio.Event()
        with pytest.raises(TransportTimeout, match="did not answer within 5 s"):
            await caller.post(site.url, b"", 4096)


async def test_a_server_that_drips_its_answer_is_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """Each byte comes in time; all of them together do not."""

    async def drip(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await trio.sleep(1.0)
            await stream.send_all(b"x")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, drip, 0, host="127.0.0.1"))
        async with HttpCaller(timeout_seconds=5.0) as caller:
            with pytest.raises(TransportTimeout):
                await caller.post(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/", b"", 4096)
        nursery.cancel_scope.cancel()
