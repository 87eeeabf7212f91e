"""The netstack of one node: packets in, packets out, connections and ports between.  Layer L1, no I/O.

The engine calls `receive_packets` with a batch, `handle_timeout` at `next_timeout`, and after each of them and after
what its users did `packets_to_send`.  Both return events.  IPv6 is RFC 8200, ICMPv6 RFC 4443, ports RFC 6056, initial
sequence numbers RFC 6528; TCP is docs/tcp.md.  Next hop: connection.py.
"""

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from derp.relay.deadlines import Deadlines
from tailnet.errors import LocalProtocolError
from tailnet.netstack import icmp, tsmp, udp
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import What
from tailnet.netstack.ip import (
    HEADER_BYTES,
    ICMPV6,
    TCP,
    TSMP,
    UDP,
    Packet,
    build_packet,
    is_intact,
    may_be_source,
    parse_packet,
)
from tailnet.netstack.limits import Counters, Drop, Limits
from tailnet.netstack.pacing import Path
from tailnet.netstack.replies import Replies
from tailnet.netstack.segment import (
    ACK,
    FLOW,
    PAYLOAD_AT,
    RECEIVED,
    RST,
    SYN,
    TCP_HEADER_BYTES,
    build_reset,
    parse_syn_options,
)
from tailnet.netstack.states import State

FIRST_EPHEMERAL: Final = 49152
_EPHEMERAL_COUNT: Final = 65536 - FIRST_EPHEMERAL
_ISN_TICK_SECONDS: Final = 4e-6
_SYN_MASK: Final = SYN | ACK | RST
_KEY_BYTES: Final = 16


class Happened(NamedTuple):
    """Something happened to a connection, a listener (CONNECTED: `accept`) or a UDP port (READABLE)."""

    subject: "Connection | Listener | udp.UdpPort"
    what: int
    """Flags of What."""


@dataclass(frozen=True, slots=True)
class PongReceived:
    source: bytes
    token: bytes


@dataclass(frozen=True, slots=True)
class EchoReceived:
    """An answer to `send_echo`."""

    source: bytes
    echo: icmp.Echo


@dataclass(frozen=True, slots=True)
class DiscoKeyReceived:
    """A node's disco key is another one now.  It never makes a peer."""

    source: bytes
    key: bytes


Event: TypeAlias = Happened | PongReceived | EchoReceived | DiscoKeyReceived


class Listener:
    """Takes connections to a port.  `accept` the next that finished its handshake; `close` stops it."""

    def __init__(self, stack: "Stack", port: int | None, backlog: int, hold: bool) -> None:
        self._stack = stack
        self.port = port
        self.backlog = backlog
        self.hold = hold
        """The user is asked about each SYN before it is answered (What.INCOMING)."""
        self.pending = 0
        """Half open, or not accepted yet."""
        self.queue: deque[Connection] = deque()

    def accept(self) -> Connection | None:
        """The oldest connection that nobody has taken; None when there is none."""
        if not self.queue:
            return None
        self.pending -= 1
        return self.queue.popleft()

    def close(self) -> None:
        """Nobody is taken any more; whoever was not accepted is reset."""
        self._stack.stop_listening(self)
        while (connection := self.accept()) is not None:
            connection.abort()


