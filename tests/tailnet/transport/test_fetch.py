"""Documents over real sockets: fetched once, then only when they changed; every failure is one sentence."""

from contextlib import suppress
from functools import partial

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.errors import TransportError
from tailnet.transport.fetch import MAX_ANSWER_BYTES, Fetcher, Posted, Poster, ask
from tests.support.certificates import issue, server_context
from tests.support.receivers import Receiver
from tests.support.receivers import answer as reply
from tests.support.sites import Site, answer


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    made = Site()
    await nursery.start(made.serve)
    return made


async def test_a_document(site: Site) -> None:
    site.respond = lambda head: answer(b'{"a": 1}')
    async with Fetcher(site.url, timeout_seconds=5, max_bytes=100) as fetcher:
        assert await fetcher.fetch() == b'{"a": 1}'
        assert await fetcher.fetch() == b'{"a": 1}'
    assert "if-none-match" not in site.heads[1].lower()


@pytest.mark.parametrize(
    ("header", "condition"),
    [
        ('ETag: "v1"', 'if-none-match: "v1"'),
        ("Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", "if-modified-since: thu, 01 jan 2026 00:00:00 gmt"),
    ],
)
async def test_an_unchanged_document_is_not_sent_again(site: Site, header: str, condition: str) -> None:
    def respond(head: str) -> bytes:
        return answer(b"", status="304 Not Modified") if condition in head.lower() else answer(b"{}", header)

    site.respond = respond
    async with Fetcher(site.url, timeout_seconds=5, max_bytes=100) as fetcher:
        assert await fetcher.fetch() == b"{}"
        assert await fetcher.fetch() is None
        assert await fetcher.fetch(force=True) == b"{}"
        site.respond = lambda head: answer(b'{"new": 1}')
        assert await fetcher.fetch() == b'{"new": 1}'
        site.respond = respond
        assert await fetcher.fetch() == b"{}"  # the old condition went with the old document


async def test_redirects(site: Site) -> None:
    site.respond = lambda head: (
        answer(b"{}") if "/moved" in head else answer(b"", "Location: /moved", status="302 Found")
    )
    async with Fetcher(site.url, timeout_seconds=5, max_bytes=100) as fetcher:
        assert await fetcher.fetch() == b"{}"
        site.respond = lambda head: answer(b"", "Location: /map.json", status="302 Found")
        with pytest.raises(TransportError, match="redirects"):
            await fetcher.fetch()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (answer(b"no", status="404 Not Found"), "answers 404 Not Found"),
        (answer(b"", status="304 Not Modified"), "answers 304"),
        (answer(b"x" * 101), "more than 100 bytes"),
        (answer(b"x" * 300_000), "more than 100 bytes"),
        (b"", "disconnected"),
        (b"nonsense\r\n\r\n", "cannot be fetched: illegal status line"),
        (answer(b"x" * 50)[:-10], "does not answer within"),
    ],
)
async def test_failures_have_a_reason(site: Site, response: bytes, reason: str) -> None:
    site.respond = lambda head: response
    async with Fetcher(site.url, timeout_seconds=0.2, max_bytes=100) as fetcher:
        with pytest.raises(TransportError, match=reason):
            await fetcher.fetch()
        site.respond = lambda head: answer(b"{}")
        assert await fetcher.fetch() == b"{}"


async def test_nobody_there() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    for listener in listeners:
        await listener.aclose()
    async with Fetcher(f"http://127.0.0.1:{port}/", timeout_seconds=5, max_bytes=100) as fetcher:
        with pytest.raises(TransportError, match="cannot be fetched: nothing listens on that port"):
            await fetcher.fetch()


async def test_why_tls_failed_is_told() -> None:
    context = server_context(issue("127.0.0.1"))

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with trio.SSLStream(stream, context, server_side=True) as tls:
                await tls.do_handshake()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with Fetcher(f"https://127.0.0.1:{port}/", timeout_seconds=5, max_bytes=100) as fetcher:
            with pytest.raises(TransportError, match="cannot be fetched: its certificate is self-signed"):
                await fetcher.fetch()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError(""), httpx.ReadError(""), httpx.TooManyRedirects(""), httpx.InvalidURL(""), OSError()],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_without_a_word_still_has_a_reason(error: Exception) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    async with Fetcher("http://maps.example/", timeout_seconds=5, max_bytes=100) as fetcher:
        fetcher._opened = httpx.AsyncClient(transport=httpx.MockTransport(fail))
        with pytest.raises(TransportError, match=f"{type(error).__name__}, for which no reason is given$"):
            await fetcher.fetch()


