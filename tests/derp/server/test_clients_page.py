"""/debug/clients/ of running relays: the genuine relay's JSON, tables for people, and how both lead on."""

import html
import json
import re

import pytest

from derp.protocol.messages import NotePreferred, RecvPacket, encode
from derp.server.clients_page import span
from derp.server.server import RelayServer
from tests.derp.server.test_door import last_get
from tests.derp.server.world import ask, call, open_server, relay_config

# As a genuine relay (1.104.7) writes them, in its order; what is ours comes behind.
GENUINE = [
    *("connNum", "key", "remote", "connectedAt", "connected", "active", "dup", "disabled", "home", "meshPeer"),
    *("notIdeal", "prober", "version", "appName", "rxPkts", "rxBytes", "txPkts", "txBytes", "senders"),
]


async def page(server: RelayServer, query: str, status: int = 200) -> tuple[str, str]:
    """(content type, body)."""
    answer = await ask(server, last_get(f"/debug/clients/{query}".encode()))
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} "), head
    return re.findall(r"Content-Type: (.*)", head)[0].strip(), body


async def test_the_json_is_the_genuine_relay_s() -> None:
    async with open_server() as server:
        one, other = await call(server), await call(server)
        await one.write(encode(NotePreferred(True)))
        await one.send(other.key, b"0123456789")
        assert await other.receive() == RecvPacket(one.key, b"0123456789")
        await one.ping()
        kind, body = await page(server, "?all&sort=conn&format=json")
        assert kind == "application/json"
        assert body.startswith('{\n\t"query": "all clients",\n\t"conns": 2,\n\t"keys": 2,\n\t"remaining": 0,')
        document = json.loads(body)
        assert list(document) == ["query", "conns", "keys", "remaining", "clients"]
        first, second = document["clients"]
        assert list(first)[: len(GENUINE)] == GENUINE
        assert (first["key"], first["home"], first["active"], first["dup"]) == (
            *(f"nodekey:{one.key.hex()}", True, True, False),
        )
        assert (first["rxPkts"], first["rxBytes"], second["txPkts"], second["txBytes"]) == (1, 10, 1, 10)
        assert (second["senders"], first["senders"], first["version"]) == (1, 0, 2)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", first["remote"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", first["connectedAt"])
        assert first["connected"] % 10**9 == 0
        await one.aclose()
        await other.aclose()


async def test_pages_follow_each_other_by_their_links() -> None:
    async with open_server() as server:
        callers = [await call(server) for _ in range(5)]
        query, seen = "?all&limit=2&format=json", []
        while query:
            document = json.loads((await page(server, query))[1])
            seen += [client["key"] for client in document["clients"]]
            assert document["remaining"] == 5 - len(seen)
            query = document.get("next", "")
        assert seen == sorted(f"nodekey:{caller.key.hex()}" for caller in callers)
        for caller in callers:
            await caller.aclose()


async def test_people_see_a_table_that_sorts_and_filters_by_links() -> None:
    async with open_server() as server:
        callers = [await call(server) for _ in range(3)]
        first, second, _ = server.relay.router.clients.values()
        first.app_name, second.app_name = "<b>\x1b[2J", "tailcat"
        kind, body = await page(server, "?all&sort=-rx&limit=2")
        assert kind == "text/html; charset=utf-8"
        assert "2 of 3 connections (3 keys)" in body
        # The sorted column leads to the other direction; counters begin with the most.
        links = {html.unescape(found) for found in re.findall(r'<th[^>]*><a href="([^"]*)"', body)}
        assert "/debug/clients/?all=1&limit=2&sort=rx" in links
        assert "/debug/clients/?all=1&limit=2&sort=-txpkts" in links
        assert "/debug/clients/?all=1&limit=2&sort=key" in links
        assert "<b>" not in body.partition("</header>")[2].replace("<b>relay", "")
        onward = html.unescape(re.findall(r'href="(\?[^"]*afterconn[^"]*)"', body)[0])
        assert "1 of 3 connections" in (await page(server, onward))[1]
        assert "1 of 1 connections" in (await page(server, "?app=tailcat"))[1]
        key = f"nodekey:{callers[0].key.hex()}"
        assert key in (await page(server, f"?key={key}"))[1]
        assert "Nobody." in (await page(server, "?ip=198.51.100.1"))[1]
        for caller in callers:
            await caller.aclose()


async def test_the_index_and_its_form() -> None:
    async with open_server() as server:
        caller = await call(server)
        _, body = await page(server, "")
        assert "1 connections for 1 keys" in body
        assert '<form action="/debug/clients/">' in body
        assert json.loads((await page(server, "?format=json"))[1]) == {"conns": 1, "keys": 1}
        # As a browser sends the form: every field, those that are empty too.
        assert "All clients" in (await page(server, "?key=&ip=&cidr=&app=&sort=-rx&find=1"))[1]
        assert "Clients from 127.0.0.1" in (await page(server, "?key=&ip=127.0.0.1&cidr=&app=&sort=ip&find=1"))[1]
        await caller.aclose()


async def test_what_makes_no_sense_is_a_line_of_text() -> None:
    async with open_server() as server:
        for query in ("?all&ip=127.0.0.1", "?key=x", "?all&limit=0", "?all&sort=size", "?format=xml"):
            kind, body = await page(server, query, 400)
            assert kind.startswith("text/plain")
            assert body.count("\n") == 1
        await page(server, "?" + "&".join(["a=1"] * 1000), 400)


async def test_two_connections_of_a_key_and_a_slow_reader() -> None:
    async with open_server(relay_config(tcp_write_timeout_seconds=60.0)) as server:
        slow, sender = await call(server), await call(server)
        while not (client := server.relay.router.routes[slow.key]).queue or not client.queue.dropped:
            await sender.send(slow.key, *[bytes(60_000)] * 10)
        first = json.loads((await page(server, "?all&sort=-queued&format=json"))[1])["clients"][0]
        assert first["key"] == f"nodekey:{slow.key.hex()}"
        assert first["queuedBytes"] > 60_000
        assert first["queueDropped"] > 0
        client.is_duplicate = True
        assert "dup-active" in (await page(server, f"?key=nodekey:{slow.key.hex()}"))[1]
        await slow.aclose()
        await sender.aclose()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (-1.0, "0s"), (59.4, "59s"), (60, "1m 0s"), (312, "5m 12s"), (3600, "1h 0m"), (273_600, "3d 4h")],
)
def test_times_in_two_units(seconds: float, shown: str) -> None:
    assert span(seconds) == shown