class Stack:
    """The TCP, UDP, ICMPv6 and TSMP of a node's addresses.  Addresses are 16 bytes, times seconds of one clock.

    What is sent comes from the first address, or `local_address`: LocalProtocolError where that is none of ours.
    """

    def __init__(
        self, addresses: Iterable[bytes], random_bytes: Callable[[int], bytes], now: float, limits: Limits | None = None
    ) -> None:
        self.limits = limits if limits is not None else Limits()
        self.counters = Counters()
        self.now = now
        self.ready: dict[Connection, None] = {}
        self._addresses = dict.fromkeys(addresses)
        self._random = random_bytes
        self._isn_key = random_bytes(_KEY_BYTES)
        self._port_offset = int.from_bytes(random_bytes(2), "big")
        self._connections: dict[bytes, Connection] = {}
        self._half_open: dict[Connection, Listener] = {}
        """Whoever dialled and is not established yet."""
        self._resting: dict[Connection, None] = {}
        self._listeners: dict[int | None, Listener] = {}
        self._udp_ports: dict[int | None, udp.UdpPort] = {}
        self._paths: dict[bytes, Path] = {}
        self._bursts: dict[bytes, int] = {}
        self._sending: dict[Path, None] = {}
        self._deadlines: Deadlines[Connection | Path] = Deadlines()
        self._replies = Replies(self.limits)
        self._memory_left = self.limits.total_receive_bytes
        self.queued_bytes = 0
        """What all connections hold of what their users have sent."""
        self._happened: dict[Connection, None] = {}
        self._events: list[Event] = []
        self._out: list[bytes] = []

    # --- users ---

    def connect(self, address: bytes, port: int, local_address: bytes | None = None) -> Connection:
        """Dial.  CONNECTED follows, or RESET with `end`.  LocalProtocolError when no port or no room is left."""
        source = self._source(local_address)
        if len(address) != 16 or not may_be_source(address) or not 0 < port <= 0xFFFF:
            raise LocalProtocolError("a dial needs a unicast IPv6 address of 16 bytes and a port")
        path = self._paths.get(address)
        if len(self._connections) >= self.limits.max_connections or (
            path is not None and path.connections >= self.limits.max_connections_per_peer
        ):
            raise LocalProtocolError("too many connections are open: close some")
        ends = address + source + port.to_bytes(2, "big")
        for _ in range(_EPHEMERAL_COUNT):
            self._port_offset += 1
            flow = ends + (FIRST_EPHEMERAL + self._port_offset % _EPHEMERAL_COUNT).to_bytes(2, "big")
            if flow not in self._connections:
                break
        else:
            raise LocalProtocolError("every port towards that address is in use")
        connection = self._add(flow)
        connection.connect()
        self._paths[address].begin_dial(connection)
        return connection

    def listen(self, port: int | None, backlog: int = 1024, *, hold: bool = False) -> Listener:
        """Take connections to a port, or with None to every port that has no listener of its own."""
        if port in self._listeners:
            raise LocalProtocolError(f"port {port} has a listener already")
        listener = self._listeners[port] = Listener(self, port, backlog, hold)
        return listener

    def stop_listening(self, listener: Listener) -> None:
        """Its `close` calls this."""
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]
        for connection in [each for each, its in self._half_open.items() if its is listener]:
            connection.abort()

    def open_udp(self, port: int | None = 0, local_address: bytes | None = None) -> udp.UdpPort:
        """Bind a port; 0 takes a free one, and None every port that nobody has bound."""
        source = self._source(local_address)
        if port == 0:
            start = int.from_bytes(self._random(2), "big")
            free = (FIRST_EPHEMERAL + (start + each) % _EPHEMERAL_COUNT for each in range(_EPHEMERAL_COUNT))
            port = next((each for each in free if each not in self._udp_ports), 0)
        if port in self._udp_ports or not (port is None or 0 < port <= 0xFFFF):
            raise LocalProtocolError(f"UDP port {port} is in use or none")
        bound = self._udp_ports[port] = udp.UdpPort(source, port, self.limits, self._send)
        return bound

    def close_udp(self, port: udp.UdpPort) -> None:
        if self._udp_ports.get(port.port) is port:
            del self._udp_ports[port.port]

    def send_ping(self, address: bytes, token: bytes, local_address: bytes | None = None) -> None:
        """A TSMP ping with 8 bytes that come back in PongReceived."""
        source = self._source(local_address)
        self._out.append(build_packet(source, address, TSMP, tsmp.build_ping(token)))

    def send_echo(self, address: bytes, echo: icmp.Echo, local_address: bytes | None = None) -> None:
        """An ICMPv6 echo request, answered by EchoReceived."""
        source = self._source(local_address)
        self._out.append(icmp.build_echo(source, address, echo))

    def set_burst(self, address: bytes, segments: int) -> None:
        """How many segments the way to a peer takes at once: half of its relay's queue, or one GSO send."""
        self._bursts[address] = segments
        if address in self._paths:
            self._paths[address].burst_segments = segments

    def forget_peer(self, address: bytes) -> None:
        """A peer is gone: its connections end at once, by resets."""
        self._bursts.pop(address, None)
        for connection in [each for each in self._connections.values() if each.remote_address == address]:
            connection.abort()

    @property
    def has_output(self) -> bool:
        """Whether `packets_to_send` may have something: a user's call does not move `next_timeout`."""
        return bool(self.ready or self._out or self._sending)

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    def _source(self, wanted: bytes | None) -> bytes:
        """The address that something is sent from: the first, if none is wanted."""
        source = wanted if wanted is not None else next(iter(self._addresses), None)
        if source is None or source not in self._addresses:
            raise LocalProtocolError("the local address is none of this node's")
        return source

    def _send(self, packet: bytes) -> None:
        self._out.append(packet)

    # --- what connections tell (Owner) ---

    def happened(self, connection: Connection, what: int) -> None:
        if connection not in self._half_open:
            self._happened[connection] = None

    def established(self, connection: Connection) -> None:
        listener = self._half_open.pop(connection, None)
        path = self._paths[connection.remote_address]
        if listener is None:
            path.end_dial(connection)
            self.counters.connected += 1
            return
        path.half_open -= 1
        self.counters.accepted += 1
        if listener.hold:
            listener.pending -= 1
            self._happened[connection] = None
        else:
            listener.queue.append(connection)
            self._events.append(Happened(listener, What.CONNECTED))
            connection.pending = 0

    def forget(self, connection: Connection) -> None:
        del self._connections[connection.flow]
        self._resting.pop(connection, None)
        self._deadlines.clear(connection)
        path = self._paths[connection.remote_address]
        path.waiting.pop(connection, None)
        path.end_dial(connection)
        path.connections -= 1
        listener = self._half_open.pop(connection, None)
        if listener is not None:
            path.half_open -= 1
            listener.pending -= 1
            if listener.hold:
                self._happened[connection] = None
        if not path.connections:
            del self._paths[path.address]
            self._sending.pop(path, None)
            self._deadlines.clear(path)

    def rest(self, connection: Connection) -> None:
        self._resting[connection] = None
        if len(self._resting) > self.limits.max_time_wait:
            next(iter(self._resting)).end_rest()

    def grant_memory(self, size: int) -> bool:
        if size > self._memory_left:
            return False
        self._memory_left -= size
        return True

    def return_memory(self, size: int) -> None:
        self._memory_left += size

    def _add(self, flow: bytes) -> Connection:
        """A connection in its tables.  Its initial sequence number is RFC 6528's."""
        digest = hashlib.blake2s(flow, key=self._isn_key, digest_size=4).digest()
        isn = int.from_bytes(digest, "big") + int(self.now / _ISN_TICK_SECONDS)
        connection = self._connections[flow] = Connection(self, flow, isn & 0xFFFFFFFF)
        path = self._paths.get(connection.remote_address)
        if path is None:
            path = self._paths[connection.remote_address] = Path(connection.remote_address, self.limits)
            path.burst_segments = self._bursts.get(path.address, path.burst_segments)
        path.connections += 1
        return connection

    # --- packets in ---

    def receive_packets(self, packets: Iterable[Packet], now: float) -> list[Event]:
        """A batch of whole IPv6 packets, which may have padding behind them.  They are not kept: what is needed of
        them is copied.  That their source belongs to the peer who sealed them is the engine's to check."""
        self.now = now
        connections, unpack, verify = self._connections, RECEIVED.unpack_from, self.limits.verify_checksums
        count = segments = 0
        for packet in packets:
            count += 1
            if len(packet) >= PAYLOAD_AT:
                version, length, protocol, seq, ack, flags, window = unpack(packet)
                end = HEADER_BYTES + length
                if protocol == TCP and (connection := connections.get(bytes(packet[FLOW]))) is not None:
                    header = (flags >> 12) * 4
                    if (
                        version >> 4 == 6
                        and end <= len(packet)
                        and TCP_HEADER_BYTES <= header <= length
                        and not (verify and not is_intact(packet[:end], HEADER_BYTES, TCP))
                    ):
                        segments += 1
                        connection.receive_segment(packet, seq, ack, flags, window, end, now)
                        if connection.state is State.TIME_WAIT and flags & _SYN_MASK == SYN:
                            self._reuse(connection, packet, seq, end)
                        continue
            self._receive_other(packet)
        self.counters.packets_received += count
        self.counters.segments_received += segments
        return self.events()

    def events(self) -> list[Event]:
        """What happened since the last call, also by calls of users."""
        events, self._events = self._events, []
        if self._happened:
            for connection in self._happened:
                events.append(Happened(connection, connection.pending))
                connection.pending = 0
            self._happened.clear()
        return events

    def _drop(self, reason: Drop) -> None:
        self.counters.drops[reason] += 1

    def _may_reply(self, address: bytes) -> bool:
        """Whether one more reply goes to a peer; what goes unanswered is counted, whatever it was."""
        if self._replies.may_reply(address, self.now):
            return True
        self._drop(Drop.RATE_LIMITED)
        return False

    def _receive_other(self, packet: Packet) -> None:
        """Everything but a sound segment of a connection."""
        parsed = parse_packet(packet)
        if isinstance(parsed, Drop):
            self._drop(parsed)
            return
        protocol, offset, end = parsed
        source, destination = bytes(packet[8:24]), bytes(packet[24:HEADER_BYTES])
        if destination not in self._addresses:
            self._drop(Drop.NOT_FOR_US)
        elif not may_be_source(source):
            self._drop(Drop.BAD_SOURCE)
        elif protocol == TSMP:
            self._receive_tsmp(source, destination, packet[offset:end])
        elif protocol not in (TCP, UDP, ICMPV6):
            self._drop(Drop.UNKNOWN_PROTOCOL)
        elif (self.limits.verify_checksums or protocol == ICMPV6) and not is_intact(packet[:end], offset, protocol):
            self._drop(Drop.BAD_CHECKSUM)
        elif protocol == TCP:
            self._receive_tcp(packet, offset, end, source)
        elif protocol == UDP:
            self._receive_udp(packet, offset, end, source, destination)
        else:
            self._receive_icmp(packet[offset:end], source, destination)

    # --- TCP without a connection ---

    def _receive_tcp(self, packet: Packet, offset: int, end: int, source: bytes) -> None:
        if end - offset < TCP_HEADER_BYTES:
            self._drop(Drop.MALFORMED_TCP)
            return
        ports = bytes(packet[offset : offset + 4])
        seq, _, flags, window = struct.unpack_from("!IIHH", packet, offset + 4)
        header = (flags >> 12) * 4
        if not TCP_HEADER_BYTES <= header <= end - offset or ports[:2] == b"\0\0" or ports[2:] == b"\0\0":
            self._drop(Drop.MALFORMED_TCP)
            return
        flow = bytes(packet[8:HEADER_BYTES]) + ports
        if flow in self._connections:
            # It came behind extension headers; nobody genuine sends such, so it pays with a copy.
            plain = build_packet(source, flow[16:32], TCP, bytes(packet[offset:end]))
            ack = int.from_bytes(packet[offset + 8 : offset + 12], "big")
            self._connections[flow].receive_segment(plain, seq, ack, flags, window, len(plain), self.now)
            return
        if flags & _SYN_MASK == SYN:
            port = int.from_bytes(ports[2:], "big")
            listener = self._listeners.get(port) or self._listeners.get(None)
            if listener is not None:
                self._receive_syn(listener, flow, seq, packet[offset + TCP_HEADER_BYTES : offset + header])
                return
            self._drop(Drop.NO_LISTENER)
        else:
            self._drop(Drop.NO_CONNECTION)
        if self._may_reply(source):
            reset = build_reset(packet, offset, end)
            if reset is not None:
                self.counters.resets_sent += 1
                self._out.append(reset)

    def _receive_syn(self, listener: Listener, flow: bytes, seq: int, options: Packet) -> None:
        limits, path = self.limits, self._paths.get(flow[:16])
        if listener.pending >= listener.backlog or len(self._half_open) >= limits.max_half_open:
            self._drop(Drop.BACKLOG_FULL)
            return
        if path is not None and path.half_open >= limits.max_half_open_per_peer:
            self._drop(Drop.BACKLOG_FULL)
            return
        if len(self._connections) >= limits.max_connections or (
            path is not None and path.connections >= limits.max_connections_per_peer
        ):
            self._drop(Drop.TOO_MANY_CONNECTIONS)
            return
        parsed = parse_syn_options(options)
        if parsed is None:
            self._drop(Drop.MALFORMED_TCP)
            return
        connection = self._add(flow)
        self._half_open[connection] = listener
        self._paths[flow[:16]].half_open += 1
        listener.pending += 1
        connection.receive_first_syn(seq, parsed)
        if listener.hold:
            self._events.append(Happened(connection, What.INCOMING))
        else:
            connection.accept()

    def _reuse(self, connection: Connection, packet: Packet, seq: int, end: int) -> None:
        """A new SYN for a flow in TIME-WAIT begins anew, if its number is beyond the old one's (RFC 9293 section
        3.10.7.4, MAY-2)."""
        if connection.may_be_reused(seq):
            connection.end_rest()
            self._receive_tcp(packet, HEADER_BYTES, end, connection.remote_address)

    # --- the others ---

    def _receive_udp(self, packet: Packet, offset: int, end: int, source: bytes, destination: bytes) -> None:
        parsed = udp.parse(packet[offset:end])
        if isinstance(parsed, Drop):
            self._drop(parsed)
            return
        source_port, port, payload = parsed
        bound = self._udp_ports.get(port) or self._udp_ports.get(None)
        if bound is not None:
            if bound.add(udp.Datagram(source, source_port, destination, port, payload)):
                self._events.append(Happened(bound, What.READABLE))
            else:
                self._drop(Drop.UDP_QUEUE_FULL)
            return
        self._drop(Drop.NO_LISTENER)
        # What RFC 4443 section 2.4 e) forbids to answer is no datagram, or not for us, or from no possible source.
        if self._may_reply(source):
            kind, code = icmp.DESTINATION_UNREACHABLE, icmp.PORT_UNREACHABLE
            self._out.append(icmp.build_error(destination, source, kind, code, packet[:end]))

    def _receive_tsmp(self, source: bytes, destination: bytes, message: Packet) -> None:
        parsed = tsmp.parse(message)
        if isinstance(parsed, Drop):
            self._drop(parsed)
        elif isinstance(parsed, tsmp.Ping):
            if self._may_reply(source):
                self._out.append(build_packet(destination, source, TSMP, tsmp.build_pong(parsed.token)))
        elif isinstance(parsed, tsmp.Pong):
            self._events.append(PongReceived(source, parsed.token))
        elif isinstance(parsed, tsmp.DiscoKey):
            self._events.append(DiscoKeyReceived(source, parsed.key))
        elif parsed.protocol == TCP:
            flow = source + destination + struct.pack("!HH", parsed.destination_port, parsed.source_port)
            connection = self._connections.get(flow)
            if connection is not None:
                connection.receive_refusal(parsed.reason)

    def _receive_icmp(self, message: Packet, source: bytes, destination: bytes) -> None:
        parsed = icmp.parse(message)
        if isinstance(parsed, Drop):
            self._drop(parsed)
        elif isinstance(parsed, icmp.Echo):
            if parsed.is_reply:
                self._events.append(EchoReceived(source, parsed))
            elif self._may_reply(source):
                answer = icmp.Echo(True, parsed.identifier, parsed.sequence, parsed.payload)
                self._out.append(icmp.build_echo(destination, source, answer))
        elif parsed.source != destination or parsed.protocol != TCP:
            self._drop(Drop.SIDEWAYS_ERROR)
        else:
            ports = struct.pack("!HH", parsed.destination_port, parsed.source_port)
            connection = self._connections.get(parsed.destination + parsed.source + ports)
            if connection is None:
                self._drop(Drop.SIDEWAYS_ERROR)
            elif parsed.kind == icmp.PACKET_TOO_BIG:
                connection.receive_too_big(parsed.sequence, parsed.mtu)
            else:
                connection.receive_unreachable(parsed.sequence, port=parsed.code == icmp.PORT_UNREACHABLE)

    # --- packets out ---

    def packets_to_send(self, now: float) -> list[bytes]:
        """Whole packets in their order.  Each is one `bytes`: WireGuard seals it as it is."""
        self.now = now
        out, sending = self._out, self._sending
        ready, self.ready = self.ready, {}
        for connection in ready:
            connection.send_control(out, now)
            if connection.state is not State.CLOSED and connection.sender.has_work():
                path = self._paths[connection.remote_address]
                path.waiting.setdefault(connection)
                sending[path] = None
        if sending:
            for path in sending:
                at = path.send(out, ready, now)
                if at is None:
                    self._deadlines.clear(path)
                else:
                    self._deadlines.set(path, at)
            sending.clear()
        for connection in ready:
            connection.send_ack(out)
            connection.account()
            self._set_deadline(connection)
        self.counters.packets_sent += len(out)
        self._out = []
        return out

    # --- time ---

    def _set_deadline(self, connection: Connection) -> None:
        at = connection.next_deadline()
        if at is None:
            self._deadlines.clear(connection)
        else:
            self._deadlines.set(connection, at)

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        for connection in self.ready:
            self._set_deadline(connection)
        return self._deadlines.next_timeout()

    def handle_timeout(self, now: float) -> list[Event]:
        """Whatever is due by `now`; `packets_to_send` has what came of it."""
        self.now = now
        for due in self._deadlines.handle_timeout(now):
            if isinstance(due, Path):
                self._sending[due] = None
            else:
                due.on_deadline(now)
                self._set_deadline(due)
        return self.events()
