"""How much memory this process may use.  Layer L3.

A container has less than its machine, and the kernel ends who takes more: cgroups say it, where there are any.
"""

import os
from pathlib import Path
from typing import Final

# Files in which a process finds the limit of its own control group: version 2, and version 1.
_LIMIT_FILES: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# We take this where the system does not say: as much as the smallest machine that one would run a relay on.
_UNKNOWN_BYTES: Final = 512 * 1024 * 1024


def memory_bytes(limit_files: tuple[Path, ...] = _LIMIT_FILES) -> int:
    """The machine's memory, or what the container may use of it."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not every system knows these names
        machine = _UNKNOWN_BYTES
    for path in limit_files:
        try:
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal():  # "max", or a number of 19 digits, is no limit
            machine = min(machine, int(text))
    return machine
