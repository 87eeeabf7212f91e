"""One caller that wants more than its share: of sockets, of memory, of the store; and what others notice of it."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from derp.protocol.websocket import CloseCode
from tailnet.errors import RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    MANY_DOOR,
    TAILNET,
    Peer,
    RefusedUpgrade,
    client_door,
    open_peer,
    open_websocket,
    wait_for,
)

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN = peer_id("main")
ALICE, BOB = user_token("alice"), user_token("bob")


async def lives(peer: Peer) -> None:
    await peer.call(TAILNET + "PostTelemetry", tailnet.TelemetryRequest(), tailnet.TelemetryResponse)


async def test_sockets_of_one_caller_are_bounded(serve: Serve) -> None:
    server = await serve(max_sockets_per_caller=3)
    old = f"/api/v2/workspaceagents/{MAIN}/coordinate"
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(open_peer(server, MANY_DOOR, ALICE))
        await stack.enter_async_context(open_websocket(server, old, ALICE))
        async with open_peer(server, client_door(MAIN), ALICE):
            for door in (MANY_DOOR, client_door(MAIN), old):
                with pytest.raises(RefusedUpgrade) as caught:
                    async with open_websocket(server, door, ALICE):
                        pass
                assert caught.value.answer.status == 429
                assert caught.value.answer.headers["retry-after"] == "10"
                assert "too many connections" in caught.value.answer.json()["message"]
        assert server.reading().refused_sockets == 3
        async with open_peer(server, MANY_DOOR, BOB) as other:
            await lives(other)
        await wait_for(lambda: server.reading().channels == 2)
        async with open_peer(server, MANY_DOOR, ALICE) as again:
            await lives(again)
        await lives(one)
    await wait_for(lambda: server.reading().callers == 0)


async def test_who_flooded_is_turned_away_for_a_moment(
    server: CoordinatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with open_peer(server, AGENT_DOOR, agent_token("gpu")) as elder, open_peer(server, MANY_DOOR, BOB) as other:
        async with open_websocket(server, AGENT_DOOR, agent_token("gpu")) as hostile:
            await hostile.write((b"\x00\x02\x00\x01" + bytes(8)) * 3000)
            await hostile.read_to_end()
        for _ in range(5):
            with pytest.raises(RefusedUpgrade) as caught:
                async with open_websocket(server, AGENT_DOOR, agent_token("gpu")):
                    pass
            assert caught.value.answer.status == 429
        await lives(other)
        await lives(elder)
    assert len([line for line in caplog.messages if line.startswith("! refused")]) == 1
    assert server.reading().refused_sockets == 5


def stats(size: int) -> agent.UpdateStatsRequest:
    return agent.UpdateStatsRequest(stats={"connections_by_proto": {"x" * size: 1}})


async def test_an_agent_that_reports_without_pause_is_answered_later(serve: Serve) -> None:
    server = await serve(max_report_bytes=65_536)
    async with (
        open_peer(server, AGENT_DOOR, agent_token("main")) as greedy,
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as other,
    ):
        await greedy.call(AGENT + "UpdateStats", stats(60_000), agent.UpdateStatsResponse)
        waiting = await greedy.stream(AGENT + "UpdateStats", stats(60_000))
        await wait_for(lambda: server.reading().reports_delayed == 1)
        # Much more is refused, as what waits is in memory.
        with pytest.raises(RpcError, match="reports much more than it may"):
            await greedy.call(AGENT + "UpdateStats", stats(60_000), agent.UpdateStatsResponse)
        assert server.reading().reports_refused == 1
        assert not waiting.ended.is_set()
        await greedy.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        await other.call(AGENT + "UpdateStats", stats(1000), agent.UpdateStatsResponse)
        assert server.reading().held_bytes > 60_000
    await wait_for(lambda: server.reading().held_bytes == 0)


async def test_memory_of_one_callers_sockets_is_bounded(serve: Serve) -> None:
    server = await serve(max_held_bytes_per_caller=1_000_000)
    begun = bytes([4, 1, 2, 0x80, 0x80, 0x40]) + bytes(200_000)  # of a message of 1 MiB
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(open_peer(server, MANY_DOOR, BOB))
        peers = [await stack.enter_async_context(open_peer(server, MANY_DOOR, ALICE)) for _ in range(8)]
        for number, peer in enumerate(peers):
            call = await peer.open(TAILNET + "Coordinate")
            peer.connection.session.send_data(call.id, [begun[: -1000 * number or None]])
            await peer.flush()
        # The fattest three went, one for each that came when there was no room.
        for peer in peers[:3]:
            await peer.wait_closed()
        await wait_for(lambda: server.reading().held_bytes > 900_000)
        closed = [peer for peer in peers if peer.closed.is_set()]
        assert closed == peers[:3]
        assert (server.reading().shed_sockets, server.reading().held_bytes <= 1_000_000) == (3, True)
        assert {peer.websocket.close_code for peer in closed} == {CloseCode.POLICY_VIOLATION}
        assert "hold more than 1,000,000 bytes" in closed[0].websocket.close_text
        for peer in peers:
            if peer not in closed:
                await lives(peer)
        await lives(other)


async def test_memory_of_all_is_bounded_and_the_fattest_pays(serve: Serve) -> None:
    server = await serve(max_held_bytes=500_000)
    async with (
        open_peer(server, MANY_DOOR, ALICE) as fat,
        open_peer(server, MANY_DOOR, BOB) as thin,
    ):
        for peer, size in ((thin, 100_000), (fat, 260_000), (fat, 260_000)):
            call = await peer.open(TAILNET + "StreamDERPMaps")
            head = bytes([4, 1, 2, 0x80, 0x80, 0x40])
            for piece in (head + bytes(size // 2), bytes(size // 2)):
                peer.connection.session.send_data(call.id, [piece])
                await peer.flush()
        assert await fat.wait_closed() == CloseCode.POLICY_VIOLATION
        assert "and this one most" in fat.websocket.close_text
        await lives(thin)
        assert 100_000 < server.reading().held_bytes < 110_000
