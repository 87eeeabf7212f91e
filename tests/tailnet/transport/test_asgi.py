"""The HTTP API's server on real sockets: keep-alive, requests that are not its own, bad callers, and its end."""

import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import h11
import pytest
import trio
import trio.testing
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import TrioSingleTask

from derp.protocol.websocket import Opcode, encode_header
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from derp.transport.listen import open_listener
from tailnet.errors import ConfigError
from tailnet.transport import asgi
from tailnet.transport.asgi import (
    BODY_SECONDS,
    HEAD_SECONDS,
    KEEP_ALIVE_SECONDS,
    MAX_BODY_BYTES,
    WRITE_SECONDS,
    ApiEnd,
    ApiServer,
    prove_hypercorn,
)
from tests.support.tailnet_driver import PATIENCE_SECONDS, read_answer, upgrade_request, wait_for

PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
# More than the kernels hold on the way.
LARGE_BYTES = 20_000_000
FOREIGN = b"GET /foreign?a=b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class App:
    """Answers with its path and the size of the body; `/slow` when it is told to; `/broken` not at all."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go_on = trio.Event()
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/socket":
            await receive()
            await send({"type": "websocket.accept"})
            await self.go_on.wait()
            await send({"type": "websocket.send", "text": "late"})
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        if scope["path"] == "/hasty":
            await send({"type": "http.response.start", "status": 405, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
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
        body = bytes(LARGE_BYTES) if scope["path"] == "/large" else f"{scope['path']} {size}".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.app = App()
        self.api = ApiServer(
            self.app,
            lambda target: target.startswith("/foreign"),
            max_connections=100,
            is_stream=lambda target: target.startswith("/stream"),
        )
        self.nursery = nursery
        self.returned: list[bytes] = []
        self.links: list[Link] = []
        self.patience_seconds: float = PATIENCE_SECONDS

    @asynccontextmanager
    async def connect(self, received: bytes = b"") -> AsyncIterator[trio.SocketStream]:
        """A caller whose first bytes were received already, elsewhere."""
        with open_listener("127.0.0.1", 0) as listener:
            stream = await trio.open_tcp_stream(*listener.getsockname())
            sock, address = listener.accept()
        sock.setblocking(False)

        link = Link(sock, address)
        self.links.append(link)

        async def serve() -> None:
            self.returned.append(await self.api.serve(LinkStream(link, received)))

        self.nursery.start_soon(serve)
        with trio.fail_after(self.patience_seconds):
            async with stream:
                yield stream
        if sock.fileno() >= 0 and self.returned and self.returned[-1]:
            sock.close()


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


@pytest.fixture
async def late_world(nursery: trio.Nursery) -> World:
    """For tests with the autojump clock: deadlines pass at once when nothing else happens."""
    world = World(nursery)
    world.patience_seconds = 1e6
    return world


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
        world.nursery.start_soon(stream.send_all, flood)  # more than the kernels hold
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


@pytest.mark.parametrize("is_said", [True, False], ids=["by its length", "by its bytes"])
async def test_a_body_has_a_bound(world: World, is_said: bool) -> None:
    how = b"Content-Length: %d" % (MAX_BODY_BYTES + 1) if is_said else b"Transfer-Encoding: chunked"
    piece = bytes(65536) if is_said else b"10000\r\n" + bytes(65536) + b"\r\n"
    async with world.connect(b"POST /page HTTP/1.1\r\nHost: x\r\n" + how + b"\r\n\r\n") as stream:
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            await stream.send_all(piece)
        assert (await read_answer(stream)).status == 413
        assert await stream.receive_some() == b""
    await wait_for(lambda: not world.api.connection_count)
    assert world.api.ended_count == {ApiEnd.BODY_TOO_LARGE: 1}


async def test_the_largest_body_is_taken(world: World) -> None:
    head = b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES
    async with world.connect(head) as stream:
        await stream.send_all(bytes(MAX_BODY_BYTES))
        assert await body_of(stream) == b"/page %d" % MAX_BODY_BYTES
    assert not world.api.ended_count


async def test_a_head_that_does_not_come_ends_the_connection(
    late_world: World, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailnet.api")
    async with late_world.connect(PAGE) as stream:
        assert await body_of(stream) == b"/page 0"
        await trio.sleep(KEEP_ALIVE_SECONDS - 1)  # a head that begins late has its time all the same
        began = trio.current_time()
        for each in PAGE[:-4]:
            await stream.send_all(bytes([each]))
            await trio.sleep(HEAD_SECONDS / len(PAGE) / 2)
        assert (await read_answer(stream)).status == 408
        assert HEAD_SECONDS <= trio.current_time() - began < HEAD_SECONDS + 1
    await wait_for(lambda: not late_world.api.connection_count)
    assert late_world.api.ended_count == {ApiEnd.HEAD_TOO_SLOW: 1}
    assert [record.message.partition(":")[0] for record in caplog.records] == ["x 127.0.0.1"]
    assert caplog.records[0].message.endswith("at the API: head_too_slow")


@pytest.mark.parametrize("how", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_come_ends_the_connection(
    late_world: World, autojump_clock: trio.testing.MockClock, how: bytes
) -> None:
    async with late_world.connect(b"POST /page HTTP/1.1\r\nHost: x\r\n" + how + b"\r\n\r\n") as stream:
        began = trio.current_time()
        for _ in range(5):  # a byte now and then does not help
            await stream.send_all(b"5\r\nhello\r\n")
            await trio.sleep(BODY_SECONDS / 6)
        assert (await read_answer(stream)).status == 408
        assert BODY_SECONDS <= trio.current_time() - began < BODY_SECONDS + 1
    await wait_for(lambda: not late_world.api.connection_count)
    assert late_world.api.ended_count == {ApiEnd.BODY_TOO_SLOW: 1}


async def test_a_stream_has_a_deadline_for_each_piece(
    late_world: World, autojump_clock: trio.testing.MockClock
) -> None:
    head = b"POST /stream?x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with late_world.connect(head) as stream:
        for _ in range(5):
            await stream.send_all(b"5\r\nhello\r\n")
            await trio.sleep(BODY_SECONDS - 1)
        await stream.send_all(b"0\r\n\r\n")
        assert await body_of(stream) == b"/stream 25"
        # What comes behind it on the connection is judged as ever.
        await stream.send_all(b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1))
        assert (await read_answer(stream)).status == 413
    async with late_world.connect(head) as stream:
        await stream.send_all(b"5\r\nhello\r\n")
        began = trio.current_time()
        assert (await read_answer(stream)).status == 408
        assert trio.current_time() - began >= BODY_SECONDS - 1


async def test_a_stream_has_a_bound_of_its_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "MAX_BODY_BYTES", 100)
    monkeypatch.setattr(asgi, "MAX_STREAM_BYTES", 1_000)
    for size, status in ((1_000, 200), (1_001, 413)):
        head = b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        async with world.connect(head + bytes(size)) as stream:
            assert (await read_answer(stream)).status == status


async def test_a_connection_of_another_app(world: World) -> None:
    other = App()
    with open_listener("127.0.0.1", 0) as listener:
        stream = await trio.open_tcp_stream(*listener.getsockname())
        sock, address = listener.accept()
    sock.setblocking(False)
    world.nursery.start_soon(world.api.serve, LinkStream(Link(sock, address), PAGE), other)
    async with stream:
        assert await body_of(stream) == b"/page 0"
        await stream.send_all(FOREIGN.replace(b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b""))
        assert await body_of(stream) == b"/foreign 0", "nothing on it is anybody else's"
    assert (other.paths, world.app.paths) == (["/page", "/foreign"], [])


async def test_a_body_that_nobody_reads_ends_the_connection(
    late_world: World, autojump_clock: trio.testing.MockClock
) -> None:
    # The app answers at once and leaves the body where it is: Hypercorn would wait for ever to hand it over.
    async with late_world.connect(b"POST /hasty HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n") as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(bytes(4_000_000))
        await wait_for(lambda: not late_world.api.connection_count)


async def test_an_answer_may_take_its_time(late_world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with late_world.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
        await wait_for(lambda: late_world.app.paths)
        await stream.send_all(PAGE)  # and who asks on meanwhile is not too slow either
        await trio.sleep(10 * BODY_SECONDS)
        late_world.app.go_on.set()
        first = await read_answer(stream)
        second = await read_answer(stream, first.rest)
        assert (first.body, second.body) == (b"/slow 0", b"/page 0")
    assert not late_world.api.ended_count


async def test_who_does_not_read_an_answer_is_left(late_world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with late_world.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"):
        await trio.sleep(WRITE_SECONDS - 1)
        assert late_world.api.connection_count == 1
        await trio.sleep(2)
        assert late_world.api.connection_count == 0
    assert late_world.api.ended_count == {ApiEnd.ANSWER_NOT_READ: 1}


async def test_a_websocket_has_no_deadline(late_world: World, autojump_clock: trio.testing.MockClock) -> None:
    upgrade = upgrade_request("/socket")
    async with late_world.connect(upgrade) as stream:
        assert (await read_answer(stream)).status == 101
        await trio.sleep(100 * BODY_SECONDS)
        late_world.app.go_on.set()
        assert await stream.receive_some() == encode_header(Opcode.TEXT, 4) + b"late"
    assert not late_world.api.ended_count


async def test_who_reads_an_answer_slowly_gets_it(late_world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with late_world.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
        received = b""
        while len(received) < LARGE_BYTES:
            received += await stream.receive_some(1024 * 1024)
            await trio.sleep(WRITE_SECONDS / 2)
    assert not late_world.api.ended_count


async def test_http2_without_tls_is_answered_as_http1(world: World) -> None:
    upgrade = PAGE[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    async with world.connect(upgrade) as stream:
        assert await body_of(stream) == b"/page 0"
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await read_answer(stream)).status == 505


async def test_a_newcomer_takes_the_place_of_the_longest_idle(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.api = ApiServer(world.app, lambda target: False, max_connections=2)
    async with world.connect(PAGE) as first, world.connect(PAGE) as second:
        await body_of(first)
        await body_of(second)
        await first.send_all(PAGE)
        await body_of(first)  # so that the second is idle for longer now
        assert world.api.admits()
        assert await second.receive_some() == b""
        await wait_for(lambda: world.api.connection_count == 1)
        async with world.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"):
            await first.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            await wait_for(lambda: world.app.paths.count("/slow") == 2)
            assert not world.api.admits()
            assert not world.api.admits()
            world.app.go_on.set()
            await body_of(first)
            await wait_for(lambda: world.api._idle_connections)
            assert world.api.admits()
    await wait_for(lambda: not world.api.connection_count)
    assert world.api.ended_count == {ApiEnd.GAVE_WAY: 2, ApiEnd.TOO_MANY: 2}
    told = [record.message for record in caplog.records if "raise max_api_connections" in record.message]
    assert len(told) == 1, "once per rush"


async def test_the_proof_passes_and_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    await prove_hypercorn()
    assert os.listdir("/proc/self/fd") == before


def _forget_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    async def quiet(self: H11Protocol) -> None:
        self.connection.start_next_cycle()

    monkeypatch.setattr(H11Protocol, "_maybe_recycle", quiet)


def _own_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(self: H11Protocol) -> Any:
        return vars(self).setdefault("_h11", h11.Connection(h11.SERVER))

    monkeypatch.setattr(H11Protocol, "connection", property(renamed, lambda self, value: None), raising=False)


def _stop_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TrioSingleTask, "stop")


@pytest.mark.parametrize("change", [_forget_updates, _own_parser, _stop_is_gone])
async def test_another_hypercorn_is_noticed_at_start(
    change: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    change(monkeypatch)
    with pytest.raises(ConfigError, match=r"hypercorn .* is another than the API's server knows"):
        await prove_hypercorn()


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


async def test_a_request_that_came_before_the_stop_is_answered(world: World) -> None:
    async with world.connect(PAGE) as slow:
        await body_of(slow)
        await wait_for(lambda: world.api._idle_connections)
        await slow.send_all(PAGE[:10])
        await wait_for(lambda: not world.api._idle_connections)
        await world.api.stop()
        await slow.send_all(PAGE[10:])
        assert await body_of(slow) == b"/page 0"
    # and one that was accepted before, and comes here after
    async with world.connect(PAGE) as stream:
        assert await body_of(stream) == b"/page 0"
        assert await stream.receive_some() == b""
    await world.api.wait_idle()
