"""The front door over real sockets: heads in any pieces, many requests on a connection, and who is really calling."""

import contextlib
import ssl
from collections.abc import Callable

import pytest
import trio
import trio.testing

from derp.keys import NodePrivate
from derp.protocol.frames import HEADER
from derp.protocol.messages import RecvPacket
from derp.protocol.websocket import Opcode, encode_masked
from derp.server.pages import Page
from derp.server.server import RelayServer
from tests.derp.server.test_server import UPGRADE, client_info
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    ask,
    call,
    closed,
    dial,
    drained,
    open_bystanders,
    open_server,
    relay_config,
)
from tests.support.networks import networks

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"


def get(path: bytes, *headers: bytes) -> bytes:
    return GET % (path, b"".join(header + b"\r\n" for header in headers))


def last_get(path: bytes, *headers: bytes) -> bytes:
    return get(path, b"Connection: close", *headers)


async def test_the_upgrade_is_answered_to_the_byte() -> None:
    async with open_server(relay_config(handshake_timeout_seconds=0.3)) as server:
        key = server.relay.public_key.raw
        answer = await ask(server, UPGRADE)
        assert answer == (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n"
            b"Derp-Public-Key: " + key.hex().encode() + b"\r\n\r\n"
            b"\x01\x00\x00\x00\x28DERP\xf0\x9f\x94\x91" + key
        )


# One resource each, as proxies and careful clients write it.
SPELLINGS = ["%s", "http://relay.example%s", "HTTP://relay.example:80%s", "encoded"]


def spelt(path: str, spelling: str) -> bytes:
    return (f"/%{ord(path[1]):02x}{path[2:]}" if spelling == "encoded" else spelling % path).encode()


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_every_spelling_of_our_paths_is_served(spelling: str) -> None:
    async with open_server(relay_config(handshake_timeout_seconds=0.3)) as server:
        upgraded = await ask(server, UPGRADE.replace(b"/derp ", spelt("/derp", spelling) + b" "))
        assert upgraded.startswith(b"HTTP/1.1 101 ")
        for path, begin in {
            "/derp": b"426 ",
            "/derp/probe": b"200 ",
            "/derp/latency-check": b"200 ",
            "/generate_204": b"204 ",
            "/healthz": b"200 ",
            "/robots.txt": b"200 ",
        }.items():
            answer = await ask(server, last_get(spelt(path, spelling)))
            assert answer.startswith(b"HTTP/1.1 " + begin), (path, answer)
            if path == "/healthz":
                assert answer.endswith(b"ok\n")
        page = await ask(server, last_get(spelt("/bootstrap-dns?q=x", spelling)))
        assert b"application/json" in page


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_so_it_is_beside_tls(spelling: str) -> None:
    async with open_server(relay_config(tls=SELF_SIGNED, http_port=0)) as server:
        assert (await ask(server, last_get(spelt("/generate_204", spelling)), kind="http")).startswith(b"HTTP/1.1 204 ")
        answer = await ask(server, last_get(spelt("/some/page?q=1", spelling)), kind="http")
        host = b"relay.example" if "relay" in spelling else b"localhost"
        assert b"Location: https://" + host + b"/some/page?q=1\r\n" in answer


CHUNKED_EMPTY = (b"Transfer-Encoding: chunked", b"0\r\n\r\n")
LENGTH_NOUGHT = (b"Content-Length: 0", b"")


@pytest.mark.parametrize("header_and_body", [CHUNKED_EMPTY, LENGTH_NOUGHT])
async def test_an_upgrade_with_an_empty_body_is_granted(header_and_body: tuple[bytes, bytes]) -> None:
    header, body = header_and_body
    request = UPGRADE.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n")
    async with open_server() as server, open_bystanders(server) as bystanders:
        private = NodePrivate.generate()
        stream = await dial(server)
        packet = HEADER.pack(0x04, 38) + bystanders.one.key + b"packet"
        await stream.send_all(request + body + client_info(private, server.relay.public_key.raw) + packet)
        assert await bystanders.one.receive() == RecvPacket(private.public().raw, b"packet")
        await stream.aclose()
        await bystanders.one.receive()  # PeerGone


@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"]
)
async def test_an_upgrade_with_a_body_is_refused(body: bytes) -> None:
    async with open_server() as server:
        answer = await ask(server, UPGRADE.removesuffix(b"\r\n") + body)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"an upgrade has no body" in answer


