"""Listening sockets that a process is given when it starts: by the process that it replaces, or by systemd.  Layer L3.

A running server starts its successor with the same command, so that the successor loads what was installed meanwhile,
and passes its sockets by inheritance; either process accepts what waits in their backlogs.  The successor says when it
serves, and then the old process drains.  If the successor never serves, the old process goes on as if nothing had been
asked.  systemd passes sockets as LISTEN_FDS (sd_listen_fds(3)).  Called by life.py; ports.py takes the sockets.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import trio

from derp.errors import ConfigError, DerpError
from derp.text import error_text, host_port

_log = logging.getLogger("derp.server")

# Not DERP_... or TAILNET_...: that is how settings are called.
VARIABLE: Final = "RELAY_HANDOVER"
# systemd's first descriptor: SD_LISTEN_FDS_START of sd-daemon.h.
_FIRST_FD: Final = 3
# A cold start takes half a second; one that reads keys from a slow disk, some seconds.
READY_SECONDS: Final = 30.0
_READY: Final = b"ready"


class HandoverError(DerpError):
    """The new process does not serve.  The text says why; the old one has to go on."""


class Handed(NamedTuple):
    """A bound socket under the name that settings give it: tcp or udp, host and port as configured.  Or one between the
    two processes (succession.py, moving.py), whose kind says which; a version that does not know the kind closes it."""

    kind: str
    host: str
    port: int
    sock: socket.socket


class Inherited:
    """The sockets that this process was given.  Call `take` for each that the settings want, then `finish`."""

    def __init__(
        self,
        handed: Iterable[Handed] = (),
        ready_fd: int | None = None,
        *,
        from_systemd: Iterable[socket.socket] = (),
        files: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """`handed` carry the names of settings; those of systemd are found by the address to which they are bound.
        `files`: descriptors of something else, by what they are."""
        self._handed = {(one.kind, one.host, one.port): one.sock for one in handed}
        self._from_systemd = list(from_systemd)
        self._files = dict(files)
        self._ready_fd = ready_fd

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Inherited":
        """Read and remove the variables: processes that we start have no part in them.  Raises ConfigError."""
        from_systemd = _sockets_of_systemd(environ)
        text = environ.pop(VARIABLE, "")
        if not text:
            return cls(from_systemd=from_systemd)
        document = json.loads(text)
        handed = [Handed(kind, host, port, _adopt(fd)) for kind, host, port, fd in document["sockets"]]
        files: dict[str, int] = document.get("files", {})  # older versions have none
        for fd in (document["ready"], *files.values()):
            os.set_inheritable(fd, False)
        return cls(handed, document["ready"], from_systemd=from_systemd, files=files)

    @property
    def replaces_another(self) -> bool:
        """Whether a process that handed its sockets over waits to hear that we serve."""
        return self._ready_fd is not None

    def take(self, kind: str, host: str = "", port: int = 0) -> socket.socket | None:
        """The socket that the settings name so, once; None if it has to be opened.  One between the two processes has a
        kind alone."""
        sock = self._handed.pop((kind, host, port), None)
        if sock is not None:
            return sock
        for sock in self._from_systemd:
            if _kind(sock) == kind and _is_bound_to(sock, host, port):
                self._from_systemd.remove(sock)
                return sock
        return None

    def take_file(self, name: str) -> int | None:
        """A descriptor that is no socket, once, for whoever closes it; None if there is none."""
        return self._files.pop(name, None)

    def finish(self) -> None:
        """We serve: tell the process that we replace, and close what the settings of today do not name any more."""
        for sock in self._from_systemd:
            place = host_port(*sock.getsockname()[:2])
            _log.warning(
                "! systemd gave a %s socket at %s, which no setting names: nobody serves it", _kind(sock), place
            )
        for sock in (*self._handed.values(), *self._from_systemd):
            sock.close()
        self._handed.clear()
        self._from_systemd.clear()
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        if self._ready_fd is not None:
            with contextlib.suppress(OSError):  # the old process has gone meanwhile
                os.write(self._ready_fd, _READY)
            os.close(self._ready_fd)
            self._ready_fd = None


def _sockets_of_systemd(environ: MutableMapping[str, str]) -> list[socket.socket]:
    pid, count, _ = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):  # they are for a process that started us, and are not open here
        return []
    if not count.isdecimal():
        raise ConfigError(f"LISTEN_FDS: {count!r} is no number of sockets")
    sockets = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        sock = _adopt(fd)
        if not _kind(sock):
            raise ConfigError(
                f"LISTEN_FDS: descriptor {fd} is no listening TCP and no UDP socket: mend the .socket unit"
            )
        sockets.append(sock)
    return sockets


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def _kind(sock: socket.socket) -> str:
    """tcp, udp, or "" for what we cannot serve."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    if sock.type == socket.SOCK_DGRAM:
        return "udp"
    return "tcp" if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else ""


def _is_bound_to(sock: socket.socket, host: str, port: int) -> bool:
    """Whether a socket is where the settings want one; host "" is every address."""
    bound_host, bound_port = sock.getsockname()[:2]
    if bound_port != port:
        return False
    try:
        bound = ip_address(bound_host)
        return bound.is_unspecified if not host or ip_address(host).is_unspecified else bound == ip_address(host)
    except ValueError:  # the settings have a name, which systemd does not know
        return False


async def hand_over(
    sockets: Sequence[Handed],
    command: Sequence[str],
    *,
    ready_seconds: float = READY_SECONDS,
    files: Mapping[str, int] = MappingProxyType({}),
    more: Mapping[str, int] = MappingProxyType({}),
    **options: Any,
) -> trio.Process:
    """Start `command` with these sockets, and return it when it serves; it outlives us.  Raises HandoverError.

    `files`: other descriptors, for `Inherited.take_file`; `more`: those that it gets by an environment variable each;
    `options` as for Popen.
    """
    ready, said = os.pipe()
    try:
        described = [(one.kind, one.host, one.port, one.sock.fileno()) for one in sockets]
        environment = os.environ | {VARIABLE: json.dumps({"sockets": described, "ready": said, "files": dict(files)})}
        environment |= {name: str(fd) for name, fd in more.items()}
        fds = (said, *(one.sock.fileno() for one in sockets), *files.values(), *more.values())
        try:
            process = await trio.lowlevel.open_process(list(command), pass_fds=fds, env=environment, **options)
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
