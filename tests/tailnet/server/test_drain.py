"""Leaving: peers hear LOST and never DISCONNECTED, every websocket gets 1001, and nobody is let in any more."""

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from derp.client.client import open_derp_client
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.protocol.messages import Health, Restarting
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tailnet.store.rows import AgentRow, UserIdentity
from tailnet.store.store import Store
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    GOING_AWAY,
    MANY_DOOR,
    RefusedUpgrade,
    client_door,
    open_connection,
    open_peer,
    open_websocket,
    read_answer,
    upgrade_request,
    upgraded,
    wait_for,
)

Serve = Callable[..., Awaitable[CoordinatorServer]]
Kind = tailnet.CoordinateResponse.PeerUpdate.Kind
MAIN = peer_id("main")
ALICE = user_token("alice")


async def test_peers_hear_lost_and_the_websocket_goes_away(server: CoordinatorServer, filled_url: str) -> None:
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent_peer,
        open_peer(server, client_door(MAIN), ALICE) as client,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await theirs.tunnel(MAIN)
        await mine.update(agent_peer.node(MAIN))
        await theirs.next_node()
        await theirs.update(client.node(MAIN))
        await mine.next_node()
        await wait_for(lambda: agent_row(filled_url).first_connected_at)
        await server.drain()
        for call in (mine, theirs):
            last = await call.next()
            assert (last.kind, last.reason) == (Kind.LOST, "coordinator close")
            assert await call.wait_ended() is None
            assert call.waiting() == 0
        assert await agent_peer.wait_closed() == GOING_AWAY
        assert await client.wait_closed() == GOING_AWAY
    assert (await wait_for(lambda: agent_row(filled_url).disconnected_at)) is not None


def agent_row(url: str) -> AgentRow:
    store = Store.open(url)
    try:
        row = store.callers.get_agent(MAIN)
        assert row is not None
        return row
    finally:
        store.close()


async def test_every_other_websocket_goes_away_too(server: CoordinatorServer) -> None:
    async with (
        open_websocket(server, "/api/v2/derp-map", ALICE) as maps,
        open_websocket(server, f"/api/v2/workspaceagents/{make_id('main')}/coordinate", ALICE) as old_client,
        open_peer(server, MANY_DOOR, ALICE) as idle,
    ):
        assert await maps.read()
        await server.drain()
        await maps.read_to_end()
        await old_client.read_to_end()
        assert (maps.close_code, old_client.close_code) == (GOING_AWAY, GOING_AWAY)
        assert await idle.wait_closed() == GOING_AWAY


async def test_the_relay_drains_with_it(server: CoordinatorServer) -> None:
    url = f"http://127.0.0.1:{server.listening[0].port}/derp"
    async with open_derp_client(url, NodePrivate.generate()) as client:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain)
                assert isinstance(await client.receive(), Restarting)
                assert isinstance(await client.receive(), Health)
                with pytest.raises(DerpError):
                    await client.receive()


async def test_nobody_is_let_in_any_more(serve: Serve) -> None:
    server = await serve()
    place = server.listening[0]
    relay_url = f"http://127.0.0.1:{place.port}/derp"
    async with (
        open_peer(server, AGENT_DOOR, agent_token("gpu")),  # so that this agent is known, and let in at once
        open_connection(server) as known,
        open_connection(server) as waiting,
        open_derp_client(relay_url, NodePrivate.generate()) as relay_client,
    ):
        for stream in (known, waiting):
            await stream.send_all(b"GET /derp/latency-check HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await read_answer(stream)).status == 200
        # The drain waits for the relay's client, which has more to read than it reads.
        server.relay.close_clients = lambda count: 1  # type: ignore[method-assign]  # one that never gets done
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            await wait_for(lambda: server.not_ready())
            with pytest.raises(OSError):
                await trio.open_tcp_stream(place.host, place.port)
            for stream, name in ((known, "gpu"), (waiting, "main")):
                await stream.send_all(upgrade_request(AGENT_DOOR, agent_token(name)))
                with pytest.raises(RefusedUpgrade) as caught:
                    await upgraded(stream)
                assert caught.value.answer.status == 503
                assert caught.value.answer.headers["retry-after"] == "1"
                assert "about to stop" in caught.value.answer.json()["message"]
        assert relay_client is not None


async def test_a_peer_that_has_just_died_does_not_stop_the_drain(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        await wait_for(lambda: server.reading().channels)
        [channel] = server.channels.open
        # As if the peer's reset had come a moment ago: the kernel knows, the reactor does not yet.
        channel.wire.sock.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
        with trio.fail_after(60):
            await server.drain()
        assert await peer.wait_closed() is None
    assert server.drained.is_set()


async def test_draining_twice_is_draining_once(server: CoordinatorServer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain)
        nursery.start_soon(server.drain)
    assert server.drained.is_set()


async def test_a_request_in_hand_is_answered(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = trio.Event(), trio.Event()
    real = server.callers.user

    async def slow(token: str) -> UserIdentity:
        asked.set()
        await go_on.wait()
        return await real(token)

    monkeypatch.setattr(server.callers, "user", slow)
    async with open_connection(server) as stream, trio.open_nursery() as nursery:
        request = f"GET /api/v2/workspaceagents/{make_id('main')}/connection HTTP/1.1\r\nHost: localhost\r\n"
        await stream.send_all(f"{request}Coder-Session-Token: {ALICE}\r\n\r\n".encode())
        await asked.wait()
        nursery.start_soon(server.drain)
        await wait_for(lambda: server.not_ready())
        go_on.set()
        assert (await read_answer(stream)).status == 200
