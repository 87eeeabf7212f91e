"""A Unix socket to another worker of the same relay.  Layer L2.

Unlike a client's link it takes everything: what the kernel has no room for waits here, in the order in which it came,
and whoever fills it looks at `held_bytes` first (relay/siblings.py).
"""

import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from derp.transport.framing import RECEIVE_BYTES
from derp.transport.host import Piece
from derp.transport.links import IOV_MAX, Link

# What one batch of the reactor carries fits twice; the kernel gives what it allows (net.core.wmem_max).
_SEND_BYTES: Final = 1024 * 1024


class SiblingLink(Link):
    """One end of a socket pair.  Owned by the reactor, closed through it."""

    __slots__ = ("_held", "_sent", "held_bytes")

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        super().__init__(sock, (name, 0))
        self.appetite = RECEIVE_BYTES
        self.held_bytes = 0
        self._held: deque[bytes] = deque()
        self._sent = 0  # of the first of them

    def send(self, pieces: Sequence[Piece], size: int) -> int:
        """Takes all.  A socket that failed shows it to who receives, and then everything held is lost."""
        sent = 0
        if not self._held:
            sent = self._try(pieces)
            if sent == size:
                return size
            self.want(read=True, write=True)
        self._held.append(b"".join(pieces))
        self._sent = self._sent or sent
        self.held_bytes += size - sent
        return size

    def _try(self, pieces: Sequence[Piece]) -> int:
        try:
            return self.sock.sendmsg(pieces if len(pieces) <= IOV_MAX else [b"".join(pieces)])
        except OSError:  # no room; or the end of the link, of which its host learns when it reads
            return 0

    def flush_tail(self) -> bool:
        while self._held:
            first = self._held[0]
            sent = self._try([memoryview(first)[self._sent :]])
            self.held_bytes -= sent
            self._sent += sent
            if self._sent < len(first):
                return False
            self._held.popleft()
            self._sent = 0
        self.want(read=True, write=False)
        return True

    def take_held(self) -> tuple[int, bytes]:
        """What was not sent, for who counts it: whole frames, and how many bytes of them the kernel has."""
        held = self._sent, b"".join(self._held)
        self._held.clear()
        self.held_bytes = self._sent = 0
        return held
