"""A tailnet on loopback with one genuine tailscaled in it, and the hand that decides who else is.

`async with open_tailnet() as tailnet`: the tailscaled runs and is not logged in until `up`.  The control server is the
genuine package's own for tests (tests/interop/go_tailscaled); nothing leaves this machine.
"""

import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import trio

from tests.support.gobuild import TAILSCALED, TAILSCALED_CONTROL
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.relays import stop_process


class Tailnet:
    """The running processes.  Requests are made one after the other; each returns when tailscaled has seen to it."""

    def __init__(self, folder: Path, tailscaled: trio.Process, control: trio.Process) -> None:
        self.socket = folder / "tailscaled.sock"
        self._output = folder / "output"
        self._tailscaled = tailscaled
        self._control = control
        self._pending = b""

    async def up(self) -> bytes:
        """Log tailscaled in; its own key."""
        return bytes.fromhex((await self._ask("up")).removeprefix("nodekey:"))

    async def add(self, key: bytes) -> None:
        """A node with this key joins."""
        await self._ask("add", f"nodekey:{key.hex()}")

    async def remove(self, key: bytes) -> None:
        """It leaves."""
        await self._ask("remove", f"nodekey:{key.hex()}")

    async def down(self) -> None:
        """What `tailscale down` does."""
        await self._ask("down")

    async def stop(self) -> None:
        """End tailscaled as systemd would."""
        assert await stop_process(self._tailscaled), self.output()

    def output(self) -> str:
        """What tailscaled has logged so far."""
        return self._output.read_text(errors="replace")

    async def wait_listening(self) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                assert self._tailscaled.poll() is None, self.output()
                try:
                    stream = await trio.open_unix_socket(self.socket)
                except OSError:
                    await trio.sleep(0.02)
                    continue
                await stream.aclose()
                return

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
        assert "error" not in reply, f"{reply['error']}\n{self.output()}"
        return reply

    async def _ask(self, op: str, key: str = "") -> str:
        assert self._control.stdin is not None
        request = {"op": op} | ({"key": key} if key else {})
        await self._control.stdin.send_all(json.dumps(request).encode() + b"\n")
        return (await self.line())["key"]


@asynccontextmanager
async def open_tailnet() -> AsyncIterator[Tailnet]:
    """Start both programs and end both by their ids."""
    tailscaled, control = require(TAILSCALED), require(TAILSCALED_CONTROL)
    with tempfile.TemporaryDirectory(prefix="tailnet-") as name:
        folder = Path(name)
        command = [str(tailscaled), "--tun=userspace-networking", "--port=0", "--no-logs-no-support"]
        command += [f"--statedir={folder}", f"--state={folder / 'state'}", f"--socket={folder / 'tailscaled.sock'}"]
        environment = os.environ | {"TS_LOGS_DIR": name}
        with (folder / "output").open("wb") as output:
            daemon = await trio.lowlevel.open_process(
                command, stdin=DEVNULL, stdout=output, stderr=STDOUT, env=environment
            )
        server = await trio.lowlevel.open_process(
            [str(control), f"-socket={folder / 'tailscaled.sock'}"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        tailnet = Tailnet(folder, daemon, server)
        try:
            await tailnet.wait_listening()
            await tailnet.line()
            yield tailnet
        finally:
            stopped = await stop_process(daemon)
            server.kill()
            with trio.CancelScope(shield=True):
                await server.wait()
                for pipe in (server.stdin, server.stdout):
                    assert pipe is not None
                    await pipe.aclose()
        assert stopped, "tailscaled did not stop on SIGTERM"
