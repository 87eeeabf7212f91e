"""Pseudo-terminals and what runs on them: sized, made somebody's controlling one, hung up.  Layer L3.

The program's own shell opens the terminal again before it becomes the program: so it is its controlling terminal, and
nothing of ours runs between fork and exec, which is not safe where there are threads.  Used by pty_terminal.py,
ssh_terminal.py and ssh_process.py.
"""

import os
import signal
import termios
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

# An editor saves its swap file, a shell its history; more than that is not owed to a terminal that is gone.
GRACE_SECONDS: Final = 5.0
# How often a process group is looked at: whether it has become empty.
_LOOK_SECONDS: Final = 0.05
# What becomes the program: a session leader without a terminal gets the one that it opens.
_OPENING: Final = ("/bin/sh", "-c", 'exec <>"$0" >&0 2>&0 "$@"')


def on_terminal(theirs: int, program: Sequence[str]) -> list[str]:
    """The command line that runs `program` with its end as input, output, error and controlling terminal."""
    return [*_OPENING, os.ttyname(theirs), *program]


def set_size(terminal: int, rows: int, columns: int) -> None:
    """The kernel tells the programs."""
    # A field has 16 bits.
    termios.tcsetwinsize(terminal, (min(rows, 65535), min(columns, 65535)))


def groups_of(leader: int | None, terminal: int | None) -> set[int]:
    """The process groups of a session's leader, if it runs still, and of what stands in the terminal's foreground."""
    groups = set() if leader is None else {leader}
    if terminal is not None:
        with suppress(OSError):
            groups.add(os.tcgetpgrp(terminal))
    return groups - {0}


def signal_groups(groups: set[int], number: signal.Signals) -> None:
    """Those that have gone meanwhile hear nothing."""
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


async def hang_up(groups: set[int], reap: Callable[[], Awaitable[object]]) -> None:
    """As when a line is hung up: SIGHUP, and after GRACE_SECONDS SIGKILL for what is left of the groups.

    `reap` waits for the session's leader.  What has a session or a group of its own (setsid, a job under nohup) stays.
    """
    signal_groups(groups, signal.SIGHUP)
    signal_groups(groups, signal.SIGCONT)
    with trio.move_on_after(GRACE_SECONDS):
        await reap()
        while any(_is_alive(group) for group in groups):  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(_LOOK_SECONDS)
    signal_groups(groups, signal.SIGKILL)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
