"""Runs `derp` as a process beside relays of this process, with none of the caller's own settings; and servers.

`inner_commands` walks what a program has.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
import trio

# A cold start of the interpreter on a busy machine takes seconds.
PATIENCE_SECONDS = 60.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ENVIRONMENT = {
    name: text for name, text in os.environ.items() if not name.startswith("DERP_") and name.lower() not in _PROXIES
} | {"NO_COLOR": ""}


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it."""

    status: int
    out: str
    err: str


def inner_commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Name and command of each that stands in `group`, also of those that are loaded when they are asked for."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield name, command


async def run_derp(*arguments: str, stdin: bytes = b"") -> Ran:
    """`derp ARGUMENTS` to its end."""
    with trio.fail_after(PATIENCE_SECONDS):
        done = await trio.run_process(
            [sys.executable, "-m", "derp", *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=ENVIRONMENT,
        )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@asynccontextmanager
async def serving(*command: str) -> AsyncIterator[list[dict[str, Any]]]:
    """A server as a process of its own until the block ends: what `command`, with --json, said until it served."""
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        said = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while b'"serving"' not in said:
                chunk = await process.stdout.receive_some()
                assert chunk, said
                said += chunk
        yield [json.loads(line) for line in said.splitlines() if line.startswith(b"{")]
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
