"""The bounded, fair queue of a destination whose socket is full.  Layer L1.

Only a slow reader ever has one.  A flow is all packets of one source key.  The queue serves flows by start-time fair
queueing: the flow that has had the fewest bytes goes next, so one bulk sender cannot starve the others.  Time in it is
bounded too (CoDel, RFC 8289, from the head of each flow).  What waits are runs: frames of one length that one sender
sent together, so that a packet costs little here.  A full queue drops the oldest packets of a flow that holds the most;
relay/pool.py bounds all queues together.  Next hop: server/session.py takes from it.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, sqrt
from typing import Final, Protocol

from derp.protocol.frames import HEADER_BYTES, KEY_BYTES, MAX_SEND_BYTES
from derp.protocol.settle import SETTLE
from derp.relay.counters import DISCO_MAGIC, DISCO_MIN_BYTES, Counters, DropReason, PacketKind
from derp.relay.losses import Losses
from derp.relay.pool import RUN_OVERHEAD_BYTES, QueuePool

_RECV: Final = 0x05
_FORWARD: Final = 0x0A
_HEAD: Final = HEADER_BYTES + KEY_BYTES
_FORWARD_HEAD: Final = HEADER_BYTES + 2 * KEY_BYTES
_DISCO_FIRST: Final = DISCO_MAGIC[0]
# The shortest and the longest RecvPacket: their lengths differ by 65,536.
_EQUAL_ENDS: Final = (_HEAD, HEADER_BYTES + MAX_SEND_BYTES)
# So little is never too old: a slow way takes it in two steps (server/session.py).  What was taken is out of reach of
# fairness and of the bound on time.
STEP_BYTES: Final = 16 * 1024
# A run is no longer, whatever a sender sends together: memory comes back when the last frame of a run has left.  A run
# costs 3 us to put and to drop, and this is fifty full packets.
_RUN_BYTES: Final = 64 * 1024
# CoDel's two numbers.  The interval is a long round trip of those who use relays.  The target is RFC 8289's 5 ms and
# the 13 ms that a step takes on 10 Mbit/s: below that a queue is only the next step waiting.
TARGET_SECONDS: Final = 0.02
INTERVAL_SECONDS: Final = 0.1
# Of a queue's bytes one flow may hold this share while others wait too, so that whoever comes next finds room.
_FLOW_SHARE: Final = 2
# Disco packets open direct paths and are tiny: each of their bytes counts a quarter, so they overtake bulk data.  They
# are a flow like the others, so a flood of them cannot starve data, which it could if they went first.
_DISCO_WEIGHT: Final = 4
# Disco has a bound of its own: path discovery repeats itself, so a handful of the freshest packets is worth more than a
# backlog.  They need no bound on time.
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

Piece = bytes | bytearray | memoryview


def frame_starts(frames: memoryview) -> Iterator[tuple[int, int]]:
    """(start, end) of each whole frame in `frames`."""
    at, total = 0, len(frames)
    while at < total:
        end = at + HEADER_BYTES + int.from_bytes(frames[at + 1 : at + HEADER_BYTES], "big")
        yield at, end
        at = end


class Owner(Protocol):
    """Whose packets they were to be: it knows how many of them did not reach it."""

    packets_lost: int
    bytes_lost: int
    losses: Losses | None


def count_lost(frames: bytes, reason: DropReason, counters: Counters, owner: Owner | None = None) -> None:
    """Count the packets among these whole frames as dropped."""
    for start, end in frame_starts(memoryview(frames)):
        if frames[start] == _RECV or frames[start] == _FORWARD:
            _count_dropped(frames, start, end, end - start, reason, counters, owner)


def _packet_at(frame: bytes, start: int = 0) -> int:
    return _HEAD if frame[start] == _RECV else _FORWARD_HEAD


def _is_disco(frames: bytes, start: int, size: int) -> bool:
    at = _packet_at(frames, start)
    return size >= at + DISCO_MIN_BYTES and frames.startswith(DISCO_MAGIC, start + at)


def _count_dropped(
    frames: bytes, start: int, end: int, size: int, reason: DropReason, counters: Counters, owner: Owner | None
) -> None:
    """Count frames of `size` bytes each that lie in `frames[start:end]`, all of one type."""
    at = _packet_at(frames, start)
    count, packet_bytes = (end - start) // size, size - at
    discos = 0
    if _DISCO_FIRST in frames[start + at : end : size]:
        discos = sum(_is_disco(frames, one, size) for one in range(start, end, size))
        if discos:
            counters.drop(reason, PacketKind.DISCO, discos, discos * packet_bytes)
    if count > discos:
        counters.drop(reason, PacketKind.OTHER, count - discos, (count - discos) * packet_bytes)
    if owner is not None:
        owner.packets_lost += count
        owner.bytes_lost += count * packet_bytes
    if frames[start] == _FORWARD:
        counters.mesh_packets_dropped += count
        counters.mesh_bytes_dropped += count * packet_bytes


def _are_alike(frames: bytes, size: int) -> bool:
    """Whether `frames`, whole packets one after the other, are of `size` bytes each, as the first one is."""
    count, rest = divmod(len(frames), size)
    # The two low bytes of each length, of all frames at a time: 0.4 us for any number, where a loop takes 0.1 a frame.
    # Only the shortest and the longest packet have these in common, so a piece that begins with one is not looked at.
    return (
        not rest
        and frames[3::size].count(frames[3]) == count
        and frames[4::size].count(frames[4]) == count
        and size not in _EQUAL_ENDS
    )


class _Run:
    """Frames of one source and of one length that came together; those before `at` have left."""

    __slots__ = ("at", "frames", "since", "size")

    def __init__(self, frames: bytes, size: int, since: float) -> None:
        self.frames = frames
        self.size = size  # of each frame
        self.since = since
        self.at = 0


class _Flow:
    """It has one entry in the heap as long as it is in the table, so no entry is ever out of date.

    A flow that was emptied stays until its turn comes: a sender that always has just one packet here would otherwise
    begin at the present each time, and starve whoever waits.
    """

    __slots__ = ("drops", "held_bytes", "is_disco", "late_at", "runs", "size_class", "source", "turn")

    def __init__(self, source: bytes, turn: float, is_disco: bool) -> None:
        self.source = source
        self.turn = turn  # virtual time of its next packet
        self.is_disco = is_disco
        self.held_bytes = 0
        self.size_class = 0  # bit length of held_bytes
        self.runs: deque[_Run] = deque()
        self.late_at = 0.0  # when CoDel drops next; 0 while packets wait no longer than the target
        self.drops = 0  # how often it has done so


class PacketQueue:
    """Whole RecvPacket frames that wait for one destination, and the notices that go before them.

    `depth` packets and `max_bytes` bytes (headers included; at least one frame's) bound the packets; beside others one
    flow may hold half of these bytes, or one frame.  Disco packets and notices have bounds of their own.  Everything
    dropped is counted in `counters`; nothing raises.
    """

    __slots__ = (
        "_by_size",
        "_clock",
        "_counters",
        "_depth",
        "_disco_bytes",
        "_disco_packets",
        "_flow_bytes",
        "_flows",
        "_heap",
        "_last",
        "_max_bytes",
        "_max_notice_bytes",
        "_max_wait_seconds",
        "_notices",
        "_now",
        "_order",
        "_owner",
        "_pool",
        "_pool_class",
        "_run_bytes",
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
        max_wait_seconds: float = inf,
        max_notice_bytes: int = MAX_NOTICE_BYTES,
        shift: int = 0,
        owner: Owner | None = None,
    ) -> None:
        """`max_wait_seconds`: what waited longer beside packets of others is dropped.  `shift`: where the pool looks
        for the fattest queue, this one counts as 2**shift times thinner: it serves many clients, and its own bound is
        as much larger."""
        self._owner = owner
        self._pool = pool
        self._pool_class = 0
        self._shift = shift
        self._depth = depth
        self._max_bytes = max_bytes
        self._flow_bytes = max_bytes // _FLOW_SHARE
        self._run_bytes = min(_RUN_BYTES, self._flow_bytes)
        self._max_notice_bytes = max_notice_bytes
        self._max_wait_seconds = max_wait_seconds
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
        self._last: deque[bytes] = deque()  # notices that go behind all packets
        self.packets = 0
        """Packets that wait, notices not counted."""
        self.held_bytes = 0
        """Their bytes, headers included."""
        self.notice_bytes = 0
        self.dropped = 0
        self._now = 0.0  # of the last call that said it

    def __len__(self) -> int:
        return self.packets + len(self._notices) + len(self._last)

    def push_notice(self, frame: bytes) -> bool:
        """Queue a frame that is no packet.  False when the bound is reached: the caller closes or forgets."""
        size = len(frame)
        if self.notice_bytes + size > self._max_notice_bytes or not self._pool.has_room(size + RUN_OVERHEAD_BYTES):
            self._counters.notices_dropped += 1
            return False
        (self._last if frame[0] == SETTLE else self._notices).append(frame)
        self.notice_bytes += size
        self._pool.held_bytes += size + RUN_OVERHEAD_BYTES
        return True

    def push_frames(self, frames: Piece, now: float, *, of_one_source: bool = False) -> bool:
        """Queue copies of whole frames: packets fairly, anything else as notices in order.  False when a notice did
        not fit.  `of_one_source`: if they begin with a packet all are packets of one sender, which saves comparing."""
        fits = True
        self._now = now
        at, total = 0, len(frames)
        while at < total:
            # Of a tunnel nearly all frames are as long as the first one, and the window is one run: copied once.
            size = HEADER_BYTES + int.from_bytes(frames[at + 1 : at + HEADER_BYTES], "big")
            window = bytes(frames[at : at + max(self._run_bytes // size, 1) * size])
            end = len(window)
            if of_one_source and window[0] == _RECV and (end == size or _are_alike(window, size)):
                self._push_run(window, size, now)
                at += end
                continue
            start = 0
            while True:
                head = window[start : start + _HEAD]
                size = HEADER_BYTES + int.from_bytes(head[1:HEADER_BYTES], "big")
                stop = start + size
                if stop > end:
                    break  # it is not whole in this window, but in the next one
                while stop + size <= end and window.startswith(head, stop):
                    stop += size
                if head[0] == _RECV or head[0] == _FORWARD:
                    self._push_run(window if stop - start == end else window[start:stop], size, now)
                else:
                    for one in range(start, stop, size):
                        fits = self.push_notice(window[one : one + size]) and fits
                start = stop
            assert start, "a piece that ends within its first frame: it would be looked at for ever"
            at += start
        return fits

    def _push_run(self, frames: bytes, size: int, now: float) -> None:
        """Packets of one source, of `size` bytes each with their heads."""
        self._counters.queue_entered += len(frames) // size
        at = _HEAD if frames[0] == _RECV else _FORWARD_HEAD
        if size <= MAX_DISCO_FRAME_BYTES and _DISCO_FIRST in frames[at::size]:
            for at in range(0, len(frames), size):
                if _is_disco(frames, at, size):
                    self._push_disco(frames[at : at + size], now)
                else:
                    self._push_data(frames[at : at + size], size, now)
        else:
            self._push_data(frames, size, now)

    def _push_disco(self, frame: bytes, now: float) -> None:
        flow = self._flows.get(DISCO_MAGIC) or self._new_flow(DISCO_MAGIC, is_disco=True)
        if len(flow.runs) >= DISCO_DEPTH:
            self._drop_oldest(flow, 1, DropReason.QUEUE_HEAD)
        self._disco_packets += 1
        self._disco_bytes += len(frame)
        self._append(flow, frame, len(frame), now)

    def _push_data(self, frames: bytes, size: int, now: float) -> None:
        # RecvPacket and, towards another relay, ForwardPacket: both begin with the source key
        source = frames[HEADER_BYTES:_HEAD]
        flow = self._flows.get(source) or self._new_flow(source, is_disco=False)
        held = self.held_bytes - self._disco_bytes + len(frames)
        # While all data together are within one flow's share, no bound of bytes is met.
        if held > self._flow_bytes or self.packets - self._disco_packets + len(frames) // size > self._depth:
            if size > self._max_bytes:
                self._drop(frames, 0, len(frames), size, DropReason.QUEUE_TAIL)
                return
            frames = self._make_room(flow, frames, size)
        self._append(flow, frames, size, now)

    def _make_room(self, flow: _Flow, frames: bytes, size: int) -> bytes:
        """Drop packets for arriving ones of `flow`: of the flow that holds the most as their last one comes.  That may
        be this one, so what is returned are those of the arriving ones that are left: one at least."""
        while True:
            arriving = len(frames)
            is_shared = self.held_bytes - self._disco_bytes > flow.held_bytes
            if is_shared and flow.runs and flow.held_bytes + arriving > self._flow_bytes:
                over = flow.held_bytes + arriving - self._flow_bytes
                self._drop_oldest(flow, _ceil(over, flow.runs[0].size), DropReason.QUEUE_HEAD)
                continue
            packets = self.packets - self._disco_packets + arriving // size - self._depth
            over = self.held_bytes - self._disco_bytes + arriving - self._max_bytes
            if packets <= 0 and over <= 0:
                return frames
            most = self._size_classes.bit_length() - 1
            held = flow.held_bytes + arriving - size
            payer: _Flow | None = flow
            if held.bit_length() < most:
                payer = next(iter(self._by_size[most]))  # of these the one that has held so much for longest
                held = payer.held_bytes
            elif not flow.runs:
                payer = None
            each = payer.runs[0].size if payer is not None else size
            # No more than until others hold about as much.
            spare = (held - (1 << held.bit_length() >> 1)) // each + 1
            count = min(max(packets, _ceil(over, each)), spare)
            if payer is not None:
                self._drop_oldest(payer, count, DropReason.QUEUE_HEAD)
            else:
                self._drop(frames, 0, count * size, size, DropReason.QUEUE_HEAD)
                frames = frames[count * size :]

    def _append(self, flow: _Flow, frames: bytes, size: int, now: float) -> None:
        flow.runs.append(_Run(frames, size, now))
        self.packets += len(frames) // size
        self._resize(flow, len(frames))
        pool = self._pool
        pool.held_bytes += len(frames) + RUN_OVERHEAD_BYTES
        if pool.held_bytes > pool.most_bytes:
            pool.most_bytes = pool.held_bytes
            if pool.held_bytes > pool.max_bytes:
                pool.has_room(0)
                pool.most_bytes = pool.held_bytes

    def _new_flow(self, source: bytes, *, is_disco: bool) -> _Flow:
        if len(self._flows) > 2 * self.packets + _SPARE_FLOWS:
            self._forget_empty_flows()
        # A flow that was silent starts at the present: it is neither punished for its past nor owed for it.
        flow = self._flows[source] = _Flow(source, self._clock, is_disco)
        self._order += 1
        heappush(self._heap, (flow.turn, self._order, flow))
        return flow

    def _forget_empty_flows(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].runs]
        heapify(self._heap)
        self._flows = {source: flow for source, flow in self._flows.items() if flow.runs}

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

    def drop_some(self) -> None:
        """Drop the oldest run of the flow that holds the most, for the sake of other queues; disco last."""
        if self._size_classes:
            flow = next(iter(self._by_size[self._size_classes.bit_length() - 1]))
        else:
            flow = self._flows[DISCO_MAGIC]
        self._drop_oldest(flow, self._depth, DropReason.QUEUES_FULL)

    def _drop_oldest(self, flow: _Flow, count: int, reason: DropReason) -> None:
        """Drop so many packets of a flow, or all of its oldest run if these are fewer."""
        run = flow.runs[0]
        at = run.at
        end = self._pass(flow, count)
        self._drop(run.frames, at, end, run.size, reason, self._now - run.since)

    def _drop(self, frames: bytes, start: int, end: int, size: int, reason: DropReason, seconds: float = 0.0) -> None:
        """Count packets as dropped that have waited for so long."""
        owner, count = self._owner, (end - start) // size
        _count_dropped(frames, start, end, size, reason, self._counters, owner)
        self.dropped += count
        if owner is not None:
            if owner.losses is None:
                owner.losses = Losses()
            owner.losses.note(frames[start + HEADER_BYTES : start + _HEAD], reason, count, self._now, seconds)

    def _pass(self, flow: _Flow, count: int) -> int:
        """So many packets of the flow's oldest run leave, or all; return where they end in the run."""
        run = flow.runs[0]
        end = run.at + count * run.size
        if end >= len(run.frames):
            end = len(run.frames)
            flow.runs.popleft()
            self._pool.held_bytes -= end + RUN_OVERHEAD_BYTES
        size = end - run.at
        count = size // run.size
        run.at = end
        self.packets -= count
        if flow.is_disco:
            self._disco_packets -= count
            self._disco_bytes -= size
        self._resize(flow, -size)
        return end

    def take(self, max_bytes: int, now: float) -> list[Piece]:
        """Remove and return whole frames in the order of service, several in a piece: at least one if any waits, and
        else `max_bytes` at most.  What waited too long is dropped on the way."""
        self._now = now
        taken: list[Piece] = []
        packets = 0
        seconds = 0.0
        size = self._take_notices(self._notices, taken, 0, max_bytes) if self._notices else 0
        heap = self._heap
        while heap and size < max_bytes:
            turn, _, flow = heap[0]
            if not flow.runs:  # the flow had its turn and had nothing to send
                heappop(heap)
                del self._flows[flow.source]
                continue
            # Who waits behind nobody but himself is bounded in bytes alone, as with the genuine relay: the genuine
            # prober sends 2 MB at once, and calls a relay bad that loses any of it.
            run = flow.runs[0]
            if (now - run.since >= TARGET_SECONDS or flow.late_at) and len(heap) > 1 and not flow.is_disco:
                self._drop_late(flow, now)
                run = flow.runs[0]
            count = (max_bytes - size) // run.size
            if not count:
                if taken:
                    break
                count = 1
            weight = run.size / _DISCO_WEIGHT if flow.is_disco else float(run.size)
            if len(heap) > 1:
                # As many in a row as come before anybody else's turn.
                ahead = min(heap[1][0], heap[2][0]) if len(heap) > 2 else heap[1][0]
                count = min(count, max(_ceil(ahead - turn, weight), 1))
            at = run.at
            end = self._pass(flow, count)
            count = (end - at) // run.size
            flow.turn = turn + count * weight
            self._clock = flow.turn - weight
            self._order += 1
            heapreplace(heap, (flow.turn, self._order, flow))
            packets += count
            seconds += count * (now - run.since)
            whole = run.frames
            taken.append(whole if end - at == len(whole) else memoryview(whole)[at:end])
            size += end - at
        if packets:
            self._counters.note_queued(seconds / packets, packets)
        if self._last and not heap and not self._notices:
            self._take_notices(self._last, taken, size, max_bytes)
        return taken

    def _take_notices(self, notices: deque[bytes], taken: list[Piece], size: int, max_bytes: int) -> int:
        """Add to what was taken, of `size` bytes so far; return how many these are now."""
        while notices and (not taken or size + len(notices[0]) <= max_bytes):
            frame = notices.popleft()
            self.notice_bytes -= len(frame)
            self._pool.held_bytes -= len(frame) + RUN_OVERHEAD_BYTES
            taken.append(frame)
            size += len(frame)
        return size

    def _drop_late(self, flow: _Flow, now: float) -> None:
        """Drop from the head of a flow what waited too long, its newest packet excepted.  What all leaves with the next
        steps is never too late: then it was the socket that did not take anything."""
        while self.held_bytes > STEP_BYTES and flow.held_bytes > flow.runs[0].size:
            run = flow.runs[0]
            waited = now - run.since
            if waited > self._max_wait_seconds:
                left = (len(run.frames) - run.at) // run.size
                self._drop_oldest(flow, left if len(flow.runs) > 1 else left - 1, DropReason.QUEUE_DELAY)
                continue
            if waited < TARGET_SECONDS:
                break
            if not flow.late_at:
                flow.late_at = now + INTERVAL_SECONDS
            elif now >= flow.late_at:
                flow.drops += 1
                flow.late_at = now + INTERVAL_SECONDS / sqrt(flow.drops)
                self._drop_oldest(flow, 1, DropReason.QUEUE_DELAY)
            return
        if flow.late_at:
            # Whoever comes back soon needs about as many drops again.
            flow.late_at = 0.0
            flow.drops = max(flow.drops - 2, 0)

    def count_lost(self, frames: bytes) -> None:
        """The socket failed under frames that were taken."""
        count_lost(frames, DropReason.WRITE_ERROR, self._counters, self._owner)

    def discard(self, reason: DropReason) -> None:
        """Drop everything, counted under `reason`: the destination is gone."""
        for flow in self._flows.values():
            for run in flow.runs:
                _count_dropped(run.frames, run.at, len(run.frames), run.size, reason, self._counters, self._owner)
                self._pool.held_bytes -= len(run.frames) + RUN_OVERHEAD_BYTES
        self._pool.held_bytes -= self.notice_bytes + (len(self._notices) + len(self._last)) * RUN_OVERHEAD_BYTES
        self._pool.move(self, 0)
        self._pool_class = 0
        self._flows.clear()
        self._heap.clear()
        self._by_size.clear()
        self._notices.clear()
        self._last.clear()
        self.packets = self.held_bytes = self.notice_bytes = 0
        self._size_classes = self._disco_packets = self._disco_bytes = 0

    @property
    def packet_bytes(self) -> int:
        """Bytes of the packets that wait, without keys and headers."""
        return self.held_bytes - sum(
            (len(run.frames) - run.at) // run.size * _packet_at(run.frames)
            for flow in self._flows.values()
            for run in flow.runs
        )

    def oldest_seconds(self, now: float) -> float:
        """How long the packet at the head of the slowest flow has waited; 0 when none waits."""
        return max((now - flow.runs[0].since for flow in self._flows.values() if flow.runs), default=0.0)


def _ceil(size: float, each: float) -> int:
    return int(-(-size // each))
