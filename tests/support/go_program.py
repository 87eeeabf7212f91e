"""A Go program of ours at its other end: started, told orders by line, heard line by line; one that answers in JSON."""

import json
from collections.abc import AsyncIterator
from subprocess import PIPE
from typing import Any, ClassVar

import trio

PATIENCE_SECONDS = 60.0


async def run(command: list[str], task_status: "trio.TaskStatus[trio.Process]") -> None:
    await trio.run_process(command, stdin=PIPE, stdout=PIPE, task_status=task_status)  # killed when it is cancelled


async def tell(process: trio.Process, line: str) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(f"{line}\n".encode())


async def lines_of(process: trio.Process) -> AsyncIterator[bytes]:
    """What it prints, to its end."""
    assert process.stdout is not None
    text = b""
    async for piece in process.stdout:
        *lines, text = (text + piece).split(b"\n")
        for line in lines:
            yield line


class Answering:
    """A running program that answers each order with a line of JSON.  One order at a time."""

    failure: ClassVar[type[Exception]]
    """What is raised with its own words where it could not do what it was told."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._text = b""

    async def answer(self) -> dict[str, Any]:
        """The next answer.  Raises `failure`, trio.TooSlowError."""
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE_SECONDS):
            while b"\n" not in self._text:
                piece = await self._process.stdout.receive_some()
                if not piece:
                    raise self.failure("it ended")
                self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if not said["ok"]:
            raise self.failure(said["error"])
        return said
