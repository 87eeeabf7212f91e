"""The port that monitors fetch the last run from, over real sockets: what it answers, and what it refuses."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from derp.client import scrape
from derp.client.scrape import MAX_CONNECTIONS, MAX_HEAD_BYTES, ScrapePort, open_scrape_port
from derp.errors import ConfigError
from derp.metrics import CONTENT_TYPE

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0  # a hang guard, never part of what is asserted


@asynccontextmanager
async def open_port() -> AsyncIterator[ScrapePort]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_scrape_port(HOST, 0) as port:
            yield port


async def say(port: ScrapePort, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send these bytes and read to the end: (status, headers, body)."""
    stream = await trio.open_tcp_stream(*port.address)
    async with stream:
        await stream.send_all(request)
        answer = b"".join([part async for part in stream])
    head, _, body = answer.decode("latin-1").partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body.encode("latin-1")


def get(path: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: prober:9101\r\n{more}\r\n".encode()


async def test_metrics_are_the_last_run() -> None:
    async with open_port() as port:
        early, _, sentence = await say(port, get("/metrics"))
        assert (early, b"first run" in sentence) == (503, True)
        assert (await say(port, get("/healthz")))[::2] == (200, b"ok\n")
        for run in (b"derp_probe_runs_total 1.0\n", b"x" * 2_000_000):
            port.show(run)
            status, headers, body = await say(port, get("/metrics?from=prometheus"))
            assert (status, body) == (200, run)
            assert headers["content-type"] == CONTENT_TYPE
            assert headers["connection"] == "close"
        status, headers, body = await say(port, get("/metrics", "HEAD"))
        assert (status, headers["content-length"], body) == (200, "2000000", b"")


@pytest.mark.parametrize(
    ("request_bytes", "status", "sentence"),
    [
        (get("/"), 404, b"/metrics"),
        (get("/metrics/x"), 404, b"/metrics"),
        (get("/metrics", "POST", "Content-Length: 0\r\n"), 405, b"GET"),
        (get("/metrics", "POST", "Content-Length: 1\r\n") + b"x", 413, b"0 bytes"),
        (get("/metrics", "POST", "Content-Length: 9000000\r\n") + b"x" * 9_000_000, 413, b"0 bytes"),
        (get("/metrics", more=f"X: {'x' * MAX_HEAD_BYTES}\r\n"), 431, b"head"),
        (b"\x16\x03\x01 TLS", 400, b"plain HTTP"),
        (b"nonsense\r\n\r\n", 400, b"malformed"),
    ],
    ids=["root", "below", "post", "body", "large-body", "long", "tls", "nonsense"],
)
async def test_what_it_does_not_serve_is_told(request_bytes: bytes, status: int, sentence: bytes) -> None:
    async with open_port() as port:
        port.show(b"never shown")
        got, headers, body = await say(port, request_bytes)
        assert (got, headers["connection"]) == (status, "close")
        assert sentence in body
        assert b"never shown" not in body
        assert headers.get("allow") == ("GET, HEAD" if status == 405 else None)
        assert (await say(port, get("/healthz")))[0] == 200


async def test_more_connections_than_a_monitor_needs_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 10 * PATIENCE_SECONDS)  # it is not the deadline that closes them
    async with open_port() as port, AsyncExitStack() as stack:
        silent = [
            await stack.enter_async_context(await trio.open_tcp_stream(*port.address)) for _ in range(MAX_CONNECTIONS)
        ]
        refused = await stack.enter_async_context(await trio.open_tcp_stream(*port.address))
        assert await refused.receive_some() == b""
        await silent[0].aclose()
        while True:  # its place is free as soon as the port has seen that
            try:
                assert (await say(port, get("/healthz")))[0] == 200
                break
            except (IndexError, trio.BrokenResourceError):
                await trio.lowlevel.checkpoint()


async def test_who_says_nothing_in_time_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.05)
    async with open_port() as port:
        for beginning in (b"", b"GET /metrics HTTP/1.1\r\n"):
            async with await trio.open_tcp_stream(*port.address) as stream:
                if beginning:
                    await stream.send_all(beginning)
                assert await stream.receive_some() == b""


async def test_peers_that_break_off_harm_nobody() -> None:
    async with open_port() as port:
        port.show(b"x" * 5_000_000)
        for _ in range(3):
            stream = await trio.open_tcp_stream(*port.address)
            await stream.send_all(get("/metrics"))
            await stream.receive_some(1)
            await trio.aclose_forcefully(stream)  # with bytes unread: a reset
        assert (await say(port, get("/healthz")))[0] == 200


async def test_an_address_in_use_is_named() -> None:
    async with open_port() as port:
        with pytest.raises(ConfigError, match=rf"cannot listen on TCP {HOST}:{port.address[1]}"):
            async with open_scrape_port(*port.address):
                pass


async def test_the_port_is_free_when_the_block_is_left() -> None:
    async with open_port() as port:
        address = port.address
    async with open_scrape_port(*address) as again:
        assert again.address == address
