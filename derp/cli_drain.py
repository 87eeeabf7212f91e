"""`derp drain`: ask a running relay or coordinator to send its clients away, and wait until it has (layer L4).

It says so by a signal (server/life.py), which needs no socket and no password: whoever may send it may.  For ExecStop=
of systemd and preStop of Kubernetes.
"""

import os
import select
import signal
import time
from pathlib import Path
from typing import Final

import click

from derp.cli_admission import seconds_of
from derp.errors import DerpError
from derp.text import error_text

# Where the system does not tell of the end of a process that is not ours.
_LOOK_SECONDS: Final = 0.05


class DrainError(DerpError):
    """It did not come to that; the text says why."""


@click.command("drain")
@click.argument("pid", type=click.IntRange(min=1), metavar="PID")
@click.option("--replace", is_flag=True, help="have a new process of the same command take its place first")
@click.option("--within", default="1m", show_default=True, callback=seconds_of, metavar="DURATION", help="wait so long")
def drain(pid: int, replace: bool, within: float) -> None:
    """Send the clients of a running relay or coordinator away, and end it; returns when it has ended.

    PID is that of `derp serve` or `tailnet serve`, of the one that was started when there are several workers: $MAINPID
    for systemd, 1 in a container.  Without --replace this is SIGTERM, with it SIGUSR2.
    """
    drain_process(pid, replace=replace, within=within)


def drain_process(pid: int, *, replace: bool, within: float) -> None:
    """Signal it, and wait until it has ended.  Raises DrainError."""
    number = signal.SIGUSR2 if replace else signal.SIGTERM
    if _catches(pid, number) is False:
        raise DrainError(f"process {pid} does not know {number.name}: is it `derp serve` or `tailnet serve`?")
    try:
        handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        os.kill(pid, number)
    except OSError as error:
        raise DrainError(f"cannot tell process {pid}: {error_text(error)}") from None
    if not _wait_ended(pid, handle, within):
        raise DrainError(f"process {pid} still drains after {within:.0f} s")


def _catches(pid: int, number: int) -> bool | None:
    """Whether a process has said what it does on a signal; anything else might die of it.  None: nobody tells."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), None)
    return None if caught is None else bool(int(caught, 16) >> (number - 1) & 1)


def _wait_ended(pid: int, handle: int | None, seconds: float) -> bool:
    if handle is not None:
        try:
            waiting = select.poll()
            waiting.register(handle, select.POLLIN)
            return bool(waiting.poll(seconds * 1000))
        finally:
            os.close(handle)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(_LOOK_SECONDS)
    return False
