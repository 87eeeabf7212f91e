"""Users of a netstack in real time: what the Go peer and the kernel's programs serve and ask, served and asked by us.

Ports as in tests/interop/go_netstack: 7 echoes, 9 reads to the end and answers with a SHA-256 in hex, 19 reads a number
and answers with so many bytes and their SHA-256.
"""

import hashlib
import os
import time

from tailnet.netstack.connection import Connection
from tailnet.netstack.events import What
from tailnet.netstack.stack import Event, Happened, Listener
from tests.support.netstack_driver import Driver

CHUNK = 65536


class Writer:
    """Sends bytes on a connection as it takes them, and ends its stream."""

    def __init__(self, connection: Connection, data: bytes, *, finish: bool = True) -> None:
        self.connection, self.data, self.finish = connection, data, finish
        self.sent = 0

    def pump(self) -> None:
        if self.connection.sender.fin_queued:
            return
        while self.sent < len(self.data):
            size = self.connection.send(memoryview(self.data)[self.sent : self.sent + CHUNK])
            if not size:
                return
            self.sent += size
        if self.finish:
            self.connection.send_eof()


class Transfer:
    """A connection on which something is written and everything is read."""

    def __init__(self, driver: Driver, connection: Connection, data: bytes = b"") -> None:
        self.driver, self.connection = driver, connection
        self.writer = Writer(connection, data)
        self.got = bytearray()
        driver.users.append(self.on_event)
        self.writer.pump()

    @property
    def is_done(self) -> bool:
        return self.connection.eof and not self.connection.readable_bytes

    def on_event(self, event: Event) -> None:
        if isinstance(event, Happened) and event.subject is self.connection:
            if event.what & (What.CONNECTED | What.WRITABLE):
                self.writer.pump()
            while data := self.connection.receive(1 << 20):
                self.got += data


def put(driver: Driver, address: bytes, size: int, seconds: float = 60) -> float:
    """Send so many bytes to port 9 of a peer, and check its answer.  How long it took."""
    data = os.urandom(size)
    began = time.monotonic()
    transfer = Transfer(driver, driver.stack.connect(address, 9), data)
    driver.run(seconds, lambda: transfer.is_done)
    assert transfer.got.decode() == hashlib.sha256(data).hexdigest(), transfer.connection.end
    took = time.monotonic() - began
    close(driver, transfer)
    return took


def get(driver: Driver, address: bytes, size: int, seconds: float = 60) -> float:
    """Ask port 19 of a peer for so many bytes, and check them.  How long it took."""
    began = time.monotonic()
    transfer = Transfer(driver, driver.stack.connect(address, 19), b"%d\n" % size)
    driver.run(seconds, lambda: transfer.is_done)
    assert len(transfer.got) == size + 64, transfer.connection.end
    assert transfer.got[size:].decode() == hashlib.sha256(transfer.got[:size]).hexdigest()
    took = time.monotonic() - began
    close(driver, transfer)
    return took


def close(driver: Driver, transfer: Transfer) -> None:
    transfer.connection.close()
    driver.users.remove(transfer.on_event)


class Services:
    """Ports 7, 9 and 19 of our stack."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.listeners: dict[Listener, int] = {driver.stack.listen(port): port for port in (7, 9, 19)}
        self.hashes: dict[Connection, hashlib._Hash] = {}
        self.ports: dict[Connection, int] = {}
        self.writers: dict[Connection, Writer] = {}
        driver.users.append(self.on_event)

    def on_event(self, event: Event) -> None:
        if not isinstance(event, Happened):
            return
        subject = event.subject
        if isinstance(subject, Listener):
            while (connection := subject.accept()) is not None:
                self.ports[connection] = self.listeners[subject]
                self.hashes[connection] = hashlib.sha256()
                self.serve(connection)
        elif isinstance(subject, Connection) and subject in self.ports:
            if event.what & What.CLOSED:
                for table in (self.ports, self.hashes, self.writers):
                    table.pop(subject, None)
                return
            self.serve(subject)

    def serve(self, connection: Connection) -> None:
        port = self.ports[connection]
        if connection in self.writers:
            self.writers[connection].pump()
            return
        data = connection.receive(1 << 22)
        self.hashes[connection].update(data)
        if port == 7 and data:
            connection.send(data)
        elif port == 19 and data.endswith(b"\n"):
            answer = os.urandom(int(data))
            self.answer(connection, answer + hashlib.sha256(answer).hexdigest().encode())
        if connection.eof and not connection.readable_bytes and connection not in self.writers:
            self.answer(connection, self.hashes[connection].hexdigest().encode() if port == 9 else b"")

    def answer(self, connection: Connection, data: bytes) -> None:
        writer = self.writers[connection] = Writer(connection, data)
        writer.pump()
