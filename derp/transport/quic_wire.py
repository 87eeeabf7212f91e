"""QUIC connections on the reactor: one UDP socket, and a Wire for each connection.  Layer L2.

Sessions see an ordinary wire: what its host gives them from the control stream and from datagrams is whole frames, and
`send` decides which way a frame goes (quic.py).  What strangers may cost is bounded here: first packets by a bucket and
by address, all else by the connection they belong to.  server/quic.py puts wires behind a door.
"""

import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from ipaddress import ip_address
from typing import Final

from derp.close_reason import CloseReason
from derp.log import Rarely, and_more
from derp.protocol.frames import FrameType
from derp.protocol.quic import is_packet
from derp.protocol.stun import encode_response, parse_request
from derp.relay.deadlines import Deadlines
from derp.relay.limits import TokenBucket
from derp.relay.queue import frame_starts
from derp.transport import platform
from derp.transport.alarm import Alarm
from derp.transport.framing import StreamWire
from derp.transport.host import Piece, Session, WireEnded
from derp.transport.listen import DESTINATION_BYTES, sent_from, tell_destinations
from derp.transport.quic import HeadKind, Place, QuicDoor, QuicLine, connection_id, read_head
from derp.transport.reactor import Reactor

_log = logging.getLogger("derp.transport")

# Longer ones than an Ethernet frame nobody sends us: we allow 1,400 bytes.
_MAX_UDP_BYTES: Final = 2048
# Datagrams taken per wake-up, some 3 ms of work; the rest waits in the socket for the next turn.
_MAX_DATAGRAMS: Final = 64
# First packets that we take without asking for a Retry: a handshake costs 2.5 ms, so this is a quarter of a core.  The
# burst is what those who are inside may have to wait for, 20 ms.
HANDSHAKES_PER_SECOND: Final = 100.0
HANDSHAKES_AT_ONCE: Final = 8.0
# Datagrams of connections that we do not know, and say so: some 15 us each, so this is less than a hundredth of a core.
RESETS_PER_SECOND: Final = 500.0
# Handshakes that are not done.  Each may hold half a MiB of a hello that never ends.
MAX_HALF_OPEN: Final = 128
# Of one address (of IPv6: one network of 64 bits): an office behind one NAT comes back after an outage.
MAX_HALF_OPEN_PER_ADDRESS: Final = 16
# The path may take nothing for so long before a connection is given up: what TCP's user time-out is.  A client that
# changes its network says nothing for some seconds.
WRITE_SECONDS: Final = 15.0
# After its wire was closed a connection has so long to deliver what was said last.
LINGER_SECONDS: Final = 1.0
# A send of so much is taken whole, without asking at each frame; larger ones end at the frame that fills the path.
_WHOLE_BYTES: Final = 32 * 1024
_LOG_SECONDS: Final = 60.0


class QuicWire(StreamWire):
    """A Wire (host.py) of one QUIC connection.  Made by its endpoint, owned by the host."""

    __slots__ = ("endpoint", "is_half_open", "line", "network", "place")

    def __init__(self, line: QuicLine, endpoint: "QuicEndpoint", place: Place) -> None:
        super().__init__(_address(place))
        self.line = line
        self.endpoint = endpoint
        self.place = place
        self.network = _network(place)
        self.is_half_open = True
        self.write_seconds = WRITE_SECONDS

    def version(self) -> str | None:
        return "TLSv1.3"

    def rtt_microseconds(self) -> int:
        if not self.line.rtt_seconds:
            raise OSError("no round trip yet")
        return int(self.line.rtt_seconds * 1e6)

    def peer_left(self) -> bool:
        return self.line.ended is not None or self.line.has_peer_ended

    def want(self, *, read: bool, write: bool) -> None:
        if read and (self.line.has_stream or self.line.packets):
            self.endpoint.serve_soon(self)

    def _receive(self, into: memoryview, at: int, scratch: memoryview) -> int:
        line = self.line
        taken = line.take_stream(len(scratch))
        end = at + len(taken)
        into[at:end] = taken
        if line.has_peer_ended and not line.has_stream:
            ending = WireEnded(CloseReason.CLOSED_BY_PEER)
            if end == at:
                raise ending
            self.ending = ending
        return end

    def _carry(self, pieces: Sequence[Piece], size: int) -> int:
        """Frames of a registered client: all of them, or up to the one that fills the path."""
        line, sent = self.line, 0
        for piece in pieces if size <= _WHOLE_BYTES else _frames_of(pieces):
            line.send_frames(piece)
            sent += len(piece)
            if size > _WHOLE_BYTES and not line.has_room:
                break
        self.blocked = not line.has_room
        self.endpoint.transmit_soon(self)
        return sent

    def send_raw(self, data: Piece) -> None:
        self.line.send_stream(data)
        self.endpoint.transmit_soon(self)

    def push(self, data: Piece) -> None:
        # No frame is ever begun here, so these are whole ones, which travel as all others do.
        self.line.send_frames(data)
        self.endpoint.transmit_soon(self)

    def flush_tail(self) -> bool:
        self.blocked = not self.line.has_room
        return not self.blocked

    def end_output(self) -> None:
        self.line.end_output()
        self.endpoint.transmit_soon(self)

    def close(self) -> None:
        self.endpoint.let_go(self)


