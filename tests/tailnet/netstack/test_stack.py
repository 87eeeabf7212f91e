"""The stack around connections: demultiplexing, ports, ICMPv6, TSMP, UDP, bounds."""

import struct
from collections.abc import Callable

import pytest

from tailnet.errors import LocalProtocolError
from tailnet.netstack import icmp, ip, tsmp, udp
from tailnet.netstack.events import End, What
from tailnet.netstack.limits import Drop, Limits
from tailnet.netstack.segment import ACK, RST, SYN, SegmentWriter, SynOptions, encode_syn_options
from tailnet.netstack.stack import DiscoKeyReceived, EchoReceived, Happened, PongReceived, Stack
from tailnet.netstack.states import State
from tests.support.netsim import ADDRESSES, Simulation, Stream

A, B = ADDRESSES
NOW = 1000.0
OPTIONS = encode_syn_options(SynOptions(1220, 7, True))


def make(limits: Limits | None = None) -> Stack:
    return Stack([A], lambda size: bytes(range(size)), NOW, limits)


def syn(port: int, to: int = 22, source: bytes = B, **kinds: int) -> bytes:
    return SegmentWriter(source, A, port, to).build(kinds.get("seq", 100), 0, SYN, 1000, options=OPTIONS)


def drops(stack: Stack) -> dict[Drop, int]:
    return dict(stack.counters.drops)


def test_echo() -> None:
    one, other = make(), Stack([B], bytes, NOW)
    one.send_echo(B, icmp.Echo(False, 7, 1, b"payload"))
    other.receive_packets(one.packets_to_send(NOW), NOW)
    assert one.receive_packets(other.packets_to_send(NOW), NOW) == [EchoReceived(B, icmp.Echo(True, 7, 1, b"payload"))]


def test_tsmp_ping() -> None:
    one, other = make(), Stack([B], bytes, NOW)
    one.send_ping(B, b"12345678")
    other.receive_packets(one.packets_to_send(NOW), NOW)
    assert one.receive_packets(other.packets_to_send(NOW), NOW) == [PongReceived(B, b"12345678")]


def test_a_disco_key_is_an_event() -> None:
    packet = ip.build_packet(B, A, ip.TSMP, b"a" + bytes(range(32)))
    assert make().receive_packets([packet], NOW) == [DiscoKeyReceived(B, bytes(range(32)))]


def test_replies_are_bounded() -> None:
    stack = make(Limits(replies_burst=5))
    ping = ip.build_packet(B, A, ip.TSMP, tsmp.build_ping(b"12345678"))
    echo = icmp.build_echo(B, A, icmp.Echo(False, 1, 1, b""))
    stray = SegmentWriter(B, A, 5, 6).build(1, 1, ACK, 0)
    unserved = udp.build(B, A, 1, 2, b"x")
    stack.receive_packets([ping, echo, stray, unserved] * 10, NOW)
    assert len(stack.packets_to_send(NOW)) == 5
    assert drops(stack)[Drop.RATE_LIMITED] == 40 - 5, "whatever it was"


def test_a_tsmp_refusal_ends_a_dial() -> None:
    stack = make()
    connection = stack.connect(B, 22)
    stack.packets_to_send(NOW)
    ports = struct.pack("!HH", connection.local_port, 22)
    packet = ip.build_packet(B, A, ip.TSMP, b"!" + bytes((ip.TCP, ord("S"))) + ports)
    assert stack.receive_packets([packet], NOW) == [Happened(connection, What.RESET | What.CLOSED)]
    assert connection.end is End.REFUSED
    assert "shields up" in connection.reason


def test_udp_both_ways() -> None:
    one, other = make(), Stack([B], bytes, NOW)
    server, client = other.open_udp(53), one.open_udp()
    client.send(B, 53, b"question")
    (event,) = other.receive_packets(one.packets_to_send(NOW), NOW)
    assert event == Happened(server, What.READABLE)
    assert client.port is not None
    assert server.receive() == (A, client.port, B, 53, b"question")
    server.send(A, client.port, b"answer")
    one.receive_packets(other.packets_to_send(NOW), NOW)
    assert client.receive() == (B, 53, A, client.port, b"answer")
    one.close_udp(client)
    with pytest.raises(LocalProtocolError):
        other.open_udp(53)


def test_udp_to_ports_that_nobody_has_bound() -> None:
    stack = make()
    bound, rest = stack.open_udp(53), stack.open_udp(None)
    packets = [udp.build(B, A, 1000, port, b"question") for port in (53, 54, 65535)]
    assert [each.subject for each in stack.receive_packets(packets, NOW) if isinstance(each, Happened)] == [
        bound,
        rest,
        rest,
    ]
    assert [rest.receive(), rest.receive(), rest.receive()] == [
        (B, 1000, A, 54, b"question"),
        (B, 1000, A, 65535, b"question"),
        None,
    ]
    with pytest.raises(LocalProtocolError):
        stack.open_udp(None)
    stack.close_udp(rest)
    stack.receive_packets(packets, NOW)
    assert len(stack.packets_to_send(NOW)) == 2, "unreachable, as before"


