"""Small real servers on loopback that stand between a client and a relay: an HTTP proxy, a login page."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from derp.transport.http import HttpError, Request, ServerHttp


@dataclass
class StandIn:
    """A running server: where it listens, and what it was asked."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def open_http_proxy(
    *, authorization: str = "", hosts: dict[str, int] | None = None, refuse: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[StandIn]:
    """An HTTP proxy that only knows CONNECT.  `hosts`: names it resolves, to ports of 127.0.0.1."""
    proxy = StandIn()

    async def serve(stream: trio.abc.Stream) -> None:
        http = ServerHttp()
        request = await _read_request(stream, http)
        if request is None:
            return
        proxy.requests.append(request)
        if refuse:
            await stream.send_all(http.send_response(refuse))
            return
        if authorization and request.headers.get("proxy-authorization") != authorization:
            await stream.send_all(http.send_response(407, [("Proxy-Authenticate", "Basic")]))
            return
        host, _, port = request.target.rpartition(":")
        try:
            onward = await trio.open_tcp_stream("127.0.0.1", (hosts or {}).get(host, int(port)))
        except OSError:
            await stream.send_all(http.send_response(502))
            return
        await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        await _splice(stream, onward)

    async with _serving(proxy, serve, tls):
        yield proxy


@asynccontextmanager
async def open_page(answer: Callable[[Request], bytes], *, tls: ssl.SSLContext | None = None) -> AsyncIterator[StandIn]:
    """A server that gives `answer(request)` to every request and closes."""
    page = StandIn()

    async def serve(stream: trio.abc.Stream) -> None:
        request = await _read_request(stream, ServerHttp())
        if request is not None:
            page.requests.append(request)
            await stream.send_all(answer(request))

    async with _serving(page, serve, tls):
        yield page


@dataclass
class Front(StandIn):
    """A reverse proxy in front of a server; `pass_on` says what becomes of the head of each connection's first request:
    what goes on, or an answer (it begins with HTTP/)."""

    target: int = 0
    pass_on: Callable[[bytes], bytes] = field(default=lambda head: head)


@asynccontextmanager
async def open_front() -> AsyncIterator[Front]:
    """It listens before its target is known, so that a server can be told its address."""
    front = Front()

    async def serve(stream: trio.abc.Stream) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = await stream.receive_some()
            if not data:
                return
            received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        head = front.pass_on(head)
        if head.startswith(b"HTTP/"):
            await stream.send_all(head + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        onward = await trio.open_tcp_stream("127.0.0.1", front.target)
        await onward.send_all(head + b"\r\n\r\n" + rest)
        await _splice(stream, onward)

    async with _serving(front, serve, None):
        yield front


@asynccontextmanager
async def _serving(
    stand_in: StandIn, serve: Callable[[trio.abc.Stream], Awaitable[None]], tls: ssl.SSLContext | None
) -> AsyncIterator[None]:
    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            # Clients under test leave when they like.
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, HttpError):
                await serve(stream if tls is None else trio.SSLStream(stream, tls, server_side=True))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        stand_in.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, one, [listener])
        yield
        nursery.cancel_scope.cancel()


async def _read_request(stream: trio.abc.Stream, http: ServerHttp) -> Request | None:
    while data := await stream.receive_some():
        request = http.receive_data(data)
        if request is not None:
            return request
    return None


async def _splice(left: trio.abc.Stream, right: trio.abc.Stream) -> None:
    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        try:
            while data := await source.receive_some():
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    async with right, trio.open_nursery() as nursery:
        nursery.start_soon(pump, left, right)
        await pump(right, left)
