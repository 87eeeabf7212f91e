"""The bounded, fair queue of a destination whose socket is full.  Layer L1.

Only a slow reader ever has one.  A flow is all packets of one source key.  Flows are served by start-time fair
queueing: the flow that has had the fewest bytes goes next, so one bulk sender cannot starve the others.  A full
queue drops the oldest packet of the flow that holds the most.  Next hop: server/session.py takes from it.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from derp.protocol.frames import HEADER_BYTES, KEY_BYTES
from derp.relay.counters import DISCO_MAGIC, DISCO_MIN_BYTES, Counters, DropReason, PacketKind

_RECV: Final = 0x05
_FORWARD: Final = 0x0A
# Disco packets open direct paths and are tiny: each of their bytes counts a quarter, so they overtake bulk data;
# they stay a flow like the others, so a flood of them cannot starve data (a fixed priority could).
_DISCO_WEIGHT: Final = 4
# Disco apart: path discovery repeats itself, so a handful of the freshest is worth more than a backlog.
DISCO_DEPTH: Final = 32
# Notices (PeerGone, Pong, KeepAlive...) are not packets and may not be dropped head first.  A client gets at most
# one per peer it heard from; 64 KiB are 1,700 of them behind a socket that takes nothing.
MAX_NOTICE_BYTES: Final = 64 * 1024


def frame_starts(frames: memoryview) -> Iterator[tuple[int, int]]:
    """(start, end) of each whole frame in `frames`."""
    at, total = 0, len(frames)
    while at < total:
        end = at + HEADER_BYTES + int.from_bytes(frames[at + 1 : at + HEADER_BYTES], "big")
        yield at, end
        at = end


def _packet_at(frame: bytes) -> int:
    return HEADER_BYTES + KEY_BYTES if frame[0] == _RECV else HEADER_BYTES + 2 * KEY_BYTES


def _is_disco(frame: bytes) -> bool:
    at = _packet_at(frame)
    return len(frame) >= at + DISCO_MIN_BYTES and frame.startswith(DISCO_MAGIC, at)


class _Flow:
    __slots__ = ("frames", "held_bytes", "source", "turn", "weight")

    def __init__(self, source: bytes, weight: int) -> None:
        self.source = source
        self.weight = weight
        self.turn = 0.0  # virtual time of its next packet
        self.held_bytes = 0
        self.frames: deque[tuple[bytes, float]] = deque()


class PacketQueue:
    """Whole RecvPacket frames that wait for one destination, and the notices that go before them.

    `depth` packets and `max_bytes` bytes (headers included) bound the packets; disco packets have a bound of
    their own, notices too.  Everything dropped is counted in `counters`; nothing raises.
    """

    __slots__ = (
        "_clock",
        "_counters",
        "_depth",
        "_flows",
        "_heap",
        "_max_bytes",
        "_notices",
        "_order",
        "_packets",
        "dropped",
        "held_bytes",
        "notice_bytes",
    )

    def __init__(self, depth: int, max_bytes: int, counters: Counters) -> None:
        self._depth = depth
        self._max_bytes = max_bytes
        self._counters = counters
        self._flows: dict[bytes, _Flow] = {}
        self._heap: list[tuple[float, int, _Flow]] = []
        self._clock = 0.0  # virtual time: the turn of the flow served last
        self._order = 0  # ties go to the flow that came first
        self._packets = 0
        self._notices: deque[bytes] = deque()
        self.held_bytes = 0
        self.notice_bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return self._packets + len(self._notices)

    @property
    def packets(self) -> int:
        """Packets that wait, notices not counted."""
        return self._packets

    def push_notice(self, frame: bytes) -> bool:
        """Queue a frame that is no packet.  False when the bound is reached: the caller closes or forgets."""
        if self.notice_bytes + len(frame) > MAX_NOTICE_BYTES:
            self._counters.notices_dropped += 1
            return False
        self._notices.append(frame)
        self.notice_bytes += len(frame)
        return True

    def push_frames(self, frames: memoryview, now: float) -> None:
        """Queue copies of whole frames: packets fairly, anything else as notices in order."""
        for start, end in frame_starts(frames):
            frame = bytes(frames[start:end])
            if frame[0] == _RECV or frame[0] == _FORWARD:
                self._push_packet(frame, now)
            else:
                self.push_notice(frame)

    def _push_packet(self, frame: bytes, now: float) -> None:
        is_disco = _is_disco(frame)
        # RecvPacket and, towards another relay, ForwardPacket: both begin with the source key
        source = DISCO_MAGIC if is_disco else frame[HEADER_BYTES : HEADER_BYTES + KEY_BYTES]
        flow = self._flows.get(source)
        if flow is None:
            flow = self._flows[source] = _Flow(source, _DISCO_WEIGHT if is_disco else 1)
        if is_disco:
            if len(flow.frames) >= DISCO_DEPTH:
                self._drop_head(flow)
        else:
            while self._packets >= self._depth or self.held_bytes + len(frame) > self._max_bytes:
                victim = self._fattest(flow)
                if victim is None:  # a frame above the whole bound in bytes
                    self._count_drop(DropReason.QUEUE_TAIL, frame)
                    if not flow.frames:
                        del self._flows[source]
                    return
                self._drop_head(victim)
                # dropping may have emptied and forgotten the very flow this packet belongs to
                flow = self._flows.setdefault(source, flow)
        if not flow.frames:
            # A flow that was silent starts at the present, neither punished nor owed for its past.
            flow.turn = max(flow.turn, self._clock)
            self._schedule(flow)
        flow.frames.append((frame, now))
        flow.held_bytes += len(frame)
        self.held_bytes += len(frame)
        self._packets += 1

    def _schedule(self, flow: _Flow) -> None:
        # Flows that were emptied by drops leave dead entries; a socket that takes nothing for its whole write
        # deadline would let a hostile mix of senders pile them up.
        if len(self._heap) > 2 * len(self._flows) + 64:
            live = {id(entry[2]): entry for entry in self._heap if self._is_live(entry[0], entry[2])}
            self._heap = sorted(live.values())
        self._order += 1
        heappush(self._heap, (flow.turn, self._order, flow))

    def _is_live(self, turn: float, flow: _Flow) -> bool:
        return bool(flow.frames) and self._flows.get(flow.source) is flow and turn == flow.turn

    def _fattest(self, arriving: _Flow) -> _Flow | None:
        """The flow to drop from.  The arriving one at once when it holds more than an even share: under a bulk
        sender that is nearly always so, and saves looking at every flow."""
        if arriving.frames and arriving.held_bytes * len(self._flows) >= self.held_bytes:
            return arriving
        best = max(self._flows.values(), key=lambda flow: flow.held_bytes, default=None)
        return best if best is not None and best.frames else None

    def _drop_head(self, flow: _Flow) -> None:
        frame, _ = flow.frames.popleft()
        self._forget(flow, frame)
        self._count_drop(DropReason.QUEUE_HEAD, frame)

    def _forget(self, flow: _Flow, frame: bytes) -> None:
        flow.held_bytes -= len(frame)
        self.held_bytes -= len(frame)
        self._packets -= 1
        if not flow.frames:
            # Its heap entry, if any, is skipped when its turn comes: it names a flow that is not in the table.
            del self._flows[flow.source]

    def _count_drop(self, reason: DropReason, frame: bytes) -> None:
        kind = PacketKind.DISCO if _is_disco(frame) else PacketKind.OTHER
        packet_bytes = len(frame) - _packet_at(frame)
        self._counters.drop(reason, kind, 1, packet_bytes)
        if frame[0] == _FORWARD:
            self._counters.mesh_packets_dropped += 1
            self._counters.mesh_bytes_dropped += packet_bytes
        self.dropped += 1

    def take(self, max_bytes: int, now: float) -> list[bytes]:
        """Remove and return whole frames in the order of service, at least one if any waits, up to `max_bytes`."""
        taken: list[bytes] = []
        size = 0
        while self._notices and size < max_bytes:
            frame = self._notices.popleft()
            self.notice_bytes -= len(frame)
            taken.append(frame)
            size += len(frame)
        counters = self._counters
        while size < max_bytes and self._heap:
            turn, _, flow = heappop(self._heap)
            if not self._is_live(turn, flow):
                continue
            self._clock = turn
            frame, since = flow.frames.popleft()
            flow.turn = turn + len(frame) / flow.weight
            self._forget(flow, frame)
            if flow.frames:
                self._schedule(flow)
            counters.queue_seconds += now - since
            counters.queued_packets += 1
            taken.append(frame)
            size += len(frame)
        return taken

    def discard(self, reason: DropReason) -> None:
        """Drop everything, counted under `reason`: the destination is gone."""
        for flow in self._flows.values():
            for frame, _ in flow.frames:
                self._count_drop(reason, frame)
        self._flows.clear()
        self._heap.clear()
        self._notices.clear()
        self._packets = self.held_bytes = self.notice_bytes = 0

    @property
    def packet_bytes(self) -> int:
        """Bytes of the packets that wait, without keys and headers."""
        return sum(len(frame) - _packet_at(frame) for flow in self._flows.values() for frame, _ in flow.frames)

    def oldest_seconds(self, now: float) -> float:
        """How long the packet at the head of the slowest flow has waited; 0 when none waits."""
        return max((now - flow.frames[0][1] for flow in self._flows.values()), default=0.0)
