"""Connections of the HTTP API in a running coordinator: their memory, their limit, and what is counted of them."""

from pathlib import Path

import pytest
import trio

from tailnet.errors import ConfigError
from tailnet.transport import asgi
from tailnet.transport.asgi import ApiEnd
from tests.support.api_load import UNMEASURED, growth_bytes, idle_bytes, warm_up
from tests.support.tailnet_driver import read_answer, wait_for
from tests.support.tailnet_servers import Seed, running_server
from tests.tailnet.conftest import Serve

PAGE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_what_connections_of_the_api_take(tmp_path: Path) -> None:
    with running_server("ours", tmp_path, Seed(), environment=UNMEASURED) as server:
        warm_up(server.url)
        assert growth_bytes(server.url, server.pid, 1000) < 5 * 1024 * 1024
        assert idle_bytes(server.url, server.pid, 1000) < 20 * 1024
        assert growth_bytes(server.url, server.pid, 1000) < 5 * 1024 * 1024, "what left has to make room"


async def test_the_api_has_a_limit_of_its_own(serve: Serve) -> None:
    server = await serve(max_api_connections=2)
    address = server.listening[0].host, server.listening[0].port
    async with (
        await trio.open_tcp_stream(*address) as first,
        await trio.open_tcp_stream(*address) as second,
        await trio.open_tcp_stream(*address) as third,
    ):
        for stream in (first, second):
            await stream.send_all(PAGE)
            assert (await read_answer(stream)).status == 200
        await wait_for(lambda: len(server._api._idle_connections) == 2)
        for stream in (first, second):
            await stream.send_all(PAGE[:10])  # so that they are busy
        await wait_for(lambda: not server._api._idle_connections)
        await third.send_all(PAGE)
        answer = await read_answer(third)
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert server._api.connection_count == 2
        assert server.reading().api_ended[ApiEnd.TOO_MANY.value] == 1
        # Others' connections are not the API's.
        await third.send_all(b"GET /derp/probe HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_answer(third)).status == 200
        await first.aclose()
        await wait_for(lambda: server._api.connection_count == 1)
        await third.send_all(PAGE)
        assert (await read_answer(third)).status == 200


async def test_a_server_does_not_start_on_a_hypercorn_that_it_does_not_know(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def observe(seen: list[str]) -> None:
        seen.append("a request is whole")

    monkeypatch.setattr(asgi, "_observe", observe)
    with pytest.raises(ConfigError, match="is another than the API's server knows"):
        await serve()
