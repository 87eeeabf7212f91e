"""The TCP ports that programs beside an agent listen on.  Layer L3.

Of Linux's /proc: which sockets listen, and whose they are; of processes that are somebody else's the name stays empty.
Ports under 9 are the agent's own in the tunnel, and what the agent itself listens on is nobody's program.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

FIRST_REPORTED: Final = 9
# A look at all processes costs some milliseconds each hundred; pages ask every second.
FRESH_SECONDS: Final = 1.0
MAX_PORTS: Final = 1000
MAX_PROCESSES: Final = 10_000
_LISTENING: Final = "0A"
_PROC: Final = Path("/proc")


class ListeningPorts:
    """Looked up at most once in FRESH_SECONDS, however many ask."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._lock = trio.Lock()
        self._found: dict[int, str] = {}
        self._found_at = -FRESH_SECONDS

    async def read(self) -> dict[int, str]:
        """Names of processes by port.  Raises OSError where the system does not tell."""
        async with self._lock:
            if trio.current_time() - self._found_at >= FRESH_SECONDS:
                self._found = await trio.to_thread.run_sync(read_ports, self._proc)
                self._found_at = trio.current_time()
            return self._found


def read_ports(proc: Path = _PROC) -> dict[int, str]:
    """Names of processes by port, in order.  Raises OSError."""
    if sys.platform != "linux":
        raise OSError("listening ports are known on Linux alone")
    sockets = _listening(proc)
    owners = dict(_owners(proc, set(sockets)))
    own = {inode for inode, pid in owners.items() if pid == os.getpid()}
    names = {inode: _name(proc, pid) for inode, pid in owners.items()}
    found: dict[int, str] = {}
    for inode, port in sockets.items():
        if inode not in own:
            found[port] = found.get(port) or names.get(inode, "")
    return dict(sorted(found.items())[:MAX_PORTS])


def _listening(proc: Path) -> dict[str, int]:
    """Ports by the inodes of their sockets."""
    found: dict[str, int] = {}
    lines = (proc / "net/tcp").read_text().splitlines()[1:]
    tcp6 = proc / "net/tcp6"  # not there without IPv6
    for line in lines + (tcp6.read_text().splitlines()[1:] if tcp6.exists() else []):
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENING:
            port = int(fields[1].rpartition(":")[2], 16)
            if port >= FIRST_REPORTED:
                found[fields[9]] = port
    return found


def _owners(proc: Path, wanted: set[str]) -> Iterator[tuple[str, int]]:
    """Who has these sockets open, as far as we may see."""
    pids = [int(name) for name in os.listdir(proc) if name.isdecimal()]
    for pid in sorted(pids)[:MAX_PROCESSES]:
        folder = proc / str(pid) / "fd"
        with suppress(OSError):  # somebody else's, or it has ended
            for name in os.listdir(folder):
                inode = _link(folder / name).removeprefix("socket:[").removesuffix("]")
                if inode in wanted:
                    yield inode, pid


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""


def _name(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
