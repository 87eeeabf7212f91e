"""DERP on the reactor: the handshake, the frames of a registered client, and the flush to all of them.  Layer L3.

Packets: reactor -> ClientSession.received -> relay/forward.py -> the router's gather lists -> Plane.flush -> kernel.
What the kernel does not take waits in the client's queue until ClientSession.writable.
Made by server/door.py after an upgrade.
"""

import logging
import math
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Final

from derp.config import RateConfig
from derp.errors import RemoteProtocolError
from derp.keys import NodePrivate, short_key
from derp.protocol.frames import (
    HEADER,
    HEADER_BYTES,
    KEY_BYTES,
    MAX_CLIENT_INFO_BYTES,
    MAX_SEND_BYTES,
    MAX_UNKNOWN_BYTES,
    NONCE_BYTES,
    FrameType,
)
from derp.protocol.handshake import OpenedClientInfo, open_client_info, server_key_frame
from derp.protocol.messages import (
    ClosePeer,
    NotePreferred,
    Ping,
    ServerInfo,
    UnknownFrame,
    WatchConns,
    parse_from_client,
)
from derp.relay.clients import Client
from derp.relay.counters import CloseReason, DropReason
from derp.relay.forward import relay_forwarded, relay_packets
from derp.relay.limits import TokenBucket
from derp.relay.queue import count_lost, frame_starts
from derp.relay.router import Route, Router
from derp.server.admission import Admission, Verdict
from derp.server.explain import Past
from derp.transport.host import Host, Wire, WireEnded

_log = logging.getLogger("derp.server")

# Taken from a queue at a time.  What is taken is committed to this order and out of reach of the drop policy, so no
# more than the kernel itself holds behind a slow reader (TCP_NOTSENT_LOWAT).
_TAKE_BYTES: Final = 32 * 1024
# Control frames in one receive of 256 KiB.  An honest client sends a handful; each costs us some 3 us, so this keeps
# a flood below 10 ms of everybody's time, and then its sender is closed.
_MAX_CONTROL_FRAMES: Final = 3000
# A pause costs a timer and two system calls; a shorter one, or the rounding of an earlier one, stays a debt that the
# next pause includes.
_SHORTEST_PAUSE_SECONDS: Final = 0.001
# Connections of one key: a laptop with a stale connection has two or three.  The registry looks at all of them.
_MAX_CONNECTIONS_PER_KEY: Final = 64

_SEND: Final = FrameType.SEND_PACKET.value
_FORWARD: Final = FrameType.FORWARD_PACKET.value
_MESH_ONLY: Final = (FrameType.FORWARD_PACKET, FrameType.WATCH_CONNS, FrameType.CLOSE_PEER)


