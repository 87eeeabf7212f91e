"""Somebody who is told things by POST: a real HTTP server of a few lines that notes them and answers as it is told."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from tests.support import sites
from tests.support.sites import Message, read_message


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    return sites.answer(body, *headers, status=f"{status} X")


@dataclass
class Receiver:
    """`respond(message) -> bytes` answers each; nothing is a hang-up, None no answer ever."""

    respond: Callable[[Message], bytes | None] = lambda message: answer(204)
    messages: list[Message] = field(default_factory=list)
    url: str = ""
    arrived: trio.Event = field(default_factory=trio.Event)
    connections: int = 0

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED, port: int = 0) -> None:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/hook"
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def wait_messages(self, count: int) -> list[Message]:
        """Until so many came."""
        while len(self.messages) < count:
            await self.arrived.wait()
        return self.messages

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        with suppress(trio.BrokenResourceError):
            async with stream:
                received = b""
                while (found := await read_message(stream, received)) is not None:
                    message, received = found
                    self.messages.append(message)
                    self.arrived.set()
                    self.arrived = trio.Event()
                    response = self.respond(message)
                    if response is None:
                        await trio.sleep_forever()
                    if not response:
                        return
                    await stream.send_all(response)