@pytest.fixture
async def receiver(nursery: trio.Nursery) -> Receiver:
    made = Receiver()
    await nursery.start(made.serve)
    return made


async def test_a_post_and_what_it_was_answered(receiver: Receiver) -> None:
    receiver.respond = lambda message: reply(503, "Retry-After: 7", body=b"later")
    async with Poster(timeout_seconds=5, max_connections=1) as poster:
        for _ in range(3):
            assert await poster.post(receiver.url, b"{}", {"x-a": "b"}) == Posted(503, 7.0)
        receiver.respond = lambda message: reply(
            302, "Location: /elsewhere", "Retry-After: Thu, 01 Jan 2026 00:00:00 GMT"
        )
        assert await poster.post(receiver.url, b"{}", {}) == Posted(302, None)
    assert [(message.path, message.body) for message in receiver.messages] == [("/hook", b"{}")] * 4
    assert receiver.messages[0].headers["x-a"] == "b"
    assert receiver.connections == 1


async def test_an_answer_without_end_is_not_read(receiver: Receiver) -> None:
    receiver.respond = lambda message: reply(200, body=bytes(10 * MAX_ANSWER_BYTES))
    async with Poster(timeout_seconds=5, max_connections=1) as poster:
        for _ in range(2):
            assert (await poster.post(receiver.url, b"{}", {})).status == 200
    assert receiver.connections == 2, "the connection is not used again"


async def test_a_receiver_that_sends_a_byte_now_and_then(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """Each byte is in time for httpx; all together are not for us."""
    begun = trio.Event()

    async def drip(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            begun.set()
            with suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(1)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, drip, listeners)
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"

    async def pass_time() -> None:
        await begun.wait()
        for _ in range(12):
            mock_clock.jump(1)
            await wait_all_tasks_blocked()

    nursery.start_soon(pass_time)
    async with Poster(timeout_seconds=10, max_connections=1) as poster:
        with pytest.raises(TransportError, match="does not answer within 10 s"):
            await poster.post(url, b"{}", {})


async def test_nobody_takes_a_post() -> None:
    async with Poster(timeout_seconds=5, max_connections=1) as poster:
        with pytest.raises(TransportError, match="cannot be reached") as refused:
            await poster.post("http://127.0.0.1:9/secret-path", b"{}", {})
    assert "secret-path" not in str(refused.value)


# --- questions with a secret in them

ASKED = {"headers": {"authorization": "Bearer s3cret"}, "timeout_seconds": 5.0, "max_bytes": 100}


async def test_a_question_gets_whatever_was_answered(site: Site) -> None:
    for status in (200, 302, 401, 500):
        site.respond = lambda head: answer(b"{}", "X-Kind: a", "Location: /x", status=f"{status} So")  # noqa: B023
        got = await ask(site.url, **ASKED)  # type: ignore[arg-type]
        assert (got.status, got.body, got.headers["x-kind"]) == (status, b"{}", "a")
    assert len(site.heads) == 4, "no redirect was followed"
    assert all("bearer s3cret" in head.lower() and head.startswith("GET ") for head in site.heads)


@pytest.mark.parametrize("response", [b"", b"nonsense\r\n\r\n", answer(b"x" * 101)])
async def test_a_question_that_fails_is_one_sentence(site: Site, response: bytes) -> None:
    site.respond = lambda head: response
    with pytest.raises(TransportError) as caught:
        await ask(site.url, **ASKED)  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    assert site.url not in str(caught.value)


async def test_who_answers_a_byte_now_and_then_has_a_deadline(nursery: trio.Nursery) -> None:
    async def drip(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n")
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.02)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, drip, listeners)
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
    with trio.fail_after(20), pytest.raises(TransportError, match=r"does not answer within 0\.2 s"):
        await ask(url, **{**ASKED, "timeout_seconds": 0.2})  # type: ignore[arg-type]
