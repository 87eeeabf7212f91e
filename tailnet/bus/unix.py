"""Links between replicas on one machine, over a Unix socket.  Layer L2.

Such a place is an Address whose host is the socket's path, and whose port is 0.  Who may open the socket is the file's
business (0600: the same user); the proof of links.py is asked for all the same.
"""

import errno
import os
import socket
import stat
from contextlib import suppress

import trio

from derp.errors import ListenError
from derp.text import error_text
from derp.transport.stream import mapped_errors

_BACKLOG = 64  # replicas, at the most


def open_unix_listener(path: str) -> socket.socket:
    """A non-blocking listening socket, whose file is for its owner alone.  One that nobody listens at is replaced.

    Raises ListenError that names the path.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_forsaken(path)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        why = "something listens there already" if error.errno == errno.EADDRINUSE else error_text(error)
        raise ListenError(f"listen on unix:{path}: {why}") from error
    return sock


def close_unix_listener(sock: socket.socket) -> None:
    """Its file goes with it, and first: while we listen, nobody else has taken the path."""
    with suppress(OSError):
        os.unlink(sock.getsockname())
    sock.close()


async def dial_unix(path: str, timeout_seconds: float) -> trio.SocketStream:
    """Raises TransportError."""
    with mapped_errors(f"dial unix:{path}", connecting=True), trio.fail_after(timeout_seconds):
        return await trio.open_unix_socket(path)


def _remove_forsaken(path: str) -> None:
    """Of a process that was killed its file stays."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
        except OSError:  # nothing is there, or what binding will find fault with
            return
