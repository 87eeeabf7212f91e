"""A request for a websocket, asked of an ASGI app without a server: for tests of what is refused before an upgrade."""

from typing import Any

import trio
from starlette.types import ASGIApp, Message


async def ask_for_socket(
    app: ASGIApp, target: str, headers: dict[str, str], client: tuple[str, int]
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer; 101 for one that was accepted."""
    path, _, query = target.partition("?")
    found: dict[str, Any] = {"status": 0, "headers": {}, "body": b""}
    is_over = trio.Event()
    asked = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await is_over.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                found["status"] = 101
                is_over.set()
            case "websocket.http.response.start":
                found["status"] = message["status"]
                found["headers"] = {name.decode(): value.decode() for name, value in message["headers"]}
            case "websocket.http.response.body":
                found["body"] += message.get("body", b"")
            case "websocket.close" if not found["status"]:
                found["status"] = 403  # what a server makes of it

    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in {"host": "x", **headers}.items()],
        "client": client,
        "server": ("x", 80),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
        "state": {},
    }
    await app(scope, receive, send)
    return found["status"], found["headers"], found["body"]
