"""Runs `derp` and `tailnet` as processes that need not load their modules: each is forked off a process that has.

`with loaded() as commands:` starts that process, and `commands.run(["derp", "genkey"], {})` runs one to its end.  It
has descriptors, a status and an interpreter's end of its own, as `python -m derp genkey` has; only the interpreter's
start and the loading are left out, which take 0.5 (derp) to 2 s (tailnet admin) of a core.  Its lines are not counted
as covered.  On the other side of the socket this file is a program.
"""

import contextlib
import gc
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module

import trio

from tests.support.command import ENVIRONMENT

_MAX_REQUEST = 1 << 16  # bytes; a command line and its environment


class Loaded:
    """The process that has everything loaded."""

    def __init__(self, place: str, environ: Mapping[str, str]) -> None:
        self._place = place
        self._environ = dict(environ)

    async def run(
        self, words: Sequence[str], environ: dict[str, str], stdout: int | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """`python -m WORDS` to its end, with stdout at that descriptor or caught.  If cancelled, it is killed.

        `environ` comes on top of that of loaded(), and too late for what the interpreter reads at its start.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as nothing:
            fds = [nothing.fileno(), out.fileno() if stdout is None else stdout, err.fileno()]
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(self._place)
                request = json.dumps({"words": list(words), "environ": self._environ | environ}).encode()
                assert socket.send_fds(sock, [request], fds) == len(request) <= _MAX_REQUEST
                await trio.lowlevel.wait_readable(sock)
                status = json.loads(sock.recv(_MAX_REQUEST))
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(list(words), status, out.read(), err.read())


@contextlib.contextmanager
def loaded(environ: Mapping[str, str] = ENVIRONMENT) -> Iterator[Loaded]:
    """A process that has loaded all commands, with an interpreter that was started in `environ`."""
    folder = tempfile.mkdtemp(prefix="loaded-")  # a socket's path has 107 characters at the most
    place = f"{folder}/s"
    plain = {name: text for name, text in environ.items() if not name.startswith("COVERAGE_")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(place)
        listener.listen()
        command = [sys.executable, "-m", "tests.support.forked", str(listener.fileno())]
        process = subprocess.Popen(
            command, env=plain, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()]
        )
    try:
        with process:  # leaving closes its stdin, at which it ends
            assert process.stdout is not None
            assert process.stdout.read(1) == b"."
            yield Loaded(place, plain)
    finally:
        shutil.rmtree(folder)


def load() -> None:
    """All that commands import, also when they are run."""
    for package in ("derp", "tailnet.cli"):
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    import_module("tailnet.server.server")
    import_module("tailnet.store.store")


def keep(sock: socket.socket) -> list[str]:
    """Fork what is asked for on `sock` and tell its status; kill it if whoever asked is gone.  In it: its words."""
    request, fds, _, _ = socket.recv_fds(sock, _MAX_REQUEST, 3)
    wanted = json.loads(request)
    child = os.fork()
    if child == 0:
        sock.close()
        for at, fd in enumerate(fds):
            os.dup2(fd, at)
            os.close(fd)
        os.environ.clear()
        os.environ.update(wanted["environ"])
        words: list[str] = wanted["words"]
        return words
    ended = os.pidfd_open(child)
    readable, _, _ = select.select([ended, sock], [], [])
    if ended not in readable:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        sock.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def serve(listener: socket.socket) -> list[str]:
    """Keep commands until stdin ends; returns in each command's own process."""
    while True:
        readable, _, _ = select.select([0, listener], [], [])
        if 0 in readable:
            os._exit(0)
        sock, _ = listener.accept()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who keep
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return keep(sock)
        sock.close()


if __name__ == "__main__":
    load()
    print(end=".", flush=True)
    gc.freeze()  # what never goes is not written to by collections in the forks
    program, *sys.argv[1:] = serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(program, run_name="__main__", alter_sys=True)
