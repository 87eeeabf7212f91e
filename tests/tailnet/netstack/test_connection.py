"""One connection against segments made by hand: handshakes, closing, and the rules against forgers (RFC 5961)."""

import struct

import pytest

from tailnet.errors import LocalProtocolError
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import End, What
from tailnet.netstack.limits import Drop, KeepAliveTimes, Limits
from tailnet.netstack.segment import ACK, FIN, PSH, RST, SYN, SegmentWriter, SynOptions, encode_syn_options, parse_sack
from tailnet.netstack.stack import Event, Happened, Listener, Stack
from tailnet.netstack.states import State
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES
ISN = 0xFFFFFF00  # numbers wrap soon
WINDOW = 1000  # of the peer, scaled by 2**7


class Peer:
    """B by hand, against a stack at A.  Its numbers are relative to its ISN and to ours."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 1000.0
        self.stack = Stack([A], lambda size: bytes(range(size)), self.now, limits)
        self.events: list[Event] = []
        self.ours = 0
        self.ports = (80, 0)

    def send(
        self, seq: int, ack: int | None, flags: int, payload: bytes = b"", options: bytes = b"", window: int = WINDOW
    ) -> None:
        """One segment; `ack` None is a segment without one."""
        writer = SegmentWriter(B, A, *self.ports)
        number = 0 if ack is None else self.ours + ack
        packet = writer.build(ISN + seq, number, flags | (ACK if ack is not None else 0), window, payload, options)
        self.events += self.stack.receive_packets([packet], self.now)

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        """(seq, ack, flags, payload) of what the stack sends, relative where it has a meaning."""
        found = []
        for packet in self.stack.packets_to_send(self.now):
            seq, ack, flags = struct.unpack_from("!IIH", packet, 44)
            header = (flags >> 12) * 4
            self.options = packet[60 : 40 + header]
            if flags & SYN:
                self.ours = seq
            if not self.ports[1]:
                self.ports = (self.ports[0], int.from_bytes(packet[40:42], "big"))
            relative = (ack - ISN) & 0xFFFFFFFF if flags & ACK else 0
            found.append(((seq - self.ours) & 0xFFFFFFFF, relative, flags & 0x3F, packet[40 + header :]))
        return found

    def wait(self, seconds: float) -> list[tuple[int, int, int, bytes]]:
        """Let time pass; what was sent meanwhile."""
        end, found = self.now + seconds, []
        while (at := self.stack.next_timeout()) is not None and at <= end:
            self.now = at
            self.events += self.stack.handle_timeout(at)
            found += self.sent()
        self.now = end
        self.stack.now = end
        return found

    def what(self) -> int:
        """What was told of connections since the last call."""
        self.events += self.stack.events()
        told = 0
        for event in self.events:
            assert isinstance(event, Happened)
            told |= event.what
        self.events.clear()
        return told

    def blocks(self) -> list[tuple[int, int]]:
        """SACK blocks of the last segment, relative."""
        return [(start - ISN & 0xFFFFFFFF, end - ISN & 0xFFFFFFFF) for start, end in parse_sack(self.options)]


OPTIONS = encode_syn_options(SynOptions(1220, 7, True))


def called(*, hold: bool = False) -> tuple[Peer, Listener]:
    """The peer's SYN has come to a listener."""
    peer = Peer()
    listener = peer.stack.listen(None if hold else 22, hold=hold)
    peer.ports = (5000, 22)
    peer.send(0, None, SYN, options=OPTIONS)
    return peer, listener


def held() -> tuple[Peer, Connection]:
    """A SYN of which the user has been told."""
    peer, _ = called(hold=True)
    (event,) = peer.events
    assert isinstance(event, Happened)
    assert event.what == What.INCOMING
    assert isinstance(event.subject, Connection)
    return peer, event.subject


