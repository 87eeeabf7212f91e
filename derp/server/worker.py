"""One of several processes of a relay: what the supervisor gave it, and the line between the two.  Layer L3.

The supervisor starts each worker as its own command once more (supervisor.py) and passes it sockets, as to a successor
(handover.py), and one end of this line.  Over that come our share of the settings, the links to our siblings
(siblings.py), and orders; back go signs of life.  A worker whose supervisor is gone drains and ends.
"""

import logging
import os
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

import msgpack
import trio

from derp.config import RelayConfig
from derp.config.relay import WORKER_VARIABLE
from derp.keys import NodePrivate
from derp.relay.siblings import Place
from derp.server.memory import memory_bytes
from derp.server.siblings import Siblings
from derp.transport.descriptors import receive_with_socket

_log = logging.getLogger("derp.workers")

LINE_BYTES: Final = 4096
QUIC_SLOT: Final = 0
# So often we say that we live.  A worker that is stuck in its own thread cannot.
ALIVE_SECONDS: Final = 1.0


class Ordered(Protocol):
    """What a supervisor asks of a server."""

    def reload(self) -> None: ...

    def close(self) -> None: ...

    async def drain(self) -> None: ...

    async def leave_to_others(self) -> None: ...

    def share_sockets(self, *, is_shared: bool) -> None: ...

    def take_channel(self, channel: socket.socket) -> None: ...

    def show_proof(self, digest: bytes | None, challenges: Mapping[str, bytes], failures: int) -> None: ...

    def look_at_certificate(self) -> None: ...


def encode(*items: object) -> bytes:
    """One message of the line."""
    message: bytes = msgpack.packb(items)
    assert len(message) <= LINE_BYTES, items[0]
    return message


class Worker:
    """Made once, before anything else, by a process that the supervisor started."""

    def __init__(self, line: socket.socket) -> None:
        """Waits for the first message of the supervisor, which lies in the line before we start."""
        self._line = line
        name, number, slot, count, key, generated = msgpack.unpackb(line.recv(LINE_BYTES))
        assert name == "place", name
        self.place = Place(number, slot, count)
        self.private_key = NodePrivate(key)
        self._generated = tuple(generated) if generated is not None else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Worker":
        """In a process that a supervisor started.  Removes the variable; and the supervisor speaks to systemd."""
        fd = int(environ.pop(WORKER_VARIABLE))
        environ.pop("NOTIFY_SOCKET", None)
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def share(self, config: RelayConfig) -> RelayConfig:
        """Our part of what all workers may have together.  The kernel spreads newcomers evenly, the more evenly the
        more of them come, so each worker lets its part of them in and no message goes round for an accept.

        QUIC is the first one's alone: the kernel would give another worker what comes from a client whose address
        changed.
        """
        count, tls = self.place.count, config.tls
        if tls is not None:
            tls = replace(tls, generated=self._generated, is_kept_elsewhere=tls.acme is not None)
        return replace(
            config,
            private_key=self.private_key,
            tls=tls,
            quic=config.quic and self.place.slot == QUIC_SLOT,
            accept_connection_limit=config.accept_connection_limit / count,
            accept_connection_burst=-(-config.accept_connection_burst // count),
            queue_total_bytes=(config.queue_total_bytes or memory_bytes() // 4) // count,
        )

    def take_links(self, siblings: Siblings) -> None:
        """The links that lie in the line already: with them, the first client that we accept finds everybody."""
        while True:
            message, fds, _, _ = socket.recv_fds(self._line, LINE_BYTES, 1)
            match msgpack.unpackb(message):
                case ["sibling", number]:
                    siblings.add(number, socket.socket(fileno=fds[0]))
                case _:
                    return

    def close(self) -> None:
        """End the line."""
        self._line.close()

    async def run(self, server: Ordered, siblings: Siblings) -> None:
        """Obey until the supervisor is gone, then drain."""
        self._line.setblocking(False)
        line = trio.socket.from_stdlib_socket(self._line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_alive, line)
            while True:
                try:
                    message, sock = await receive_with_socket(line, LINE_BYTES)
                except OSError:
                    message, sock = b"", None
                if not message:
                    break
                await self._obey(msgpack.unpackb(message), sock, server, siblings, line, nursery)
            nursery.cancel_scope.cancel()
        _log.error("! the supervisor is gone: this worker drains")
        await server.drain()

    async def _obey(
        self,
        order: list[Any],
        sock: socket.socket | None,
        server: Ordered,
        siblings: Siblings,
        line: trio.socket.SocketType,
        nursery: trio.Nursery,
    ) -> None:
        match order:
            case ["sibling", number]:
                assert sock is not None
                siblings.add(number, sock)
            case ["reload"]:
                server.reload()
                await _answer(line, "reloaded")
            case ["sockets", is_shared]:
                server.share_sockets(is_shared=is_shared)
            case ["channel"]:
                assert sock is not None
                server.take_channel(sock)
            case ["close"]:
                server.close()
            case ["proof", digest, challenges, failures]:
                server.show_proof(digest, challenges, failures)
                await _answer(line, "shown")
            case ["look"]:
                server.look_at_certificate()
            case ["leave"]:
                nursery.start_soon(server.leave_to_others)

    async def _say_alive(self, line: trio.socket.SocketType) -> None:
        while True:
            try:
                await line.send(encode("alive"))
            except OSError:
                return  # the reader of the line sees it too
            await trio.sleep(ALIVE_SECONDS)


async def _answer(line: trio.socket.SocketType, word: str) -> None:
    with suppress(OSError):  # the supervisor is gone, which the reader of the line sees when it has obeyed what came
        await line.send(encode(word))
