"""A Host and its wires in memory and in virtual time: no reactor, no socket, no trio.

`host.connect(begin)` gives the far end of a wire, which is used as those of tests/support/wires.py.  `host.serve()`
until nothing happens any more, `host.wait(seconds)` to let deadlines come.
"""

from collections.abc import Callable, Sequence

from derp.close_reason import CloseReason
from derp.transport.framing import RECEIVE_BYTES, StreamWire
from derp.transport.host import Piece, WireEnded
from derp.transport.hostcore import HostCore

# What a carrier holds for a reader that is slow: as the kernel behind TCP_NOTSENT_LOWAT.
ROOM_BYTES = 32 * 1024


class MemoryWire(StreamWire):
    """The host's end.  `inbox` came from the far end, `outbox` waits for it."""

    __slots__ = ("far_is_gone", "inbox", "is_closed", "outbox", "output_ended", "reads", "room_bytes", "writes")

    def __init__(self, address: tuple[str, int], room_bytes: int) -> None:
        super().__init__(address)
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.room_bytes = room_bytes
        self.far_is_gone = self.is_closed = self.output_ended = False
        self.reads, self.writes = True, False

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        size = min(len(self.inbox), RECEIVE_BYTES)
        if not size and self.far_is_gone:
            raise WireEnded(CloseReason.CLOSED_BY_PEER)
        into[at : at + size] = self.inbox[:size]
        del self.inbox[:size]
        return at + size

    def _carry(self, pieces: Sequence[Piece], size: int) -> int:
        if self.far_is_gone:
            raise WireEnded(CloseReason.SOCKET_FAILED, "nobody is there")
        taken = b"".join(pieces)[: max(self.room_bytes - len(self.outbox), 0)]
        self.outbox += taken
        self.blocked = len(taken) < size
        return len(taken)

    def want(self, *, read: bool, write: bool) -> None:
        self.reads, self.writes = read, write

    def end_output(self) -> None:
        self.output_ended = True

    def close(self) -> None:
        self.is_closed = self.output_ended = True

    def peer_left(self) -> bool:
        return self.far_is_gone

    def rtt_microseconds(self) -> int:
        raise OSError("memory has no round trips")

    @property
    def is_readable(self) -> bool:
        return self.reads and (bool(self.inbox) or self.far_is_gone)

    @property
    def is_writable(self) -> bool:
        return self.writes and (len(self.outbox) < self.room_bytes or self.far_is_gone)


class FarEnd:
    """The other end of a MemoryWire; `read` makes room in it."""

    def __init__(self, near: MemoryWire) -> None:
        self.near = near

    @property
    def ended(self) -> bool:
        return self.near.output_ended and not self.near.outbox

    def write(self, data: bytes) -> None:
        if not self.near.is_closed:
            self.near.inbox += data

    def flush(self) -> bool:
        return True

    def read(self) -> bytes:
        data = bytes(self.near.outbox)
        self.near.outbox.clear()
        return data

    def close(self) -> None:
        self.near.far_is_gone = True


class MemoryHost(HostCore):
    """Serves MemoryWires, when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0
        super().__init__(lambda: self.time)
        self._number = 0

    def connect(self, begin: Callable[[MemoryWire], None], *, room_bytes: int = ROOM_BYTES) -> FarEnd:
        """A connection; `begin` gives the near end its session."""
        self._number += 1
        near = MemoryWire((f"192.0.2.{self._number}", 40_000), room_bytes)
        begin(near)
        self.add(near)
        return FarEnd(near)

    def serve(self) -> None:
        """Until nothing is ready."""
        self.flush()
        while sum([self._serve_once(wire) for wire in tuple(self.wires)]):
            self.flush()

    def _serve_once(self, wire: object) -> bool:
        assert isinstance(wire, MemoryWire)
        if wire not in self.wires:
            return False
        if wire.is_writable:
            self.serve_writable(wire)
            return True
        if wire.is_readable:
            self.serve_readable(wire)
            return True
        return False

    def wait(self, seconds: float) -> None:
        """Move the clock, and do what is due then."""
        self.time += seconds
        self.tick()
        self.run_timers()
        self.serve()