def dialled(limits: Limits | None = None) -> tuple[Peer, Connection]:
    """A connection that the stack dialled, established."""
    peer = Peer(limits)
    connection = peer.stack.connect(B, 80)
    assert [each[2] for each in peer.sent()] == [SYN]
    peer.send(0, 1, SYN, options=OPTIONS, window=60_000)
    assert peer.sent() == [(1, 1, ACK, b"")]
    assert peer.what() == What.CONNECTED | What.WRITABLE
    return peer, connection


def test_a_dial() -> None:
    peer, connection = dialled()
    assert connection.state is State.ESTABLISHED
    assert connection.send(b"hello") == 5
    assert peer.sent() == [(1, 1, ACK | PSH, b"hello")]
    peer.send(1, 6, PSH, b"world")
    assert peer.what() == What.READABLE
    assert connection.receive(100) == b"world"
    assert peer.sent() == [(6, 6, ACK, b"")]


def test_an_accept_with_the_first_data_on_the_last_acknowledgement() -> None:
    peer, listener = called()
    assert peer.sent() == [(0, 1, SYN | ACK, b"")]
    assert listener.accept() is None
    peer.send(1, 1, PSH, b"early")
    connection = listener.accept()
    assert connection is not None
    assert connection.receive(10) == b"early"
    assert connection.remote_port == 5000


def test_a_held_syn_waits_for_the_user() -> None:
    peer, connection = held()
    assert connection.local_port == 22
    assert peer.sent() == []
    peer.send(0, None, SYN, options=OPTIONS)
    assert peer.sent() == [], "a SYN that comes again while the user dials is ignored"
    peer.events.clear()
    connection.accept()
    assert peer.sent() == [(0, 1, SYN | ACK, b"")]
    peer.send(1, 1, 0)
    assert peer.what() & What.CONNECTED


def test_a_held_syn_is_refused() -> None:
    peer, connection = held()
    connection.refuse()
    assert peer.sent() == [(0, 1, RST | ACK, b"")]
    assert peer.stack.connection_count == 0


def test_a_refused_dial() -> None:
    peer = Peer()
    connection = peer.stack.connect(B, 80)
    peer.sent()
    peer.send(0, 7, RST)
    assert connection.state is State.SYN_SENT, "it acknowledges nothing of ours"
    peer.send(0, 1, RST)
    assert connection.end is End.REFUSED
    assert peer.what() == What.RESET | What.CLOSED
    assert peer.stack.connection_count == 0


def test_a_dial_without_an_answer() -> None:
    peer = Peer()
    connection = peer.stack.connect(B, 80)
    peer.sent()
    assert len(peer.wait(70)) == 5
    assert connection.end is End.TIMED_OUT
    assert peer.stack.counters.timed_out == 1


def test_a_wrong_syn_ack_is_reset() -> None:
    peer = Peer()
    connection = peer.stack.connect(B, 80)
    peer.sent()
    peer.send(0, 100, SYN, options=OPTIONS)
    assert peer.sent() == [(100, 0, RST, b"")]
    assert connection.state is State.SYN_SENT


def test_both_dial_at_once() -> None:
    peer = Peer()
    connection = peer.stack.connect(B, 80)
    peer.sent()
    peer.send(0, None, SYN, options=OPTIONS)
    assert connection.state is State.SYN_RECEIVED
    assert peer.sent() == [(0, 1, SYN | ACK, b"")]
    peer.send(0, 1, SYN, options=OPTIONS)
    assert connection.state is State.ESTABLISHED


def test_a_lost_answer_is_sent_again() -> None:
    peer, _ = called()
    peer.sent()
    peer.send(0, None, SYN, options=OPTIONS)
    assert [each[2] for each in peer.sent()] == [SYN | ACK]
    assert [each[2] for each in peer.wait(2)] == [SYN | ACK]


def closing(user_first: bool) -> tuple[Peer, Connection]:
    peer, connection = dialled()
    if user_first:
        connection.close()
        assert peer.sent() == [(1, 1, FIN | ACK | PSH, b"")]
        assert connection.state is State.FIN_WAIT_1
    else:
        peer.send(1, 1, FIN)
        assert peer.sent() == [(1, 2, ACK, b"")]
        assert connection.state is State.CLOSE_WAIT
        assert connection.eof
    return peer, connection


