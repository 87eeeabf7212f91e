"""Websockets of text messages, as browsers read them: trio-websocket on a running server."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tailnet.server.server import CoordinatorServer
from tests.support.tailnet_driver import PATIENCE_SECONDS, connect


class TextSocket:
    """The client's end.  `read` gives what a message's JSON says."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection

    async def read(self) -> Any:
        message = await self.connection.get_message()
        assert isinstance(message, str)
        assert message.endswith("\n")
        return json.loads(message)

    async def write(self, message: str) -> None:
        await self.connection.send_message(message)

    async def end(self) -> tuple[int, str]:
        """The code and the text of the server's goodbye, which has to come next."""
        with pytest.raises(ConnectionClosed) as closed:
            await self.connection.get_message()
        reason = closed.value.reason
        assert reason is not None
        return reason.code, reason.reason or ""


@asynccontextmanager
async def open_text_socket(server: CoordinatorServer, target: str, token: str) -> AsyncIterator[TextSocket]:
    """Dial and upgrade; hangs up at the end."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with await connect(server) as stream, trio.open_nursery() as nursery:
            headers = [(b"Coder-Session-Token", token.encode())]
            yield TextSocket(
                await wrap_client_stream(nursery, stream, "tailnet.test", target, extra_headers=headers)  # type: ignore[arg-type]  # any stream will do
            )
            nursery.cancel_scope.cancel()