class Plane:
    """Joins the router to the reactor.  One per relay; all its methods are called from the reactor's task."""

    def __init__(
        self,
        router: Router,
        host: Host,
        private: NodePrivate,
        admission: Admission,
        *,
        random_bytes: Callable[[int], bytes],
        server_info: ServerInfo | None = None,
    ) -> None:
        self.router = router
        self.host = host
        self.private = private
        self.admission = admission
        self.random_bytes = random_bytes
        self.greeting = server_key_frame(private.public().raw)
        self.server_info = server_info or ServerInfo()
        self.closed_count: dict[CloseReason, int] = dict.fromkeys(CloseReason, 0)
        self.past = Past()
        # connections that have to prove themselves, in order of their deadlines; server.py's tick ends them
        self.greeted: dict[Wire, float] = {}
        self.rate = RateConfig()
        self.rate_by_key: Mapping[bytes, RateConfig] = {}
        self._is_sampling = False
        # wires that sent more than they may, by the time when they are read again
        self.throttled: list[tuple[float, int, Wire]] = []
        self.on_throttle: Callable[[float], None] = lambda until: None
        self.on_register: list[Callable[[Client], None]] = []
        host.flushers.append(self.flush)

    def flush(self) -> None:
        """Send every gather list, and end the connections the router wants ended, until nothing is left to do."""
        router = self.router
        if router.counts_flush:
            self._count_flush()
        while router.dirty or router.closing:
            dirty, router.dirty = router.dirty, []
            for route in dirty:
                route.is_dirty = False
                pieces, size = route.pending, route.pending_bytes
                if not size:
                    continue  # it ended meanwhile
                route.pending_bytes = 0
                if route.queue is None:
                    wire: Wire = route.wire
                    try:
                        sent = wire.send(pieces, size)
                    except WireEnded as error:
                        self.count_lost(b"".join(pieces))
                        pieces.clear()
                        self.host.fail(wire, error)
                        continue
                    if sent < size or wire.blocked:
                        self._queue_rest(route, b"".join(pieces), sent)
                else:
                    self._queue(route, memoryview(b"".join(pieces)))
                pieces.clear()
            closing, router.closing = router.closing, []
            for client, reason in closing:
                if client.member is not None:
                    self.host.close(client.wire, reason)

    def sample_flush(self) -> None:
        """Look how many frames each client gets in the next flush.  The clock calls it: derper's histogram keeps its
        shape and its mean that way, where counting every write took 0.15 us of 4.6."""
        self._is_sampling = self.router.counts_flush = True

    def _count_flush(self) -> None:
        router = self.router
        router.count_announcements()
        if self._is_sampling and router.dirty:
            self._is_sampling = False
            for route in router.dirty:
                if route.pending_bytes and route.queue is None and not route.is_forwarder:
                    frames = frame_starts(memoryview(b"".join(route.pending)))
                    router.counters.written_frames.observe(sum(1 for _ in frames))
        router.counts_flush = self._is_sampling

    def _queue_rest(self, route: Route, frames: bytes, sent: int) -> None:
        """The kernel is full: finish the frame it has the beginning of, queue the others."""
        wire: Wire = route.wire
        if wire not in self.host.wires:
            self.count_lost(frames)
            return
        route.queue = self.router.new_queue(route)
        view = memoryview(frames)
        rest = sent
        if sent < len(frames):
            for start, end in frame_starts(view):
                if end >= sent:
                    # nothing of the frame may have gone when `sent` is its very start: then it queues like the rest
                    rest = start if start == sent else end
                    if start < sent < end:
                        wire.push(view[sent:end])
                    break
            if rest < len(frames):
                self._queue(route, view[rest:])
        self.host.await_room(wire)

    def _queue(self, route: Route, frames: memoryview) -> None:
        assert route.queue is not None
        if not route.queue.push_frames(frames, self.host.now):
            self.router.note_lost_notice(route)

    def count_lost(self, frames: bytes) -> None:
        """Count packets that were handed to a socket that failed."""
        count_lost(frames, DropReason.WRITE_ERROR, self.router.counters)

    def keep_alive(self, client: Client) -> None:
        """Send an empty frame: clients give a silent relay up after two minutes."""
        self.router.send(client, _KEEP_ALIVE)

    def set_rates(self, rate: RateConfig, by_key: Mapping[bytes, RateConfig]) -> None:
        """Limit what clients may send, those connected already included."""
        self.rate, self.rate_by_key = rate, by_key
        for client in self.router.clients.values():
            session = client.wire.session
            if isinstance(session, ClientSession):
                session.bucket = self.bucket_for(client)
        # Those that wait do so by the old rates, at which it may be hours.
        self.resume_throttled(math.inf)
        self.host.flush()

    def bucket_for(self, client: Client) -> TokenBucket | None:
        rate = self.rate_by_key.get(client.key, self.rate)
        if client.is_mesh_peer or not rate.client_bytes_per_second:
            return None
        # Less than one packet of burst would stop a client for good that sends a large one.
        burst = max(rate.client_burst_bytes, MAX_SEND_BYTES)
        return TokenBucket(rate.client_bytes_per_second, burst, self.host.now)

    def throttle(self, client: Client, seconds: float) -> None:
        """Do not read a client for a while: its bytes wait in the kernels on the way, nothing is dropped."""
        self.router.counters.rate_limited += 1
        self.host.pause(client.wire)
        until = self.host.now + seconds
        heappush(self.throttled, (until, client.number, client.wire))
        self.on_throttle(self.throttled[0][0])

    def resume_throttled(self, now: float) -> float | None:
        """Read those again whose time has come; return when the next one's comes."""
        due = []
        while self.throttled and self.throttled[0][0] <= now:
            due.append(heappop(self.throttled)[2])
        for wire in due:  # one may be paused again at once
            self.host.resume(wire)
        return self.throttled[0][0] if self.throttled else None

    def count_closed(self, reason: CloseReason) -> None:
        self.closed_count[reason] += 1


def drain_queue(route: Route, now: float) -> None:
    """Send what waits for a route, as far as the kernel takes it; its queue goes when it is empty."""
    wire: Wire = route.wire
    queue = route.queue
    while queue is not None and not wire.blocked:
        frames = queue.take(_TAKE_BYTES, now)
        if not frames:
            route.queue = None
            return
        joined = b"".join(frames)
        try:
            sent = wire.send([joined], len(joined))
        except WireEnded:
            queue.count_lost(joined)
            raise
        if sent < len(joined):
            wire.push(memoryview(joined)[sent:])


_KEEP_ALIVE: Final = HEADER.pack(FrameType.KEEP_ALIVE, 0)


