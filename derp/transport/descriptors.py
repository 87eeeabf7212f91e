"""Messages between two processes of this machine that bring a socket along.  Layer L2.

On a pair of Unix sockets that keep messages apart (SOCK_SEQPACKET), by SCM_RIGHTS of unix(7).  server/moving.py gives
clients to the next process so, and the supervisor links to workers (server/worker.py).
"""

import array
import socket
from typing import Final

import trio

_FD_BYTES: Final = socket.CMSG_LEN(array.array("i").itemsize)


async def send_with_socket(end: trio.socket.SocketType, message: bytes, sock: socket.socket) -> None:
    """Send a message with a socket, which the caller still has to close.  Raises OSError."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))
    await end.sendmsg([message], [rights])


async def receive_with_socket(end: trio.socket.SocketType, max_bytes: int) -> tuple[bytes, socket.socket | None]:
    """The next message, and the socket that came with it, if one did; b"" when the other process has closed its end.
    Raises OSError."""
    message, ancillary, _, _ = await end.recvmsg(max_bytes, _FD_BYTES)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            (fd,) = array.array("i", data)
            return message, socket.socket(fileno=fd)
    return message, None
