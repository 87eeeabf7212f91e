"""What is thrown at the netstack, and the law: nothing raises, what it answers is a whole packet, and tables add up.

`packet` is anything on the wire to a node with listeners, ports and live connections; `segments` are a script of header
fields around what a live connection expects, so that they get further than chance; the others are the codecs alone.
"""

import random
from typing import Final

from tailnet.netstack import icmp, ip, segment, tsmp, udp
from tailnet.netstack.connection import Connection
from tailnet.netstack.limits import Drop, Limits
from tailnet.netstack.scoreboard import DELIVERED, UNDER_WAY
from tailnet.netstack.segment import ACK, FIN, PSH, RST, SYN, SegmentWriter, SynOptions, encode_sack, encode_syn_options
from tailnet.netstack.stack import Stack
from tailnet.netstack.states import SYNCHRONIZED, State
from tests.fuzz.laws import Target
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
PORT: Final = 5000
START: Final = 1000.0
LIMITS: Final = Limits(max_pieces=8, min_receive_bytes=4000, first_receive_bytes=8000, verify_checksums=False)
OPTIONS: Final = encode_syn_options(SynOptions(1220, 7, True))


class Node:
    """A stack at A with a connection from B, and what it has sent."""

    def __init__(self) -> None:
        self.now = START
        self.stack = Stack([A], random.Random(1).randbytes, START, LIMITS)
        self.listener = self.stack.listen(22)
        self.stack.listen(None, hold=True)
        self.stack.open_udp(53)
        self.writer = SegmentWriter(B, A, PORT, 22)
        self.stack.receive_packets([self.writer.build(0, 0, SYN, 60_000, options=OPTIONS)], START)
        (answer,) = self.packets()
        self.ours = int.from_bytes(answer[44:48], "big") + 1
        self.stack.receive_packets([self.writer.build(1, self.ours, ACK, 1000)], START)
        connection = self.listener.accept()
        assert connection is not None
        self.connection: Connection = connection
        connection.send(bytes(10_000))
        self.packets()

    def packets(self) -> list[bytes]:
        """What it sends now: whole packets with right sums, none longer than the MTU."""
        sent = self.stack.packets_to_send(self.now)
        for packet in sent:
            parsed = ip.parse_packet(packet)
            assert not isinstance(parsed, Drop), parsed
            protocol, offset, end = parsed
            assert end == len(packet) <= LIMITS.mtu
            assert packet[8:24] == A
            assert protocol == ip.TSMP or ip.is_intact(packet, offset, protocol)
        return sent

    def wait(self, seconds: float) -> None:
        """Time passes, punctually."""
        end = self.now + seconds
        while (at := self.stack.next_timeout()) is not None and at <= end:
            assert at >= self.now
            self.now = at
            self.stack.handle_timeout(at)
            self.packets()
            following = self.stack.next_timeout()
            assert following is None or following > at
        self.now = end

    def check(self) -> None:
        """Tables add up, and bounds are kept."""
        stack = self.stack
        paths = stack._paths.values()
        assert sum(path.connections for path in paths) == stack.connection_count <= LIMITS.max_connections
        assert sum(path.half_open for path in paths) == len(stack._half_open)
        assert 0 <= stack._memory_left <= LIMITS.total_receive_bytes
        for connection in stack._connections.values():
            assert connection.state is not State.CLOSED
            receiver, board = connection.receiver, connection.sender.board
            if receiver is not None:
                assert len(receiver.reassembly.pieces) <= LIMITS.max_pieces
                assert receiver.reassembly.nxt <= receiver.edge + 1
                assert receiver.reassembly.waiting <= LIMITS.max_receive_bytes
            if connection.state in SYNCHRONIZED:
                held = board._segments[board._head :]
                assert board.una <= board.nxt
                assert board.pipe == sum(each.end - each.start for each in held if each.state == UNDER_WAY)
                assert board.sacked_count == sum(each.state == DELIVERED for each in held)
                assert connection.sender.cubic.cwnd >= connection.sender.mss


def fuzz_packet(data: bytes) -> None:
    node = Node()
    for piece in (data, memoryview(data)):
        node.stack.receive_packets([piece], node.now)
        node.packets()
        node.check()
    node.wait(3.0)
    node.check()


_FLAGS: Final = (ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK, 0, FIN)
_STEPS: Final = (0, 1, -1, 2, 100, 1219, 1220, 1221, 5000, -5000, 1 << 20, -(1 << 20), 1 << 31)


