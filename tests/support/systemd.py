"""What systemd does for a service, by the same means: hears datagrams (sd_notify), passes sockets (LISTEN_FDS)."""

import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

# In the process that is to become the service, since LISTEN_PID names it: descriptors from 3 on, then exec.
_BECOME = """
import fcntl, os, sys
fds, command = sys.argv[1].split(","), sys.argv[2:]
saved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]
for at, fd in enumerate(saved):
    os.dup2(fd, 3 + at, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(["x"] * len(fds)))
os.execv(command[0], command)
"""


def activated(command: Sequence[str], sockets: Sequence[socket.socket]) -> list[str]:
    """A command that runs `command` with these sockets as systemd passes them.  Start it with all in `pass_fds`."""
    fds = ",".join(str(sock.fileno()) for sock in sockets)
    return [sys.executable, "-c", _BECOME, fds, *command]


class Manager:
    """The end of NOTIFY_SOCKET at which systemd listens."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def open(self) -> "Manager":
        await self._sock.bind(self.path)
        return self

    async def hear(self) -> str:
        """The next datagram, lines joined by a space; times are cut off."""
        lines = (await self._sock.recv(4096)).decode().split("\n")
        return " ".join(line.partition("=")[0] if line.startswith("MONOTONIC") else line for line in lines)

    async def hear_until(self, *wanted: str) -> list[str]:
        """Datagrams until all of `wanted` were heard; those with a pid are wanted by what stands before it."""
        heard: list[str] = []
        while not all(any(line.startswith(one) for line in heard) for one in wanted):
            heard.append(await self.hear())
        return heard

    def is_silent(self) -> bool:
        """Whether nothing more was said so far."""
        return not select.select([self._sock], [], [], 0)[0]

    def close(self) -> None:
        self._sock.close()
