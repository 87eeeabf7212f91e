"""A supervisor in this process, and workers that are processes of their own."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from derp.config import load_config
from derp.server.supervisor import Supervisor
from tests.derp.server.world import HOST, PATIENCE_SECONDS, Caller, call


@asynccontextmanager
async def open_workers(folder: Path, *arguments: str, count: int = 2) -> AsyncIterator[Supervisor]:
    """`derp serve` with that many workers; cancelled at the end of the block, and then its workers have ended."""
    settings = folder / "settings.toml"
    if not settings.exists():
        settings.write_text(f'listen = "{HOST}:0"\nkey_file = "{folder}/key"\nstun_port = 0\nlog_format = "text"\n')
    flags = {"workers": str(count)}
    command = [sys.executable, "-m", "derp", "serve", "--config", str(settings), *arguments]
    supervisor = Supervisor(
        load_config(flags, {}, str(settings)), lambda: load_config(flags, {}, str(settings)), command=command
    )
    supervisor.open()
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(3 * PATIENCE_SECONDS):
                yield await nursery.start(supervisor.run)
                await end(supervisor)
            nursery.cancel_scope.cancel()
    finally:
        supervisor.close()


async def end(supervisor: Supervisor) -> None:
    """Without a drain: the test is over."""
    ended = [worker.ended for worker in supervisor.workers]
    for worker in supervisor.workers:
        worker.is_leaving = True
        worker.process.kill()
    for event in ended:
        await event.wait()


@asynccontextmanager
async def call_many(supervisor: Supervisor, count: int) -> AsyncIterator[list[Caller]]:
    """So many clients that the kernel gives each worker some of them."""
    callers: list[Caller] = []
    try:
        for _ in range(count):
            callers.append(await call(supervisor))
        yield callers
    finally:
        for caller in callers:
            await caller.aclose()
