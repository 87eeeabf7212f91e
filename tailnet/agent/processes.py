"""Scripts of a template as processes: started, read, timed out, ended with everything they started.  Layer L3.

A script is a file that its interpreter reads: what its first line names, else the shell.  It has a process group of its
own, no input, and two pipes whose bytes go to the caller as they come.  `end_groups`
ends whatever an agent has started.  Next hop: scripts.py, metadata.py, terminals.py.
"""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import trio

from derp.text import error_text
from tailnet.agent.context import Context

Take: TypeAlias = Callable[[bytes, bool], None]
"""A piece of output; True: of the standard error."""

# From asking to SIGKILL: an editor saves its swap file, a shell its history; more is not owed to what is ended.
GRACE_SECONDS: Final = 5.0
# How often a process group is looked at: whether it has become empty.
_LOOK_SECONDS: Final = 0.05
# What a script left in the background may go on writing for so long.  The pipes are closed then.
PIPE_SECONDS: Final = 10.0
# A script that prints without end gets so many bytes as fast as they come, and then 6 MB/s: reading more would take a
# core from its workspace.
FAST_BYTES: Final = 16 * 1024 * 1024
_SLOW_SECONDS: Final = 0.01
_READ_BYTES: Final = 64 * 1024
_MAX_FIRST_LINE: Final = 4_096
# What shells say of a program that cannot be started, and what nobody says who was killed.
NOT_STARTED: Final = 127


@dataclass(frozen=True, slots=True)
class Ended:
    """How a script ended.  `exit_code` is negative for a signal, as Python has it; `problem`: it was not started."""

    exit_code: int
    is_timed_out: bool = False
    pipes_left_open: bool = False
    problem: str = ""

    @property
    def is_good(self) -> bool:
        return not (self.exit_code or self.is_timed_out)


async def run_script(
    text: str,
    take: Take,
    context: Context,
    *,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a script to its end, or for `timeout_seconds` (0: for ever).  When cancelled it is ended first.

    `environment`: instead of the context's.
    """
    with tempfile.TemporaryDirectory(dir=context.scripts_directory, prefix="script-") as folder:
        path = Path(folder) / "script"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            process = await trio.lowlevel.open_process(
                [*interpreter(text, context.shell), str(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=context.directory,
                env=context.environment() if environment is None else dict(environment),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            problem = f"it cannot be started: {error_text(error)}"
            return Ended(NOT_STARTED, problem=problem)
        try:
            return await _attend(process, take, timeout_seconds)
        finally:
            if process.returncode is None:
                await end_group(process)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                await trio.aclose_forcefully(pipe)


def interpreter(text: str, shell: str) -> list[str]:
    """The words of the first line after `#!`, else the shell."""
    first = text.partition("\n")[0][:_MAX_FIRST_LINE]
    if not first.startswith("#!"):
        return [shell]
    try:
        return shlex.split(first[2:]) or [shell]
    except ValueError:
        return first[2:].split() or [shell]


async def _attend(process: trio.Process, take: Take, timeout_seconds: float) -> Ended:
    read = 0

    async def carry(pipe: trio.abc.ReceiveStream | None, is_error: bool) -> None:
        nonlocal read
        assert pipe is not None
        while piece := await pipe.receive_some(_READ_BYTES):
            take(bytes(piece), is_error)
            read += len(piece)
            if read > FAST_BYTES:
                await trio.sleep(_SLOW_SECONDS)

    is_timed_out = False
    async with trio.open_nursery() as nursery:

        async def read_all() -> None:
            async with trio.open_nursery() as readers:
                for pipe, is_error in ((process.stdout, False), (process.stderr, True)):
                    readers.start_soon(carry, pipe, is_error)
            at_end.set()

        at_end = trio.Event()
        nursery.start_soon(read_all)
        with trio.move_on_after(timeout_seconds or float("inf")) as limit:
            await process.wait()
        if limit.cancelled_caught:
            is_timed_out = True
            await end_group(process)
        with trio.move_on_after(PIPE_SECONDS):
            await at_end.wait()
        nursery.cancel_scope.cancel()
    code = process.returncode
    return Ended(-signal.SIGKILL if code is None else code, is_timed_out, not at_end.is_set())


async def end_group(process: trio.Process) -> None:
    """End a process and all that are in its group: they are asked, and killed if they go on.  Not to be cancelled."""
    await end_groups({process.pid}, process.wait)


async def end_groups(
    groups: set[int], reap: Callable[[], Awaitable[object]], first: signal.Signals = signal.SIGTERM
) -> None:
    """`first`, and after GRACE_SECONDS SIGKILL for what is left of the groups.  Not to be cancelled.

    `reap` waits for their leader.  What has a session or a group of its own (setsid, a job under nohup) stays.
    """
    with trio.CancelScope(shield=True):
        signal_groups(groups, first)
        signal_groups(groups, signal.SIGCONT)  # who is stopped hears nothing
        with trio.move_on_after(GRACE_SECONDS):
            await reap()
            # Also when the leader obeyed: others may not.
            while any(_is_alive(group) for group in groups):  # noqa: ASYNC110  # the kernel tells nobody
                await trio.sleep(_LOOK_SECONDS)
        signal_groups(groups, signal.SIGKILL)
        # A disk that does not answer holds even those who are killed.
        with trio.move_on_after(GRACE_SECONDS):
            await reap()


def signal_groups(groups: set[int], number: signal.Signals) -> None:
    """Those that have gone meanwhile hear nothing."""
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, whom a program of ours has become
    return True