def test_datagrams_of_which_too_many_wait_are_counted() -> None:
    stack = make(Limits(udp_queue_datagrams=3))
    port = stack.open_udp(53)
    assert len(stack.receive_packets([udp.build(B, A, 1, 53, b"question")] * 5, NOW)) == 3
    assert drops(stack) == {Drop.UDP_QUEUE_FULL: 2}
    assert stack.packets_to_send(NOW) == []
    assert port.receive() == (B, 1, A, 53, b"question")


def test_udp_to_nobody_is_unreachable() -> None:
    stack = make()
    stack.receive_packets([udp.build(B, A, 1234, 53, b"question")], NOW)
    (packet,) = stack.packets_to_send(NOW)
    parsed = icmp.parse(packet[40:])
    assert isinstance(parsed, icmp.PacketError)
    assert (parsed.kind, parsed.code, parsed.source_port, parsed.destination_port) == (1, 4, 1234, 53)


@pytest.mark.parametrize(
    ("packet", "answers"),
    [
        (udp.build(B, A, 1, 2, b""), [icmp.DESTINATION_UNREACHABLE]),
        (icmp.build_echo(B, A, icmp.Echo(False, 1, 1, b"")), [icmp.ECHO_REPLY]),
        (icmp.build_error(B, A, 1, 4, udp.build(A, B, 1, 2, b"")), []),
        (icmp.build_error(B, A, 100, 0, udp.build(A, B, 1, 2, b"")), []),
        (udp.build(B, b"\xff\x02" + bytes(14), 1, 2, b""), []),
        (udp.build(b"\xff\x02" + bytes(14), A, 1, 2, b""), []),
        (b"nonsense" * 8, []),
    ],
)
def test_errors_are_never_answered_with_errors(packet: bytes, answers: list[int]) -> None:
    """And nothing that has to do with multicast (RFC 4443 section 2.4 e)."""
    stack = make()
    stack.receive_packets([packet], NOW)
    assert [answer[40] for answer in stack.packets_to_send(NOW)] == answers


@pytest.mark.parametrize(("code", "end"), [(4, End.REFUSED), (0, End.UNREACHABLE)])
def test_an_unreachable_ends_a_dial_and_nothing_else(code: int, end: End) -> None:
    stack = make()
    connection = stack.connect(B, 22)
    (packet,) = stack.packets_to_send(NOW)
    forged = bytearray(packet)
    forged[44] ^= 1
    stack.receive_packets([icmp.build_error(B, A, 1, code, forged)], NOW)
    assert connection.state is State.SYN_SENT, "another sequence number"
    stack.receive_packets([icmp.build_error(B, A, 1, code, packet)], NOW)
    assert connection.end is end
    simulation = Simulation()
    source, _ = simulation.pair()
    source.send(b"x")
    (packet,) = simulation.stacks[0].packets_to_send(simulation.now)
    simulation.stacks[0].receive_packets([icmp.build_error(B, A, 1, 4, packet)], simulation.now)
    assert source.state is State.ESTABLISHED
    assert drops(simulation.stacks[0])[Drop.SIDEWAYS_ERROR] == 1


def test_a_packet_too_big_shortens_the_segments() -> None:
    limits = Limits(mtu=1400)
    simulation = Simulation(limits=limits)

    def tap(side: int, packet: bytes) -> bytes | None:
        if len(packet) <= 1300:
            return packet
        error = icmp.build_error(ADDRESSES[1 - side], ADDRESSES[side], icmp.PACKET_TOO_BIG, 0, packet, 1300)
        simulation.stacks[side].receive_packets([error], simulation.now)
        return None

    source, target = simulation.pair()
    simulation.tap = tap
    data = simulation.random.randbytes(100_000)
    stream = Stream(simulation, source, target, data)
    simulation.run(60, lambda: stream.is_done)
    assert bytes(stream.got) == data
    assert source.sender.mss == 1240


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", Drop.TRUNCATED),
        (b"\x45" + bytes(60), Drop.NOT_IPV6),
        (ip.build_packet(B, B, ip.UDP, bytes(8)), Drop.NOT_FOR_US),
        (udp.build(bytes(16), A, 1, 2, b""), Drop.BAD_SOURCE),
        (ip.build_packet(B, A, 132, bytes(8)), Drop.UNKNOWN_PROTOCOL),
        (ip.build_packet(B, A, ip.FRAGMENT, bytes(8)), Drop.FRAGMENT),
        (ip.build_packet(B, A, ip.TCP, bytes(20)), Drop.BAD_CHECKSUM),
        (ip.build_packet(B, A, ip.UDP, bytes(8)), Drop.BAD_CHECKSUM),
        (ip.build_checked(B, A, ip.TCP, bytes(19), 16), Drop.MALFORMED_TCP),
        (ip.build_checked(B, A, ip.TCP, bytes(20), 16), Drop.MALFORMED_TCP),
        (ip.build_checked(B, A, ip.UDP, bytes(8), 6), Drop.MALFORMED_UDP),
        (ip.build_checked(B, A, ip.ICMPV6, bytes(4), 2), Drop.MALFORMED_ICMP),
        (ip.build_packet(B, A, ip.TSMP, b"z"), Drop.MALFORMED_TSMP),
        (syn(5000), Drop.NO_LISTENER),
        (SegmentWriter(B, A, 1, 2).build(0, 0, ACK, 0), Drop.NO_CONNECTION),
    ],
)
def test_what_is_dropped_is_counted(packet: bytes, reason: Drop) -> None:
    stack = make()
    stack.receive_packets([packet], NOW)
    assert drops(stack) == {reason: 1}
    again = make()
    again.receive_packets([memoryview(packet)], NOW)
    assert drops(again) == {reason: 1}


