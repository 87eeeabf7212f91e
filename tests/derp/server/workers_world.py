"""A supervisor in this process, and workers that are processes of their own."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from derp.config import load_config
from derp.server.supervisor import Supervisor
from tests.derp.server.world import HOST, PATIENCE_SECONDS, Caller, ask, call


@asynccontextmanager
async def open_workers(folder: Path, *arguments: str, count: int = 2) -> AsyncIterator[Supervisor]:
    """`derp serve` with that many workers; cancelled at the end of the block, and then its workers have ended."""
    supervisor = make_supervisor(folder, *arguments, count=count)
    supervisor.open()
    try:
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(3 * PATIENCE_SECONDS):
                    yield await nursery.start(supervisor.run)
            finally:
                with trio.CancelScope(shield=True):
                    await end(supervisor)
            nursery.cancel_scope.cancel()
    finally:
        supervisor.close()


def make_supervisor(folder: Path, *arguments: str, count: int) -> Supervisor:
    """With the settings of the folder, or those of every test."""
    settings = folder / "settings.toml"
    if not settings.exists():
        write_settings(folder)
    flags = {"workers": str(count)}
    command = [sys.executable, "-m", "derp", "serve", "--config", str(settings), *arguments]
    return Supervisor(
        load_config(flags, {}, str(settings)), lambda: load_config(flags, {}, str(settings)), command=command
    )


def write_settings(folder: Path, *more: str) -> None:
    """For those who serve there, or will."""
    lines = [f'listen = "{HOST}:0"', f'key_file = "{folder}/key"', "stun_port = 0", 'log_format = "text"', *more]
    (folder / "settings.toml").write_text("\n".join(lines) + "\n")


async def end(supervisor: Supervisor) -> None:
    """Without a drain: the test is over.  One that is only being started goes with whoever starts it."""
    serving = [worker for worker in supervisor.workers if worker.process is not None]
    for worker in serving:
        worker.is_leaving = True
        worker.process.kill()
    for worker in serving:
        await worker.ended.wait()


@asynccontextmanager
async def call_many(supervisor: Supervisor, count: int) -> AsyncIterator[list[Caller]]:
    """So many clients that the kernel gives each worker some of them, known to all workers."""
    callers: list[Caller] = []
    try:
        for _ in range(count):
            callers.append(await call(supervisor))
        # Who was just called may not be known to the other workers yet: of 300 packets sent at once 12 found nobody.
        for caller in callers:
            await caller.ping()
        yield callers
    finally:
        for caller in callers:
            await caller.aclose()


async def page(supervisor: Supervisor, path: str) -> str:
    """What some worker answers, as curl would ask for it."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = await ask(supervisor, request.encode(), tls=supervisor.tls is not None)
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), head
    return body


async def clients_by_worker(supervisor: Supervisor) -> dict[int, list[bytes]]:
    """Keys, by the slot of the worker that has the connection: the pages say it."""
    rows = json.loads(await page(supervisor, "/debug/clients/?all=1&limit=1000&format=json"))["clients"]
    found: dict[int, list[bytes]] = {slot: [] for slot in range(supervisor.config.workers)}
    for row in rows:
        found[row["connNum"] % supervisor.config.workers].append(bytes.fromhex(row["key"].removeprefix("nodekey:")))
    return found
