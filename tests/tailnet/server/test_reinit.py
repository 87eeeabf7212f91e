"""An agent that waits for its workspace to be claimed: events, pings, and an end that says why, on real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id
from tests.support.tailnet_driver import open_connection, wait_for
from tests.tailnet.server.test_metadata_streams import Events

TARGET = "/api/v2/workspaceagents/me/reinit"
MAIN = peer_id("main")


@asynccontextmanager
async def waiting(server: CoordinatorServer, *more: str) -> AsyncIterator[Events]:
    async with open_connection(server) as stream:
        head = [f"GET {TARGET} HTTP/1.1", "Host: x", f"Coder-Session-Token: {agent_token('main')}", *more]
        await stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())
        events = Events(stream)
        await events.read_head()
        assert events.head.startswith(b"HTTP/1.1 200")
        yield events


async def test_what_is_told_and_replayed(server: CoordinatorServer) -> None:
    claims = server.requests.claims
    async with waiting(server) as first:
        claims.publish(b'{"reason":"prebuild_claimed"}\n')
        assert await first.read() == ("data", {"reason": "prebuild_claimed"})
        assert server.reading().feed_followers["claims"] == 1
    await wait_for(lambda: not claims.counts.followers)
    claims.publish(b'{"reason":"again"}\n')
    async with waiting(server, f"Last-Event-ID: {claims.last_id - 1}") as second:
        assert await second.read() == ("data", {"reason": "again"})


async def test_how_it_ends(server: CoordinatorServer) -> None:
    async with waiting(server) as events:
        await server.store.run(server.store.callers.delete_agent, MAIN)
        assert await events.read() == ("error", {"message": "The stream ended.", "detail": "authorization withdrawn"})
        with pytest.raises(EOFError):
            await events.read()


async def test_a_server_that_leaves(server: CoordinatorServer) -> None:
    async with waiting(server) as events:
        server.requests.claims.close("the server leaves")
        assert await events.read() == ("error", {"message": "The stream ended.", "detail": "the server leaves"})
