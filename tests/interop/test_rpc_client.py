"""The server side of our RPC layers against a client on the genuine yamux and dRPC, over TCP without HTTP.

What the coordinator's own peers never do is here too: messages far beyond the window, and calls in a row on one
stream.  tests/interop/test_tailnet_channel.py is the twin for our client side.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from tailnet.errors import RpcError
from tailnet.rpc.connection import ConnectionEvent, ServerConnection
from tests.support.gobuild import TAILNET, GoProgram
from tests.support.peers import PATIENCE_SECONDS, require

pytestmark = pytest.mark.interop

RPC_CLIENT = GoProgram("tailnet-rpcclient", TAILNET, "./cmd/rpcclient")
RPCS = {f"/test/{name}": name for name in ("Echo", "Count", "Chat", "Fail")}


class Server:
    """Serves one connection; keeps what it was told."""

    def __init__(self) -> None:
        self.connection: ServerConnection[str] = ServerConnection(RPCS, now=0.0)
        self.ended: list[str] = []
        self.calls = 0
        self.done = trio.Event()

    def serve(self, kind: ConnectionEvent, call_id: int, value: Any) -> None:
        connection, rpc = self.connection, self.connection.rpc_of(call_id)
        if kind is ConnectionEvent.CALLED:
            self.calls += 1
        elif kind is ConnectionEvent.ENDED:
            self.ended.append(value)
        elif kind is ConnectionEvent.HALF_CLOSED and rpc == "Chat":
            connection.finish(call_id)
        elif kind is not ConnectionEvent.MESSAGE:
            return
        elif rpc == "Echo":
            connection.reply(call_id, value)
        elif rpc == "Fail":
            connection.send_error(call_id, RpcError("no luck", 77))
        elif rpc == "Chat":
            assert connection.send_message(call_id, value)
        elif rpc == "Count":
            for number in range(int(value)):
                assert connection.send_message(call_id, b"%d" % number)
            connection.finish(call_id)

    async def run(self, stream: trio.SocketStream) -> None:
        # A program that ends without having read our last acknowledgements resets the connection.
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                for event in self.connection.receive_data(data):
                    self.serve(*event)
                for piece in self.connection.data_to_send():
                    await stream.send_all(piece)
        self.done.set()


async def served_by(server: Server, client: Callable[[int], Awaitable[Any]]) -> Any:
    """Run `client(port)` against a listener that serves one connection."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, server.run, 0)
        result = await client(listeners[0].socket.getsockname()[1])
        await server.done.wait()  # its last words may still be on the way
        nursery.cancel_scope.cancel()
    return result


async def test_a_genuine_client_is_served() -> None:
    program, server = require(RPC_CLIENT), Server()

    async def client(port: int) -> Any:
        return await trio.run_process(
            [program, f"127.0.0.1:{port}"], capture_stdout=True, capture_stderr=True, check=False
        )

    with trio.fail_after(PATIENCE_SECONDS):
        done = await served_by(server, client)
    assert done.returncode == 0, done.stderr.decode()
    found = {line["name"]: line["value"] for line in map(json.loads, done.stdout.splitlines())}
    assert found == {
        "echo": "all sizes",
        "fail": {"code": 77, "text": "no luck"},
        "unknown": {"code": 12, "text": "unknown rpc: '/test/NoSuchRpc'"},
        "at once": 100,
        "count": 1000,
        "chat ends with EOF": True,
        "cancelled": True,
        "ping": True,
        "in a row": 10,
    }
    # Unary calls end with both CloseSends; only the abandoned ones were ended by the client.
    assert server.ended == ["cancelled"] * 6
    assert server.calls == 9 + 1 + 100 + 1 + 2 + 10
    assert server.connection.calls_in_hand() == []
