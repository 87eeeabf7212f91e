"""A netstack in real time on one descriptor that carries IPv6 packets: a UDP socket, or a TUN device.

One loop without tasks, since what is tested is the core.  Both directions may lose and delay, by a seed.
"""

import os
import random
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from tailnet.netstack.limits import Limits
from tailnet.netstack.stack import Event, Stack


@dataclass(frozen=True)
class Way:
    """One direction: seconds of delay, and the part that is lost."""

    delay: float = 0.0
    loss: float = 0.0


class Impaired:
    """Packets on their way in one direction."""

    def __init__(self, way: Way, chance: random.Random) -> None:
        self.way = way
        self._chance = chance
        self._heap: list[tuple[float, int, bytes]] = []
        self._number = 0
        self.lost = 0

    def put(self, packets: list[bytes], now: float) -> None:
        way = self.way
        for packet in packets:
            if way.loss and self._chance.random() < way.loss:
                self.lost += 1
                continue
            self._number += 1
            heappush(self._heap, (now + way.delay, self._number, packet))

    def take(self, now: float) -> list[bytes]:
        heap, due = self._heap, []
        while heap and heap[0][0] <= now:
            due.append(heappop(heap)[2])
        return due

    def next_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None


class Driver:
    """`run` until something is so.  `carry` is the descriptor; `users` hear of events."""

    def __init__(
        self,
        address: bytes,
        descriptor: int,
        *,
        out: Way | None = None,
        back: Way | None = None,
        seed: int = 1,
        limits: Limits | None = None,
    ) -> None:
        chance = random.Random(seed)
        self.descriptor = descriptor
        # Ports by the seed would be those of the run before, which the peer still has in TIME-WAIT.
        self.stack = Stack([address], os.urandom, time.monotonic(), limits)
        self.out, self.back = Impaired(out or Way(), chance), Impaired(back or Way(), chance)
        self.users: list[Callable[[Event], None]] = []
        self.watched: dict[int, Callable[[], None]] = {}
        """Other descriptors, and whom to call when they can be read."""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.cpu_seconds = 0.0
        """What the stack alone took."""

    def watch(self, descriptor: int, call: Callable[[], None]) -> None:
        self._poll.register(descriptor, select.POLLIN)
        self.watched[descriptor] = call

    def _read(self) -> list[bytes]:
        packets: list[bytes] = []
        while len(packets) < 256:
            try:
                packets.append(os.read(self.descriptor, 2048))
            except BlockingIOError:
                break
        return packets

    def _write(self, packets: list[bytes]) -> None:
        for packet in packets:
            try:
                os.write(self.descriptor, packet)
            except (BlockingIOError, ConnectionRefusedError):
                continue  # a full queue is a loss, as on any link

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            for user in self.users:
                user(event)

    def turn(self, end: float) -> None:
        """Wait for something, and serve it."""
        now = time.monotonic()
        times = [
            at for at in (self.stack.next_timeout(), self.out.next_at(), self.back.next_at(), end) if at is not None
        ]
        ready = {descriptor for descriptor, _ in self._poll.poll(max(min(times) - now, 0.0) * 1000)}
        arrived = self._read() if self.descriptor in ready else []
        for descriptor in ready & self.watched.keys():
            self.watched[descriptor]()
        now = time.monotonic()
        if self.back.way != Way():
            self.back.put(arrived, now)
            arrived = self.back.take(now)
        began = time.thread_time()
        if arrived:
            self._tell(self.stack.receive_packets(arrived, now))
        at = self.stack.next_timeout()
        if at is not None and at <= now:
            self._tell(self.stack.handle_timeout(now))
        self._tell(self.stack.events())
        self._send(now, began)

    def _send(self, now: float, began: float) -> None:
        packets = self.stack.packets_to_send(now)
        self.cpu_seconds += time.thread_time() - began
        if self.out.way != Way():
            self.out.put(packets, now)
            packets = self.out.take(now)
        self._write(packets)

    def run(self, seconds: float, until: Callable[[], bool]) -> None:
        """Until something is so.  TimeoutError after so many seconds."""
        end = time.monotonic() + seconds
        if self.stack.has_output:  # what was asked for outside of an event
            self._send(time.monotonic(), time.thread_time())
        while not until():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s: {dict(self.stack.counters.drops)}")
            self.turn(end)
