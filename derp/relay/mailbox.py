"""Packets for keys whose connections a leaving relay has ended, until each key shows up somewhere else.  Layer L1.

A client that is told to go dials the next node, or the process that replaces this one, within some milliseconds.  What
comes for it meanwhile waits here; when another relay announces the key, the router forwards it there, before anything
newer.  The router opens a mailbox and makes it the key's route (relay/router.py); packets come by the flush.
"""

from collections.abc import Sequence
from typing import Any, Final

from derp.protocol.frames import HEADER, HEADER_BYTES, KEY_BYTES, FrameType
from derp.relay.counters import Counters, DropReason
from derp.relay.deadlines import Deadlines
from derp.relay.queue import PacketQueue, count_lost, frame_starts

# A client is away for 20 to 100 ms.  This is 20 Mbit/s for one of them in 100 ms, and 0.1 s of a full gigabit in all.
MAILBOX_BYTES: Final = 256 * 1024
MAILBOXES_BYTES: Final = 64 * 1024 * 1024
# What WireGuard still takes without a new handshake is far older, but nobody waits longer for an answer; a client that
# took so long has gone for good or was cut off.
MAILBOX_SECONDS: Final = 3.0


class Mailbox:
    """A route (relay/router.py) that keeps what it is given.  `wire` is itself: it takes everything, at once."""

    __slots__ = (
        "_boxes",
        "bytes_out",
        "frames",
        "held_bytes",
        "is_dirty",
        "key",
        "packets_out",
        "pending",
        "pending_bytes",
        "queue",
        "wire",
    )

    is_forwarder: Final = False
    blocked: Final = False

    def __init__(self, key: bytes, boxes: "Mailboxes") -> None:
        self.key = key
        self._boxes = boxes
        self.frames: list[bytes] = []  # whole RecvPackets, oldest first
        self.held_bytes = 0
        self.pending: list[memoryview | bytes] = []
        self.pending_bytes = self.packets_out = self.bytes_out = 0
        self.is_dirty = False
        self.queue: PacketQueue | None = None
        self.wire: Any = self

    def send(self, pieces: Sequence[bytes | memoryview], size: int) -> int:
        """Keep whole frames, together `size` bytes; those that do not fit are counted as dropped."""
        boxes = self._boxes
        joined = b"".join(pieces)
        room = min(MAILBOX_BYTES - self.held_bytes, MAILBOXES_BYTES - boxes.held_bytes)
        if size > room:
            kept = 0
            for _, end in frame_starts(memoryview(joined)):
                if end > room:
                    break
                kept = end
            count_lost(joined[kept:], DropReason.GONE_DISCONNECTED, boxes.counters)
            joined = joined[:kept]
        self.frames.append(joined)
        self.held_bytes += len(joined)
        boxes.held_bytes += len(joined)
        return size

    def as_forwarded(self) -> list[bytes | memoryview]:
        """The frames as ForwardPackets to the relay that has the key now."""
        pieces: list[bytes | memoryview] = []
        for frames in self.frames:
            view = memoryview(frames)
            for start, end in frame_starts(view):
                head = HEADER.pack(FrameType.FORWARD_PACKET, end - start - HEADER_BYTES + KEY_BYTES)
                source_end = start + HEADER_BYTES + KEY_BYTES
                pieces += (head + frames[start + HEADER_BYTES : source_end] + self.key, view[source_end:end])
        return pieces


class Mailboxes:
    """Those that are open, and until when.  A timed core: its owner hands what is due to `Router.close_mailbox`."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.held_bytes = 0
        self._open = Deadlines[Mailbox]()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, key: bytes, now: float) -> Mailbox:
        mailbox = Mailbox(key, self)
        self._open.set(mailbox, now + MAILBOX_SECONDS)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        """Nothing is kept there any more."""
        self._open.clear(mailbox)
        mailbox.wire = None
        self.held_bytes -= mailbox.held_bytes
        mailbox.held_bytes = 0

    def next_timeout(self) -> float | None:
        return self._open.next_timeout()

    def handle_timeout(self, now: float) -> list[Mailbox]:
        """Those whose keys showed up nowhere in time."""
        return self._open.handle_timeout(now)
