"""A client that stays: connects, reconnects with jittered back-off, and says what is going on.  Layer L3.

One task owns the connection.  Packets wait in a short queue of ours while there is none; when it is full the oldest
goes, since a fresh packet is worth more, and every packet that is lost is counted.  What the relay must be told again
(home, watch) is told again.  Next hop: client.py for one connection.
"""

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias

import trio

from derp.client.client import (
    CONNECT_SECONDS,
    FLUSH_SECONDS,
    ClientStatistics,
    DerpClient,
    Identity,
    Reached,
    Received,
    Target,
    open_background,
    open_client_over,
    reach,
)
from derp.client.dial import Carrier, DialOptions, RelayAddress
from derp.errors import ConnectionClosed, DerpError, LocalProtocolError, RemoteProtocolError, TransportError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import KEY_BYTES, MAX_PACKET_BYTES
from derp.protocol.messages import Health, ServerInfo

_log = logging.getLogger("derp.client")

# Ours, besides the bytes that wait in the connection: with those, a fifth of a second at 10 Mbit/s.
MAX_WAITING_PACKETS: Final = 128
# Not yet received by the user: then the relay is left to queue, or to drop.
MAX_INBOX_MESSAGES: Final = 1024
# A connection that lasted this long was a good one: the back-off begins anew after it.
STABLE_SECONDS: Final = 10.0
# A relay may ask to be left alone for a while, but not for good.
MAX_RESTART_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before the next attempt.

    The limit is what users feel after an outage: half of it on average.  5 s is the genuine client's; with full jitter
    10,000 clients come back at 2,000 a second.
    """

    first_seconds: float = 0.5
    factor: float = 2.0
    limit_seconds: float = 5.0

    def delay(self, failures: int, fraction: float) -> float:
        """Seconds to wait after so many failures in a row (at least 1); `fraction` is random, 0 <= fraction < 1."""
        # The exponent is bounded because a week of failures would overflow a float.
        longest = min(self.limit_seconds, self.first_seconds * self.factor ** min(failures - 1, 64))
        # All of the span, so that clients which lost the relay together do not come back together; never at once.
        return longest * (0.1 + 0.9 * fraction)


class Phase(Enum):
    """What a ReconnectingClient is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"  # for the next attempt


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot.  generation: how many connections there were, this one included.  reason: why there is none now.

    health: the relay's last word about this connection, empty if all is well.
    """

    phase: Phase
    generation: int = 0
    reason: str = ""
    failures: int = 0
    health: str = ""


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection begins; all messages up to the next Disconnected are its own."""

    generation: int
    server_key: bytes
    address: RelayAddress
    carrier: Carrier
    websocket_reason: str
    server_info: ServerInfo


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection ended: what was learnt from it about peers is void."""

    generation: int
    reason: str


Heard: TypeAlias = Received | Connected | Disconnected


@dataclass(frozen=True, slots=True)
class Totals:
    """Over all connections.  packets_lost: were queued in a connection that broke.  packets_dropped: no room."""

    packets_sent: int = 0
    packets_received: int = 0
    packets_lost: int = 0
    packets_dropped: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def plus(self, one: ClientStatistics) -> "Totals":
        """With one connection's counters added."""
        return replace(
            self,
            packets_sent=self.packets_sent + one.packets_sent,
            packets_received=self.packets_received + one.packets_received,
            packets_lost=self.packets_lost + one.packets_lost,
            bytes_sent=self.bytes_sent + one.bytes_sent,
            bytes_received=self.bytes_received + one.bytes_received,
        )


