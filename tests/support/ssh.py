"""An agent's SSH server on a port of loopback, and OpenSSH's clients of it."""

import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, cast
from unittest import mock

import trio

from tailnet.agent.context import Context
from tailnet.agent.ssh import serve
from tailnet.node.streams import TunnelStream
from tests.support.agents import AGENT, USER
from tests.support.missing import missing

PATIENCE_SECONDS = 120.0
# Nothing of whoever runs the tests: no settings, no keys, no agent.
OPTIONS = {
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "LogLevel": "ERROR",
    "IdentityFile": "/dev/null",
    "IdentityAgent": "none",
    "PreferredAuthentications": "none",
    "ControlPath": "none",
}


class LoopbackStream(trio.abc.HalfCloseableStream):
    """What stands for a TunnelStream: a TCP connection with a tailnet's addresses."""

    local_address, local_port = AGENT, 22
    remote_address = (USER, 50000)

    def __init__(self, inner: trio.SocketStream) -> None:
        self._inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._inner.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class Done:
    """How a program ended, and what it said."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass
class Client:
    """An ssh that runs."""

    process: trio.Process
    _text: bytes = b""

    async def type(self, text: bytes) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text)

    async def line(self) -> str:
        """The next one that it writes."""
        assert self.process.stdout is not None
        with trio.fail_after(PATIENCE_SECONDS):
            while b"\n" not in self._text:
                part = await self.process.stdout.receive_some()
                assert part, self._text
                self._text += part
        line, _, self._text = self._text.partition(b"\n")
        return line.decode().strip("\r")

    async def wait(self) -> int:
        """Its status."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await self.process.wait()


@dataclass
class SshServer:
    """One that runs.  `ended` has, for each connection, what its service raised or None."""

    port: int
    context: Context
    home: Path
    ended: list[BaseException | None] = field(default_factory=list)
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def words(self, program: str, *options: str, **settings: str) -> list[str]:
        """The beginning of a command line of ssh, scp or sftp."""
        port = "-p" if program == "ssh" else "-P"
        chosen = {**OPTIONS, **settings}
        return [program, "-F", "/dev/null", port, str(self.port), *(f"-o{k}={v}" for k, v in chosen.items()), *options]

    async def ssh(self, *words: str, stdin: bytes | None = None, **settings: str) -> Done:
        """Run ssh: options, then the command."""
        *options, command = words
        return await run([*self.words("ssh", *options, **settings), "user@127.0.0.1", command], stdin)

    async def copy(self, source: str, target: str, *options: str) -> None:
        """By scp, of which each end may be of the server's."""
        done = await run([*self.words("scp"), *options, source, target])
        assert (done.status, done.stderr) == (0, b"")

    @asynccontextmanager
    async def client(self, *words: str) -> AsyncIterator[Client]:
        """An ssh that runs for as long as it is wanted: options, then the command."""
        async with trio.open_nursery() as nursery:
            *options, command = words
            start = partial(trio.run_process, stdin=PIPE, stdout=PIPE, stderr=PIPE, check=False)
            yield Client(await nursery.start(start, [*self.words("ssh", *options), "user@127.0.0.1", command]))
            nursery.cancel_scope.cancel()

    async def wait_ended(self, count: int) -> None:
        """Until so many connections are over."""
        with trio.fail_after(PATIENCE_SECONDS):
            while len(self.ended) < count:
                await self.changed.park()


async def run(command: Sequence[str], stdin: bytes | None = None, environ: Mapping[str, str] | None = None) -> Done:
    with trio.fail_after(PATIENCE_SECONDS):
        done = await trio.run_process(
            command, stdin=stdin or b"", capture_stdout=True, capture_stderr=True, check=False, env=environ
        )
    return Done(done.returncode, done.stdout, done.stderr)


@asynccontextmanager
async def open_ssh_server(home: Path, **how: Any) -> AsyncIterator[SshServer]:
    """An agent whose user's home is `home`; `how` goes into its Context.  Skips without OpenSSH, which CI has."""
    if shutil.which("ssh") is None:
        missing("there is no `ssh`: install openssh-client")
    with mock.patch.dict(os.environ, HOME=str(home)):
        async with trio.open_nursery() as nursery:
            how = {"wanted_directory": str(home), "shell": "/bin/bash", **how}
            context = Context(nursery, "https://tailnet.example.org", "a-token", **how)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            server = SshServer(listeners[0].socket.getsockname()[1], context, home)

            async def serve_one(stream: trio.SocketStream) -> None:
                raised: BaseException | None = None
                try:
                    await serve(cast(TunnelStream, LoopbackStream(stream)), context)
                except BaseException as error:
                    raised = error
                    raise
                finally:
                    server.ended.append(raised)
                    server.changed.unpark_all()

            nursery.start_soon(trio.serve_listeners, serve_one, listeners)
            yield server
            nursery.cancel_scope.cancel()
