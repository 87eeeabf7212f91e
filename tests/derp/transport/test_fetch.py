"""HTTP calls to a real server on loopback."""

import logging
import socket
from contextlib import suppress
from functools import partial

import httpx
import pytest
import trio

from derp.errors import ConnectError, TransportTimeout
from derp.transport.fetch import Fetched, HttpCaller
from tests.derp.server.control_plane import YES, Answer, open_control_plane
from tests.support.certificates import issue, server_context


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
            fetched = await caller.post(url, b"", 4096)
            assert fetched.redirect == f"a redirect (302) to {url}elsewhere"
        assert len([request for request in asked if request]) == 1
        nursery.cancel_scope.cancel()


async def test_nobody_there_is_a_connect_error_that_names_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/allow"
    async with HttpCaller(timeout_seconds=5.0) as caller:
        with pytest.raises(ConnectError, match=f"{url} cannot be reached: "):
            await caller.post(url, b"", 4096)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("self-signed", "its certificate is self-signed: pin it"),
        ("unknown authority", "its issuer is not trusted here"),
        ("no TLS", "the other side does not speak TLS there: is it http://"),
        ("hangs up", "the other side closed the connection during TLS"),
        ("refuses the name", "the other side does not serve that name"),
    ],
)
async def test_why_tls_failed_is_told(kind: str, reason: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            if kind == "no TLS":
                await stream.receive_some()
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif kind == "refuses the name":
                await stream.receive_some()
                await stream.send_all(bytes.fromhex("15030300020270"))  # a fatal alert, unrecognized_name
                await stream.receive_some()
            elif kind != "hangs up":
                leaf = issue("127.0.0.1", issuer=issue(is_authority=True) if kind == "unknown authority" else None)
                with suppress(trio.BrokenResourceError):
                    await trio.SSLStream(stream, server_context(leaf), server_side=True).do_handshake()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        async with HttpCaller(timeout_seconds=5.0) as caller:
            url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}/allow"
            with pytest.raises(ConnectError, match=f"^{url} cannot be reached: {reason}"):
                await caller.post(url, b"", 4096)
        nursery.cancel_scope.cancel()


SILENT = [
    httpx.ConnectError(""),
    httpx.ReadError(""),
    httpx.RemoteProtocolError(""),
    httpx.UnsupportedProtocol(""),
    httpx.DecodingError(""),
    httpx.InvalidURL(""),
]


async def test_nor_does_the_library_tell_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_control_plane(lambda request: YES) as site, HttpCaller(timeout_seconds=5.0) as caller:
        await caller.post(site.url.replace("://", "://u:s3cret@") + "?token=s3cret", b"", 4096)
    told = [record.getMessage() for record in caplog.records if record.name == "httpx"]
    assert told
    assert "s3cret" not in "".join(told)
    assert "<secret>@127.0.0.1" in told[0]


def test_where_a_redirect_leads_is_told_without_secrets() -> None:
    assert Fetched(200, b"", "https://x/").redirect == ""
    assert Fetched(302, b"").redirect == "a redirect (302) to somewhere that it does not say"
    assert Fetched(307, b"", "https://u:p@x/\x1b").redirect == "a redirect (307) to https://<secret>@x/\\x1b"


async def test_a_name_with_its_final_dot_is_asked_for_without() -> None:
    """No certificate has the dot; `localhost.` is a name that resolves everywhere."""
    asked: list[str | None] = []
    context = server_context(issue("localhost"))
    context.sni_callback = lambda tls, name, context: asked.append(name)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await trio.SSLStream(stream, context, server_side=True).do_handshake()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        async with HttpCaller(timeout_seconds=5.0) as caller:
            with pytest.raises(ConnectError, match="self-signed"):
                await caller.get(f"https://localhost.:{listener.socket.getsockname()[1]}/", 4096)
        nursery.cancel_scope.cancel()
    assert asked == ["localhost"]


@pytest.mark.parametrize("error", SILENT, ids=lambda error: type(error).__name__)
async def test_an_error_without_a_word_still_has_a_reason(error: Exception) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    caller = HttpCaller(timeout_seconds=5.0)
    caller._client = httpx.AsyncClient(transport=httpx.MockTransport(fail))
    async with caller:
        with pytest.raises(ConnectError, match=f": {type(error).__name__}, for which no reason is given$"):
            await caller.get("http://relay.example/", 4096)


@pytest.mark.parametrize("url", ["http://u:s3cret@127.0.0.1:1/?token=s3cret", "https://u:s3cret@127.0.0.1:x/"])
async def test_no_password_of_a_url_is_told(url: str) -> None:
    async with HttpCaller(timeout_seconds=5.0) as caller:
        with pytest.raises(ConnectError, match="<secret>@127") as caught:
            await caller.get(url, 4096)
    assert "s3cret" not in str(caught.value)


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