@asynccontextmanager
async def open_reconnecting_client(
    target: Target | Callable[[], Target],
    private_key: NodePrivate,
    *,
    mesh_key: MeshKey | None = None,
    is_prober: bool = False,
    app_name: str = "",
    options: DialOptions | None = None,
    back_off: BackOff | None = None,
    random_fraction: Callable[[], float] = random.random,
    connect_seconds: float = CONNECT_SECONDS,
    hear: Callable[[Sequence[Heard]], None] | None = None,
) -> AsyncIterator["ReconnectingClient"]:
    """Keep a connection to a relay or region for as long as the block runs.  Begins at once; see `wait_connected`.

    `target` may be a function, asked before each attempt: a DERP map changes.  No failure to connect ends it; a target
    that can never work (ConfigError) is raised here if it is known beforehand.  `hear`, if given, is called with all
    that comes, which then has RecvPackets for RecvPacket; it must not raise, and `receive` gives nothing.
    """
    options = options or DialOptions()
    if isinstance(target, str):
        RelayAddress.from_url(target, options)
    identity = Identity(private_key, mesh_key, is_prober, app_name)
    client = ReconnectingClient(
        target, identity, options, back_off or BackOff(), random_fraction, connect_seconds, hear
    )
    async with open_background() as nursery:
        nursery.start_soon(client._run)
        yield client
        with trio.move_on_after(FLUSH_SECONDS):
            await client._drain()


