"""A tailscaled on a Unix socket, as far as admission asks it: a real HTTP server, as small as can be."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from derp.transport.http import Request
from tests.derp.server.control_plane import Answer, ControlPlane

OWN_KEY = b"\x0f" * 32
HOST_NAME = "local-tailscaled.sock"


class Tailscaled(ControlPlane):
    """It knows the keys in `nodes`.  `instead`: what it answers to whois in place of that, None to hang up."""

    def __init__(self, path: Path) -> None:
        super().__init__(self.local_api)
        self.path = path
        self.nodes = {OWN_KEY}
        self.state = "Running"
        self.instead: dict[str, Answer | None] = {}

    @property
    def questions(self) -> list[Request]:
        """What was asked about clients, without the looks at itself."""
        own = f"nodekey%3A{OWN_KEY.hex()}"
        return [request for request in self.requests if "whois" in request.target and own not in request.target]

    def local_api(self, request: Request) -> Answer | None:
        path, _, query = request.target.partition("?")
        name = path.removeprefix("/localapi/v0/")
        if request.headers["host"] != HOST_NAME or {"origin", "referer"} & set(request.headers):
            return (403, b"invalid localapi request\n")
        if name in self.instead:
            return self.instead[name]
        if name == "status":
            own = {"PublicKey": f"nodekey:{OWN_KEY.hex()}"}
            return (200, json.dumps({"Version": "1.2.3", "BackendState": self.state, "Self": own}).encode())
        key = bytes.fromhex(query.removeprefix("addr=nodekey%3A"))
        if key not in self.nodes:
            return (404, b"no match for IP:port\n")
        return (200, json.dumps({"Node": {"Key": f"nodekey:{key.hex()}"}, "UserProfile": {}}).encode())


@asynccontextmanager
async def open_tailscaled(path: Path) -> AsyncIterator[Tailscaled]:
    tailscaled = Tailscaled(path)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(path))
    sock.listen(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, tailscaled.serve, [trio.SocketListener(sock)])
        yield tailscaled
        nursery.cancel_scope.cancel()
