"""A tailnet on loopback with genuine tailscaleds in it, and the hand that decides who else is.

`async with open_tailnet() as tailnet, tailnet.open_node() as node`: the tailscaled runs and is not logged in until
`tailnet.up(node)`.  The control server is the genuine package's own for tests (tests/interop/go_tailscaled); nothing
leaves this machine.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from subprocess import DEVNULL, PIPE
from typing import Any

import trio

from tests.support.gobuild import TAILSCALED, TAILSCALED_CONTROL
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.tailscaled import Tailscaled, open_tailscaled


class Tailnet:
    """The control server.  Requests are made one after the other; each returns when its tailscaled has seen to it."""

    def __init__(self, control: trio.Process) -> None:
        self._control = control
        self._pending = b""

    def open_node(self, environment: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[Tailscaled]:
        """Start a tailscaled, with more environment variables."""
        return open_tailscaled(require(TAILSCALED), environment or {})

    async def set_map(self, derp_map: dict[str, Any]) -> None:
        """The DERP map of those that are not up yet; without it there is none."""
        await self._ask({"op": "map", "map": derp_map})

    async def up(self, node: Tailscaled) -> bytes:
        """Log it in; its own key."""
        reply = await self._ask({"op": "up"}, node)
        return bytes.fromhex(reply["key"].removeprefix("nodekey:"))

    async def add(self, node: Tailscaled, key: bytes) -> None:
        """One with this key joins, and `node` knows it."""
        await self._ask({"op": "add", "key": f"nodekey:{key.hex()}"}, node)

    async def remove(self, node: Tailscaled, key: bytes) -> None:
        """It leaves, and `node` has forgotten it."""
        await self._ask({"op": "remove", "key": f"nodekey:{key.hex()}"}, node)

    async def down(self, node: Tailscaled) -> None:
        """What `tailscale down` does."""
        await self._ask({"op": "down"}, node)

    async def line(self) -> dict[str, str]:
        """The next line of the control server."""
        assert self._control.stdout is not None
        with trio.fail_after(2 * PATIENCE_SECONDS):  # its own patience first, for its better words
            while b"\n" not in self._pending:
                chunk = await self._control.stdout.receive_some()
                assert chunk, "the control server ended"
                self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply: dict[str, str] = json.loads(line)
        return reply

    async def _ask(self, request: dict[str, Any], node: Tailscaled | None = None) -> dict[str, str]:
        assert self._control.stdin is not None
        if node is not None:
            request["socket"] = str(node.socket)
        await self._control.stdin.send_all(json.dumps(request).encode() + b"\n")
        reply = await self.line()
        assert "error" not in reply, f"{reply['error']}\n{node.output() if node is not None else ''}"
        return reply


@asynccontextmanager
async def open_tailnet() -> AsyncIterator[Tailnet]:
    """Start the control server, and end it by its id."""
    server = await trio.lowlevel.open_process(
        [str(require(TAILSCALED_CONTROL))], stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    tailnet = Tailnet(server)
    try:
        await tailnet.line()
        yield tailnet
    finally:
        server.kill()
        with trio.CancelScope(shield=True):
            await server.wait()
            for pipe in (server.stdin, server.stdout):
                assert pipe is not None
                await pipe.aclose()
