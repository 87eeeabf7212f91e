"""An HTTP server of a few lines, for tests of those who fetch: it answers as it is told and notes what it was asked.

Other small servers of the tests read requests and write answers by the functions below.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

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
                while (found := await read_message(stream, received)) is not None:
                    message, received = found
                    self.heads.append(f"{message.head}\r\n\r\n")
                    response = self.respond(self.heads[-1])
                    if not response:
                        return
                    await stream.send_all(response)


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Message:
    """What was asked: headers by lower-case name; `head` is all before the body, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    head: str


async def read_message(stream: trio.abc.ReceiveStream, received: bytes) -> tuple[Message, bytes] | None:
    """The next request of a connection of which `received` was read already, and what was read behind it; None at the
    end of it."""
    while (found := _take(received)) is None:
        chunk = await stream.receive_some()
        if not chunk:
            return None
        received += chunk
    return found


def _take(received: bytes) -> tuple[Message, bytes] | None:
    text, found, rest = received.partition(b"\r\n\r\n")
    if not found:
        return None
    head = text.decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if len(rest) < length:
        return None
    return Message(first.split(" ")[1], headers, rest[:length], head), rest[length:]
