"""Connections in virtual time, and a process that serves them: a real Host whose wires are pipes on the heap."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from random import Random
from typing import TYPE_CHECKING, Final

from derp.close_reason import CloseReason
from derp.transport.framing import RECEIVE_BYTES, StreamWire
from derp.transport.host import Piece, WireEnded
from derp.transport.hostcore import HostCore
from sim.ways import LATENCY_SECONDS, Way

if TYPE_CHECKING:
    from sim.heap import Heap

# In a pipe: the sender's side has ended.
END: Final = b""


class Pipe:
    """One direction of a connection.  It keeps the order and takes its time; by a way that is down bytes wait."""

    __slots__ = ("_arrive", "_arrives_at", "_heap", "_held", "_is_broken", "_random", "_way", "has_ended")

    def __init__(self, heap: "Heap", random: Random, arrive: Callable[[bytes], object], way: Way | None = None) -> None:
        self._heap = heap
        self._random = Random(random.random())  # its own: who is served first may hang on a set's order
        self._arrive = arrive
        self._way = way
        self._held: list[bytes] = []
        self._arrives_at = 0.0
        self._is_broken = False
        self.has_ended = False

    def send(self, data: bytes) -> None:
        if self._is_broken or self.has_ended:
            return
        if self._way is not None and not self._way.is_up:
            self._held.append(data)
            return
        latency = LATENCY_SECONDS[0] + (LATENCY_SECONDS[1] - LATENCY_SECONDS[0]) * self._random.random()
        self._arrives_at = max(self._arrives_at, self._heap.now + latency)
        self._heap.at(self._arrives_at, partial(self._come, data))

    def end(self) -> None:
        """Nothing more is sent."""
        self.send(END)
        self.has_ended = True

    def release(self) -> None:
        """The way is up again."""
        held, self._held = self._held, []
        has_ended, self.has_ended = self.has_ended, False
        for data in held:
            self.send(data)
        self.has_ended = has_ended

    def break_off(self) -> None:
        """What is on its way is lost."""
        self._is_broken = True
        self._held.clear()

    def _come(self, data: bytes) -> None:
        if not self._is_broken:
            self._arrive(data)


class PipeWire(StreamWire):
    """A served process's end of a connection: what it writes goes into `out`, what comes is put in by `arrive`."""

    __slots__ = ("_far_has_ended", "_inbox", "_is_read", "_server", "out")

    def __init__(self, server: "Server", number: int) -> None:
        super().__init__(("192.0.2.1", number))
        self.out: Pipe
        self._server = server
        self._inbox = bytearray()
        self._is_read = True
        self._far_has_ended = False

    def arrive(self, data: bytes) -> None:
        """Bytes, or END, from the other end."""
        self._server.do(partial(self._take, data))

    def _take(self, data: bytes) -> None:
        self._inbox += data
        self._far_has_ended |= data == END
        self.serve()

    def serve(self) -> None:
        """What has come goes to the session, if that reads."""
        while self._is_read and (self._inbox or self._far_has_ended) and self in self._server.host.wires:
            self._server.host.serve_readable(self)

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        size = min(len(self._inbox), RECEIVE_BYTES)
        if not size and self._far_has_ended:
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        into[at : at + size] = self._inbox[:size]
        del self._inbox[:size]
        return at + size

    def _carry(self, pieces: Sequence[Piece], size: int) -> int:
        self.out.send(b"".join(pieces))
        return size

    def want(self, *, read: bool, write: bool) -> None:
        self._is_read = read
        if read:
            self._server.ready.append(self)

    def end_output(self) -> None:
        self.out.end()

    def close(self) -> None:
        self.out.end()

    def peer_left(self) -> bool:
        return self._far_has_ended

    def rtt_microseconds(self) -> int:
        raise OSError("nobody measures it")


class Server:
    """A process with a Host.  One that is frozen does later what comes meanwhile; one that is dead never."""

    def __init__(self, heap: "Heap") -> None:
        self.heap = heap
        self.host = HostCore(lambda: heap.now)
        self.ready: list[PipeWire] = []  # those that are read again
        self.is_alive = True
        self.is_frozen = False
        self._backlog: list[Callable[[], object]] = []
        self._due = inf

    def do(self, call: Callable[[], object]) -> None:
        if not self.is_alive:
            return
        if self.is_frozen:
            self._backlog.append(call)
            return
        host = self.host
        host.tick()
        call()
        host.flush()
        while self.ready:
            self.ready.pop().serve()
            host.flush()
        if host.timers.next_at < self._due:
            self._due = host.timers.next_at
            self.heap.at(self._due, partial(self._timer, self._due))

    def wake(self) -> None:
        self.is_frozen = False
        backlog, self._backlog = self._backlog, []
        for call in backlog:
            self.do(call)

    def _timer(self, due: float) -> None:
        if self._due == due:
            self.do(self._run_timers)

    def _run_timers(self) -> None:
        self._due = inf
        self.host.run_timers()
