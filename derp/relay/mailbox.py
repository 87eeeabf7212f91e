"""Packets for keys on their way from a leaving relay to another.  Layer L1.

A client that is told to go dials the next node, or the process that replaces this one, within some milliseconds.  What
comes for it meanwhile waits here; when another relay announces the key, the router forwards it there, before anything
newer.  At the other relays newer packets wait in a Hold until all of that has come.  The router opens these and makes
each its key's route (relay/router.py); packets come by the flush.
"""

from collections.abc import Sequence
from typing import Any, Final

from derp.protocol.frames import HEADER, HEADER_BYTES, KEY_BYTES, FrameType
from derp.protocol.settle import Settle
from derp.relay.counters import Counters, DropReason
from derp.relay.deadlines import Deadlines
from derp.relay.queue import PacketQueue, count_lost, frame_starts

# A client is away for 20 to 100 ms.  This is 20 Mbit/s for one of them in 100 ms, and 0.1 s of a full gigabit in all.
MAILBOX_BYTES: Final = 256 * 1024
MAILBOXES_BYTES: Final = 64 * 1024 * 1024
# What WireGuard still takes without a new handshake is far older, but nobody waits longer for an answer; a client that
# took so long has gone for good or was cut off.
MAILBOX_SECONDS: Final = 3.0
# The leaving relay answers in a round trip, and 30 ms more where a core is busy with handshakes.  One that does not is
# stuck, or cannot be reached: packets wait no longer than in a queue, and may then come behind newer ones.
HOLD_SECONDS: Final = 0.25


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
        joined = b"".join(pieces)
        room = self._room()
        if size > room:
            kept = 0
            for _, end in frame_starts(memoryview(joined)):
                if end > room:
                    break
                kept = end
            count_lost(joined[kept:], DropReason.GONE_DISCONNECTED, self._boxes.counters)
            joined = joined[:kept]
        self._keep(joined)
        return size

    def _room(self) -> int:
        return min(MAILBOX_BYTES - self.held_bytes, MAILBOXES_BYTES - self._boxes.held_bytes)

    def _keep(self, frames: bytes) -> None:
        self.frames.append(frames)
        self.held_bytes += len(frames)
        self._boxes.held_bytes += len(frames)

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


class Hold(Mailbox):
    """Newer packets for a key that comes from a leaving relay, until what came there for it has arrived.

    One that is full goes on, by a batch at the most: its owner ends it, since to come late is better than to be lost.
    """

    __slots__ = ("answers", "is_full", "link", "number", "told", "wires")

    def __init__(self, key: bytes, boxes: "Mailboxes", number: int, link: Any) -> None:
        super().__init__(key, boxes)
        self.number = number
        self.link = link  # to the relay that was asked
        self.told: list[Settle] = []  # what others hear when it has ended
        self.answers = 0  # so many have come
        self.is_full = False
        self.wires: tuple[Any, ...] = ()
        """When it has ended: those of the key here, which are read from then on."""

    def send(self, pieces: Sequence[bytes | memoryview], size: int) -> int:
        self._keep(b"".join(pieces))
        if self._room() < 0 and not self.is_full:
            self.is_full = True
            self._boxes.changed.append(self)
        return size


class Mailboxes:
    """Those that are open, and until when.  A timed core: its owner hands what is due to `Router.close_mailbox`."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.held_bytes = 0
        self.changed: list[Hold] = []
        """Holds that have no deadline yet, are full, or have ended, for whoever knows the time and the sockets."""
        self._open = Deadlines[Mailbox]()
        self._holds: dict[int, Hold] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, key: bytes, now: float) -> Mailbox:
        mailbox = Mailbox(key, self)
        self._open.set(mailbox, now + MAILBOX_SECONDS)
        return mailbox

    def hold(self, key: bytes, number: int, link: Any) -> Hold:
        """`number` is that of the question whose answer ends it, `link` goes to whom it is asked."""
        hold = self._holds[number] = Hold(key, self, number, link)
        self.changed.append(hold)
        return hold

    def asked(self, number: int) -> Hold | None:
        """The one that waits for this answer."""
        return self._holds.get(number)

    def keep_until(self, hold: Hold, at: float) -> None:
        self._open.set(hold, at)

    def close(self, mailbox: Mailbox) -> None:
        """Nothing is kept there any more."""
        self._open.clear(mailbox)
        if isinstance(mailbox, Hold):
            del self._holds[mailbox.number]
            self.changed.append(mailbox)
        mailbox.wire = None
        self.held_bytes -= mailbox.held_bytes
        mailbox.held_bytes = 0

    def next_timeout(self) -> float | None:
        return self._open.next_timeout()

    def handle_timeout(self, now: float) -> list[Mailbox]:
        """Those whose keys showed up nowhere in time."""
        return self._open.handle_timeout(now)