def fuzz_segments(data: bytes) -> None:
    """Six bytes a segment: what it says relative to what is expected."""
    node = Node()
    connection = node.connection
    for at in range(0, len(data) - 5, 6):
        kind, seq_step, ack_step, size, window, more = data[at : at + 6]
        receiver = connection.receiver
        assert receiver is not None
        board = connection.sender.board
        seq = receiver.reassembly.nxt + _STEPS[seq_step % len(_STEPS)]
        number = board.una + _STEPS[ack_step % len(_STEPS)]
        options = b""
        if more % 3 == 1:
            first = board.una + 1220 * (more >> 4)
            options = encode_sack([(first, first + 1220 * (size % 9)), (first - more, first + size)])
        flags = _FLAGS[kind % len(_FLAGS)]
        packet = node.writer.build(seq, number, flags, window << 2, bytes(size * 7 % 1221), options)
        node.stack.receive_packets([packet] * (1 + (more == 255)), node.now)
        match more % 7:
            case 2:
                connection.receive(size * 20)
            case 3 if connection.state is State.ESTABLISHED and not connection.sender.fin_queued:
                connection.send(bytes(size * 40))
            case 4:
                node.wait(size / 100)
            case 5 if more > 250:
                connection.close()
            case 6 if more > 250:
                connection.send_eof()
        node.packets()
        node.check()
    node.wait(400)
    node.check()


def fuzz_codecs(data: bytes) -> None:
    segment.parse_sack(data)
    options = segment.parse_syn_options(data)
    if options is not None:
        assert segment.parse_syn_options(encode_syn_options(options)) == options
    tsmp.parse(data)
    parsed = udp.parse(data)
    if not isinstance(parsed, Drop):
        source, destination, payload = parsed
        assert udp.parse(udp.build(B, A, source, destination, payload)[40:]) == parsed
    message = icmp.parse(data)
    if isinstance(message, icmp.Echo):
        assert icmp.parse(icmp.build_echo(B, A, message)[40:]) == message
    segment.build_reset(data, 0, len(data)) if len(data) >= 40 else None


_W: Final = SegmentWriter(B, A, PORT, 22)
PACKETS: Final = [
    _W.build(1, 1, ACK, 1000, b"data"),
    _W.build(1, 1, ACK, 1000, b"data", encode_sack([(1, 2), (5, 9)])),
    SegmentWriter(B, A, 9, 22).build(1, 0, SYN, 1000, options=OPTIONS),
    SegmentWriter(B, A, 9, 80).build(1, 0, SYN, 1000, options=OPTIONS),
    SegmentWriter(B, A, 9, 80).build(1, 1, RST, 0),
    udp.build(B, A, 1, 53, b"question"),
    udp.build(B, A, 1, 54, b"question"),
    icmp.build_echo(B, A, icmp.Echo(False, 1, 2, b"abc")),
    icmp.build_error(B, A, 1, 4, _W.build(1, 1, ACK, 0)),
    icmp.build_error(B, A, 2, 0, _W.build(1, 1, ACK, 0), 1280),
    ip.build_packet(B, A, ip.TSMP, b"p12345678"),
    ip.build_packet(B, A, ip.TSMP, b"!\x06A\0\x09\0\x16"),
    ip.build_packet(B, A, ip.TSMP, b"a" + bytes(32)),
    ip.build_packet(B, A, ip.HOP_BY_HOP, bytes((ip.TCP, 0)) + bytes(6) + _W.build(1, 1, ACK, 9, b"x")[40:]),
]
# A congestion window of nothing, in a recovery with nothing under way.
FOUND: Final = bytes.fromhex(
    "52bd5e9b79523e147b11f4040b1cf0cc40ee57b912d42d783ff85b59dffe3a6ce75b6a6c1f670e88e347fa11aa358682539e7c1704afa0ef5695"
    "113c0e770dad0748325f1850a3616e40c1fb"
)
TARGETS: Final[dict[str, tuple[Target, list[bytes]]]] = {
    "packet": (fuzz_packet, PACKETS),
    "segments": (
        fuzz_segments,
        [bytes((0, 0, 0, 100, 250, 0)) * 5, bytes(range(60)), bytes((1, 4, 7, 9, 3, 1)) * 9, FOUND],
    ),
    "codecs": (fuzz_codecs, [packet[40:] for packet in PACKETS] + [OPTIONS, encode_sack([(1, 2)])]),
}
