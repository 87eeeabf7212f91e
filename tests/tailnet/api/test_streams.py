"""A feed over a websocket: messages as they are published, and a client that reads nothing is ended alone."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from fastapi import FastAPI, WebSocket

from derp.protocol.websocket import CloseCode
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from tailnet.api.middleware import Middleware
from tailnet.api.streams import send_feed
from tailnet.services.feed import DropReason, Event, Feed, newest_only
from tailnet.transport.asgi import ApiServer
from tests.support.standing import Standing
from tests.support.tailnet_driver import PATIENCE_SECONDS, upgrade_request, upgraded, wait_for
from tests.support.tailnet_driver import WebSocket as WebSocketClient

# More than a kernel holds for a reader with the smallest of buffers.
LARGE = b"x" * (8 * 1024 * 1024)


def encode(events: Sequence[Event[bytes]]) -> bytes:
    return b"|".join(event.value for event in events)


class World:
    """The feed behind the API's own server."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.feed = Feed[bytes](key=newest_only, patience_seconds=1.0)
        self.standing = Standing()
        self.done_count = 0  # streams that ended and raised nothing
        self._nursery = nursery
        app = FastAPI()

        @app.websocket("/feed")
        async def follow(websocket: WebSocket) -> None:
            await send_feed(websocket, self.feed, encode, self.standing.permit)
            self.done_count += 1

        self.api = ApiServer(Middleware(app), lambda target: False, max_connections=100)

    @asynccontextmanager
    async def connect(self, buffer_bytes: int = 1 << 20) -> AsyncIterator[WebSocketClient]:
        mine = trio.socket.socket()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        with mine, socket.create_server(("127.0.0.1", 0)) as listener:
            await mine.connect(listener.getsockname())
            theirs, address = listener.accept()
            theirs.setblocking(False)
            self._nursery.start_soon(self.api.serve, LinkStream(Link(theirs, address), upgrade_request("/feed")))
            with trio.fail_after(PATIENCE_SECONDS):
                yield await upgraded(trio.SocketStream(mine))


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


async def test_messages_as_they_are_published(world: World) -> None:
    world.feed.publish(b"a")
    async with world.connect() as client:
        assert await client.read() == b"a"
        await client.write(b"nobody asked")
        world.feed.publish(b"b")
        assert await client.read() == b"b"
        world.feed.close("the server leaves")
        assert await client.read() == b""
        assert (client.close_code, client.close_text) == (CloseCode.GOING_AWAY, "the server leaves")


async def test_who_may_not_follow_any_longer_is_told(world: World) -> None:
    world.feed.publish(b"a")
    async with world.connect() as client:
        await client.read()
        world.standing.withdraw()
        assert await client.read() == b""
        assert (client.close_code, client.close_text) == (CloseCode.POLICY_VIOLATION, "authorization withdrawn")
    assert not world.feed.counts.dropped


async def test_two_ends_at_once_are_one_goodbye(world: World) -> None:
    world.feed.publish(b"a")
    async with world.connect() as client:
        await client.read()
        world.standing.withdraw()
        world.feed.close("the server leaves")
        assert await client.read() == b""
    await wait_for(lambda: not world.api.connection_count)
    assert world.done_count == 1


async def test_a_client_that_leaves_is_forgotten(world: World) -> None:
    world.feed.publish(b"a")
    async with world.connect() as client:
        await client.read()
        assert world.feed.counts.followers == 1
    await wait_for(lambda: not world.feed.counts.followers and not world.api.connection_count)
    assert not world.feed.counts.dropped


async def test_one_that_reads_nothing_is_ended_alone(world: World) -> None:
    """Its message is stuck in the middle, so there is no goodbye that could follow: the connection ends."""
    world.feed.publish(b"a")
    async with world.connect(4096) as deaf, world.connect() as client:
        await deaf.read()
        await client.read()
        world.feed.publish(LARGE)
        received = 0
        while received < len(LARGE):
            received += len(await client.read())
        await wait_for(lambda: world.feed.counts.dropped)
        assert (received, world.feed.counts.dropped) == (len(LARGE), {DropReason.SLOW: 1})
        assert world.feed.counts.followers == 1
        world.feed.publish(b"b")
        assert await client.read() == b"b"
        with trio.fail_after(PATIENCE_SECONDS):
            assert len(await deaf.read_to_end()) < len(LARGE)
        await wait_for(lambda: world.api.connection_count == 1)
