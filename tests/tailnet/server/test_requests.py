"""Requests as proxies write them: targets in absolute form, encoded letters, upgrades with a body."""

import pytest

from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT_DOOR,
    TAILNET,
    WebSocket,
    client_door,
    open_connection,
    open_peer,
    read_answer,
    upgrade_request,
)

MAIN = peer_id("main")
ALICE = user_token("alice")


@pytest.mark.parametrize("spelling", ["%s", "http://tailnet.test%s", "HTTP://tailnet.test:80%s", "encoded"])
async def test_every_spelling_of_our_paths_is_served(server: CoordinatorServer, spelling: str) -> None:
    """Relay, RPC sockets and API on one port: through HTTP proxies targets come in absolute form."""

    def spelt(path: str) -> str:
        return f"/%{ord(path[1]):02x}{path[2:]}" if spelling == "encoded" else spelling % path

    for path, status in {
        "/derp": 426,
        "/derp/probe": 200,
        "/derp/latency-check": 200,
        "/generate_204": 204,
        "/healthz": 200,
        "/readyz": 200,
        "/api/v2/derp-map": 426,
        "/nowhere": 404,
    }.items():
        async with open_connection(server) as stream:
            head = f"GET {spelt(path)} HTTP/1.1\r\nHost: localhost\r\nCoder-Session-Token: {ALICE}\r\n\r\n"
            await stream.send_all(head.encode())
            assert (await read_answer(stream)).status == status, path
            # A second request on the connection, which may live elsewhere now.
            await stream.send_all(f"GET {spelt('/derp/probe')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (await read_answer(stream)).status == 200
    async with open_peer(server, spelt(client_door(MAIN)), ALICE) as client:
        await client.call(TAILNET + "PostTelemetry", tailnet.TelemetryRequest(), tailnet.TelemetryResponse)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"Content-Length: 0\r\n\r\n", 101),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 101),
        (b"Content-Length: 5\r\n\r\nhello", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400),
    ],
)
async def test_an_upgrade_has_no_body(server: CoordinatorServer, body: bytes, status: int) -> None:
    for target, token in ((client_door(MAIN), ALICE), (AGENT_DOOR, agent_token("main"))):
        async with open_connection(server) as stream:
            await stream.send_all(upgrade_request(target, token).removesuffix(b"\r\n") + body)
            answer = await read_answer(stream)
            assert answer.status == status
            if status == 101:
                websocket = WebSocket(stream, answer.rest)
                await websocket.write(b"\x00\x02\x00\x01" + bytes(4) + b"ping")  # yamux: answered as such
                assert await websocket.read() == b"\x00\x02\x00\x02" + bytes(4) + b"ping"
    async with open_connection(server) as stream:
        head = b"GET /derp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
        await stream.send_all(head + body)
        answer = await read_answer(stream)
        assert answer.status == status
        assert status == 400 or answer.rest.startswith(b"\x01\x00\x00\x00\x28DERP")