def test_closing_first() -> None:
    peer, connection = closing(True)
    peer.send(1, 2, 0)
    assert connection.state is State.FIN_WAIT_2
    peer.send(1, 2, FIN)
    assert connection.state is State.TIME_WAIT
    assert peer.sent() == [(2, 2, ACK, b"")]
    assert peer.what() & What.CLOSED
    peer.send(1, 2, FIN)
    assert peer.sent() == [(2, 2, ACK, b"")], "our answer was lost"
    peer.wait(59)
    assert peer.stack.connection_count == 1
    peer.wait(2)
    assert peer.stack.connection_count == 0
    assert connection.end is End.CLOSED


def test_closing_second() -> None:
    peer, connection = closing(False)
    assert connection.send(b"rest") == 4
    connection.close()
    assert peer.sent() == [(1, 2, FIN | ACK | PSH, b"rest")]
    assert connection.state is State.LAST_ACK
    peer.send(2, 6, 0)
    assert connection.state is State.CLOSED
    assert connection.end is End.CLOSED
    assert peer.what() == What.READABLE | What.CLOSED


def test_closing_at_once() -> None:
    peer, connection = closing(True)
    peer.send(1, 1, FIN)
    assert connection.state is State.CLOSING
    peer.sent()
    peer.send(2, 2, 0)
    assert connection.state is State.TIME_WAIT


def test_a_peer_that_never_sends_its_fin() -> None:
    peer, connection = closing(True)
    peer.send(1, 2, 0)
    peer.wait(59)
    assert connection.state is State.FIN_WAIT_2
    peer.wait(2)
    assert connection.state is State.CLOSED


def test_half_closing_goes_on_receiving() -> None:
    peer, connection = dialled()
    connection.send(b"question")
    connection.send_eof()
    assert peer.sent() == [(1, 1, FIN | ACK | PSH, b"question")]
    peer.send(1, 10, 0)
    peer.wait(3600)
    assert connection.state is State.FIN_WAIT_2, "only a user who has closed it waits in vain"
    peer.send(1, 10, PSH, b"answer")
    assert connection.receive(100) == b"answer"
    assert not connection.eof
    with pytest.raises(LocalProtocolError, match="FIN-WAIT-2"):
        connection.send(b"more")


def test_closing_with_unread_input_is_a_reset() -> None:
    peer, connection = dialled()
    peer.send(1, 1, PSH, b"unread")
    connection.close()
    assert peer.sent() == [(1, 7, RST | ACK, b"")]
    assert connection.end is End.ABORTED


def test_input_after_closing_is_a_reset() -> None:
    peer, connection = closing(True)
    peer.send(1, 2, PSH, b"too late")
    assert [each[2] for each in peer.sent()] == [RST | ACK]
    assert connection.state is State.CLOSED
    assert peer.stack.counters.drops[Drop.AFTER_CLOSE] == 1


def test_a_fin_before_its_data_waits() -> None:
    peer, connection = dialled()
    peer.send(4, 1, FIN, b"def")
    assert not connection.eof
    peer.sent()
    assert peer.blocks() == [(4, 8)]
    peer.send(1, 1, 0, b"abc")
    assert connection.eof
    assert connection.receive(100) == b"abcdef"
    assert peer.sent()[-1][1] == 8


@pytest.mark.parametrize(("at", "dies"), [(1, True), (2, False), (60_000, False), (0, False), (10_000_000, False)])
def test_a_reset_needs_the_exact_number(at: int, dies: bool) -> None:
    """RFC 5961 section 3: else a challenge, or nothing outside of the window."""
    peer, connection = dialled()
    peer.send(at, None, RST)
    assert (connection.state is State.CLOSED) is dies
    inside = 1 < at < 1_000_000
    assert peer.sent() == ([(1, 1, ACK, b"")] if inside else [])
    if inside:
        assert peer.stack.counters.drops[Drop.CHALLENGED_RST] == 1