class Greeting:
    """Between the upgrade and ServerInfo: waits for the ClientInfo frame and decides who comes in.

    The relay's ServerKey was sent by whoever made this.
    """

    __slots__ = ("_held", "_is_ideal", "_opened", "_plane", "_wire")

    def __init__(self, plane: Plane, wire: Wire, *, is_ideal: bool) -> None:
        self._plane = plane
        self._wire = wire
        self._is_ideal = is_ideal
        self._held = bytearray()
        self._opened: OpenedClientInfo | None = None

    def received(self, at: int, end: int) -> int:
        held = self._held
        held += self._plane.host.view[at:end]
        if len(held) < HEADER_BYTES:
            return end
        frame_type, length = HEADER.unpack_from(held)
        if frame_type != FrameType.CLIENT_INFO or length > MAX_CLIENT_INFO_BYTES:
            raise RemoteProtocolError(f"expected ClientInfo, got frame 0x{frame_type:02x} of {length} bytes")
        stop = HEADER_BYTES + length
        if len(held) < stop:
            return end
        rest = end - (len(held) - stop)
        plane = self._plane
        payload = bytes(held[HEADER_BYTES:stop])
        opened = self._opened = open_client_info(plane.private, payload)
        self._held = bytearray()
        if plane.admission.is_mesh_peer(opened.info):
            if plane.admission.is_replayed(payload[KEY_BYTES : KEY_BYTES + NONCE_BYTES]):
                raise WireEnded(CloseReason.NOT_ADMITTED, f"{short_key(opened.key)}: a mesh peer's login, replayed")
            self._admit(is_mesh_peer=True)
        else:
            verdict = plane.admission.decide(opened.key, self._wire.address[0])
            if verdict is None:
                # Somebody else decides; until then the kernel keeps what the client sends.
                plane.host.pause(self._wire)
                plane.admission.ask(opened.key, self._wire.address[0], self._decided)
            elif verdict.allowed:
                self._admit(is_mesh_peer=False)
            else:
                raise WireEnded(CloseReason.NOT_ADMITTED, _refusal(opened.key, verdict))
        return int(rest)

    def _decided(self, verdict: Verdict) -> None:
        wire, host = self._wire, self._plane.host
        if wire.session is not self:
            return  # it left, or its deadline passed, before the answer came
        if not verdict.allowed:
            assert self._opened is not None
            host.close(wire, CloseReason.NOT_ADMITTED, _refusal(self._opened.key, verdict))
            return
        try:
            self._admit(is_mesh_peer=False)
        except WireEnded as error:  # whoever answered has no part in it
            host.fail(wire, error)
            return
        host.resume(wire)
        host.flush()

    def _admit(self, *, is_mesh_peer: bool) -> None:
        plane, wire, opened = self._plane, self._wire, self._opened
        assert opened is not None
        router = plane.router
        member = router.members.get(opened.key)
        if member is not None and len(member.connections) >= _MAX_CONNECTIONS_PER_KEY:
            # at once, not with the flush: hundreds may come in one batch
            plane.host.close(member.connections[0].wire, CloseReason.TOO_MANY)
        client = Client(
            opened.key,
            router.next_number(),
            wire,
            plane.host.now,
            address=wire.address[0],
            port=wire.address[1],
            is_mesh_peer=is_mesh_peer,
            is_prober=opened.info.is_prober,
            is_ideal=self._is_ideal,
            can_ack_pings=opened.info.can_ack_pings,
            app_name=opened.info.app_name[:64],  # shown on the debug page; a stranger chose its length
        )
        wire.session = ClientSession(plane, client)
        plane.greeted.pop(wire, None)
        # ServerInfo is the first frame a client may see, so it leaves before anybody can reach the client.
        wire.push(opened.seal_server_info(plane.server_info, plane.random_bytes(NONCE_BYTES)))
        if wire.blocked:
            client.queue = router.new_queue(client)
            plane.host.await_room(wire)
        router.register(client)
        for notify in plane.on_register:
            notify(client)
        if _log.isEnabledFor(logging.INFO):
            _log.info("> client %d %s from %s:%d", client.number, short_key(client.key), *wire.address[:2])

    def writable(self) -> None:
        """Nothing waits here: the few bytes of a greeting are the wire's tail."""

    def ended(self, reason: CloseReason, text: str) -> None:
        self._plane.greeted.pop(self._wire, None)
        self._plane.count_closed(reason)
        # Who was turned away asks the operator why; the rest is scanners and probes.
        level = logging.INFO if reason is CloseReason.NOT_ADMITTED else logging.DEBUG
        if self._opened is not None:
            was_refused = reason is CloseReason.NOT_ADMITTED
            why = text if was_refused else f"{reason.value} before it was let in"
            self._plane.past.note(self._opened.key, self._plane.host.now, why, was_refused=was_refused)
        _log.log(level, "x %s:%d before it was a client: %s %s", *self._wire.address[:2], reason.value, text)


