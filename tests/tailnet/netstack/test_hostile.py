"""Peers that lie, flood, or fall silent: what it costs is bounded, and a count says why."""

import random
import struct
from itertools import pairwise

import pytest

from tailnet.netstack import ip
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import End
from tailnet.netstack.limits import Drop, Limits
from tailnet.netstack.segment import ACK, FIN, PSH, RST, SYN, SegmentWriter, SynOptions, encode_sack, encode_syn_options
from tailnet.netstack.stack import Happened, Stack
from tailnet.netstack.states import State
from tests.support.netsim import ADDRESSES, Link, Simulation, Stream
from tests.tailnet.netstack.test_connection import ISN, dialled

A, B = ADDRESSES
NOW = 1000.0


def syn(port: int, *, to: int = 22, source: bytes = B, seq: int = 100, mss: int = 1220) -> bytes:
    options = encode_syn_options(SynOptions(mss, 7, True))
    return SegmentWriter(source, A, port, to).build(seq, 0, SYN, 1000, options=options)


def make(limits: Limits | None = None) -> Stack:
    return Stack([A], random.Random(1).randbytes, NOW, limits)


def test_a_flood_of_syns_is_bounded_and_ends() -> None:
    stack = make(Limits(max_half_open=100, max_half_open_per_peer=80))
    stack.listen(22, backlog=1000)
    strangers = [b"\xfd" + bytes(14) + bytes((number,)) for number in range(1, 4)]
    for stranger in strangers:
        stack.receive_packets([syn(port, source=stranger) for port in range(1, 1001)], NOW)
    assert stack.connection_count == 100
    assert stack.counters.drops[Drop.BACKLOG_FULL] == 3000 - 100
    assert len(stack.packets_to_send(NOW)) == 100, "nothing is said to those who are too many"
    sent = 0
    while (at := stack.next_timeout()) is not None:
        stack.handle_timeout(at)
        sent += len(stack.packets_to_send(at))
    assert at is None
    assert stack.connection_count == 0
    assert sent == 5 * 100
    assert stack._paths == {}
    assert not stack._half_open


def test_ten_thousand_connections() -> None:
    """One peer opens them all, sends a byte on each and falls silent: memory and time are those of the bound."""
    stack = make()
    listener = stack.listen(22, backlog=20_000)
    for port in range(1, 10_001):
        stack.receive_packets([syn(port)], NOW)
        for answer in stack.packets_to_send(NOW):
            iss = int.from_bytes(answer[44:48], "big")
            stack.receive_packets([SegmentWriter(B, A, port, 22).build(101, iss + 1, ACK | PSH, 1000, b"x")], NOW)
    accepted = 0
    while listener.accept() is not None:
        accepted += 1
    limits = stack.limits
    assert accepted == stack.connection_count == limits.max_connections_per_peer
    assert stack.counters.drops[Drop.TOO_MANY_CONNECTIONS] == 10_000 - accepted
    assert stack._memory_left >= 0


def test_a_window_shut_for_ever_holds_what_it_may_and_no_more() -> None:
    peer, connection = dialled()
    taken = 0
    while size := connection.send(bytes(100_000)):
        taken += size
    assert taken <= peer.stack.limits.max_send_bytes
    peer.send(1, 1, 0, window=0)
    peer.sent()
    packets = 0
    for _ in range(100):
        for seq, *_ in peer.wait(60):
            packets += 1
            if seq == 0 or peer.stack.counters.probes:
                peer.send(1, 1, 0, window=0)
    assert connection.state is not State.CLOSED or connection.end is End.TIMED_OUT
    assert packets < 250, "a hundred minutes at one packet a minute, and the beginning"


def test_a_shut_window_after_close_is_given_up() -> None:
    """Nobody is left who could be told to wait."""
    simulation = Simulation(1, Link(0.01), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, bytes(2_000_000))
    stream.paused = True
    simulation.run(5)
    source.close()
    simulation.run(300)
    assert source.state is State.CLOSED
    assert simulation.stacks[0].connection_count == 0


def test_a_peer_that_never_acknowledges() -> None:
    peer, connection = dialled()
    connection.send(bytes(200_000))
    sent = len(peer.sent()) + len(peer.wait(300))
    assert connection.end is End.TIMED_OUT
    assert sent < 10 + 15 + 20
    assert peer.stack.connection_count == 0


def test_a_peer_that_acknowledges_the_same_for_ever() -> None:
    """It answers, and takes nothing: that is no progress."""
    peer, connection = dialled()
    connection.send(bytes(200_000))
    peer.sent()
    for _ in range(300):
        for _ in peer.wait(1):
            peer.send(1, 1, 0)
    assert connection.end is End.TIMED_OUT


