"""The bounded, fair queue of a destination whose socket is full.  Layer L1.

Only a slow reader ever has one.  A flow is all packets of one source key.  The queue serves flows by start-time fair
queueing: the flow that has had the fewest bytes goes next, so one bulk sender cannot starve the others.  A full queue
drops the oldest packet of a flow that holds the most; relay/pool.py bounds all queues together.  Next hop:
server/session.py takes from it.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from derp.protocol.frames import HEADER_BYTES, KEY_BYTES
from derp.relay.counters import DISCO_MAGIC, DISCO_MIN_BYTES, Counters, DropReason, PacketKind
from derp.relay.pool import FRAME_OVERHEAD_BYTES, QueuePool

_RECV: Final = 0x05
_FORWARD: Final = 0x0A
# Disco packets open direct paths and are tiny: each of their bytes counts a quarter, so they overtake bulk data.  They
# are a flow like the others, so a flood of them cannot starve data, which it could if they went first.
_DISCO_WEIGHT: Final = 4
# Disco has a bound of its own: path discovery repeats itself, so a handful of the freshest packets is worth more than a
# backlog.
DISCO_DEPTH: Final = 32
# No real disco packet is longer (the longest are padded to probe a path's MTU).  What only looks like one queues with
# its sender's data.  So all disco of a queue is 64 KiB at most, and needs no second bound in bytes.
MAX_DISCO_FRAME_BYTES: Final = 2048
# Notices (PeerGone, Pong, KeepAlive...) are no packets, and the queue never drops one for another.  A client gets at
# most one for each peer that it heard from; 64 KiB are 1,700 of them behind a socket that takes nothing.
MAX_NOTICE_BYTES: Final = 64 * 1024
# We tell a mesh peer of every client at once when it asks: 56 bytes each, for three times our default of 100,000.
MAX_MESH_NOTICE_BYTES: Final = 16 * 1024 * 1024
# Flows without packets that the queue remembers for fairness, besides one for each packet.
_SPARE_FLOWS: Final = 64


def frame_starts(frames: memoryview) -> Iterator[tuple[int, int]]:
    """(start, end) of each whole frame in `frames`."""
    at, total = 0, len(frames)
    while at < total:
        end = at + HEADER_BYTES + int.from_bytes(frames[at + 1 : at + HEADER_BYTES], "big")
        yield at, end
        at = end


def count_lost(frames: bytes, reason: DropReason, counters: Counters) -> None:
    """Count the packets among these whole frames as dropped."""
    for start, end in frame_starts(memoryview(frames)):
        if frames[start] == _RECV or frames[start] == _FORWARD:
            _count_drop(frames[start:end], reason, counters)


def _packet_at(frame: bytes) -> int:
    return HEADER_BYTES + KEY_BYTES if frame[0] == _RECV else HEADER_BYTES + 2 * KEY_BYTES


def _is_disco(frame: bytes) -> bool:
    at = _packet_at(frame)
    return len(frame) >= at + DISCO_MIN_BYTES and frame.startswith(DISCO_MAGIC, at)


def _count_drop(frame: bytes, reason: DropReason, counters: Counters) -> None:
    kind = PacketKind.DISCO if _is_disco(frame) else PacketKind.OTHER
    packet_bytes = len(frame) - _packet_at(frame)
    counters.drop(reason, kind, 1, packet_bytes)
    if frame[0] == _FORWARD:
        counters.mesh_packets_dropped += 1
        counters.mesh_bytes_dropped += packet_bytes


class _Flow:
    """It has one entry in the heap as long as it is in the table, so no entry is ever out of date.

    A flow that was emptied stays until its turn comes: a sender that always has just one packet here would otherwise
    begin at the present each time, and starve whoever waits.
    """

    __slots__ = ("frames", "held_bytes", "is_disco", "size_class", "source", "turn")

    def __init__(self, source: bytes, turn: float, is_disco: bool) -> None:
        self.source = source
        self.turn = turn  # virtual time of its next packet
        self.is_disco = is_disco
        self.held_bytes = 0
        self.size_class = 0  # bit length of held_bytes
        self.frames: deque[tuple[bytes, float]] = deque()


class PacketQueue:
    """Whole RecvPacket frames that wait for one destination, and the notices that go before them.

    `depth` packets and `max_bytes` bytes (headers included; at least one frame's) bound the packets; disco packets
    and notices have bounds of their own.  Everything dropped is counted in `counters`; nothing raises.
    """

    __slots__ = (
        "_by_size",
        "_clock",
        "_counters",
        "_depth",
        "_disco_bytes",
        "_disco_packets",
        "_flows",
        "_heap",
        "_max_bytes",
        "_max_notice_bytes",
        "_notices",
        "_order",
        "_pool",
        "_pool_class",
        "_shift",
        "_size_classes",
        "dropped",
        "held_bytes",
        "notice_bytes",
        "packets",
    )

    def __init__(
        self,
        depth: int,
        max_bytes: int,
        counters: Counters,
        pool: QueuePool,
        *,
        max_notice_bytes: int = MAX_NOTICE_BYTES,
        shift: int = 0,
    ) -> None:
        """`shift`: where the pool looks for the fattest queue, this one counts as 2**shift times thinner: it serves
        many clients, and its own bound is as much larger."""
        self._pool = pool
        self._pool_class = 0
        self._shift = shift
        self._depth = depth
        self._max_bytes = max_bytes
        self._max_notice_bytes = max_notice_bytes
        self._counters = counters
        self._flows: dict[bytes, _Flow] = {}
        self._heap: list[tuple[float, int, _Flow]] = []
        self._clock = 0.0  # virtual time: the turn of the flow served last
        self._order = 0  # ties go to the flow that came first
        # Flows of data by the bit length of what they hold, and the set of those lengths as bits: the fattest is
        # found without looking at all flows, which hostile senders make many.
        self._by_size: dict[int, dict[_Flow, None]] = {}
        self._size_classes = 0
        self._disco_packets = self._disco_bytes = 0
        self._notices: deque[bytes] = deque()
        self.packets = 0
        """Packets that wait, notices not counted."""
        self.held_bytes = 0
        """Their bytes, headers included."""
        self.notice_bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return self.packets + len(self._notices)

    def push_notice(self, frame: bytes) -> bool:
        """Queue a frame that is no packet.  False when the bound is reached: the caller closes or forgets."""
        size = len(frame)
        if self.notice_bytes + size > self._max_notice_bytes or not self._pool.has_room(size + FRAME_OVERHEAD_BYTES):
            self._counters.notices_dropped += 1
            return False
        self._notices.append(frame)
        self.notice_bytes += size
        self._pool.held_bytes += size + FRAME_OVERHEAD_BYTES
        return True

    def push_frames(self, frames: memoryview, now: float) -> bool:
        """Queue copies of whole frames: packets fairly, anything else as notices in order.  False when a notice did
        not fit."""
        fits = True
        for start, end in frame_starts(frames):
            frame = bytes(frames[start:end])
            if frame[0] == _RECV or frame[0] == _FORWARD:
                self._push_packet(frame, now)
            else:
                fits = self.push_notice(frame) and fits
        return fits

    def _push_packet(self, frame: bytes, now: float) -> None:
        self._counters.queue_entered += 1
        size = len(frame)
        if size <= MAX_DISCO_FRAME_BYTES and _is_disco(frame):
            flow = self._flow(DISCO_MAGIC, is_disco=True)
            if len(flow.frames) >= DISCO_DEPTH:
                self._drop_head(flow)
            self._disco_packets += 1
            self._disco_bytes += size
        else:
            if size > self._max_bytes:
                self._drop(frame, DropReason.QUEUE_TAIL)
                return
            # RecvPacket and, towards another relay, ForwardPacket: both begin with the source key
            flow = self._flow(frame[HEADER_BYTES : HEADER_BYTES + KEY_BYTES], is_disco=False)
            while (
                self.packets - self._disco_packets >= self._depth
                or self.held_bytes - self._disco_bytes + size > self._max_bytes
            ):
                self._drop_head(self._fattest(flow))
        flow.frames.append((frame, now))
        self.packets += 1
        self._resize(flow, size)
        pool = self._pool
        pool.held_bytes += size + FRAME_OVERHEAD_BYTES
        if pool.held_bytes > pool.most_bytes:
            pool.most_bytes = pool.held_bytes
            if pool.held_bytes > pool.max_bytes:
                pool.has_room(0)
                pool.most_bytes = pool.held_bytes

    def _flow(self, source: bytes, *, is_disco: bool) -> _Flow:
        flow = self._flows.get(source)
        if flow is None:
            if len(self._flows) > 2 * self.packets + _SPARE_FLOWS:
                self._forget_empty_flows()
            # A flow that was silent starts at the present: it is neither punished for its past nor owed for it.
            flow = self._flows[source] = _Flow(source, self._clock, is_disco)
            self._order += 1
            heappush(self._heap, (flow.turn, self._order, flow))
        return flow

    def _forget_empty_flows(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].frames]
        heapify(self._heap)
        self._flows = {source: flow for source, flow in self._flows.items() if flow.frames}

    def _resize(self, flow: _Flow, change: int) -> None:
        self.held_bytes += change
        pool_class = (self.held_bytes >> self._shift).bit_length()
        if pool_class != self._pool_class:
            self._pool_class = pool_class
            self._pool.move(self, pool_class)
        flow.held_bytes += change
        size_class = flow.held_bytes.bit_length()
        if size_class != flow.size_class and not flow.is_disco:
            before = self._by_size.get(flow.size_class)
            if before is not None:
                before.pop(flow, None)
                if not before:
                    self._size_classes &= ~(1 << flow.size_class)
            flow.size_class = size_class
            if size_class:
                self._by_size.setdefault(size_class, {})[flow] = None
                self._size_classes |= 1 << size_class

    def _fattest(self, arriving: _Flow) -> _Flow:
        """The flow of data to drop from: one that holds more than half of what any other holds.  That is the arriving
        one, if it holds so much; else the one that has held so much for longest."""
        size_class = self._size_classes.bit_length() - 1
        if arriving.size_class == size_class:
            return arriving
        return next(iter(self._by_size[size_class]))

    def _drop_head(self, flow: _Flow) -> None:
        self._drop(self._pop(flow)[0], DropReason.QUEUE_HEAD)

    def drop_one(self) -> None:
        """Drop the oldest packet of the flow that holds the most, for the sake of other queues; disco last."""
        if self._size_classes:
            flow = next(iter(self._by_size[self._size_classes.bit_length() - 1]))
        else:
            flow = self._flows[DISCO_MAGIC]
        self._drop(self._pop(flow)[0], DropReason.QUEUES_FULL)

    def _pop(self, flow: _Flow) -> tuple[bytes, float]:
        frame, since = flow.frames.popleft()
        size = len(frame)
        self.packets -= 1
        if flow.is_disco:
            self._disco_packets -= 1
            self._disco_bytes -= size
        self._resize(flow, -size)
        self._pool.held_bytes -= size + FRAME_OVERHEAD_BYTES
        return frame, since

    def _drop(self, frame: bytes, reason: DropReason) -> None:
        _count_drop(frame, reason, self._counters)
        self.dropped += 1

    def take(self, max_bytes: int, now: float) -> list[bytes]:
        """Remove and return whole frames in the order of service, at least one if any waits, up to `max_bytes`."""
        taken: list[bytes] = []
        size = 0
        while self._notices and size < max_bytes:
            frame = self._notices.popleft()
            self.notice_bytes -= len(frame)
            self._pool.held_bytes -= len(frame) + FRAME_OVERHEAD_BYTES
            taken.append(frame)
            size += len(frame)
        counters = self._counters
        heap = self._heap
        while size < max_bytes and heap:
            turn, _, flow = heap[0]
            if not flow.frames:  # the flow had its turn and had nothing to send
                heappop(heap)
                del self._flows[flow.source]
                continue
            self._clock = turn
            frame, since = self._pop(flow)
            flow.turn = turn + (len(frame) / _DISCO_WEIGHT if flow.is_disco else len(frame))
            self._order += 1
            heapreplace(heap, (flow.turn, self._order, flow))
            counters.note_queued(now - since)
            taken.append(frame)
            size += len(frame)
        return taken

    def count_lost(self, frames: bytes) -> None:
        """The socket failed under frames that were taken."""
        count_lost(frames, DropReason.WRITE_ERROR, self._counters)

    def discard(self, reason: DropReason) -> None:
        """Drop everything, counted under `reason`: the destination is gone."""
        for flow in self._flows.values():
            for frame, _ in flow.frames:
                self._drop(frame, reason)
        frames = self.packets + len(self._notices)
        self._pool.held_bytes -= self.held_bytes + self.notice_bytes + frames * FRAME_OVERHEAD_BYTES
        self._pool.move(self, 0)
        self._pool_class = 0
        self._flows.clear()
        self._heap.clear()
        self._by_size.clear()
        self._notices.clear()
        self.packets = self.held_bytes = self.notice_bytes = 0
        self._size_classes = self._disco_packets = self._disco_bytes = 0

    @property
    def packet_bytes(self) -> int:
        """Bytes of the packets that wait, without keys and headers."""
        return sum(len(frame) - _packet_at(frame) for flow in self._flows.values() for frame, _ in flow.frames)

    def oldest_seconds(self, now: float) -> float:
        """How long the packet at the head of the slowest flow has waited; 0 when none waits."""
        return max((now - flow.frames[0][1] for flow in self._flows.values() if flow.frames), default=0.0)
