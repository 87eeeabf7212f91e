"""A client of one relay: packets out in batches, messages in as they come.  Layer L3.

Around the core of protocol/connection.py: one task writes, so that a cancelled `send` never leaves half a frame;
whoever calls `receive` reads, so that a packet needs no extra task switch.  A broken connection stays broken:
reconnect.py makes new ones.  Next hop: dial.py, region.py.
"""

import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import trio

from derp.client.dial import Carrier, Dialled, DialOptions, RelayAddress, dial_relay, refusal_of
from derp.client.region import region_addresses, region_label, walk
from derp.errors import ConnectError, ConnectionClosed, DerpError, RemoteProtocolError, TransportError, TransportTimeout
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPRegion
from derp.protocol.connection import ClientConnection, ClientEvent
from derp.protocol.frames import FrameType
from derp.protocol.messages import (
    Health,
    PeerGone,
    PeerPresent,
    Pong,
    RecvPacket,
    RecvPackets,
    Restarting,
    ServerInfo,
)
from derp.protocol.states import ClientState
from derp.text import fit_to_show
from derp.transport.linkstream import take_over
from derp.transport.stream import mapped_errors, transport_error

# The genuine client's numbers: DNS to ServerInfo, silence that means death, and a pong.
CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 120.0
PING_SECONDS: Final = 5.0
# What waits for the network, at most: 100 full packets, a tenth of a second at 10 Mbit/s.  More only makes old packets.
MAX_QUEUE_BYTES: Final = 128 * 1024
# One write.  What is handed to the transport can no longer be counted, so not all of the queue at once.
WRITE_BYTES: Final = 32 * 1024
RECEIVE_BYTES: Final = 64 * 1024
# Read on behalf of `ping` while nobody receives; then the kernel holds the rest back.
MAX_INBOX_MESSAGES: Final = 1024
# Leaving the context: what was sent just before should still go out.
FLUSH_SECONDS: Final = 2.0

Target: TypeAlias = str | DERPRegion
Received: TypeAlias = RecvPacket | RecvPackets | PeerGone | PeerPresent | Pong | Health | Restarting | ServerInfo
"""What `receive` gives.  Keep-alives, and pings (answered already), are not passed on."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """Counters since the connection was made.  packets_lost: taken from `send` and surely or maybe never sent."""

    packets_sent: int
    packets_received: int
    packets_lost: int
    bytes_sent: int
    bytes_received: int
    skipped_frames: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who connects.  mesh_key: as a relay of the same region; is_prober, app_name: for the relay's statistics."""

    private: NodePrivate
    mesh_key: MeshKey | None = None
    is_prober: bool = False
    app_name: str = ""


@dataclass(slots=True)
class Reached:
    """A stream on which the handshake is done.  events: messages that came along with its end."""

    dialled: Dialled
    core: ClientConnection
    events: list[ClientEvent]


@asynccontextmanager
async def open_derp_client(
    target: Target,
    private_key: NodePrivate,
    *,
    mesh_key: MeshKey | None = None,
    is_prober: bool = False,
    app_name: str = "",
    options: DialOptions | None = None,
    websocket_reason: str = "",
    timeout_seconds: float = CONNECT_SECONDS,
) -> AsyncIterator["DerpClient"]:
    """Connect to a relay by URL or to a region of a DERP map, shake hands, and disconnect at the end of the block.

    When the block begins, other clients of the relay reach this one.  Leaving it normally writes what is queued first.
    Raises ConnectError, TransportTimeout or ConfigError, whose text says what to change.
    """
    identity = Identity(private_key, mesh_key, is_prober, app_name)
    reached = await reach(target, identity, options or DialOptions(), websocket_reason, timeout_seconds)
    async with open_client_over(reached) as client:
        yield client


