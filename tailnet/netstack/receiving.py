"""The receiving half of a connection: the window that is offered, when it is told, and when to acknowledge.  Layer L1.

RFC 9293 section 3.8.6 (window), RFC 1122 section 4.2.3.2 and RFC 5681 section 4.2 (delayed acknowledgements).  The
window grows with what the reader takes in a round trip.  Next hop: reassembly.py; called by connection.py.
"""

from collections.abc import Callable
from typing import Final

from tailnet.netstack.ip import Packet
from tailnet.netstack.limits import Limits
from tailnet.netstack.reassembly import Reassembly
from tailnet.netstack.scoreboard import DUPLICATE_THRESHOLD

WINDOW_SCALE: Final = 7
"""65,535 << 7 is twice `max_receive_bytes`."""
_MIN_ROUND_SECONDS: Final = 0.001


def _grant_nothing(size: int) -> bool:
    return False


class Receiver:
    """Absolute numbers.  `ack_now` and `ack_at` say when connection.py has to acknowledge."""

    __slots__ = (
        "_gap_at",
        "_gap_segments",
        "_grant",
        "_limits",
        "_mss",
        "_round_at",
        "_round_bytes",
        "_told",
        "ack_at",
        "ack_now",
        "buffer",
        "buffer_bytes",
        "duplicate",
        "edge",
        "reassembly",
        "scale",
    )

    def __init__(self, irs: int, mss: int, limits: Limits, grant: Callable[[int], bool]) -> None:
        """`grant` asks the node for bytes beyond `min_receive_bytes`; what it granted connection.py gives back."""
        self._limits = limits
        self._grant = grant
        self._mss = mss
        self.reassembly = Reassembly(irs + 1, limits.max_pieces)
        self.buffer_bytes = limits.min_receive_bytes
        self.scale = 0
        self.edge = irs + 1 + min(self.buffer_bytes, 65535)
        """The right edge that was offered: it never moves back."""
        self._told = irs + 1
        self.ack_now = False
        self.ack_at: float | None = None
        self.duplicate: tuple[int, int] | None = None
        """What came a second time, for the next acknowledgement (RFC 2883)."""
        self._round_at = 0.0
        self._round_bytes = 0
        self._gap_at = self._gap_segments = 0
        self._grow(limits.first_receive_bytes)

    def _grow(self, size: int) -> None:
        more = size - self.buffer_bytes
        if more > 0 and self._grant(more):
            self.buffer_bytes = size

    def stop(self) -> int:
        """Nothing more will come.  The granted bytes that are to be given back; what waits can still be read."""
        granted = self.buffer_bytes - self._limits.min_receive_bytes
        self.buffer_bytes = self._limits.min_receive_bytes
        self._grant = _grant_nothing
        self.ack_at = None
        return granted

    def window(self) -> int:
        """What a segment says, as it stands on the wire.  Moves `edge`."""
        reassembly = self.reassembly
        nxt = reassembly.nxt
        offer = nxt + self.buffer_bytes - reassembly.waiting
        # A step smaller than two segments or a quarter of the buffer is none (RFC 9293 section 3.8.6.2.2).
        if offer - self.edge >= min(2 * self._mss, self.buffer_bytes // 4):
            self.edge = offer
        size = (self.edge - nxt) >> self.scale
        if size > 65535:
            size = 65535
        return size

    def acknowledged(self) -> None:
        """A segment with the newest acknowledgement and window was sent."""
        self._told = self.reassembly.nxt
        self.ack_now = False
        self.ack_at = None

    def note_duplicate(self, start: int, end: int) -> None:
        """Bytes came a second time; those that follow each other in a batch are told as one block."""
        before = self.duplicate
        self.duplicate = (before[0], end) if before is not None and before[1] == start else (start, end)

    def receive(self, start: int, data: Packet, now: float, *, push: bool) -> bool:
        """A segment's bytes inside the window.  False where its pieces are too many."""
        reassembly = self.reassembly
        if start == reassembly.nxt and not reassembly.pieces:
            reassembly.append(data)
            if push or reassembly.nxt - self._told >= 2 * self._mss:
                self.ack_now = True
            elif self.ack_at is None:
                self.ack_at = now + self._limits.delayed_ack_seconds
            return True
        self.ack_now = True  # out of order, or a gap is filled (RFC 5681 section 4.2)
        return reassembly.add(start, data)

    def is_gap_young(self) -> bool:
        """After a segment behind a gap: whether it is acknowledged by itself, not with its batch.  Three are: genuine
        nodes have RACK switched off, begin a recovery at the third duplicate with news, and else wait for the
        retransmission timer, which is 200 ms."""
        if self._gap_at != self.reassembly.nxt:
            self._gap_at, self._gap_segments = self.reassembly.nxt, 0
        self._gap_segments += 1
        return self._gap_segments <= DUPLICATE_THRESHOLD

    def read(self, limit: int, now: float, srtt: float) -> bytes:
        """What the user takes.  A window that opened is told soon: `ack_now`."""
        data = self.reassembly.read(limit)
        if not data:
            return data
        self._round_bytes += len(data)
        if now - self._round_at >= max(srtt, _MIN_ROUND_SECONDS):
            # Twice what was read in a round trip lets a sender that doubles its window do so.
            if self._round_bytes * 2 > self.buffer_bytes and now - self._round_at <= 8 * max(srtt, _MIN_ROUND_SECONDS):
                self._grow(min(max(self._round_bytes * 2, self.buffer_bytes * 2), self._limits.max_receive_bytes))
            self._round_at = now
            self._round_bytes = 0
        reassembly = self.reassembly
        opened = reassembly.nxt + self.buffer_bytes - reassembly.waiting - self.edge
        closed = self.edge - reassembly.nxt
        if opened >= self.buffer_bytes // 4 or (closed < 2 * self._mss and opened >= 2 * self._mss):
            self.ack_now = True
        return data