@pytest.mark.parametrize("hold", [False, True])
def test_a_syn_with_malformed_options_is_nobodys_connection(hold: bool) -> None:
    stack = make()
    listener = stack.listen(22, hold=hold)
    packet = SegmentWriter(B, A, 5000, 22).build(100, 0, SYN, 1000, options=b"\2\x08\0\0")
    assert stack.receive_packets([packet], NOW) == []
    assert drops(stack) == {Drop.MALFORMED_TCP: 1}
    assert (stack.connection_count, listener.pending) == (0, 0)
    assert stack.packets_to_send(NOW) == []


def test_what_passes_is_counted() -> None:
    simulation = Simulation()
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, bytes(12_200))
    simulation.run(1, lambda: stream.is_done)
    target.abort()
    simulation.run(1)
    ours, theirs = (stack.counters for stack in simulation.stacks)
    there, back = (link.sent for link in simulation.links)
    assert (ours.packets_sent, theirs.packets_received, theirs.segments_received) == (there, there, there - 1), "a SYN"
    assert (theirs.packets_sent, ours.packets_received, ours.segments_received) == (back, back, back)
    assert (ours.segments_sent, theirs.segments_sent) == (10, 0)
    assert (ours.connected, theirs.accepted) == (1, 1)
    assert (ours.resets_received, theirs.resets_sent) == (1, 1)


def test_a_wrong_checksum_is_not_taken_unless_it_is_not_looked_at() -> None:
    for verify in (True, False):
        stack = make(Limits(verify_checksums=verify))
        stack.listen(22)
        packet = bytearray(syn(5000))
        packet[56] ^= 1
        stack.receive_packets([packet], NOW)
        assert stack.connection_count == (0 if verify else 1)


def test_a_port_nobody_listens_on_is_reset() -> None:
    stack = make()
    stack.receive_packets([syn(5000)], NOW)
    (packet,) = stack.packets_to_send(NOW)
    assert struct.unpack_from("!HHIIH", packet, 40) == (22, 5000, 0, 101, RST | ACK | 0x5000)


def test_segments_behind_extension_headers_arrive() -> None:
    stack = make()
    listener = stack.listen(22)
    for plain in (syn(5000), None):
        if plain is None:
            (answer,) = stack.packets_to_send(NOW)
            iss = int.from_bytes(answer[44:48], "big")
            plain = SegmentWriter(B, A, 5000, 22).build(101, iss + 1, ACK, 1000, b"data")
        body = bytes((ip.TCP, 0)) + bytes(6) + plain[40:]
        stack.receive_packets([ip.build_packet(B, A, ip.DESTINATION_OPTIONS, body)], NOW)
    connection = listener.accept()
    assert connection is not None
    assert connection.receive(10) == b"data"


@pytest.mark.parametrize("verify", [True, False])
def test_padding_behind_a_packet_is_no_data(verify: bool) -> None:
    simulation = Simulation(limits=Limits(verify_checksums=verify))
    simulation.tap = lambda side, packet: packet + bytes(-len(packet) % 16)
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, b"x" * 3333)
    simulation.run(5, lambda: stream.is_done)
    assert bytes(stream.got) == b"x" * 3333