class ReconnectingClient:
    """Made by `open_reconnecting_client`.  Any number of tasks may send; somebody has to receive."""

    def __init__(
        self,
        target: Target | Callable[[], Target],
        identity: Identity,
        options: DialOptions,
        back_off: BackOff,
        random_fraction: Callable[[], float],
        connect_seconds: float,
        hear: Callable[[Sequence[Heard]], None] | None,
    ) -> None:
        self._target = target
        self._identity = identity
        self._options = options
        self._back_off = back_off
        self._random_fraction = random_fraction
        self._connect_seconds = connect_seconds
        self._hear_now = hear
        self._client: DerpClient | None = None
        self._status = Status(Phase.CONNECTING)
        self._status_news = trio.lowlevel.ParkingLot()
        self._websocket_reason = ""
        self._reported = ""
        self._preferred: bool | None = None
        self._is_watching = False
        self._calm_until = 0.0  # a relay that announced its restart is retried without growing delays until then
        self._waiting: deque[tuple[bytes | None, bytes, bytes]] = deque()  # (source if forwarded, destination, packet)
        self._waiting_news = trio.lowlevel.ParkingLot()
        self._waiting_room = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._inbox: list[Heard] = []
        self._inbox_news = trio.lowlevel.ParkingLot()
        self._inbox_room = trio.lowlevel.ParkingLot()
        self._past = Totals()
        self._packets_dropped = 0

    # --- what is going on ---

    @property
    def status(self) -> Status:
        """Phase, generation, why there is no connection, and the relay's health notice."""
        return replace(self._status, health=self._client.health) if self._client is not None else self._status

    async def wait_status_change(self, seen: Status) -> Status:
        """The status as soon as it differs from `seen`."""
        await trio.lowlevel.checkpoint()
        while self.status == seen:
            await self._status_news.park()
        return self.status

    async def wait_connected(self) -> Status:
        """Wait until there is a connection."""
        await trio.lowlevel.checkpoint()
        while self._client is None:
            await self._status_news.park()
        return self.status

    def statistics(self) -> Totals:
        """Counters over all connections, the present one included."""
        now = self._past.plus(self._client.statistics()) if self._client is not None else self._past
        return replace(now, packets_dropped=self._packets_dropped)

    # --- sending ---

    def send_nowait(self, dst: bytes, packet: bytes | bytearray | memoryview) -> None:
        """Queue a packet, connected or not.  When there is no room the oldest waiting packet is dropped and counted."""
        self._enqueue(None, dst, packet)

    def send_batch_nowait(self, dst: bytes, packets: Sequence[bytes]) -> None:
        """Several at once: a tenth of what a stream through a tunnel costs was a call for each."""
        client = self._client
        if client is not None and not self._waiting:
            with suppress(trio.WouldBlock, TransportError, RemoteProtocolError):
                client.send_batch_nowait(dst, packets)
                return
        for packet in packets:
            self._enqueue(None, dst, packet)

    async def send(self, dst: bytes, packet: bytes | bytearray | memoryview) -> None:
        """Queue a packet; wait for room instead of dropping another one, as long as it takes to reconnect."""
        await self._wait_room()
        self._enqueue(None, dst, packet)

    def forward_nowait(self, src: bytes, dst: bytes, packet: bytes) -> None:
        """Mesh only: as `send_nowait`, for a packet of our client `src`."""
        self._check_mesh()
        self._enqueue(src, dst, packet)

    async def forward(self, src: bytes, dst: bytes, packet: bytes) -> None:
        """Mesh only: as `send`, for a packet of our client `src`."""
        self._check_mesh()
        await self._wait_room()
        self._enqueue(src, dst, packet)

    def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is home; told again after each reconnect."""
        self._preferred = preferred
        self._tell(lambda client: client.note_preferred(preferred))

    def watch_conns(self) -> None:
        """Mesh only: watch who comes and goes; asked again after each reconnect."""
        self._check_mesh()
        self._is_watching = True
        self._tell(lambda client: client.watch_conns())

    async def close_peer(self, key: bytes) -> None:
        """Mesh only: have the relay close every connection of `key`.  Raises ConnectionClosed while there is none."""
        self._check_mesh()
        await self._live().close_peer(key)

    async def ping(self) -> float:
        """Round trip in seconds.  Raises TransportTimeout, or ConnectionClosed when there is no connection."""
        return await self._live().ping()

    # --- receiving ---

    async def receive(self) -> Heard:
        """The next message, or the news that a connection began or ended."""
        await self._wait_inbox()
        self._inbox_room.unpark_all()
        return self._inbox.pop(0)

    async def receive_batch(self) -> list[Heard]:
        """All that is here, at least one."""
        await self._wait_inbox()
        self._inbox_room.unpark_all()
        batch, self._inbox = self._inbox, []
        return batch

    # --- below: the connection ---

    async def _run(self) -> None:
        """The one task that owns the connection; only cancelling ends it."""
        failures = 0
        while True:
            self._set_status(Phase.CONNECTING, self._status.reason, failures)
            asked_for = 0.0
            try:
                target = self._target() if callable(self._target) else self._target
                reached = await reach(
                    target, self._identity, self._options, self._websocket_reason, self._connect_seconds
                )
            except DerpError as error:
                # A websocket that fails may have been a wrong lesson: the next attempt begins with the upgrade again.
                self._websocket_reason = ""
                reason = str(error)
                failures += 1
            else:
                began = trio.current_time()
                self._websocket_reason = reached.dialled.websocket_reason
                reason, asked_for = await self._serve(reached)
                failures = 1 if trio.current_time() - began >= STABLE_SECONDS else failures + 1
            delay = asked_for or self._back_off.delay(
                1 if trio.current_time() < self._calm_until else failures, self._random_fraction()
            )
            self._report(reason, delay)
            self._set_status(Phase.WAITING, reason, failures)
            await trio.sleep(delay)

    async def _serve(self, reached: Reached) -> tuple[str, float]:
        """One connection to its end: (why it ended, seconds the relay asked us to stay away)."""
        reached.core.gathers_packets = self._hear_now is not None
        async with open_client_over(reached) as client:
            self._begin(client)
            reason = "this client was closed"
            try:
                async with open_background() as nursery:
                    nursery.start_soon(self._pump, client)
                    while True:
                        await self._deliver(await client.receive_batch())
            except DerpError as error:
                reason = str(error)
            finally:
                self._end(client, reason)
        if client.restarting is None:
            return reason, 0.0
        away = min(client.restarting.reconnect_in_ms / 1000, MAX_RESTART_SECONDS)
        calm = min(client.restarting.try_for_ms / 1000, MAX_RESTART_SECONDS)
        self._calm_until = trio.current_time() + away + calm
        return reason, away

    def _begin(self, client: DerpClient) -> None:
        generation = self._status.generation + 1
        self._client = client
        self._status = replace(self._status, generation=generation)
        if self._preferred is not None:
            client.note_preferred(self._preferred)
        if self._is_watching:
            client.watch_conns()
        self._hear(
            Connected(
                generation,
                client.server_key,
                client.address,
                client.carrier,
                client.websocket_reason,
                client.server_info,
            )
        )
        self._set_status(Phase.CONNECTED, "", 0)
        why = f" because {client.websocket_reason}" if client.websocket_reason else ""
        _log.info("connected to %s by %s%s", client.address.label(), client.carrier.value, why)

    def _end(self, client: DerpClient, reason: str) -> None:
        self._client = None
        self._past = self._past.plus(client.statistics())
        self._drained.unpark_all()
        self._set_status(Phase.WAITING, reason, self._status.failures)
        self._hear(Disconnected(self._status.generation, reason))

    def _report(self, reason: str, delay: float) -> None:
        # One line per reason, not per attempt: an outage must not fill a disk.
        level = logging.DEBUG if reason == self._reported and self._status.failures else logging.WARNING
        self._reported = reason
        _log.log(level, "no connection: %s; next attempt in %.1f s", reason, delay)

    def _set_status(self, phase: Phase, reason: str, failures: int) -> None:
        self._status = replace(self._status, phase=phase, reason=reason, failures=failures)
        self._status_news.unpark_all()

    def _live(self) -> DerpClient:
        if self._client is None:
            raise ConnectionClosed(f"there is no connection: {self._status.reason or 'the first attempt is under way'}")
        return self._client

    def _tell(self, what: Callable[[DerpClient], None]) -> None:
        if self._client is not None:
            with suppress(TransportError, RemoteProtocolError):  # it just broke; the next one is told
                what(self._client)

    # --- below: packets out ---

    def _check_mesh(self) -> None:
        if self._identity.mesh_key is None:
            raise LocalProtocolError("without a mesh key the relay would close the connection: set one")

    def _enqueue(self, src: bytes | None, dst: bytes, packet: bytes | bytearray | memoryview) -> None:
        # Judged here: once it waits, nobody is left to hear of a mistake.
        if len(dst) != KEY_BYTES or (src is not None and len(src) != KEY_BYTES) or len(packet) > MAX_PACKET_BYTES:
            raise LocalProtocolError(
                f"a packet has at most {MAX_PACKET_BYTES} bytes and keys have {KEY_BYTES}; "
                f"got {len(packet)} bytes to a key of {len(dst)}"
            )
        if self._client is not None and not self._waiting and self._hand_over(self._client, src, dst, packet):
            return
        if len(self._waiting) >= MAX_WAITING_PACKETS:
            self._waiting.popleft()
            self._packets_dropped += 1
        self._waiting.append((src, dst, bytes(packet)))
        self._waiting_news.unpark_all()

    def _hand_over(
        self, client: DerpClient, src: bytes | None, dst: bytes, packet: bytes | bytearray | memoryview
    ) -> bool:
        try:
            if src is None:
                client.send_nowait(dst, packet)
            else:
                client.forward_nowait(src, dst, bytes(packet))
        except (trio.WouldBlock, TransportError, RemoteProtocolError):
            return False
        return True

    async def _wait_room(self) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._waiting) >= MAX_WAITING_PACKETS:
            await self._waiting_room.park()

    async def _pump(self, client: DerpClient) -> None:
        """Move waiting packets into the connection as it has room."""
        with suppress(TransportError, RemoteProtocolError):  # the reader hears the same, and tells
            while True:
                while self._waiting:
                    await client.wait_room()
                    # While we waited, newer packets may have pushed out the oldest.
                    while self._waiting and self._hand_over(client, *self._waiting[0]):
                        self._waiting.popleft()
                    self._waiting_room.unpark_all()
                self._drained.unpark_all()
                await self._waiting_news.park()

    async def _drain(self) -> None:
        """Wait until nothing waits; not while there is no connection."""
        await trio.lowlevel.checkpoint()
        while self._client is not None and self._waiting:
            await self._drained.park()
        if self._client is not None:
            with suppress(TransportError, RemoteProtocolError):
                await self._client.flush()

    # --- below: messages in ---

    async def _deliver(self, batch: list[Received]) -> None:
        if self._hear_now is not None:
            self._hear_now(batch)
        else:
            while len(self._inbox) >= MAX_INBOX_MESSAGES:
                await self._inbox_room.park()
            self._inbox += batch
            self._inbox_news.unpark_all()
        if any(isinstance(message, Health) for message in batch):
            self._status_news.unpark_all()

    def _hear(self, news: Connected | Disconnected) -> None:
        if self._hear_now is not None:
            self._hear_now([news])
            return
        if isinstance(news, Disconnected) and self._inbox and isinstance(self._inbox[-1], Connected):
            # It began and ended without a message, and nobody saw it: no news.  This bounds the inbox of a user who
            # does not receive.
            self._inbox.pop()
            return
        self._inbox.append(news)
        self._inbox_news.unpark_all()

    async def _wait_inbox(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            await self._inbox_news.park()