def test_a_challenge_before_the_handshake_ends_has_the_number_behind_our_syn() -> None:
    peer, _ = called()
    peer.sent()
    peer.send(5, None, RST)
    assert peer.sent() == [(1, 1, ACK, b"")]


def test_a_syn_in_a_connection_is_challenged() -> None:
    peer, connection = dialled()
    peer.send(5, None, SYN, options=OPTIONS)
    assert peer.sent() == [(1, 1, ACK, b"")]
    assert connection.state is State.ESTABLISHED
    assert peer.stack.counters.drops[Drop.CHALLENGED_SYN] == 1


@pytest.mark.parametrize("ack", [2, 1 << 30, -200_000])
def test_an_acknowledgement_of_what_was_never_sent(ack: int) -> None:
    """RFC 5961 section 5: and its data are not taken."""
    peer, connection = dialled()
    peer.send(1, ack, PSH, b"forged")
    assert connection.readable_bytes == 0
    assert peer.sent() == [(1, 1, ACK, b"")]
    assert peer.stack.counters.drops[Drop.BAD_ACK] == 1


def test_challenges_are_bounded() -> None:
    peer, _ = dialled()
    answers = 0
    for _ in range(100):
        peer.send(5, None, RST)
        answers += len(peer.sent())
    assert answers == 10
    peer.now += 5
    peer.send(5, None, RST)
    assert len(peer.sent()) == 1
    assert peer.stack.counters.challenges == 11


def test_a_segment_without_an_acknowledgement_is_ignored() -> None:
    peer, connection = dialled()
    peer.send(1, None, PSH, b"data")
    assert connection.readable_bytes == 0
    assert peer.stack.counters.drops[Drop.NO_ACK] == 1


@pytest.mark.parametrize("size", [1, 5])
def test_old_data_is_acknowledged_again_and_reported(size: int) -> None:
    peer, connection = dialled()
    peer.send(1, 1, PSH, b"hello")
    peer.sent()
    peer.send(1, 1, PSH, b"HELLO"[:size])
    assert [each[:3] for each in peer.sent()] == [(1, 6, ACK)]
    if size > 1:
        assert peer.blocks() == [(1, 1 + size)]
    assert connection.receive(100) == b"hello"


def test_duplicates_of_a_batch_are_told_as_one_block() -> None:
    peer, _ = dialled()
    for at in (1, 1221, 2441):
        peer.send(at, 1, 0, bytes(1220))
    peer.sent()
    for at in (1, 1221, 2441):
        peer.send(at, 1, 0, bytes(1220))
    assert len(peer.sent()) == 1
    assert peer.blocks() == [(1, 3661)]


def test_what_goes_beyond_the_window_is_cut() -> None:
    limits = Limits(min_receive_bytes=3000, first_receive_bytes=3000)
    peer, connection = dialled(limits)
    peer.send(1, 1, 0, bytes(1220))
    peer.send(1221, 1, 0, bytes(1220))
    peer.send(2441, 1, PSH, bytes(1220))
    assert connection.readable_bytes == 3000
    assert peer.sent()[-1][1] == 3001
    assert peer.stack.counters.drops[Drop.BEYOND_WINDOW] == 1


def test_gaps_are_told_at_once() -> None:
    peer, _ = dialled()
    peer.send(1221, 1, 0, bytes(1220))
    (told,) = peer.sent()
    assert told == (1, 1, ACK, b"")
    assert peer.blocks() == [(1221, 2441)]


