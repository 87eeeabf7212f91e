"""Packets of our own from one client to another, through one relay or two: do they pass, how late, how fast.  Layer L3.

Both ends run here, on one clock, so a delay is one way.  Nobody else may receive on the two clients.
Used by probe.py.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from derp.client.client import DerpClient, open_background
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.protocol.frames import MAX_PACKET_BYTES
from derp.protocol.messages import RecvPacket

# A mesh has to learn of the receiver first; genuine probers give it 100 ms, and a rate of 10/s finds it anyway.
FIRST_PACKET_SECONDS: Final = 5.0
INTERVAL_SECONDS: Final = 0.1
# The size of a small tunnelled packet, as genuine probers use for their queue-delay histogram.
DELAY_PACKET_BYTES: Final = 260
# How long the last packets of a train or burst may take; queues of relays hold far less than this.
LATE_SECONDS: Final = 2.0
STALL_SECONDS: Final = 5.0
# In flight at most: genuine relays queue 32 packets per client and drop what is more.
WINDOW_PACKETS: Final = 24

_TOKEN_BYTES: Final = 8
_NUMBER_BYTES: Final = 4
_HEAD_BYTES: Final = _TOKEN_BYTES + _NUMBER_BYTES


class PassageError(Exception):
    """No packet came through."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What became of a burst.  seconds: from the first packet sent to the last one received."""

    sent_packets: int
    received_packets: int
    received_bytes: int
    seconds: float
    stalled: bool


class Passage:
    """Two connected clients, perhaps the same one.  One call at a time; raises as DerpClient does."""

    def __init__(self, near: DerpClient, far: DerpClient, sender: NodePrivate, receiver: NodePrivate) -> None:
        self._near, self._far = near, far
        self._src, self._dst = sender.public().raw, receiver.public().raw

    async def first_packet(self) -> float:
        """Seconds that the first packet to arrive took.  Raises PassageError."""
        token, sent = os.urandom(_TOKEN_BYTES), list[float]()

        async def send() -> None:
            while True:
                sent.append(trio.current_time())
                await self._send(token, len(sent) - 1, _HEAD_BYTES)
                await trio.sleep(INTERVAL_SECONDS)

        with trio.move_on_after(FIRST_PACKET_SECONDS):
            async with _sending(send):
                number, _ = await self._receive(token)
                return trio.current_time() - sent[number]
        raise PassageError(f"none of {len(sent)} packets arrived within {FIRST_PACKET_SECONDS:g} s")

    async def delays(self, count: int) -> list[float]:
        """Seconds that each of `count` small packets took, ten a second; those that were lost are missing."""
        token = os.urandom(_TOKEN_BYTES)
        sent: dict[int, float] = {}
        delays: list[float] = []
        scope = trio.CancelScope()

        async def send() -> None:
            for number in range(count):
                sent[number] = trio.current_time()
                await self._send(token, number, DELAY_PACKET_BYTES)
                await trio.sleep(INTERVAL_SECONDS)
            scope.deadline = trio.current_time() + LATE_SECONDS

        with scope:
            async with _sending(send):
                while len(delays) < count:
                    number, _ = await self._receive(token)
                    moment = sent.pop(number, None)  # a relay that doubles packets counts once
                    if moment is not None:
                        delays.append(trio.current_time() - moment)
        return delays

    async def burst(self, size_bytes: int) -> Burst:
        """Send `size_bytes` as fast as they pass, never more in flight than a genuine relay queues."""
        token = os.urandom(_TOKEN_BYTES)
        sizes = _packet_sizes(size_bytes)
        window = trio.Semaphore(WINDOW_PACKETS)
        sent = received_bytes = 0
        seen: set[int] = set()
        started = last = trio.current_time()

        async def send() -> None:
            nonlocal sent
            for number, size in enumerate(sizes):
                await window.acquire()
                sent += 1
                await self._send(token, number, size)

        with trio.CancelScope(deadline=started + STALL_SECONDS) as stall:
            async with _sending(send):
                while len(seen) < len(sizes):
                    number, size = await self._receive(token)
                    if number in seen:
                        continue
                    seen.add(number)
                    received_bytes += size
                    last = trio.current_time()
                    stall.deadline = last + STALL_SECONDS
                    window.release()
        return Burst(sent, len(seen), received_bytes, last - started, len(seen) < len(sizes))

    async def _send(self, token: bytes, number: int, size: int) -> None:
        head = token + number.to_bytes(_NUMBER_BYTES, "big")
        await self._near.send(self._dst, head.ljust(size, b"\0"))

    async def _receive(self, token: bytes) -> tuple[int, int]:
        """(number, size) of the next packet of ours; what else arrives is passed over."""
        while True:
            message = await self._far.receive()
            if not isinstance(message, RecvPacket) or message.src != self._src:
                continue
            packet = bytes(message.packet)
            if len(packet) >= _HEAD_BYTES and packet.startswith(token):
                return int.from_bytes(packet[_TOKEN_BYTES:_HEAD_BYTES], "big"), len(packet)


@asynccontextmanager
async def _sending(send: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """`send` beside the block; if it fails, the block ends, and its error comes out bare."""
    failures: list[DerpError] = []
    async with open_background() as nursery:

        async def run() -> None:
            try:
                await send()
            except DerpError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        yield
    if failures:
        raise failures[0]


def _packet_sizes(size_bytes: int) -> list[int]:
    """Full packets, and the rest; at least one that carries its head."""
    full, rest = divmod(size_bytes, MAX_PACKET_BYTES)
    return [MAX_PACKET_BYTES] * full + ([max(rest, _HEAD_BYTES)] if rest or not full else [])