async def test_without_an_upgrade_it_is_426_and_the_connection_goes_on() -> None:
    async with open_server() as server:
        answer = await ask(server, get(b"/derp") + last_get(b"/derp/probe"))
        first, second = answer.split(b"HTTP/1.1 ")[1:]
        assert first.startswith(b"426 ")
        assert first.endswith(b"\r\n\r\nDERP requires connection upgrade\n")
        assert second.startswith(b"200 ")
        assert server.door.requests_refused == 1


@pytest.mark.parametrize("pieces", [1, 10, 10_000])
async def test_requests_in_a_row_and_then_an_upgrade(pieces: int) -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        private = NodePrivate.generate()
        packet = HEADER.pack(0x04, 38) + bystanders.one.key + b"packet"
        everything = get(b"/derp/probe") + get(b"/nowhere") + get(b"/generate_204") + UPGRADE
        everything += client_info(private, server.relay.public_key.raw) + packet
        stream = await dial(server)
        for at in range(0, len(everything), pieces):
            await stream.send_all(everything[at : at + pieces])
        assert await bystanders.one.receive() == RecvPacket(private.public().raw, b"packet")
        received = await stream.receive_some(65536)
        assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"204", b"101"]
        await stream.aclose()
        await bystanders.one.receive()  # PeerGone


@pytest.mark.parametrize("cut", [0, 1, 40, 200])
async def test_a_websocket_client_may_speak_in_the_segment_of_its_request(cut: int) -> None:
    """Who knows the relay's key need not wait: ClientInfo and packets right behind the head."""
    async with open_server() as server, open_bystanders(server) as bystanders:
        private = NodePrivate.generate()
        request = get(
            b"/derp",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            b"Sec-WebSocket-Protocol: derp",
        )
        frames = client_info(private, server.relay.public_key.raw)
        frames += (
            HEADER.pack(0x04, 35) + bystanders.one.key + b"one" + HEADER.pack(0x04, 35) + bystanders.one.key + b"two"
        )
        everything = request + encode_masked(Opcode.BINARY, frames, b"mask")
        stream = await dial(server)
        await stream.send_all(everything[: len(everything) - cut])
        await stream.send_all(everything[len(everything) - cut :])
        for packet in (b"one", b"two"):
            assert await bystanders.one.receive() == RecvPacket(private.public().raw, packet)
        assert server.relay.upgrades.websocket_accepts == 1
        await stream.aclose()
        await bystanders.one.receive()  # PeerGone


async def test_a_request_that_wants_no_more_is_answered_and_closed() -> None:
    async with open_server() as server:
        assert (await ask(server, b"GET /robots.txt HTTP/1.0\r\n\r\n")).endswith(b"Disallow: /\n")
        assert (await ask(server, last_get(b"/robots.txt"))).endswith(b"Disallow: /\n")
        assert closed(server) == {"http_done": 2}


async def test_a_head_request_has_no_body() -> None:
    async with open_server() as server:
        answer = await ask(server, last_get(b"/").replace(b"GET", b"HEAD"))
        assert answer.endswith(b"\r\n\r\n")
        assert b"content-length: 0" not in answer.lower()


async def test_a_flood_of_pipelined_requests_ends_its_connection() -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        answer = await ask(server, get(b"/") * 6000)
        assert answer.count(b"HTTP/1.1 200 ") <= 32
        assert closed(server) == {"flood": 1}
        await bystanders.go_on()


def add_page(server: RelayServer, path: str, render: Callable[[], bytes]) -> None:
    pages = server.pages.pages
    assert isinstance(pages, dict)
    pages[path] = Page("", "text/plain", render)


async def test_answers_that_nobody_reads_are_not_made_without_bound() -> None:
    size, count = 3_000_000, 30
    async with open_server(relay_config(tcp_write_timeout_seconds=60.0)) as server, open_bystanders(server) as others:
        made: list[int] = []

        def render() -> bytes:
            made.append(1)
            return b"x" * size

        add_page(server, "/debug/large", render)
        stream = await dial(server)
        await stream.send_all(get(b"/debug/large") * count + last_get(b"/end"))
        await others.go_on(5)
        (reader,) = (link for link in server.reactor.wires if link.paused)
        assert len(reader.tail) < size + 1000  # one answer, and not all of them
        assert len(made) < count
        with trio.fail_after(PATIENCE_SECONDS):
            answers = await drained(stream)
        # slow is not lost: each of them is answered once it reads
        assert answers.count(b"HTTP/1.1 200 ") == count + 1
        assert answers.count(b"x") >= count * size
        await stream.aclose()


async def test_a_large_answer_survives_the_close_behind_it() -> None:
    async with open_server() as server, open_bystanders(server):
        add_page(server, "/debug/large", lambda: b"x" * 20_000_000)
        answer = await ask(server, last_get(b"/debug/large"))
        assert answer.endswith(b"x" * 20_000_000)
        assert closed(server) == {"http_done": 1}