@asynccontextmanager
async def open_client_over(reached: Reached) -> AsyncIterator["DerpClient"]:
    """The same for a relay with which we have shaken hands: see `reach` and `shake_hands`."""
    client = DerpClient(reached)
    try:
        async with open_background() as nursery:
            nursery.start_soon(client._write)
            if reached.dialled.run is not None:
                nursery.start_soon(reached.dialled.run)
            yield client
            with trio.move_on_after(FLUSH_SECONDS):
                await client._drain()
    finally:
        await client._close()


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that end with the block and raise nothing; what the block raises comes out bare."""
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                body_error = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The block's own error in a group is only the nursery's wrapping, and so is a cancellation that came while the
        # nursery waited: it comes again at the next checkpoint.  Anything else is a task that broke its promise.
        others = [error for error in group.exceptions if error is not body_error]
        if body_error is None or not all(isinstance(error, trio.Cancelled) for error in others):
            raise
        raise body_error from body_error.__cause__


async def shake_hands(dialled: Dialled, identity: Identity) -> Reached:
    """DERP's handshake up to ServerInfo.  Closes the stream if it fails, with ConnectError or a protocol error."""
    label = dialled.address.label()
    core = ClientConnection(
        identity.private,
        random_bytes=os.urandom,
        mesh_key=identity.mesh_key,
        is_prober=identity.is_prober,
        app_name=identity.app_name,
        server_key=dialled.server_key,
    )
    events: list[ClientEvent] = []
    try:
        with mapped_errors(f"DERP handshake with {label}", connecting=True):
            data: bytes | bytearray = dialled.received
            unsent = [dialled.unsent, *core.data_to_send()]
            while core.state is not ClientState.OPEN:
                if any(unsent):
                    await dialled.stream.send_all(b"".join(unsent))
                if not data:
                    data = await dialled.stream.receive_some(RECEIVE_BYTES)
                if data[:1] == b"H" and core.state is ClientState.EXPECT_SERVER_INFO and dialled.http is not None:
                    await _raise_refusal(dialled, data)
                if data:
                    events += core.receive_data(data)
                    if core.refusal and core.server_info is None:
                        raise ConnectError(f"the relay says: {fit_to_show(core.refusal)}")
                else:
                    core.receive_eof()
                data, unsent = b"", core.data_to_send()
        # ServerInfo is the handshake's end, not a message; one that comes later is.
        return Reached(dialled, core, [event for event in events if not isinstance(event, ServerInfo)])
    except BaseException:
        await trio.aclose_forcefully(dialled.stream)
        raise


