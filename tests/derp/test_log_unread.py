"""A log that nobody reads stops nothing: a real server whose stderr is a full pipe relays packets, and ends in time."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from derp.client.client import Identity, reach
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket, ServerInfo
from tests.derp.server.world import Caller
from tests.support.command import ENVIRONMENT

PATIENCE_SECONDS = 60.0  # a hang guard
PIPE_BYTES = 4096  # the smallest that Linux has
CLIENTS = 60  # two lines of some 200 bytes each: five times what the pipe takes


@dataclass
class Unread:
    """A relay, and the end of its log that nobody reads."""

    process: trio.Process
    port: int
    log: int

    async def call(self) -> Caller:
        private = NodePrivate.generate()
        url = f"http://127.0.0.1:{self.port}/derp"
        options = DialOptions(insecure_for_tests=True, environment=None)
        reached = await reach(url, Identity(private), options, "", PATIENCE_SECONDS)
        caller = Caller(reached.dialled.stream, reached.core, private)
        caller.inbox += [event for event in reached.events if not isinstance(event, ServerInfo)]
        return caller


def read_all(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


@asynccontextmanager
async def open_unread(program: str) -> AsyncIterator[Unread]:
    near, far = os.pipe()
    fcntl.fcntl(far, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    command = [sys.executable, "-m", program, "serve", "--dev", "--listen=127.0.0.1:0", "--json"]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=far, env=ENVIRONMENT)
    os.close(far)
    assert process.stdout is not None
    said = b""
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            while b'"serving"' not in said:
                received = await process.stdout.receive_some()
                assert received, "it ended at once"
                said += received
        events = [json.loads(line) for line in said.splitlines()]
        yield Unread(
            process,
            next(event["port"] for event in events if event["event"] == "listening" and event["kind"] != "stun"),
            near,
        )
    finally:
        os.close(near)
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdout.aclose()


@pytest.mark.parametrize("program", ["derp", "tailnet"])
async def test_packets_go_on_while_nobody_reads_the_log(program: str) -> None:
    async with open_unread(program) as relay:
        with trio.fail_after(PATIENCE_SECONDS):
            one, other = await relay.call(), await relay.call()
            for _ in range(CLIENTS):
                await (await relay.call()).aclose()
            for number in range(100):
                await one.send(other.key, b"%d" % number)
                assert await other.receive() == RecvPacket(one.key, b"%d" % number)
            await one.aclose()
            await other.aclose()
            relay.process.send_signal(signal.SIGTERM)
            assert await relay.process.wait() == 0, "the end does not wait for a reader either"


@pytest.mark.parametrize("program", ["derp", "tailnet"])
async def test_who_reads_late_gets_every_line(program: str) -> None:
    async with open_unread(program) as relay:
        with trio.fail_after(PATIENCE_SECONDS):
            for _ in range(CLIENTS):
                await (await relay.call()).aclose()
            relay.process.send_signal(signal.SIGTERM)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.process.wait)
                text = await trio.to_thread.run_sync(read_all, relay.log)
        lines = [json.loads(line) for line in text.splitlines()]
        came = [line["message"] for line in lines if line["message"].startswith("> client")]
        went = [line["message"] for line in lines if line["message"].startswith("x client")]
        assert len(came) == len(went) == CLIENTS
        assert any(line["message"].startswith("= drained") for line in lines)
