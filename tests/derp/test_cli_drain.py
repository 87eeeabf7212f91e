"""`derp drain`: a relay in a process of its own is told to go, and has gone when the command returns."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from derp.cli_drain import _wait_ended
from tests.support.command import ENVIRONMENT, run_derp
from tests.support.regions import Successor
from tests.support.relays import stop_process


@asynccontextmanager
async def relay(folder: Path) -> AsyncIterator[trio.Process]:
    """One that serves."""
    command = [sys.executable, "-m", "derp", "serve", "--listen=127.0.0.1:0", "--stun=false", "--json"]
    command.append(f"--key-file={folder / 'key'}")
    with (folder / "log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        with trio.fail_after(60):
            assert await process.stdout.receive_some()
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process.stdout.aclose()
            await stop_process(process)


async def test_it_returns_when_the_relay_has_ended(tmp_path: Path) -> None:
    async with relay(tmp_path) as process:
        ran = await run_derp("drain", str(process.pid))
        assert (ran.status, ran.out, ran.err) == (0, "", "")
        assert process.poll() == 0
    assert "SIGTERM: draining" in (tmp_path / "log").read_text()


async def test_another_process_takes_its_place(tmp_path: Path) -> None:
    async with relay(tmp_path) as process:
        ran = await run_derp("drain", "--replace", str(process.pid))
        assert (ran.status, ran.out, ran.err) == (0, "", "")
        assert process.poll() == 0
        (pid,) = re.findall(r"process (\d+) serves from now on", (tmp_path / "log").read_text())
        successor = Successor(int(pid))
        assert successor.poll() is None
        assert await stop_process(successor)


async def test_a_process_that_is_no_relay_is_left_alone() -> None:
    sleeper = await trio.lowlevel.open_process(["sleep", "100"])
    try:
        ran = await run_derp("drain", "--replace", str(sleeper.pid))
        assert ran.status == 1
        assert "does not know SIGUSR2: is it `derp serve` or `tailnet serve`?" in ran.err
        assert sleeper.poll() is None
        sleeper.kill()
        await sleeper.wait()
        ran = await run_derp("drain", str(sleeper.pid))
        assert (ran.status, "No such process" in ran.err) == (1, True)
    finally:
        await stop_process(sleeper)


@pytest.mark.parametrize("has_handle", [True, False])
async def test_who_does_not_end_is_not_waited_for_any_longer(has_handle: bool) -> None:
    handle = os.pidfd_open(os.getpid()) if has_handle else None
    assert not _wait_ended(os.getpid(), handle, 0.1)
    if not has_handle:
        ended = await trio.run_process(["sh", "-c", "echo $$"], capture_stdout=True)
        assert _wait_ended(int(ended.stdout), None, 60.0)
