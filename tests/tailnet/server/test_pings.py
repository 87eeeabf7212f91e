"""Websockets of the API are pinged, and one that is over is forgotten at once, not when the next ping is due."""

import os

import trio

from derp.protocol.websocket import Opcode, encode_masked
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import user_token
from tests.support.tailnet_driver import connect, upgrade_request, wait_for


async def test_the_map_stream_is_pinged_and_leaves_nothing_behind(server: CoordinatorServer) -> None:
    stream = await connect(server)
    with trio.fail_after(server.config.agent_ping_seconds / 2):
        await stream.send_all(upgrade_request("/api/v2/derp-map", user_token("alice")))
        received = b""
        while bytes([0x80 | Opcode.PING, 0]) not in received or b"}\n" not in received:
            chunk = await stream.receive_some()
            assert chunk, received
            received += chunk
        assert received.startswith(b"HTTP/1.1 101 ")
        await stream.send_all(encode_masked(Opcode.CLOSE, b"\x03\xe8", os.urandom(4)))
        while chunk:
            chunk = await stream.receive_some()
        await stream.aclose()
        await wait_for(lambda: server.lobby.connection_count == 0)


async def test_a_client_that_is_gone_is_forgotten_too(server: CoordinatorServer) -> None:
    stream = await connect(server)
    with trio.fail_after(server.config.agent_ping_seconds / 2):
        await stream.send_all(upgrade_request("/api/v2/derp-map", user_token("alice")))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        await stream.aclose()
        await wait_for(lambda: server.lobby.connection_count == 0)
