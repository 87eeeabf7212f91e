"""An HTTP server of a few lines, for tests of those who fetch: it answers as it is told and notes what it was asked."""

from collections.abc import Callable
from contextlib import suppress

import trio


class Site:
    """An HTTP server of a few lines: `respond(head) -> bytes` answers each request."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.respond: Callable[[str], bytes] = lambda head: answer(b"{}")
        self.url = ""

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/map.json"
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _connection(self, stream: trio.SocketStream) -> None:
        # A client may hang up whenever it likes.
        with suppress(trio.BrokenResourceError):
            async with stream:
                received = b""
                while chunk := await stream.receive_some():
                    received += chunk
                    if received.endswith(b"\r\n\r\n"):
                        self.heads.append(received.decode())
                        received = b""
                        response = self.respond(self.heads[-1])
                        if not response:
                            return
                        await stream.send_all(response)


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