def test_three_segments_behind_a_gap_are_told_one_by_one_and_later_ones_with_their_batch() -> None:
    """A genuine node begins its recovery at the third duplicate that has news, and has no RACK to do without."""
    peer, _ = dialled()

    def told() -> list[int]:
        packets = peer.stack.packets_to_send(peer.now)
        assert {struct.unpack_from("!I", packet, 48)[0] - ISN for packet in packets} == {1}
        return [(parse_sack(packet[60:])[0][1] - ISN) & 0xFFFFFFFF for packet in packets]

    for at in range(1, 6):
        peer.send(1 + at * 1220, 1, 0, bytes(1220))
    assert told() == [1 + end * 1220 for end in (2, 3, 4, 6)]
    for at in (6, 7):
        peer.send(1 + at * 1220, 1, 0, bytes(1220))
    assert told() == [1 + 8 * 1220]
    peer.send(1, 1, 0, bytes(1220))
    peer.sent()
    peer.send(1 + 9 * 1220, 1, 0, bytes(1220))  # another gap
    peer.send(1 + 10 * 1220, 1, 0, bytes(1220))
    assert len(peer.sent()) == 2


def test_an_idle_peer_is_asked_and_then_given_up() -> None:
    peer, connection = dialled(Limits(keep_alive=KeepAliveTimes(100, 10, 3)))
    assert peer.wait(125) == [(0, 1, ACK, b"")] * 3
    peer.send(1, 1, 0)
    assert peer.wait(90) == []
    assert [each[2] for each in peer.wait(100)] == [ACK, ACK, ACK, RST | ACK]
    assert connection.end is End.TIMED_OUT
    counters = peer.stack.counters
    assert (counters.keep_alives, counters.timed_out, counters.resets_sent) == (6, 1, 1)


def test_an_accepted_peer_is_asked_as_its_user_wants() -> None:
    """Set when the long default is scheduled already."""
    peer, listener = called()
    peer.sent()
    peer.send(1, 1, 0)
    connection = listener.accept()
    assert connection is not None
    assert peer.wait(1000) == []
    peer.send(1, 1, 0)
    connection.keep_alive(KeepAliveTimes(idle=72, interval=30, probes=6))
    assert peer.sent() == []
    assert peer.wait(71) == []
    assert peer.wait(2) == [(0, 1, ACK, b"")]
    peer.send(1, 1, 0)  # it lives
    for _ in range(20):
        assert peer.wait(73) == [(0, 1, ACK, b"")]
        peer.send(1, 1, 0)
    assert [each[2] for each in peer.wait(260)] == [ACK] * 6 + [RST | ACK]
    assert connection.end is End.TIMED_OUT


def test_a_keep_alive_is_answered() -> None:
    peer, _ = dialled()
    peer.send(0, 1, 0)
    assert peer.sent() == [(1, 1, ACK, b"")]


def test_a_reset_in_time_wait_is_ignored_and_a_new_syn_begins_anew() -> None:
    """RFC 1337; RFC 9293 section 3.10.7.4."""
    peer, listener = called()
    peer.sent()
    peer.send(1, 1, 0)
    first = listener.accept()
    assert first is not None
    first.close()
    peer.sent()
    peer.send(1, 2, FIN)
    peer.sent()
    assert first.state is State.TIME_WAIT
    peer.send(2, None, RST)
    assert first.state is State.TIME_WAIT
    peer.send(50_000, None, SYN, options=OPTIONS)
    assert [each[2] for each in peer.sent()][-1] == SYN | ACK
    peer.send(50_001, 1, 0)
    assert listener.accept() is not None


def test_what_a_connection_refuses() -> None:
    peer, connection = dialled()
    connection.close()
    connection.close()
    with pytest.raises(LocalProtocolError):
        connection.send(b"x")
    assert connection.receive(0) == b""
    peer.sent()
    connection.abort()
    assert [each[2] for each in peer.sent()] == [RST | ACK]
    connection.abort()
    assert peer.sent() == []


def test_what_is_finished_before_the_answer_is_sent_behind_it() -> None:
    peer = Peer()
    connection = peer.stack.connect(B, 80)
    assert connection.send(b"request") == 7
    connection.send_eof()
    peer.sent()
    peer.send(0, 1, SYN, options=OPTIONS)
    assert peer.sent() == [(1, 1, FIN | ACK | PSH, b"request")]
    assert connection.state is State.FIN_WAIT_1