def test_tiny_segments_are_not_forced_upon_us() -> None:
    stack = make()
    listener = stack.listen(22)
    stack.receive_packets([syn(5, mss=1)], NOW)
    (answer,) = stack.packets_to_send(NOW)
    iss = int.from_bytes(answer[44:48], "big")
    stack.receive_packets([SegmentWriter(B, A, 5, 22).build(101, iss + 1, ACK, 60000)], NOW)
    connection = listener.accept()
    assert connection is not None
    connection.send(bytes(2160))
    assert [len(packet) - 60 for packet in stack.packets_to_send(NOW)] == [216] * 10


@pytest.mark.parametrize("step", [2, 3])
def test_pieces_of_one_byte_are_bounded(step: int) -> None:
    peer, connection = dialled()
    for at in range(2, 20_000, step):
        peer.send(at, 1, 0, b"x")
    assert peer.stack.counters.drops[Drop.TOO_MANY_PIECES] > 0
    receiver = connection.receiver
    assert receiver is not None
    assert len(receiver.reassembly.pieces) == peer.stack.limits.max_pieces
    peer.send(1, 1, 0, bytes(1000))
    assert connection.readable_bytes >= 1000, "what is in order is taken all the same"


def test_overlaps_do_not_change_what_came_first() -> None:
    peer, connection = dialled()
    peer.send(5, 1, 0, b"EEEE")
    peer.send(3, 1, 0, b"cccccccc")
    peer.send(1, 1, PSH, b"aaaaaaaaaaaa")
    assert connection.receive(100) == b"aaccEEEEccaa"


@pytest.mark.parametrize("at", [-100_000, -1, 5_000_000, 1 << 31])
def test_segments_outside_of_the_window_cost_a_bounded_answer(at: int) -> None:
    peer, connection = dialled()
    answers = 0
    for _ in range(100):
        peer.send(at, 1, 0, b"x")
        answers += len(peer.sent())
    assert connection.readable_bytes == 0
    assert answers <= 10
    assert peer.stack.counters.drops[Drop.OUTSIDE_WINDOW] == 100


def test_a_batch_of_duplicates_costs_one_answer() -> None:
    peer, _ = dialled()
    writer = SegmentWriter(B, A, *peer.ports)
    packet = writer.build(ISN + 1, peer.ours + 1, ACK, 1000, b"hello")
    peer.stack.receive_packets([packet] * 1000, peer.now)
    assert len(peer.stack.packets_to_send(peer.now)) == 1
    assert peer.stack.counters.duplicate_bytes == 999 * 5


def test_lies_about_what_arrived_send_nothing_twice() -> None:
    """Blocks of what was never sent, of nothing, and backwards."""
    peer, connection = dialled()
    connection.send(bytes(12_200))
    assert len(peer.sent()) == 10
    ours = peer.ours
    lies = [(1 << 20, 1 << 21), (5000, 5000), (9000, 4000), (0x7FFFFFFF, 0x8FFFFFFF)]
    for _ in range(50):
        peer.send(1, 1, 0, options=encode_sack([(ours + a, ours + b) for a, b in lies]))
    assert peer.sent() == []
    assert peer.stack.counters.drops[Drop.BAD_SACK] >= 50
    assert connection.sender.board.pipe == 12_200


def test_a_peer_that_takes_back_what_it_told() -> None:
    peer, connection = dialled()
    connection.send(bytes(range(256)) * 40)
    peer.sent()
    peer.send(1, 1, 0, options=encode_sack([(peer.ours + 1221, peer.ours + 10_241)]))
    peer.sent()
    peer.send(1, 1221, 0)
    resent = b""
    for _ in range(40):
        for seq, _, _, payload in peer.wait(1):
            if seq == 1 + 1220 + len(resent):
                resent += payload
                peer.send(1, 1221 + len(resent), 0)
        if len(resent) == 10_240 - 1220:
            break
    assert resent == (bytes(range(256)) * 40)[1220:]


def test_optimistic_acknowledgements_are_not_believed() -> None:
    """Of what was never sent; what was sent and lost is the liar's own loss."""
    peer, connection = dialled()
    connection.send(bytes(100_000))
    first = len(peer.sent())
    before = connection.sender.cubic.cwnd
    for ahead in range(20):
        peer.send(1, 12_202 + ahead * 1220, 0)
    assert connection.sender.cubic.cwnd == before
    assert first == 10
    assert peer.stack.counters.drops[Drop.BAD_ACK] == 20


def test_initial_numbers_cannot_be_told_from_each_other() -> None:
    stack = make()
    first = [int.from_bytes(packet[44:48], "big") for packet in _dial(stack, 16)]
    gaps = {(b - a) & 0xFFFFFFFF for a, b in pairwise(first)}
    assert len(gaps) == len(first) - 1
    other = Stack([A], random.Random(2).randbytes, NOW)
    assert not {int.from_bytes(packet[44:48], "big") for packet in _dial(other, 16)} & set(first)