class DerpClient:
    """A live connection to a relay.

    One task may receive while any number of tasks send and ping.  When the connection ends, every call raises the same
    error: ConnectionClosed, TransportTimeout (the relay was silent) or RemoteProtocolError.  What was received before
    is still given out.  `open_derp_client` opens and closes it.
    """

    def __init__(self, reached: Reached) -> None:
        dialled, core = reached.dialled, reached.core
        assert core.server_key is not None
        self.address: RelayAddress = dialled.address
        self.carrier: Carrier = dialled.carrier
        self.tls_version = dialled.tls_version
        self.websocket_reason = dialled.websocket_reason
        """Why the relay was reached by websocket although none was asked for; empty if it was not."""
        self.server_key = core.server_key
        self.health = ""
        """The relay's last word about this connection; empty: all is well."""
        self.restarting: Restarting | None = None
        """Set when the relay announced that it goes down."""
        self._stream = take_over(dialled.stream)
        self._send_now: Callable[[bytes], bool] | None = getattr(self._stream, "send_at_once", None)
        self._core = core
        self._failure: DerpError | None = None
        # Sending: whole frames, the packets among them, their bytes.
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._in_flight: list[bytes] = []
        self._broken: TransportError | None = None
        self._work = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._tokens = self._tokens_at = 0.0
        # Receiving.
        self._inbox: list[Received] = []
        self._inbox_taken = trio.lowlevel.ParkingLot()
        self._reading = trio.Lock()
        self._pinging = trio.Lock()
        self._pings: dict[bytes, trio.Event] = {}
        self._packets_sent = self._packets_received = self._packets_lost = 0
        self._bytes_sent = self._bytes_received = 0
        self._accept(reached.events)
        self._tokens, self._tokens_at = self._bucket()[1], trio.current_time()

    @property
    def server_info(self) -> ServerInfo:
        """What the relay said last about itself."""
        return self._core.server_info or ServerInfo()

    def statistics(self) -> ClientStatistics:
        """A snapshot of the counters."""
        return ClientStatistics(
            self._packets_sent,
            self._packets_received,
            self._packets_lost,
            self._bytes_sent,
            self._bytes_received,
            self._core.skipped_frames,
        )

    # --- sending ---

    async def send(self, dst: bytes, packet: bytes | bytearray | memoryview) -> None:
        """Queue a packet (at most 65,536 bytes) for `dst` (32 bytes); waits while the queue is full.

        Cancelling it never harms the connection.  A relay confirms nothing: to be queued is all there is to know.
        """
        await self.wait_room()
        self.send_nowait(dst, packet)

    def send_nowait(self, dst: bytes, packet: bytes | bytearray | memoryview) -> None:
        """The same without waiting: packets of one turn share a write.  trio.WouldBlock: the queue is full, nothing was
        queued."""
        self._check_room()
        self._core.send_packet(dst, packet)
        self._collect()

    def send_batch_nowait(self, dst: bytes, packets: Sequence[bytes | bytearray | memoryview]) -> None:
        """Several at once, all or none: a full queue takes none, and one that has room takes one batch beyond it.  With
        nothing before it a batch is a write of its own, and leaves at once."""
        self._check_room()
        self._core.send_packets(dst, packets)
        self._collect(at_once=True)

    async def forward(self, src: bytes, dst: bytes, packet: bytes) -> None:
        """Mesh only: a packet of our client `src` for the relay's own client `dst`; waits like `send`."""
        await self.wait_room()
        self.forward_nowait(src, dst, packet)

    def forward_nowait(self, src: bytes, dst: bytes, packet: bytes) -> None:
        """Mesh only: the same without waiting.  trio.WouldBlock: the queue is full, nothing was queued."""
        self._check_room()
        self._core.send_forward_packet(src, dst, packet)
        self._collect()

    async def close_peer(self, key: bytes) -> None:
        """Mesh only: have the relay close every connection of `key`."""
        await self.wait_room()
        self._core.send_close_peer(key)
        self._collect()

    def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is this client's home."""
        self._check_alive()
        self._core.send_note_preferred(preferred)
        self._collect()

    def watch_conns(self) -> None:
        """Mesh only: PeerPresent for everyone there, then PeerPresent and PeerGone as they come and go."""
        self._check_alive()
        self._core.send_watch_conns()
        self._collect()

    async def wait_room(self) -> None:
        """Wait until `send_nowait` and `forward_nowait` have room."""
        await trio.lowlevel.checkpoint()
        self._check_alive()
        while self._outbox_bytes >= MAX_QUEUE_BYTES:
            await self._room.park()
            self._check_alive()

    async def flush(self) -> None:
        """Wait until everything queued was handed to the operating system."""
        await self._drain()
        self._check_alive()

    # --- receiving ---

    async def receive(self) -> Received:
        """The next message."""
        if not self._inbox:
            await self._fill_inbox()
        else:
            await trio.lowlevel.checkpoint()
        self._inbox_taken.unpark_all()
        return self._inbox.pop(0)

    async def receive_batch(self) -> list[Received]:
        """All messages that are here, at least one: what one read of the connection brought."""
        if not self._inbox:
            await self._fill_inbox()
        else:
            await trio.lowlevel.checkpoint()
        self._inbox_taken.unpark_all()
        batch, self._inbox = self._inbox, []
        return batch

    async def ping(self, timeout_seconds: float = PING_SECONDS) -> float:
        """Round trip to the relay in seconds.  Works whether or not a task is receiving.  Raises TransportTimeout."""
        async with self._pinging:  # a relay answers one ping at a time, and may drop others
            self._check_alive()
            payload, arrived = os.urandom(8), trio.Event()
            self._pings[payload] = arrived
            started = trio.current_time()
            self._core.send_ping(payload)
            self._collect()
            try:
                with trio.fail_after(timeout_seconds):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._read_on_behalf)
                        await arrived.wait()
                        nursery.cancel_scope.cancel()
            except trio.TooSlowError as error:
                idle = "" if len(self._inbox) < MAX_INBOX_MESSAGES else "; messages wait here, but nobody receives them"
                text = f"ping of {self.address.label()}: no pong within {timeout_seconds:g} s{idle}"
                raise TransportTimeout(text) from error
            finally:
                del self._pings[payload]
            self._check_alive()
            return trio.current_time() - started

    async def observed_address(self, timeout_seconds: float = PING_SECONDS) -> tuple[str, int] | None:
        """From which address and port the relay sees this connection now; None where only QUIC could ask it.

        Raises TransportTimeout, TransportError."""
        self._check_alive()
        ask = getattr(self._stream, "ask_address", None)
        if ask is None:
            return None
        with mapped_errors(f"ask {self.address.label()} for our address"):
            address: tuple[str, int] = await ask(timeout_seconds)
        return address

    # --- below: writing ---

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_room(self) -> None:
        self._check_alive()
        if self._outbox_bytes >= MAX_QUEUE_BYTES:
            raise trio.WouldBlock

    def _collect(self, *, at_once: bool = False) -> None:
        """Take over what the core wants to send."""
        frames = self._core.data_to_send()
        if at_once and frames and self._send_at_once(frames):
            return
        for frame in frames:
            if frame[0] == FrameType.PONG and self._outbox_bytes >= MAX_QUEUE_BYTES:
                continue  # a relay that pings without reading gets no say over our memory
            self._outbox.append(frame)
            self._outbox_bytes += len(frame)
        if self._outbox:
            self._work.set()

    def _send_at_once(self, frames: list[bytes]) -> bool:
        """Send them at once if nothing is before them: a task that writes costs more than what it does for a batch.
        What the kernel does not take then waits in the stream for that task."""
        if self._send_now is None or self._outbox or self._in_flight or self._bucket()[0] > 0:
            return False
        self._in_flight = frames
        try:
            is_sent = self._send_now(b"".join(frames))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._broken = transport_error(error, f"send to {self.address.label()}")
            is_sent = False
        if is_sent:
            self._count_sent()
        else:
            self._work.set()
        return True

    def _count_sent(self) -> None:
        self._packets_sent += _count_packets(self._in_flight)
        self._bytes_sent += sum(map(len, self._in_flight))
        self._in_flight.clear()

    async def _write(self) -> None:
        """The one task that writes; ends with the connection, and raises nothing."""
        try:
            while True:
                if not self._outbox and not self._in_flight:
                    self._work = trio.Event()
                    self._idle.unpark_all()
                    await self._work.wait()
                if self._broken is not None:
                    raise self._broken
                data = b""
                if not self._in_flight:  # else the stream has what is left of it
                    await self._pace(self._take_batch())
                    data = b"".join(self._in_flight)
                with mapped_errors(f"send to {self.address.label()}"):
                    await self._stream.send_all(data)
                self._count_sent()
                self._room.unpark_all()
        except TransportError as error:
            await self._fail(error)

    def _take_batch(self) -> int:
        size = 0
        while self._outbox and size < WRITE_BYTES:
            frame = self._outbox.popleft()
            self._in_flight.append(frame)
            size += len(frame)
        self._outbox_bytes -= size
        return size

    def _bucket(self) -> tuple[int, int]:
        info = self.server_info
        return info.token_bucket_bytes_per_second, info.token_bucket_bytes_burst

    async def _pace(self, size: int) -> None:
        """Keep to the relay's token bucket.  A genuine client drops what does not fit; waiting loses nothing."""
        rate, burst = self._bucket()
        if rate <= 0:
            return
        now = trio.current_time()
        self._tokens = min(burst, self._tokens + (now - self._tokens_at) * rate) - size
        self._tokens_at = now
        if self._tokens < 0:
            await trio.sleep(-self._tokens / rate)

    async def _drain(self) -> None:
        await trio.lowlevel.checkpoint()
        while (self._outbox or self._in_flight) and self._failure is None:
            await self._idle.park()

    # --- below: reading ---

    async def _fill_inbox(self) -> None:
        while not self._inbox:
            try:
                self._reading.acquire_nowait()  # without the task switch that `acquire` has
            except trio.WouldBlock:
                await self._reading.acquire()
            try:
                if not self._inbox:
                    self._check_alive()
                    await self._read()
            finally:
                self._reading.release()

    async def _read_on_behalf(self) -> None:
        """For `ping`: read while nobody else does."""
        try:
            while self._failure is None:
                while len(self._inbox) >= MAX_INBOX_MESSAGES:
                    await self._inbox_taken.park()
                async with self._reading:
                    await self._read()
        except DerpError:
            return  # `_fail` has it, and woke the ping

    async def _read(self) -> None:
        """One read of the stream; what it says goes to its place.  Cancelling it loses nothing."""
        try:
            try:  # not `mapped_errors`, which costs as much as two packets
                with trio.CancelScope(deadline=trio.current_time() + SILENCE_SECONDS) as scope:
                    data = await self._stream.receive_some(RECEIVE_BYTES)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise transport_error(error, f"receive from {self.address.label()}") from error
            if scope.cancelled_caught:
                raise TransportTimeout(
                    f"{self.address.label()} sent nothing for {SILENCE_SECONDS:g} s, not even a keep-alive: "
                    "the path is dead, or something on the way holds the connection without passing data"
                )
            if not data:
                self._core.receive_eof()
                announced = " after it announced a restart" if self.restarting else ""
                raise ConnectionClosed(f"{self.address.label()} closed the connection{announced}")
            self._bytes_received += len(data)
            self._accept(self._core.receive_data(data))
        except (TransportError, RemoteProtocolError) as error:
            await self._fail(error)
            # If the writer failed first, its reason is the reason.
            self._check_alive()
        self._collect()

    def _accept(self, events: list[ClientEvent]) -> None:
        for event in events:
            if isinstance(event, RecvPackets):
                self._packets_received += len(event.packets)
            elif isinstance(event, RecvPacket):
                self._packets_received += 1
            elif isinstance(event, Pong):
                waiting = self._pings.get(event.payload)
                if waiting is not None:
                    waiting.set()
                    continue
            elif isinstance(event, Health):
                self.health = event.text
            elif isinstance(event, Restarting):
                self.restarting = event
            if isinstance(event, Received):
                self._inbox.append(event)

    async def _fail(self, error: DerpError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._packets_lost += _count_packets(self._in_flight) + _count_packets(self._outbox)
        self._in_flight.clear()
        self._outbox.clear()
        self._outbox_bytes = 0
        for arrived in self._pings.values():
            arrived.set()
        self._room.unpark_all()
        self._idle.unpark_all()
        await trio.aclose_forcefully(self._stream)

    async def _close(self) -> None:
        if self._failure is None:
            self._packets_lost += _count_packets(self._in_flight) + _count_packets(self._outbox)
            self._failure = ConnectionClosed(f"{self.address.label()}: this client was closed")
            self._room.unpark_all()
            with mapped_errors("close"):
                await self._stream.aclose()


async def reach(
    target: Target, identity: Identity, options: DialOptions, websocket_reason: str, timeout_seconds: float
) -> Reached:
    """A relay of the target with which we have shaken hands: what `open_client_over` takes."""
    if isinstance(target, DERPRegion):
        addresses, what = region_addresses(target), region_label(target)
    else:
        addresses, what = [RelayAddress.from_url(target, options)], target
    attempt = partial(_attempt, identity, options, websocket_reason)
    return await walk(addresses, attempt, timeout_seconds=timeout_seconds, what=what)


async def _attempt(
    identity: Identity,
    options: DialOptions,
    websocket_reason: str,
    address: RelayAddress,
    seconds: float,
    tcp_seconds: float | None,
) -> Reached:
    deadline = trio.current_time() + seconds
    dialled = await dial_relay(
        address, options, timeout_seconds=seconds, tcp_seconds=tcp_seconds, websocket_reason=websocket_reason
    )
    with mapped_errors(f"DERP handshake with {address.label()}", connecting=True):
        with trio.fail_at(deadline):
            return await shake_hands(dialled, identity)


async def _raise_refusal(dialled: Dialled, data: bytes | bytearray) -> None:
    """Fast start sends its ClientInfo blindly; here an HTTP answer came instead of ServerKey."""
    assert dialled.http is not None
    response = dialled.http.receive_data(data)
    while response is None:
        response = dialled.http.receive_data(await dialled.stream.receive_some(RECEIVE_BYTES))
    raise ConnectError(refusal_of(response).reason or f"the relay answered with status {response.status}")


def _count_packets(frames: "list[bytes] | deque[bytes]") -> int:
    return sum(frame[0] in (FrameType.SEND_PACKET, FrameType.FORWARD_PACKET) for frame in frames)
