"""The floor: what moving the bytes costs when nothing is looked at.

    python bench/floor.py --listen 127.0.0.1:4000 [--certificate F --key F]

A pump for bench/load with -floor: each connection says once, in its HTTP head, whose bytes go where (Floor-Self,
Floor-To); from then on every receive of up to 64 KiB is sent on as it came.  No frame is cut, no key is read.
Python's epoll and not a compiled pump: the question is what a relay in this language adds to the system calls it
must make, and the interpreter's share of such a call is under a microsecond.
"""

import argparse
import contextlib
import resource
import select
import signal
import socket
import ssl
import sys
from dataclasses import dataclass, field
from typing import cast

BUFFER_BYTES = 64 * 1024
# A head of the generator has a few hundred bytes; a stranger is dropped.
MAX_HEAD_BYTES = 4096
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"


@dataclass(slots=True, eq=False)
class Pipe:
    """One connection.  `to` is where its bytes go; `stuck` is what the kernel did not take for this connection."""

    sock: socket.socket
    head: bytearray = field(default_factory=bytearray)
    self_id: int = -1
    to_id: int = -1
    ready: bool = False
    to: "Pipe | None" = None
    stuck: bytearray = field(default_factory=bytearray)
    feeders: set[int] = field(default_factory=set)  # descriptors not read until `stuck` is gone
    tls: ssl.SSLObject | None = None
    incoming: ssl.MemoryBIO | None = None
    outgoing: ssl.MemoryBIO | None = None


class Pump:
    """Serves one listening socket until it is told to stop."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        self.listener = listener
        self.context = context
        self.epoll = select.epoll()
        self.pipes: dict[int, Pipe] = {}
        self.by_id: dict[int, Pipe] = {}
        self.raw = bytearray(BUFFER_BYTES)
        # One receive of 64 KiB never decrypts to more.
        self.plain = bytearray(BUFFER_BYTES + 16 * 1024)

    def run(self) -> None:
        listening = self.listener.fileno()
        self.epoll.register(listening, select.EPOLLIN)
        while True:
            for descriptor, events in self.epoll.poll():
                if descriptor == listening:
                    self.accept()
                    continue
                pipe = self.pipes.get(descriptor)
                if pipe is None:
                    continue
                try:
                    if events & select.EPOLLOUT:
                        self.flush(pipe)
                    if events & ~select.EPOLLOUT:
                        self.receive(pipe)
                except BlockingIOError:
                    pass
                except OSError:
                    self.drop(pipe)

    def accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pipe = Pipe(sock)
            if self.context is not None:
                pipe.incoming, pipe.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                pipe.tls = self.context.wrap_bio(pipe.incoming, pipe.outgoing, server_side=True)
            self.pipes[sock.fileno()] = pipe
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def receive(self, pipe: Pipe) -> None:
        count = pipe.sock.recv_into(self.raw)
        if not count:
            self.drop(pipe)
            return
        view = memoryview(self.raw)[:count]
        if pipe.tls is not None:
            view = self.decrypt(pipe, view)
        if not pipe.ready:
            self.read_head(pipe, view)
        elif view:
            self.send(pipe, view)

    def decrypt(self, pipe: Pipe, view: memoryview) -> memoryview:
        assert pipe.tls is not None
        assert pipe.incoming is not None
        pipe.incoming.write(view)
        end = 0
        try:
            while True:
                room = memoryview(self.plain)[end:]
                # With a buffer given, read returns a count, and any writable buffer does: typeshed knows neither.
                end += cast(int, pipe.tls.read(len(room), cast(bytearray, room)))
        except ssl.SSLWantReadError:
            self.put(pipe, self.encrypted(pipe))
        return memoryview(self.plain)[:end]

    @staticmethod
    def encrypted(pipe: Pipe) -> bytes:
        assert pipe.outgoing is not None
        return pipe.outgoing.read()

    def read_head(self, pipe: Pipe, view: memoryview) -> None:
        pipe.head += view
        if b"\r\n\r\n" not in pipe.head:
            if len(pipe.head) > MAX_HEAD_BYTES:
                self.drop(pipe)
            return
        for line in bytes(pipe.head).split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name == b"Floor-Self":
                pipe.self_id = int(value)
            elif name == b"Floor-To":
                pipe.to_id = int(value)
        pipe.ready = True
        if pipe.self_id >= 0:
            self.by_id[pipe.self_id] = pipe
        if pipe.tls is not None:
            pipe.tls.write(SWITCHING)
            self.put(pipe, self.encrypted(pipe))
        else:
            self.put(pipe, SWITCHING)

    def send(self, pipe: Pipe, view: memoryview) -> None:
        to = pipe.to
        if to is None:
            to = pipe.to = self.by_id.get(pipe.to_id)
            if to is None:
                return
        if to.tls is not None:
            to.tls.write(view)
            self.put(to, self.encrypted(to), pipe)
        elif to.stuck:
            self.put(to, bytes(view), pipe)
        else:
            try:
                taken = to.sock.send(view)
            except BlockingIOError:
                taken = 0
            if taken < len(view):
                self.hold(to, bytes(view[taken:]), pipe)

    def put(self, to: Pipe, wire: bytes, feeder: Pipe | None = None) -> None:
        """Send bytes that are ready for the wire, or keep what the kernel does not take."""
        if not wire:
            return
        taken = 0
        if not to.stuck:
            with contextlib.suppress(BlockingIOError):
                taken = to.sock.send(wire)
        if taken < len(wire):
            self.hold(to, wire[taken:], feeder)

    def hold(self, to: Pipe, rest: bytes, feeder: Pipe | None) -> None:
        to.stuck += rest
        events = select.EPOLLOUT
        if to.sock.fileno() not in self.feeders_stopped(to):
            events |= select.EPOLLIN
        self.epoll.modify(to.sock.fileno(), events)
        if feeder is not None and feeder is not to:
            to.feeders.add(feeder.sock.fileno())
            self.epoll.modify(feeder.sock.fileno(), select.EPOLLOUT if feeder.stuck else 0)

    def feeders_stopped(self, to: Pipe) -> set[int]:
        """Descriptors that are not read now because the one they feed is stuck."""
        return to.to.feeders if to.to is not None else set()

    def flush(self, pipe: Pipe) -> None:
        del pipe.stuck[: pipe.sock.send(pipe.stuck)]
        if pipe.stuck:
            return
        stopped = pipe.sock.fileno() in self.feeders_stopped(pipe)
        self.epoll.modify(pipe.sock.fileno(), 0 if stopped else select.EPOLLIN)
        for descriptor in pipe.feeders:
            if descriptor in self.pipes:
                self.epoll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if self.pipes[descriptor].stuck else 0))
        pipe.feeders.clear()

    def drop(self, pipe: Pipe) -> None:
        descriptor = pipe.sock.fileno()
        if self.pipes.pop(descriptor, None) is None:
            return
        if self.by_id.get(pipe.self_id) is pipe:
            del self.by_id[pipe.self_id]
        self.epoll.unregister(descriptor)
        pipe.sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:4000", help="host:port")
    parser.add_argument("--certificate", help="PEM file: speak TLS")
    parser.add_argument("--key", help="PEM file of the certificate's key")
    arguments = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    context = None
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.key)
    host, _, port = arguments.listen.rpartition(":")
    with socket.create_server((host, int(port)), backlog=4096) as listener:
        listener.setblocking(False)
        print(f"listening on {arguments.listen}", flush=True)
        Pump(listener, context).run()


if __name__ == "__main__":
    main()
