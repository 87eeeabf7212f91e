"""A reactor in virtual time whose sessions write down what they get."""

import socket
from collections.abc import Callable

from derp.close_reason import CloseReason
from derp.transport.framing import RECEIVE_BYTES
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from tests.support.wires import PlainWire, socket_pair


class Recorder:
    """A session that takes whole records of `record` bytes and leaves the rest to the link."""

    def __init__(self, served: "Served", link: Link, record: int = 1) -> None:
        self.served = served
        self.link = link
        self.record = record
        self.take_at_most = 1 << 30
        self.data = b""
        self.receives: list[int] = []
        self.writable_count = 0
        self.ends: list[tuple[CloseReason, str]] = []
        self.then: Callable[[Recorder], None] = lambda recorder: None
        self.when_writable: Callable[[Recorder], None] = lambda recorder: None

    def received(self, at: int, end: int) -> int:
        whole = min((end - at) // self.record * self.record, self.take_at_most)
        self.data += self.served.reactor.view[at : at + whole]
        self.receives.append(end - at)
        self.then(self)
        return at + whole

    def writable(self) -> None:
        self.writable_count += 1
        self.when_writable(self)

    def ended(self, reason: CloseReason, text: str) -> None:
        self.ends.append((reason, text))


class Served:
    """A reactor in virtual time with recorders."""

    def __init__(self) -> None:
        self.time = 100.0
        self.reactor = Reactor(clock=lambda: self.time)
        self._opened: list[PlainWire] = []

    def open(
        self, record: int = 1, pair: tuple[socket.socket, socket.socket] | None = None
    ) -> tuple[Recorder, PlainWire]:
        near, far = pair or socket_pair()
        link = Link(near, ("127.0.0.1", 1))
        link.appetite = RECEIVE_BYTES  # as of one that has sent for a while
        recorder = link.session = Recorder(self, link, record)
        self.reactor.add(link)
        wire = PlainWire(far)
        self._opened.append(wire)
        return recorder, wire

    def serve(self) -> int:
        """Until nothing is ready any more; at most a few rounds, so that a busy loop is seen."""
        for number in range(1000):
            if not self.reactor.serve_ready():
                return number
        raise AssertionError("the reactor is busy with nothing")

    def end(self) -> None:
        for link in tuple(self.reactor.wires):
            self.reactor.close(link, CloseReason.STOPPED)
        for wire in self._opened:
            wire.close()


def take_number(served: Served, number: int) -> tuple[Recorder, PlainWire]:
    """A new link whose socket has the number of one that was closed."""
    while True:
        recorder, wire = served.open()
        if recorder.link.fd == number:
            return recorder, wire