async def test_a_page_that_fails_costs_its_caller_the_connection_and_nobody_else() -> None:
    def fail() -> bytes:
        raise KeyError("a defect of ours")

    async with open_server() as server, open_bystanders(server) as bystanders:
        add_page(server, "/debug/defect", fail)
        assert await ask(server, get(b"/debug/defect")) == b""
        assert closed(server) == {"internal_error": 1}
        await bystanders.go_on()


async def test_connect_is_refused_with_a_status() -> None:
    async with open_server() as server:
        answer = await ask(
            server, b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\nConnection: close\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"CONNECT not enabled\n")


# --- who is really calling


def address_of(server: RelayServer, key: bytes) -> str:
    member = server.relay.router.members[key]
    assert member.active is not None
    return member.active.address


async def test_a_client_behind_a_trusted_proxy_has_its_own_address() -> None:
    async with open_server(relay_config(trusted_proxies=networks("127.0.0.0/8"))) as server:
        caller = await call(server, headers=(("X-Forwarded-For", "203.0.113.9"),))
        assert address_of(server, caller.key) == "203.0.113.9"
        await caller.aclose()
    async with open_server(relay_config(trusted_proxies=networks("10.0.0.0/8"))) as server:
        caller = await call(server, headers=(("X-Forwarded-For", "203.0.113.9"),))
        assert address_of(server, caller.key) == HOST
        await caller.aclose()


async def test_each_request_of_a_proxy_s_connection_has_its_own_caller() -> None:
    async with open_server(relay_config(trusted_proxies=networks("127.0.0.0/8"))) as server:
        private = NodePrivate.generate()
        stream = await dial(server)
        await stream.send_all(get(b"/derp/probe", b"X-Forwarded-For: 203.0.113.1"))
        await stream.receive_some(65536)
        upgrade = UPGRADE.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.2\r\n\r\n")
        await stream.send_all(upgrade + client_info(private, server.relay.public_key.raw))
        received = b""
        while b"\x03\x00\x00" not in received:  # ServerInfo
            received += await stream.receive_some(65536)
        assert address_of(server, private.public().raw) == "203.0.113.2"
        await stream.aclose()


async def test_debug_pages_are_closed_behind_any_proxy() -> None:
    for trusted in ((), networks("127.0.0.0/8")):
        async with open_server(relay_config(trusted_proxies=trusted)) as server:
            for path in (b"/debug/", b"/metrics", b"/debug/vars", b"/debug/varz", b"/debug/clients"):
                assert (await ask(server, last_get(path))).startswith(b"HTTP/1.1 200 ")
                through = await ask(server, last_get(path, b"X-Forwarded-For: 127.0.0.1"))
                assert through.startswith(b"HTTP/1.1 403 ")


async def test_a_disabled_relay_has_no_way_in() -> None:
    async with open_server(relay_config(derp_enabled=False)) as server:
        answer = await ask(server, UPGRADE + last_get(b"/derp/probe"))
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"derp server disabled\n" in answer


async def test_the_plain_port_beside_tls() -> None:
    async with open_server(relay_config(tls=SELF_SIGNED, http_port=0)) as server:
        assert [one.kind for one in server.listening] == ["derp+tls", "http"]
        probe = await ask(server, last_get(b"/generate_204", b"X-Tailscale-Challenge: abc"), "http")
        assert probe.startswith(b"HTTP/1.1 204 ")
        assert b"response abc" in probe
        elsewhere = await ask(server, last_get(b"/a?b=c"), "http")
        assert elsewhere.startswith(b"HTTP/1.1 302 ")
        assert b"https://localhost/a?b=c\r\n" in elsewhere
        assert (await ask(server, last_get(b"/").replace(b"GET", b"PUT"), "http")).endswith(b"Use HTTPS\n")
        # no DERP in the clear
        upgrade = await ask(server, UPGRADE.replace(b"Connection: Upgrade", b"Connection: Upgrade, close"), "http")
        assert upgrade.startswith(b"HTTP/1.1 302 ")


async def test_tls_of_our_port_is_1_2_at_least_and_speaks_http_1_1() -> None:
    async with open_server(relay_config(tls=SELF_SIGNED)) as server:
        stream = await trio.open_tcp_stream(HOST, server.listening[0].port)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        tls = trio.SSLStream(stream, context, server_hostname=HOST, https_compatible=True)
        await tls.send_all(last_get(b"/derp/probe"))
        assert (await drained(tls)).startswith(b"HTTP/1.1 200 ")
        assert tls.selected_alpn_protocol() == "http/1.1"
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.aclose()
