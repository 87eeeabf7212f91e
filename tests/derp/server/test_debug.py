"""The operator's pages of a running relay: who is connected, what was dropped, whether the books agree."""

import html
import json

import pytest
import trio

from derp import __version__
from derp.keys import MeshKey
from derp.protocol.messages import NotePreferred, RecvPacket, encode
from derp.relay.clients import Member
from derp.server.debug import client_rows, consistency
from derp.server.server import RelayServer
from tests.derp.server.test_door import last_get
from tests.derp.server.test_server import frame
from tests.derp.server.world import Caller, ask, call, open_server, relay_config


async def body_of(server: RelayServer, path: bytes) -> bytes:
    answer = await ask(server, last_get(path))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body


async def test_the_pages_show_who_is_connected_and_what_happened() -> None:
    mesh_key = MeshKey(b"m" * 32)
    async with open_server(relay_config(hostname="<relay>", mesh_key=mesh_key)) as server:
        one, other = await call(server), await call(server, mesh_key=mesh_key)
        await one.write(encode(NotePreferred(True)))
        await one.send(other.key, b"0123456789")
        assert await other.receive() == RecvPacket(one.key, b"0123456789")
        await one.send(bytes(32), b"to nobody")
        await one.ping()
        first, second = json.loads(await body_of(server, b"/debug/clients"))
        assert first["key"] == f"nodekey:{one.key.hex()}"  # the busiest first
        assert (first["packets_in"], first["bytes_in"], first["packets_out"]) == (2, 19, 0)
        assert (first["home"], first["mesh"], second["home"], second["mesh"]) == (True, False, False, True)
        assert (second["packets_out"], second["bytes_out"]) == (1, 10)
        page = (await body_of(server, b"/debug/")).decode()
        assert "&lt;relay&gt;" in page
        assert "<relay>" not in page
        for text in (f"nodekey:{other.key.hex()}", "unknown_dest</td>", ">well</span>", 'href="/metrics"', __version__):
            assert text in page
        assert '<form action="/debug/why">' in page
        assert await body_of(server, b"/debug/check") == b"derp.Server ConsistencyCheck okay\n"
        await one.aclose()
        await other.aclose()


async def test_what_a_stranger_calls_itself_is_no_markup() -> None:
    async with open_server() as server:
        caller = await call(server)
        (client,) = server.relay.router.clients.values()
        client.app_name = "<script>alert(1)</script>"
        assert b"<script>" not in await body_of(server, b"/debug/")
        await caller.aclose()


async def test_a_slow_reader_shows_its_queue_and_its_delay() -> None:
    async with open_server(relay_config(tcp_write_timeout_seconds=60.0)) as server:
        slow, sender = await call(server), await call(server)
        while not (client := server.relay.router.routes[slow.key]).queue or not client.queue.dropped:
            await sender.send(slow.key, *[bytes(60_000)] * 10)
        server.reactor.now += 2.0
        row = next(row for row in client_rows(server.relay) if row["key"] == f"nodekey:{slow.key.hex()}")
        assert row["queued_packets"] > 0
        assert row["queued_bytes"] > row["queued_packets"] * 60_000
        assert row["queue_dropped"] > 0
        assert row["queue_delay_ms"] >= 2000
        assert b"queue_head</td>" in await body_of(server, b"/debug/")
        await slow.aclose()
        await sender.aclose()


async def test_why_is_text_for_programs_and_a_page_with_its_form_for_people() -> None:
    async with open_server() as server:
        one, other = await call(server), await call(server)
        await one.send(other.key, b"x")
        await other.receive()
        asked = f"/debug/why?from=nodekey:{one.key.hex()}&to=nodekey:{other.key.hex()}".encode()
        text = (await body_of(server, asked)).decode()
        page = (await body_of(server, asked + b"&format=html")).decode()
        assert "packets of the first have reached the second" in text
        for sentence in text.splitlines():
            assert f"<p>{html.escape(sentence)}</p>" in page
        assert f'value="nodekey:{one.key.hex()}"' in page  # to ask again, or the other way round
        empty = (await body_of(server, b"/debug/why?format=html")).decode()
        assert empty.count("<form") == 2
        assert "ask for" not in empty
        hostile = (await body_of(server, b'/debug/why?key="><script>&format=html')).decode()
        assert "<script>" not in hostile
        await one.aclose()
        await other.aclose()


async def test_rows_are_bounded_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_server() as server:
        callers: list[Caller] = [await call(server) for _ in range(3)]
        monkeypatch.setattr("derp.server.debug._MAX_ROWS", 2)
        assert len(client_rows(server.relay)) == 2
        monkeypatch.setattr("derp.server.debug.BUSIEST_COUNT", 2)
        assert b"The busiest 2 of 3" in await body_of(server, b"/debug/")
        for caller in callers:
            await caller.aclose()


async def test_books_that_do_not_agree_are_told() -> None:
    async with open_server() as server:
        caller, router = await call(server), server.relay.router
        (client,) = router.clients.values()
        okay = "derp.Server ConsistencyCheck okay\n"
        assert consistency(server.relay) == okay
        del router.routes[caller.key]
        assert "the route is not the active connection" in consistency(server.relay)
        router.routes[caller.key] = client
        del router.clients[client.number]
        assert f"connection {client.number} is not in the registry" in consistency(server.relay)
        router.clients[client.number] = client
        router.members[b"x" * 32] = Member(b"x" * 32)
        assert "a key without a connection" in consistency(server.relay)
        del router.members[b"x" * 32]
        router.routes[b"y" * 32] = client
        assert "a route without a key" in consistency(server.relay)
        del router.routes[b"y" * 32]
        assert consistency(server.relay) == okay
        await caller.aclose()


async def test_pages_of_an_empty_relay_and_of_one_that_drains() -> None:
    async with open_server() as server:
        page = await body_of(server, b"/debug/")
        assert page.count(b"None.") == 2
        assert b"Nobody." in page
        assert await body_of(server, b"/debug/clients") == b"[]"
        caller = await call(server)
        await caller.write(frame(0x77))
        await caller.ping()
        server.relay.announce_restart(1.0, 1.0)
        assert b"draining" in await body_of(server, b"/debug/")
        await caller.aclose()
        await trio.lowlevel.checkpoint()