class Drop(Enum):
    """Why a datagram was not served.  A closed list: it is the label set of the metric."""

    UNKNOWN = "unknown"  # of no connection that we know, and it begins none
    HALF_OPEN = "half_open"  # too many handshakes have begun and do not go on
    TOO_FAST = "too_fast"  # handshakes a second; the client comes again
    TOKEN = "token"  # a Retry's token that is not ours, too old, or of another address  # noqa: S105
    REFUSED = "refused"  # by what the server allows in connections, which counts them too
    LEAVING = "leaving"  # the server is about to end
    EARLY = "early"  # a packet of somebody who has not been let in
    PAUSED = "paused"  # a packet beyond those that wait while a rate limit holds their sender back
    UNSENT = "unsent"  # one of ours, which the kernel did not take


class QuicEndpoint:
    """All QUIC connections of one UDP socket, which it owns.

    `admits()`: whether one more connection may come; `opened(wire)` gives it a session; `takes_packets(session)`:
    whether packets may come for it, which travel as datagrams.  `resets_from`: when whoever else has the socket has
    ended, so that a connection which neither we nor `is_elsewhere(name)` know is nobody's.  It ends by `leave`.
    """

    def __init__(
        self,
        sock: socket.socket,
        host: Reactor,
        door: QuicDoor,
        *,
        admits: Callable[[], bool],
        opened: Callable[[QuicWire], None],
        takes_packets: Callable[[Session | None], bool],
        is_elsewhere: Callable[[bytes], bool] = lambda name: False,
        resets_from: float = 0.0,
    ) -> None:
        self.sock = sock
        self._host = host
        self._door = door
        self._admits = admits
        self._opened = opened
        self._takes_packets = takes_packets
        platform.never_fragment(sock)
        self._ancillary_bytes = DESTINATION_BYTES if tell_destinations(sock) else 0
        self._by_name: dict[bytes, QuicWire] = {}
        self._dirty: dict[QuicWire, None] = {}
        self._due = Deadlines[QuicWire]()
        self._alarm = Alarm(host, self._handle_timeout, self._due)
        self._lingering = Deadlines[QuicWire]()
        self._linger_alarm = Alarm(host, self._end_lingering, self._lingering)
        self._half_open = Counter[str]()
        self._bucket = TokenBucket(HANDSHAKES_PER_SECOND, HANDSHAKES_AT_ONCE, host.now)
        self._resets = TokenBucket(RESETS_PER_SECOND, RESETS_PER_SECOND, host.now)
        self._is_elsewhere = is_elsewhere
        self.resets_from = resets_from
        self._rarely = Rarely(_LOG_SECONDS)
        self._is_leaving = False
        self.accepted_count = self.retry_count = self.moved_count = self.reset_count = 0
        self.dropped: dict[Drop, int] = dict.fromkeys(Drop, 0)
        host.flushers.append(self.flush)
        host.watch(sock.fileno(), self.serve_ready)

    # --- receiving

    def serve_ready(self) -> None:
        """Take the datagrams that have come, and serve the connections they are for."""
        touched: dict[QuicWire, None] = {}
        now = self._host.now
        for _ in range(_MAX_DATAGRAMS):
            try:
                datagram, ancillary, _, source = self.sock.recvmsg(_MAX_UDP_BYTES, self._ancillary_bytes)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of an earlier datagram
            if not datagram:
                continue
            place = Place(source, tuple(sent_from(ancillary)))
            wire = self._by_name.get(connection_id(datagram)) or self._take_first(datagram, place, now)
            if wire is not None:
                self._receive(wire, datagram, place, now)
                touched[wire] = None
        for wire in touched:
            self._serve(wire)

    def _receive(self, wire: QuicWire, datagram: bytes, place: Place, now: float) -> None:
        line = wire.line
        before = line.dropped_count
        try:
            line.receive(datagram, place, now)
        except Exception:  # a stranger's bytes against a library: the others' packets go on
            _log.exception("! QUIC failed on a datagram of %r and the connection is closed; please report this", wire)
            line.close(CloseReason.INTERNAL_ERROR)
        self.dropped[Drop.PAUSED] += line.dropped_count - before
        self._note_names(wire)

    def _take_first(self, datagram: bytes, place: Place, now: float) -> QuicWire | None:
        """A datagram of no connection that we know: begin one, answer without, or drop it."""
        head = read_head(datagram)
        if head is None or head.kind is HeadKind.OTHER:
            self.dropped[Drop.UNKNOWN] += 1
            self._reset(datagram, place, now)
            return None
        # A first packet's own name for the connection, of any length.
        known = self._by_name.get(head.destination)
        if known is not None:
            return known
        if head.kind is HeadKind.UNKNOWN_VERSION:
            self._transmit(self._door.negotiate(head), place)
            return None
        if self._is_leaving:
            self.dropped[Drop.LEAVING] += 1
            return None
        network = _network(place)
        if self._half_open.total() >= MAX_HALF_OPEN or self._half_open[network] >= MAX_HALF_OPEN_PER_ADDRESS:
            self._tell_dropped(Drop.HALF_OPEN, "too many handshakes have begun and do not go on")
            return None
        if not self._bucket.take(now):
            if head.token:
                # It comes again within a second, and the token is good for thirty.
                self._tell_dropped(Drop.TOO_FAST, f"more than {HANDSHAKES_PER_SECOND:g} handshakes a second")
            else:
                self.retry_count += 1
                self._transmit(self._door.ask_again(head, place, now), place)
            return None
        if not self._admits():
            self.dropped[Drop.REFUSED] += 1
            return None
        line = self._door.accept(head, place, now)
        if line is None:
            self.dropped[Drop.TOKEN] += 1
            return None
        self.accepted_count += 1
        wire = QuicWire(line, self, place)
        self._half_open[network] += 1
        self._opened(wire)
        self._host.add(wire)
        return wire

    def _reset(self, datagram: bytes, place: Place, now: float) -> None:
        """Tell a client of the process before us that its connection is no more: else it waits until it has heard
        nothing for long."""
        answer = None if self._is_leaving or now < self.resets_from else self._door.reset(datagram)
        # Whoever sees a connection's name on the way could ask for its token here while it lives at another port.
        if answer is not None and not self._is_elsewhere(connection_id(datagram)) and self._resets.take(now):
            self.reset_count += 1
            self._transmit(answer, place)

    def knows(self, name: bytes) -> bool:
        """Whether one of our connections has this name."""
        return name in self._by_name

    def _tell_dropped(self, kind: Drop, why: str) -> None:
        self.dropped[kind] += 1
        more = self._rarely.held_back(kind.value, self._host.now)
        if more is not None:
            _log.warning("! QUIC connections wait: %s%s", why, and_more(more))

    def _note_names(self, wire: QuicWire) -> None:
        line = wire.line
        for name in line.new_names:
            self._by_name[name] = wire
        for name in line.old_names:
            self._by_name.pop(name, None)
        line.new_names.clear()
        line.old_names.clear()

    def _serve(self, wire: QuicWire) -> None:
        """Give what came to the session, and send what may go now."""
        line, host = wire.line, self._host
        if wire not in host.wires:  # it lingers
            self._dirty[wire] = None
            return
        if wire.is_half_open and line.is_open:
            self._end_handshake(wire)
        if line.place is not None and line.place != wire.place:
            self._note_move(wire, line.place)
        if not wire.paused:
            if line.has_stream or line.has_peer_ended:
                host.serve_readable(wire)
            if line.packets:
                self._deliver_packets(wire)
        if line.ended is not None:
            host.fail(wire, line.ended)
        elif wire.wants_out and line.has_room:
            host.serve_writable(wire)
        if not line.may_wait:
            self._dirty[wire] = None
        elif wire in host.wires:
            self._wait_until(wire, line.next_timeout())

    def _deliver_packets(self, wire: QuicWire) -> None:
        line, host = wire.line, self._host
        packets, line.packets = line.packets, []
        if not self._takes_packets(wire.session):
            self.dropped[Drop.EARLY] += len(packets)
            return
        frames = [packet for packet in packets if is_packet(packet, FrameType.SEND_PACKET)]
        if len(frames) < len(packets):
            for packet in packets:
                if not is_packet(packet, FrameType.SEND_PACKET):
                    self._serve_other(wire, packet)
        if frames and wire in host.wires:
            host.deliver(wire, b"".join(frames))

    def _serve_other(self, wire: QuicWire, packet: bytes) -> None:
        """A datagram that is no packet: a question for the address, or nothing that is allowed."""
        transaction = parse_request(packet)
        if transaction is None:
            if wire in self._host.wires:
                ended = WireEnded(CloseReason.PROTOCOL_ERROR, "a datagram that is no packet")
                wire.line.close(ended.reason, str(ended))
                self._host.fail(wire, ended)
            return
        host, port = _address(wire.place)
        wire.line.send_datagram(encode_response(transaction, ip_address(host.partition("%")[0]).packed, port))

    def _note_move(self, wire: QuicWire, place: Place) -> None:
        """The client's address changed.  aioquic asks there for a sign, and goes back to the old one if none comes."""
        if place.source != wire.place.source:
            self.moved_count += 1
            _log.debug("= %s:%d is now at %s:%d", *wire.address, *_address(place))
        wire.place, wire.address = place, _address(place)

    def _end_handshake(self, wire: QuicWire) -> None:
        if wire.is_half_open:
            wire.is_half_open = False
            self._half_open[wire.network] -= 1
            if not self._half_open[wire.network]:
                del self._half_open[wire.network]

    # --- sending

    def transmit_soon(self, wire: QuicWire) -> None:
        """Send what a connection has to send with the next flush."""
        self._dirty[wire] = None

    def serve_soon(self, wire: QuicWire) -> None:
        """Serve a connection that has something for its session, in the next turn."""
        self._due.set(wire, self._host.now)
        self._alarm.by(self._host.now)

    def flush(self) -> None:
        """Transmit for every connection that has something to say."""
        now = self._host.now
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for wire in dirty:
                self._transmit_for(wire, now)

    def _transmit_for(self, wire: QuicWire, now: float) -> None:
        line = wire.line
        for datagram, place in line.datagrams_to_send(now):
            self._transmit(datagram, place)
        self._note_names(wire)
        if wire in self._lingering:
            if line.ended is not None or not line.has_unsent:
                self._end(wire)
                return
        elif wire not in self._host.wires:
            self._forget(wire)
            return
        at = line.next_timeout()
        if wire.wants_out and line.has_room:
            at = now  # room came with what was just sent: its session's turn is next
        self._wait_until(wire, at)

    def _wait_until(self, wire: QuicWire, at: float | None) -> None:
        if at is not None:
            self._due.set(wire, at)
            self._alarm.by(at)

    def _transmit(self, datagram: bytes, place: Place) -> None:
        try:
            self.sock.sendmsg([datagram], place.via, 0, place.source)
        except OSError:
            self.dropped[Drop.UNSENT] += 1  # the kernel is full, or has no way there: a loss like any other

    def _handle_timeout(self, now: float) -> None:
        for wire in self._due.handle_timeout(now):
            wire.line.handle_timeout(now)
            self._serve(wire)

    # --- ends

    def let_go(self, wire: QuicWire) -> None:
        """A wire was closed: the connection lives on for a moment, if it has still something to deliver."""
        self._end_handshake(wire)
        line = wire.line
        line.packets.clear()
        if self._is_leaving:
            self._end(wire)
        elif line.ended is None and line.is_open and line.has_unsent:
            line.end_output()
            until = self._host.now + LINGER_SECONDS
            self._lingering.set(wire, until)
            self._linger_alarm.by(until)
            self._dirty[wire] = None
        else:
            line.close(CloseReason.STOPPED)
            self._dirty[wire] = None

    def _end_lingering(self, now: float) -> None:
        for wire in self._lingering.handle_timeout(now):
            self._end(wire)

    def _end(self, wire: QuicWire) -> None:
        """Tell the peer that a connection is no more, now."""
        wire.line.close(CloseReason.STOPPED)
        self._lingering.clear(wire)
        self._dirty.pop(wire, None)
        self._transmit_for(wire, self._host.now)

    def _forget(self, wire: QuicWire) -> None:
        """Nothing of a connection is left but what is on its way."""
        self._due.clear(wire)
        for name in wire.line.names:
            self._by_name.pop(name, None)
        if self._is_leaving and not self._by_name:
            self._close_socket()

    def leave(self, *, is_replaced: bool = False) -> None:
        """Begin no connection any more; those that there are stay, and the socket until they have ended.  With another
        process on the same socket they end now: it gets what is sent to them."""
        self._is_leaving = True
        wires = tuple(dict.fromkeys(self._by_name.values()))
        for wire in wires:
            if wire not in self._host.wires:
                self._end(wire)
            elif is_replaced:
                self._host.close(wire, CloseReason.DRAINED)
        if not self._by_name:
            self._close_socket()

    def _close_socket(self) -> None:
        if self.sock.fileno() >= 0:
            self._host.unwatch(self.sock.fileno())
            self.sock.close()


def _frames_of(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        view = memoryview(piece)
        for start, end in frame_starts(view):
            yield view[start:end]


def _address(place: Place) -> tuple[str, int]:
    host, port = place.source[:2]
    return (host.removeprefix("::ffff:") if "." in host else host), port


def _network(place: Place) -> str:
    """Whom a budget is for: an IPv4 address, or the network of 64 bits that one household has of IPv6."""
    host = _address(place)[0].partition("%")[0]
    return host if "." in host else ip_address(host).packed[:8].hex()
