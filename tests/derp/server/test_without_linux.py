"""A relay and a coordinator on a system that lacks what only Linux has: they serve pages and relay packets, slower."""

import json
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
import trio

from derp.client.client import Identity, reach
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tests.derp.server.world import HOST, PATIENCE_SECONDS, Caller, drained

ROOT = Path(__file__).resolve().parents[3]
POLLERS = pytest.mark.parametrize("poller", ["kqueue", "poll"])


@dataclass
class Program:
    process: trio.Process
    port: int
    log: Path

    async def ask(self, path: str, *, tls: bool) -> bytes:
        """A page."""
        stream: Any = await trio.open_tcp_stream(HOST, self.port)
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = trio.SSLStream(stream, context, server_hostname=HOST, https_compatible=True)
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nConnection: close\r\n\r\n".encode())
        answer = await drained(stream)
        await trio.aclose_forcefully(stream)
        return answer

    async def call(self, *, tls: bool, websocket: bool) -> Caller:
        """A client of the relay."""
        private = NodePrivate.generate()
        options = DialOptions(insecure_for_tests=True, force_websocket=websocket, environment=None)
        url = f"{'https' if tls else 'http'}://{HOST}:{self.port}/derp"
        reached = await reach(url, Identity(private), options, "", PATIENCE_SECONDS)
        return Caller(reached.dialled.stream, reached.core, private)

    async def relay_packets(self, *, tls: bool) -> None:
        """Both ways, between both kinds of clients."""
        one = await self.call(tls=tls, websocket=False)
        other = await self.call(tls=tls, websocket=True)
        try:
            for source, target in ((one, other), (other, one)):
                for size in (1, 1280, 60_000):
                    await source.send(target.key, bytes(size))
                    assert await target.receive_a(RecvPacket) == RecvPacket(source.key, bytes(size))
        finally:
            await one.aclose()
            await other.aclose()


@asynccontextmanager
async def running(folder: Path, poller: str, *command: str) -> AsyncIterator[Program]:
    """A program of ours; it has to end well when it is asked to."""
    log = folder / "log"
    with log.open("wb") as stderr, trio.fail_after(4 * PATIENCE_SECONDS):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tests.support.without_linux", poller, *command],
            cwd=ROOT,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=stderr,
        )
        try:
            assert process.stdout is not None
            said = b""
            while b"\n" not in said:
                chunk = await process.stdout.receive_some()
                assert chunk, log.read_text()
                said += chunk
            yield Program(process, int(json.loads(said.splitlines()[0])["port"]), log)
            process.send_signal(signal.SIGTERM)
            while await process.stdout.receive_some():
                pass
            assert await process.wait() == 0, log.read_text()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                if process.stdout is not None:
                    await process.stdout.aclose()
    assert "Traceback" not in log.read_text()


@POLLERS
async def test_a_relay(tmp_path: Path, poller: str) -> None:
    flags = ("-a", f"{HOST}:0", "-c", str(tmp_path / "key.json"), "--tls-self-signed", "--hostname", HOST)
    command = ("derp", "serve", "--json", *flags, "-stun=false", "--drain", "0s")
    async with running(tmp_path, poller, *command) as program:
        await program.relay_packets(tls=True)
        assert (await program.ask("/generate_204", tls=True)).startswith(b"HTTP/1.1 204 ")
        numbers = await program.ask("/debug/varz", tls=True)
        assert numbers.startswith(b"HTTP/1.1 200 ")
        assert b"file_descriptors" in numbers
        assert b"derp_reactor_in_trios_place 1.0" in await program.ask("/metrics", tls=True)


@POLLERS
async def test_a_coordinator(tmp_path: Path, poller: str) -> None:
    where = ("--listen", f"{HOST}:0", "--stun-listen", "off")
    async with running(tmp_path, poller, "tailnet", "serve", "--json", "--dev", *where, "--drain", "0s") as program:
        assert (await program.ask("/healthz", tls=False)).startswith(b"HTTP/1.1 200 ")
        await program.relay_packets(tls=False)