def _dial(stack: Stack, count: int) -> list[bytes]:
    for _ in range(count):
        stack.connect(B, 80)
    return stack.packets_to_send(NOW)


def test_urgent_data_is_data() -> None:
    peer, connection = dialled()
    packet = bytearray(SegmentWriter(B, A, *peer.ports).build(ISN + 1, peer.ours + 1, ACK | 0x20, 1000, b"urgent"))
    packet[58:60] = b"\0\3"
    packet[56:58] = bytes(2)
    total = ip.checksum_sum(bytes(packet[40:]), ip.pseudo_sum(B, A, ip.TCP) + len(packet) - 40)
    packet[56:58] = ip.finish_checksum(total).to_bytes(2, "big")
    peer.stack.receive_packets([packet], peer.now)
    assert connection.receive(100) == b"urgent"


def test_segments_at_random_never_break_a_connection_for_good() -> None:
    """A blind forger (any numbers) neither ends the connection nor changes its bytes."""
    chance = random.Random(3)
    simulation = Simulation(3, Link(0.01), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, simulation.random.randbytes(300_000))
    forger = SegmentWriter(A, B, source.local_port, 80)

    def tap(side: int, packet: bytes) -> bytes:
        if side == 0:
            flags = chance.choice([ACK, RST, SYN, FIN | ACK, RST | ACK, PSH | ACK, SYN | ACK])
            seq = target.receiver.reassembly.nxt + chance.randrange(2_000_000, 1 << 31) if target.receiver else 0
            forged = forger.build(seq, chance.getrandbits(32), flags, 1000, b"forged" * chance.randrange(2))
            simulation._later(simulation.now, 1, forged)
        return packet

    simulation.tap = tap
    simulation.run(60, lambda: stream.is_done)
    assert bytes(stream.got) == stream.data


def test_every_answer_of_a_stack_to_strangers_is_smaller_than_what_it_answers() -> None:
    """Nothing here can be used to flood somebody else."""
    stack = make()
    for packet in (syn(5), SegmentWriter(B, A, 1, 2).build(1, 1, ACK, 0), ip.build_packet(B, A, ip.TSMP, b"p12345678")):
        stack.receive_packets([packet], NOW)
        assert sum(map(len, stack.packets_to_send(NOW))) <= len(packet) + 2


def test_a_late_event_of_a_connection_that_nobody_accepted_names_it_only_once() -> None:
    stack = make()
    listener = stack.listen(22)
    stack.receive_packets([syn(5)], NOW)
    (answer,) = stack.packets_to_send(NOW)
    iss = int.from_bytes(answer[44:48], "big")
    writer = SegmentWriter(B, A, 5, 22)
    (event,) = stack.receive_packets([writer.build(101, iss + 1, ACK, 1000)], NOW)
    assert isinstance(event, Happened)
    assert event.subject is listener
    stack.receive_packets([writer.build(101, iss + 1, RST | ACK, 1000)], NOW)
    connection = listener.accept()
    assert isinstance(connection, Connection)
    assert connection.end is End.RESET
    assert struct.unpack_from("!H", answer, 40)[0] == 22


def test_readers_that_stand_still_hold_a_bounded_part_of_the_node() -> None:
    limits = Limits(total_send_bytes=1_000_000)
    simulation = Simulation(1, limits=limits)
    pairs = [simulation.pair(port) for port in range(100, 140)]
    for _ in range(50):
        for source, _ in pairs:
            while source.send(bytes(50_000)):
                pass
        simulation.run(0.05)
    stack = simulation.stacks[0]
    held = [source.sender.held_bytes for source, _ in pairs]
    assert stack.queued_bytes == sum(held)
    assert min(held) >= 1000, "nobody is left without"
    assert sum(held) <= limits.total_send_bytes + len(pairs) * limits.min_send_bytes + limits.max_send_bytes
    for source, _ in pairs:
        source.abort()
    assert stack.queued_bytes == 0


def test_a_held_syn_that_nobody_decides_on_is_refused() -> None:
    stack = make()
    listener = stack.listen(None, hold=True)
    stack.receive_packets([syn(5)], NOW)
    at = stack.next_timeout()
    if at is None:
        stack.packets_to_send(NOW)
        at = stack.next_timeout()
    assert at == NOW + stack.limits.connect_seconds
    stack.handle_timeout(at)
    (packet,) = stack.packets_to_send(at)
    assert packet[53] == RST | ACK
    assert (stack.connection_count, listener.pending) == (0, 0)
