"""Two netstacks on a virtual link: one clock, one source of chance, nothing else.

A link has a delay, jitter (which reorders), loss, duplication, a rate and a queue whose end or head is dropped.  Users
are callbacks; `Stream` is one that sends bytes one way and reads them on the other side.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from tailnet.netstack.connection import Connection
from tailnet.netstack.events import What
from tailnet.netstack.limits import Limits
from tailnet.netstack.stack import Event, Happened, Listener, Stack

ADDRESSES = (bytes.fromhex("fd7a115ca1e00000000000000000000a"), bytes.fromhex("fd7a115ca1e00000000000000000000b"))
START = 1000.0


@dataclass
class Link:
    """One direction."""

    delay: float = 0.001
    jitter: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    rate: float = 0.0
    """Bytes a second; 0 is none."""
    queue: int = 1000
    """Packets that wait for the rate."""
    drop_head: bool = False
    outages: list[tuple[float, float]] = field(default_factory=list)
    """From, until: everything is lost."""
    sent: int = 0
    lost: int = 0
    overflowed: int = 0


class Simulation:
    """Stacks 0 and 1, with links from each to the other."""

    def __init__(
        self,
        seed: int = 1,
        forward: Link | None = None,
        backward: Link | None = None,
        limits: Limits | tuple[Limits, Limits] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.now = START
        both = limits if isinstance(limits, tuple) else (limits or Limits(), limits or Limits())
        self.stacks = tuple(Stack([ADDRESSES[side]], self.random.randbytes, START, both[side]) for side in (0, 1))
        self.links = (forward or Link(), backward or Link())
        self._arrivals: list[tuple[float, int, int, bytes]] = []
        self._queues: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._free_at = [START, START]
        self._departures: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self.users: list[Callable[[int, Event], None]] = []
        self.tap: Callable[[int, bytes], bytes | None] | None = None
        """Sees each packet that a side sends, and may change it or take it away."""

    # --- the links ---

    def _later(self, at: float, side: int, packet: bytes) -> None:
        self._number += 1
        heappush(self._arrivals, (at, self._number, side, packet))

    def send(self, side: int, packet: bytes) -> None:
        """A packet enters the link that leads away from `side`."""
        link = self.links[side]
        if self.tap is not None:
            changed = self.tap(side, packet)
            if changed is None:
                return
            packet = changed
        link.sent += 1
        if link.loss and self.random.random() < link.loss:
            link.lost += 1
            return
        if any(first <= self.now < last for first, last in link.outages):
            link.lost += 1
            return
        if link.rate:
            queue = self._queues[side]
            if len(queue) >= link.queue:
                link.overflowed += 1
                if not link.drop_head:
                    return
                queue.popleft()
            queue.append(packet)
            self._depart(side)
        else:
            self._fly(side, packet, self.now)

    def _depart(self, side: int) -> None:
        """The head of a queue leaves when the rate allows it."""
        queue, link = self._queues[side], self.links[side]
        if queue and self._free_at[side] <= self.now:
            packet = queue.popleft()
            self._free_at[side] = max(self._free_at[side], self.now) + len(packet) / link.rate
            self._number += 1
            heappush(self._departures, (self._free_at[side], self._number, side, packet))

    def _fly(self, side: int, packet: bytes, at: float) -> None:
        link = self.links[side]
        copies = 2 if link.duplication and self.random.random() < link.duplication else 1
        for _ in range(copies):
            jitter = self.random.random() * link.jitter if link.jitter else 0.0
            self._later(at + link.delay + jitter, 1 - side, packet)

    # --- the clock ---

    def flush(self) -> None:
        """What the stacks have to say enters the links."""
        for side, stack in enumerate(self.stacks):
            for packet in stack.packets_to_send(self.now):
                self.send(side, packet)

    def _tell(self, side: int, events: list[Event]) -> None:
        for event in events:
            for user in self.users:
                user(side, event)

    def _next(self) -> float | None:
        times = [at for stack in self.stacks if (at := stack.next_timeout()) is not None]
        times += [heap[0][0] for heap in (self._arrivals, self._departures) if heap]
        return min(times, default=None)

    def step(self) -> bool:
        """To the next moment at which something happens.  False when nothing ever will."""
        at = self._next()
        if at is None:
            return False
        self.now = max(self.now, at)
        while self._departures and self._departures[0][0] <= self.now:
            left_at, _, side, packet = heappop(self._departures)
            self._fly(side, packet, left_at)
            self._depart(side)
        batches: tuple[list[bytes], list[bytes]] = ([], [])
        while self._arrivals and self._arrivals[0][0] <= self.now:
            _, _, side, packet = heappop(self._arrivals)
            batches[side].append(packet)
        for side, stack in enumerate(self.stacks):
            if batches[side]:
                self._tell(side, stack.receive_packets(batches[side], self.now))
            timeout = stack.next_timeout()
            if timeout is not None and timeout <= self.now:
                self._tell(side, stack.handle_timeout(self.now))
                after = stack.next_timeout()
                assert after is None or after > self.now, "a driver would be busy for ever"
            self._tell(side, stack.events())
        self.flush()
        return True

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """For so long, or until something is so."""
        end = self.now + seconds
        self.flush()
        while not until():
            at = self._next()
            if at is None or at > end:
                self.now = end
                for stack in self.stacks:
                    stack.now = end
                return
            self.step()

    # --- users ---

    def pair(self, port: int = 80) -> tuple[Connection, Connection]:
        """A connection from side 0 to a new listener of side 1, and the other end of it."""
        return self.dial(self.stacks[1].listen(port), port)

    def dial(self, listener: Listener, port: int = 80) -> tuple[Connection, Connection]:
        """The same, to a listener that is there."""
        connection = self.stacks[0].connect(ADDRESSES[1], port)
        found: list[Connection] = []

        def accepted() -> bool:
            other = listener.accept()
            if other is not None:
                found.append(other)
            return bool(found) and connection.sender.window > 0

        self.run(120, accepted)
        assert found, "no connection came about"
        return connection, found[0]


class Stage(Protocol):
    """Where streams run: a clock, and who is told what happens to which side."""

    now: float
    users: list[Callable[[int, Event], None]]


class Stream:
    """Sends `data` on one end and reads it on the other, as fast as both take it."""

    def __init__(self, simulation: Stage, source: Connection, target: Connection, data: bytes) -> None:
        self.simulation = simulation
        self.source, self.target, self.data = source, target, data
        self.sent = 0
        self.got = bytearray()
        self.progress_at = simulation.now
        self.longest_stall = 0.0
        self.paused = False
        simulation.users.append(self.on_event)
        self.pump()

    @property
    def is_done(self) -> bool:
        return len(self.got) == len(self.data) and self.target.eof

    def on_event(self, side: int, event: Event) -> None:
        if not isinstance(event, Happened):
            return
        if event.subject is self.source and event.what & (What.WRITABLE | What.CONNECTED):
            self.pump()
        if event.subject is self.target and event.what & What.READABLE and not self.paused:
            self.read()

    def read(self) -> None:
        while data := self.target.receive(1 << 20):
            self.got += data
            now = self.simulation.now
            self.longest_stall = max(self.longest_stall, now - self.progress_at)
            self.progress_at = now

    def pump(self) -> None:
        while self.sent < len(self.data):
            size = self.source.send(self.data[self.sent : self.sent + 65536])
            if not size:
                return
            self.sent += size
        self.source.send_eof()
