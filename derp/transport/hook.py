"""Runs a command of the operator's: no shell, a deadline, the end of what it said when it fails.  Layer L2.

Used by server/certificates.py for TXT records.
"""

import subprocess
from collections.abc import Sequence
from typing import Final

import trio

from derp.errors import TransportError
from derp.text import error_text, printable, without_secrets

# Names take a while to reach every server of a zone, and hooks wait for it.
HOOK_SECONDS: Final = 300.0
# What a failed command wrote last is what says why; the rest of a chatty one is thrown away as it comes.
_KEPT_BYTES: Final = 4096
_SHOWN_LETTERS: Final = 300
_REST_SECONDS: Final = 1.0


class HookError(TransportError):
    """The command did not do its work.  The text names it and says how it ended."""


async def run_hook(command: Sequence[str], *arguments: str, timeout: float = HOOK_SECONDS) -> None:
    """Run `command` with more arguments to its end.  Raises HookError, after `timeout` seconds too.

    It inherits our environment, reads nothing, and is ended when the caller is cancelled.
    """
    shown = " ".join((*command, *arguments[:1]))
    said = bytearray()
    failure: str | None = None
    status: int | None = None
    with trio.move_on_after(timeout):
        try:
            async with trio.open_nursery() as nursery:
                process: trio.Process = await nursery.start(_run, [*command, *arguments])
                nursery.start_soon(_keep_end, process, said)
                status = await process.wait()
                # What it left in the background may hold the pipe open for as long as it likes.
                nursery.cancel_scope.deadline = trio.current_time() + _REST_SECONDS
        except* OSError as group:
            failure = error_text(group)
    if failure is not None:
        raise HookError(f"the hook {shown} cannot be run: {failure}")
    if status is None:
        raise HookError(f"the hook {shown} was ended: it took longer than {timeout:g} s")
    if status:
        ended = f"status {status}" if status > 0 else f"signal {-status}"
        lines = said.decode(errors="replace").strip().splitlines()
        last = printable(without_secrets(lines[-1]), _SHOWN_LETTERS) if lines else ""
        raise HookError(f"the hook {shown} ended with {ended}" + (f": {last}" if last else " and said nothing"))


async def _keep_end(process: trio.Process, said: bytearray) -> None:
    assert process.stdout is not None
    async for piece in process.stdout:
        said += piece
        del said[:-_KEPT_BYTES]


async def _run(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    # trio ends it by SIGTERM, and by SIGKILL if that is not enough, when the caller is cancelled.
    await trio.run_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        task_status=task_status,
    )
