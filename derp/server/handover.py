"""Listening sockets handed from a running process to the one that replaces it: a restart without a closed door.
Layer L3.

The old process starts the new one with the same command, so that it loads whatever was installed meanwhile, and passes
its sockets by inheritance; what waits in their backlogs is accepted by either.  When the new one serves it says so,
and the old one drains.  If it never does, the old one goes on as if nothing had been asked.  Called by server.py.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Final, NamedTuple

import trio

from derp.errors import DerpError
from derp.text import error_text

# Not DERP_...: that is how settings are called.
VARIABLE: Final = "RELAY_HANDOVER"
# A cold start takes half a second; one that reads keys from a slow disk, some seconds.
READY_SECONDS: Final = 30.0
_READY: Final = b"ready"


class HandoverError(DerpError):
    """The new process does not serve.  The text says why; the old one has to go on."""


class Handed(NamedTuple):
    """A bound socket under the name that settings give it: tcp or udp, host and port as configured."""

    kind: str
    host: str
    port: int
    sock: socket.socket


class Inherited:
    """What this process was given when it started.  `take` what is wanted, then `finish`."""

    def __init__(self, handed: Iterable[Handed] = (), ready_fd: int | None = None) -> None:
        self._sockets = {(one.kind, one.host, one.port): one.sock for one in handed}
        self._ready_fd = ready_fd

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Inherited":
        """Read and remove the variable: processes that we start have no part in it."""
        text = environ.pop(VARIABLE, "")
        if not text:
            return cls()
        document = json.loads(text)
        handed = []
        for kind, host, port, fd in document["sockets"]:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            handed.append(Handed(kind, host, port, sock))
        os.set_inheritable(document["ready"], False)
        return cls(handed, document["ready"])

    def take(self, kind: str, host: str, port: int) -> socket.socket | None:
        """The socket that the settings name so, once; None if it has to be opened."""
        return self._sockets.pop((kind, host, port), None)

    def finish(self) -> None:
        """We serve: tell the old process, and close what the settings of today do not name any more."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        if self._ready_fd is not None:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                os.write(self._ready_fd, _READY)
            os.close(self._ready_fd)
            self._ready_fd = None


async def hand_over(
    sockets: Sequence[Handed], command: Sequence[str], *, ready_seconds: float = READY_SECONDS
) -> trio.Process:
    """Start `command` with these sockets, and return it when it serves; it outlives us.  Raises HandoverError."""
    ready, said = os.pipe()
    try:
        described = [(one.kind, one.host, one.port, one.sock.fileno()) for one in sockets]
        environment = os.environ | {VARIABLE: json.dumps({"sockets": described, "ready": said})}
        fds = (said, *(one.sock.fileno() for one in sockets))
        try:
            process = await trio.lowlevel.open_process(list(command), pass_fds=fds, env=environment)
        except OSError as error:
            raise HandoverError(f"cannot start {command[0]}: {error_text(error)}") from None
        finally:
            os.close(said)
        try:
            with trio.move_on_after(ready_seconds) as scope:
                await trio.lowlevel.wait_readable(ready)
                if os.read(ready, len(_READY)) == _READY:
                    return process
                status = await process.wait()
                raise HandoverError(f"the new process ended with status {status}; above is what it said")
            assert scope.cancelled_caught
            raise HandoverError(f"the new process did not serve within {ready_seconds:.0f} s")
        except BaseException:
            if process.poll() is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            raise
    finally:
        os.close(ready)