def test_connections_are_bounded_in_all_and_for_each_peer() -> None:
    stack = make(Limits(max_connections=10, max_connections_per_peer=6))
    stack.listen(22)
    others = [bytes(15) + bytes((number,)) for number in (7, 8)]
    others = [b"\xfd" + each[1:] for each in others]
    stack.receive_packets([syn(port, source=others[0]) for port in range(1, 20)], NOW)
    assert stack.connection_count == 6
    stack.receive_packets([syn(port, source=others[1]) for port in range(1, 20)], NOW)
    assert stack.connection_count == 10
    assert drops(stack)[Drop.TOO_MANY_CONNECTIONS] == 13 + 15
    with pytest.raises(LocalProtocolError, match="too many"):
        stack.connect(B, 1)


def test_a_listener_has_a_backlog() -> None:
    stack = make()
    listener = stack.listen(22, backlog=3)
    stack.receive_packets([syn(port) for port in range(1, 11)], NOW)
    assert (stack.connection_count, drops(stack)[Drop.BACKLOG_FULL]) == (3, 7)
    listener.close()
    assert stack.connection_count == 0


def test_time_wait_is_bounded() -> None:
    simulation = Simulation(limits=Limits(max_time_wait=5))
    listener = simulation.stacks[1].listen(80)
    for _ in range(12):
        source, target = simulation.dial(listener)
        source.close()
        simulation.run(0.1)
        target.close()
        simulation.run(0.1)
    assert simulation.stacks[0].connection_count == 5
    assert simulation.stacks[1].connection_count == 0
    simulation.run(61)
    assert simulation.stacks[0].connection_count == 0


def test_windows_share_the_memory_of_a_node_and_give_it_back() -> None:
    limits = Limits(total_receive_bytes=1_000_000)
    simulation = Simulation(limits=limits)
    offered = []
    pairs = []
    for number in range(4):
        pair = simulation.pair(port=100 + number)
        pairs.append(pair)
        assert pair[0].receiver is not None
        offered.append(pair[0].receiver.buffer_bytes)
    assert offered == [512 * 1024] * 2 + [64 * 1024] * 2
    for one, other in pairs:
        one.abort()
        simulation.run(0.1)
        assert other.state is State.CLOSED
    assert [stack._memory_left for stack in simulation.stacks] == [1_000_000] * 2


def test_ports_are_chosen_at_random_places_and_never_twice() -> None:
    stack = make()
    ports = {stack.connect(B, 80).local_port for _ in range(1000)}
    assert len(ports) == 1000
    assert min(ports) >= 49152


def test_a_forgotten_peer_is_left_without_a_trace() -> None:
    simulation = Simulation()
    for port in (1, 2):
        simulation.pair(port)
    simulation.stacks[0].forget_peer(B)
    simulation.run(1)
    stack = simulation.stacks[0]
    assert stack.connection_count == 0
    assert stack._paths == {}
    assert len(stack._deadlines) == 0
    assert simulation.stacks[1].connection_count == 0, "they heard of it"


@pytest.mark.parametrize(("address", "port"), [(bytes(16), 1), (b"\xff" * 16, 1), (B[:4], 1), (B, 0), (B, 65536)])
def test_dials_that_make_no_sense(address: bytes, port: int) -> None:
    with pytest.raises(LocalProtocolError):
        make().connect(address, port)


def test_it_tells_that_users_left_something_to_send() -> None:
    stack = make()
    assert not stack.has_output
    stack.connect(B, 80)
    assert stack.has_output
    stack.packets_to_send(NOW)
    assert not stack.has_output
    stack.send_ping(B, b"12345678")
    assert stack.has_output


def test_what_a_listener_refuses() -> None:
    stack = make()
    stack.listen(22)
    with pytest.raises(LocalProtocolError, match="22"):
        stack.listen(22)
    with pytest.raises(LocalProtocolError, match="local address"):
        stack.connect(B, 22, B)


USES: list[Callable[[Stack, bytes | None], object]] = [
    lambda stack, source: stack.connect(B, 22, source),
    lambda stack, source: stack.send_ping(B, b"12345678", source),
    lambda stack, source: stack.send_echo(B, icmp.Echo(False, 1, 1, b""), source),
    lambda stack, source: stack.open_udp(53, source).send(B, 53, b"x"),
]


@pytest.mark.parametrize("use", USES, ids=["connect", "ping", "echo", "udp"])
def test_the_source_is_the_first_address_or_the_one_that_was_named(
    use: Callable[[Stack, bytes | None], object],
) -> None:
    addresses = [b"\xfd" + bytes((number,)) * 15 for number in range(1, 9)]
    for wanted, source in ((None, addresses[0]), (addresses[5], addresses[5])):
        stack = Stack(addresses, bytes, NOW)
        use(stack, wanted)
        assert [packet[8:24] for packet in stack.packets_to_send(NOW)] == [source]
    for stack, foreign in ((make(), B), (Stack([], bytes, NOW), None)):
        with pytest.raises(LocalProtocolError, match="none of this node's"):
            use(stack, foreign)
