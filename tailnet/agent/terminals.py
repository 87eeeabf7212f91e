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

from tailnet.agent.processes import end_groups

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


async def hang_up(groups: set[int], reap: Callable[[], Awaitable[object]]) -> None:
    """As when a line is hung up.  `reap` waits for the session's leader."""
    await end_groups(groups, reap, signal.SIGHUP)
