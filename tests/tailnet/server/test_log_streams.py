"""Logs over a real server: lines that an agent sends over its channel reach everybody who follows."""

import pytest
import trio

from derp.protocol.websocket import CloseCode
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    Peer,
    RefusedUpgrade,
    dial,
    open_peer,
    wait_for,
)
from tests.support.text_sockets import TextSocket, open_text_socket

MAIN = peer_id("main")
TARGET = f"/api/v2/workspaceagents/{MAIN}/logs"
ALICE = user_token("alice")


async def print_lines(peer: Peer, *outputs: str) -> None:
    request = agent.BatchCreateLogsRequest(
        log_source_id=make_id("source").bytes,
        logs=[agent.Log(output=output, level=agent.Log.WARN) for output in outputs],
    )
    await peer.call(AGENT + "BatchCreateLogs", request, agent.BatchCreateLogsResponse)


async def take(socket: TextSocket, count: int) -> list[str]:
    outputs: list[str] = []
    while len(outputs) < count:
        outputs += [line["output"] for line in await socket.read()]
    return outputs


async def test_everybody_gets_every_line_once_and_in_order(server: CoordinatorServer) -> None:
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        async with open_text_socket(server, f"{TARGET}?follow", ALICE) as early:
            assert await early.read() == []
            await print_lines(peer, "a", "b")
            [first, _] = await early.read()
            assert (first["level"], first["source_id"]) == ("warn", str(make_id("source")))
            after = f"{TARGET}?follow=1&no_compression&after={first['id']}"
            async with open_text_socket(server, after, ALICE) as late:
                assert await take(late, 1) == ["b"]
                await print_lines(peer, *map(str, range(100)))
                await print_lines(peer, "last")
                expected = [*map(str, range(100)), "last"]
                assert await take(early, 101) == await take(late, 101) == expected
                reading = server.reading()
                assert (reading.feed_followers["logs"], reading.feed_drops["logs", "slow"]) == (2, 0)
        await wait_for(lambda: not server.logs.counts.followers)


async def test_how_it_ends(server: CoordinatorServer) -> None:
    twin = TARGET.replace("/logs", "/startup-logs")
    async with open_text_socket(server, f"{twin}?follow", ALICE) as socket:
        assert await socket.read() == []
        await server.store.run(server.store.callers.delete_agent, MAIN)
        assert await socket.end() == (CloseCode.NORMAL, "the agent is gone")
    other = f"/api/v2/workspaceagents/{peer_id('gpu')}/logs?follow"
    async with open_text_socket(server, other, ALICE) as socket:
        assert await socket.read() == []
        server.logs.close("the server leaves")
        assert await socket.end() == (CloseCode.GOING_AWAY, "the server leaves")


@pytest.mark.parametrize(
    ("query", "token", "status"),
    [("follow", "", 401), ("follow", user_token("bob"), 404), ("follow&after=x", ALICE, 400), ("", ALICE, 200)],
)
async def test_what_is_no_stream_is_answered_before_the_upgrade(
    server: CoordinatorServer, query: str, token: str, status: int
) -> None:
    with pytest.raises(RefusedUpgrade) as refused:
        await dial(server, f"{TARGET}?{query}", token)
    assert refused.value.answer.status == status


@pytest.mark.parametrize(("query", "compressed"), [("follow", True), ("follow&no_compression", False)])
async def test_compression(server: CoordinatorServer, query: str, compressed: bool) -> None:
    stream = await trio.open_tcp_stream(server.listening[0].host, server.listening[0].port)
    head = [
        f"GET {TARGET}?{query} HTTP/1.1",
        "Host: tailnet.test",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Extensions: permessage-deflate",
        f"Coder-Session-Token: {ALICE}",
    ]
    async with stream:
        await stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())
        answer = b""
        with trio.fail_after(60):
            while b"\r\n\r\n" not in answer:
                answer += await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 101")
    assert (b"permessage-deflate" in answer) is compressed