def _refusal(key: bytes, verdict: Verdict) -> str:
    return f"{short_key(key)} is not admitted: {verdict.because}"


class ClientSession:
    """A registered client's frames."""

    __slots__ = ("_plane", "_skip", "bucket", "client")

    def __init__(self, plane: Plane, client: Client) -> None:
        self._plane = plane
        self.client = client
        self.bucket = plane.bucket_for(client)
        self._skip = 0  # bytes of an unknown frame still to be thrown away

    def received(self, at: int, end: int) -> int:
        if self.bucket is None:
            return self._received(at, end)
        before = self.client.packets_in
        rest = self._received(at, end)
        # Genuine relays charge the length field of each frame, so heads are free.
        charged = max(rest - at - HEADER_BYTES * (self.client.packets_in - before), 0)
        wait = self.bucket.spend(self._plane.host.now, charged)
        if wait > _SHORTEST_PAUSE_SECONDS:
            self._plane.throttle(self.client, wait)
        return rest

    def _received(self, at: int, end: int) -> int:
        plane, client = self._plane, self.client
        router, host = plane.router, plane.host
        arena = host.arena
        if client.is_duplicate:
            router.note_writer(client)
        if self._skip:
            skipped = min(self._skip, end - at)
            self._skip -= skipped
            at += skipped
        controls = 0
        while True:
            at = relay_packets(arena, host.view, at, end, client, router, host.now)
            if end - at < HEADER_BYTES:
                return at
            frame_type, length = HEADER.unpack_from(arena, at)
            if frame_type == _SEND:
                return at
            if frame_type in _MESH_ONLY and not client.is_mesh_peer:
                raise RemoteProtocolError(f"frame 0x{frame_type:02x} is for mesh peers only")
            if frame_type == _FORWARD:
                before = at
                at = relay_forwarded(arena, host.view, at, end, client, router, host.now)
                if at == before:
                    return at
                continue
            if length > MAX_UNKNOWN_BYTES:
                raise RemoteProtocolError(f"frame 0x{frame_type:02x} of {length} bytes, limit {MAX_UNKNOWN_BYTES}")
            controls += 1
            if controls > _MAX_CONTROL_FRAMES:
                raise WireEnded(CloseReason.FLOOD, f"more than {_MAX_CONTROL_FRAMES} control frames at once")
            stop = at + HEADER_BYTES + length
            if length > _MAX_KNOWN_CONTROL_BYTES:
                # raises for a known type, whose length is then wrong; what is unknown is skipped as it arrives
                parse_from_client(frame_type, bytes(length))
                router.counters.unknown_frames += 1
                if stop > end:
                    self._skip = stop - end
                    return end
            elif stop > end:
                return at
            else:
                self._control(frame_type, bytes(arena[at + HEADER_BYTES : stop]))
            at = stop

    def _control(self, frame_type: int, payload: bytes) -> None:
        router, client = self._plane.router, self.client
        match parse_from_client(frame_type, payload):
            case Ping(ping):
                router.handle_ping(client, ping)
            case NotePreferred(preferred):
                router.handle_note_preferred(client, preferred, self._plane.host.now)
            case WatchConns():
                router.handle_watch_conns(client)
            case ClosePeer(key):
                router.handle_close_peer(key)
            case UnknownFrame():
                router.counters.unknown_frames += 1
            case _:
                pass  # a pong, or a frame only relays send: genuine relays read past them too

    def writable(self) -> None:
        drain_queue(self.client, self._plane.host.now)

    def ended(self, reason: CloseReason, text: str) -> None:
        plane, client = self._plane, self.client
        plane.router.unregister(client)
        plane.count_closed(reason)
        why = f"{reason.value} ({text})" if text and text != reason.value else reason.value
        plane.past.note(client.key, plane.host.now, why)
        if client.pending:
            count_lost(b"".join(client.pending), DropReason.GONE_DISCONNECTED, plane.router.counters)
            client.pending = []
            client.pending_bytes = 0
        if _log.isEnabledFor(logging.INFO):
            _log.info(
                "x client %d %s: %s; %d packets in, %d out, %.0f s",
                client.number,
                short_key(client.key),
                why,
                client.packets_in,
                client.packets_out,
                plane.host.now - client.connected_at,
            )


# The longest control frame a client may send is a ping; anything longer is unknown or wrong.
_MAX_KNOWN_CONTROL_BYTES: Final = 1000
