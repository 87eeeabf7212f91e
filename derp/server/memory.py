"""How much memory this process may use, and that it gives back what a burst took.  Layer L3.

A container has less than its machine, and the kernel ends who takes more: cgroups say it, where there are any.
glibc keeps what was freed between things that stay: after 4,000 TLS clients had come and gone a relay held 131 MB,
and 60 once it was told to let go.  What stays is bounded: who left lately (10,000 keys, some 6 MB), free lists.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

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


# To let go takes 20 ms for 70 MB, in which others may wait for memory: after a burst, and not with each that leaves.
_LOOK_SECONDS: Final = 30.0
_WORTH_BYTES: Final = 16 * 1024 * 1024
_STATM: Final = Path("/proc/self/statm")


Load = tuple[float, float]
"""Now, and the most since the last call; anything that grows with what is served, in connections."""


def sum_loads(*loads: Load) -> Load:
    """Of several at once."""
    return sum(now for now, _ in loads), sum(most for _, most in loads)


class MemoryKeeper:
    """Says when it is worth to let go: when less than half of the load is left that there was since the last time, and
    the process still holds more than it did then."""

    def __init__(self, resident_bytes: int) -> None:
        self._held_bytes = resident_bytes
        self._peak_load = 0.0

    def is_due(self, load: float, peak: float, resident_bytes: int) -> bool:
        """`peak`: the highest load since the last call."""
        self._peak_load = max(self._peak_load, peak)
        return load * 2 < self._peak_load and resident_bytes >= self._held_bytes + _WORTH_BYTES

    def note_done(self, load: float, resident_bytes: int) -> None:
        """It has let go, and this is what it holds now."""
        self._peak_load = load
        self._held_bytes = resident_bytes


def resident_bytes() -> int | None:
    """What this process holds of the machine's memory; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def find_trim() -> Callable[[], object] | None:
    """What gives free memory back to the system; None where the C library has no such thing (musl, macOS)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return lambda: trim(0)


async def give_back_forever(read_load: Callable[[], Load]) -> None:
    """Give memory back after each burst, until cancelled.  `read_load`: the load now, and the highest since the last
    call."""
    trim, resident = find_trim(), resident_bytes()
    if trim is None or resident is None:
        return
    keeper = MemoryKeeper(resident)
    while True:
        await trio.sleep(_LOOK_SECONDS)
        resident = resident_bytes() or 0
        load, peak = read_load()
        if keeper.is_due(load, peak, resident):
            await trio.to_thread.run_sync(trim)  # without the interpreter's lock
            keeper.note_done(read_load()[0], resident_bytes() or 0)
