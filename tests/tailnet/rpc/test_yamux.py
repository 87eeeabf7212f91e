"""yamux: frames however cut, windows, resets, deadlines, and what a hostile peer gets for its trouble."""

from typing import Any

import pytest

from tailnet.errors import Flood, LocalProtocolError, PeerSilent, RemoteProtocolError
from tailnet.rpc.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    HEADER,
    HEADER_BYTES,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    WINDOW_BYTES,
    GoAwayCode,
    SessionEvent,
    SessionLimits,
    YamuxSession,
)
from tests.tailnet.rpc.link import feed, one_byte_each, sent, settle, whole

OPENED, DATA, ENDED = SessionEvent.OPENED, SessionEvent.DATA, SessionEvent.ENDED
RESET, PONG, GO_AWAY = SessionEvent.RESET, SessionEvent.PONG, SessionEvent.GO_AWAY


def server(**limits: Any) -> YamuxSession:
    return YamuxSession(server=True, now=0.0, limits=SessionLimits(**limits))


def client(**limits: Any) -> YamuxSession:
    return YamuxSession(server=False, now=0.0, limits=SessionLimits(**limits))


def frame(word: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(word, stream_id, length) + body


def syn(stream_id: int) -> bytes:
    return frame(TYPE_WINDOW_UPDATE | FLAG_SYN, stream_id, 0)


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(TYPE_DATA | flags, stream_id, len(body), body)


def update(stream_id: int, delta: int, flags: int = 0) -> bytes:
    return frame(TYPE_WINDOW_UPDATE | flags, stream_id, delta)


def frames(wire: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type and flags, stream, length, body) of each frame, cut independently of the code under test."""
    found = []
    while wire:
        word, stream_id, length = HEADER.unpack_from(wire)
        size = length if word >> 16 == 0 else 0
        found.append((word, stream_id, length, wire[HEADER_BYTES : HEADER_BYTES + size]))
        wire = wire[HEADER_BYTES + size :]
    return found


def opened(*stream_ids: int, **limits: Any) -> YamuxSession:
    """A server's session on which the client has opened streams."""
    session = server(**limits)
    for stream_id in stream_ids or (1,):
        session.receive_data(syn(stream_id))
    session.data_to_send()
    return session


def body_of(events: list[Any], stream_id: int = 1) -> bytes:
    return b"".join(value for kind, sid, value in events if kind is DATA and sid == stream_id)


def shape(events: list[Any]) -> list[Any]:
    """Events with neighbouring DATA of one stream joined: what does not depend on how the bytes were cut."""
    joined: list[Any] = []
    for kind, stream_id, value in events:
        if kind is DATA and joined and joined[-1][:2] == (DATA, stream_id):
            joined[-1] = (DATA, stream_id, joined[-1][2] + value)
        else:
            joined.append((kind, stream_id, value))
    return joined


# One row: bytes in, events, bytes out.
TABLE = {
    "open": (syn(1), [(OPENED, 1, None)], "000100020000000100000000"),
    "open with data": (
        data(3, b"hi", FLAG_SYN),
        [(OPENED, 3, None), (DATA, 3, b"hi")],
        "000100020000000300000000",
    ),
    "streams opened together come in any order": (
        syn(5) + syn(1) + syn(3),
        [(OPENED, 5, None), (OPENED, 1, None), (OPENED, 3, None)],
        "000100020000000500000000 000100020000000100000000 000100020000000300000000",
    ),
    "data then FIN in one frame": (
        syn(1) + data(1, b"bye", FLAG_FIN),
        [(OPENED, 1, None), (DATA, 1, b"bye"), (ENDED, 1, None)],
        "000100020000000100000000",
    ),
    "FIN on an empty data frame": (
        data(1, b"x", FLAG_SYN) + data(1, b"", FLAG_FIN),
        [(OPENED, 1, None), (DATA, 1, b"x"), (ENDED, 1, None)],
        "000100020000000100000000",
    ),
    "reset drops its own data": (
        syn(1) + data(1, b"lost", FLAG_RST) + syn(3),
        [(OPENED, 1, None), (RESET, 1, None), (OPENED, 3, None)],
        "000100020000000100000000 000100020000000300000000",
    ),
    "ping": (frame(TYPE_PING | FLAG_SYN, 0, 0xDEADBEEF), [], "0002000200000000deadbeef"),
    "pong": (frame(TYPE_PING | FLAG_ACK, 0, 7), [(PONG, 0, 7)], ""),
    "go away": (frame(TYPE_GO_AWAY, 0, 0), [(GO_AWAY, 0, 0)], ""),
    "frames for streams that are gone": (
        update(9, 5) + data(9, b"late") + update(9, 0, FLAG_FIN) + update(9, 0, FLAG_RST) + syn(1),
        [(OPENED, 1, None)],
        "000100020000000100000000",
    ),
    "unknown flags are no fault": (
        syn(1) + data(1, b"x", 0x80),
        [(OPENED, 1, None), (DATA, 1, b"x")],
        "000100020000000100000000",
    ),
}


@pytest.mark.parametrize("sizes", [whole, one_byte_each], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", TABLE)
def test_frames_and_answers(name: str, sizes: Any) -> None:
    wire, events, answer = TABLE[name]
    session = server()
    assert shape(feed(session, wire, sizes())) == events
    assert sent(session) == bytes.fromhex(answer)


def test_bytes_behind_a_frame_belong_to_the_next() -> None:
    session = opened(1)
    assert session.receive_data(data(1, b"one") + data(1, b"two")[:13])[:1] == [(DATA, 1, b"one")]
    assert body_of(feed(session, b"wo")) == b"wo"


def test_data_views_are_the_callers_bytes() -> None:
    buffer = bytearray(data(1, b"abc"))
    [(_, _, view)] = opened(1).receive_data(memoryview(buffer))
    buffer[-1:] = b"X"
    assert bytes(view) == b"abX"


class TestFaultsOfThePeer:
    CASES = {  # noqa: RUF012
        "version": ([frame(1 << 24, 1, 0)], "version 1"),
        "type": ([frame(4 << 16, 1, 0)], "type 4"),
        "opens our number": ([syn(2)], "ours to give"),
        "opens zero": ([syn(0)], "ours to give"),
        "opens twice": ([syn(1), syn(1)], "opened twice"),
        "second FIN": ([syn(1), update(1, 0, FLAG_FIN), update(1, 0, FLAG_FIN)], "second FIN"),
        "second FIN with data": ([syn(1), data(1, b"x", FLAG_FIN), data(1, b"y", FLAG_FIN)], "second FIN"),
        "window overrun in one frame": ([syn(1), frame(0, 1, WINDOW_BYTES + 1)], "exceed its window"),
        "4 GiB": ([syn(1), frame(0, 1, 0xFFFFFFFF)], "exceed its window"),
        "4 GiB for nobody": ([frame(0, 77, 0xFFFFFFFF)], "not open"),
        "window overflow": ([syn(1), update(1, 0xFFFFFFFF)], "beyond 32 bits"),
        "window overflow in steps": ([syn(1), *[update(1, 1 << 30)] * 4], "beyond 32 bits"),
    }

    @pytest.mark.parametrize("sizes", [whole, one_byte_each], ids=["whole", "byte by byte"])
    @pytest.mark.parametrize("name", CASES)
    def test_end_the_session_and_tell_the_peer(self, name: str, sizes: Any) -> None:
        wires, reason = self.CASES[name]
        session = server()
        with pytest.raises(RemoteProtocolError, match=reason):
            feed(session, b"".join(wires), sizes())
        assert frames(sent(session))[-1][:3] == (TYPE_GO_AWAY, 0, GoAwayCode.PROTOCOL_ERROR)
        with pytest.raises(LocalProtocolError):
            session.receive_data(syn(99))

    @pytest.mark.parametrize(
        ("code", "name"), [(1, "protocol error"), (2, "internal error"), (3, "unknown code"), (0xFFFFFFFF, "unknown")]
    )
    def test_its_own_error_ends_the_session_without_an_answer(self, code: int, name: str) -> None:
        session = opened(1)
        with pytest.raises(RemoteProtocolError, match=name):
            session.receive_data(frame(TYPE_GO_AWAY, 0, code))
        assert not session.has_output

    def test_stream_zero_belongs_to_nobody(self) -> None:
        for session in (server(), client()):
            with pytest.raises(RemoteProtocolError, match="opened stream 0"):
                session.receive_data(syn(0))

    def test_data_after_the_window_is_used_up(self) -> None:
        session = opened(1)
        session.withhold(1)
        session.receive_data(data(1, bytes(WINDOW_BYTES)))
        with pytest.raises(RemoteProtocolError, match="exceed its window of 0"):
            session.receive_data(data(1, b"x"))

    def test_a_dead_session_takes_and_gives_nothing(self) -> None:
        session = opened(1)
        with pytest.raises(RemoteProtocolError):
            session.receive_data(frame(4 << 16, 1, 0))
        session.data_to_send()
        assert session.receive_eof() == [(RESET, 1, None)]
        assert session.receive_eof() == []
        assert session.send_data(1, [b"into the void"])
        session.close_stream(1)
        session.reset_stream(1)
        assert not session.has_output
        with pytest.raises(LocalProtocolError):
            session.handle_timeout(100.0)


class TestLimits:
    def test_one_stream_too_many_is_reset_and_the_others_live(self) -> None:
        session = opened(1, 3, max_streams=2)
        assert session.receive_data(syn(5)) == []
        assert sent(session) == update(5, 0, FLAG_RST)
        assert body_of(feed(session, data(5, b"for nobody") + data(1, b"ok"))) == b"ok"

    def test_a_place_is_free_again_when_a_stream_ends(self) -> None:
        session = opened(1, 3, max_streams=2)
        session.receive_data(update(1, 0, FLAG_RST))
        session.receive_data(update(3, 0, FLAG_FIN))
        session.close_stream(3)
        assert [kind for kind, _, _ in session.receive_data(syn(5) + syn(7))] == [OPENED, OPENED]

    def test_ping_flood(self) -> None:
        session = server(max_idle_frames=10)
        ping = frame(TYPE_PING | FLAG_SYN, 0, 1)
        session.receive_data(ping * 10)
        assert len(sent(session)) == 10 * HEADER_BYTES
        with pytest.raises(RemoteProtocolError, match="more than 10 frames in 15 s"):
            session.receive_data(ping)

    @pytest.mark.parametrize(
        "wire",
        [
            frame(TYPE_PING | FLAG_ACK, 0, 1),  # answers nobody asked for
            data(1, b""),  # empty data
            frame(TYPE_GO_AWAY, 0, 0),  # said once is enough
            update(1, 1),  # a window that grows by next to nothing
            update(1, 0),
            update(99, 1 << 17),  # for nobody
            update(99, 0, FLAG_FIN),
            update(99, 0, FLAG_ACK),
            data(99, b""),  # empty data for nobody
            syn(3) + update(3, 0, FLAG_RST),  # streams that never carried anything
            syn(3) + update(3, 0, FLAG_FIN) + update(3, 0, FLAG_RST),
        ],
    )
    def test_frames_that_carry_nothing_are_counted(self, wire: bytes) -> None:
        session = opened(1, max_idle_frames=10)
        session.receive_data(wire * 10)
        with pytest.raises(RemoteProtocolError, match="carry nothing"):
            session.receive_data(wire)

    def test_frames_that_carry_next_to_nothing_are_counted(self) -> None:
        session = opened(1, max_tiny_frames=10)
        session.receive_data(data(1, bytes(HEADER_BYTES - 1)) * 10 + data(1, bytes(HEADER_BYTES)) * 1000)
        with pytest.raises(Flood, match="more than 10 frames in 15 s that carry next to nothing"):
            feed(session, data(1, b"x"), one_byte_each())
        session = opened(1, max_tiny_frames=10)
        session.receive_data(data(99, b"x") * 10)  # for nobody
        with pytest.raises(Flood):
            session.receive_data(data(99, b"x"))

    def test_streams_that_are_opened_are_counted(self) -> None:
        session = server(max_opened=10)
        for stream_id in range(1, 21, 2):
            session.receive_data(syn(stream_id) + data(stream_id, b"a call") + update(stream_id, 0, FLAG_RST))
        with pytest.raises(Flood, match="more than 10 streams opened in 15 s"):
            session.receive_data(syn(21))

    def test_a_window_that_grows_as_genuine_peers_have_it_grow_is_no_flood(self) -> None:
        session = opened(1, max_idle_frames=10)
        for _ in range(1000):
            session.receive_data(update(1, 1 << 17))

    def test_budgets_are_for_the_time_between_two_looks(self) -> None:
        ping = frame(TYPE_PING | FLAG_SYN, 0, 1)
        server(max_idle_frames=10, ping_seconds=60.0).receive_data(ping * 40)
        with pytest.raises(Flood, match="in 60 s"):
            server(max_idle_frames=10, ping_seconds=60.0).receive_data(ping * 41)
        server(max_idle_frames=10, ping_seconds=1.0).receive_data(ping * 10)

    def test_each_tick_gives_the_budget_anew(self) -> None:
        session = server(max_idle_frames=10)
        ping = frame(TYPE_PING | FLAG_SYN, 0, 1)
        for tick in range(1, 20):
            session.receive_data(ping * 9)
            session.handle_timeout(15.0 * tick)
            session.receive_data(frame(TYPE_PING | FLAG_ACK, 0, tick))

    def test_a_peer_that_sends_but_does_not_read(self) -> None:
        session = server(max_output_pieces=100)
        for number in range(1, 102, 2):  # an acknowledgement and a FIN of ours for each
            session.receive_data(data(number, b"call", FLAG_SYN) + update(number, 0, FLAG_FIN))
            session.close_stream(number)
        with pytest.raises(RemoteProtocolError, match="does not read: 102 pieces"):
            session.receive_data(data(201, b"call", FLAG_SYN))

    def test_our_own_short_streams_are_not_the_peers_fault(self) -> None:
        session = client(max_idle_frames=10)
        for _ in range(100):
            stream_id = session.open_stream()
            session.close_stream(stream_id)
            session.receive_data(update(stream_id, 0, FLAG_ACK) + update(stream_id, 0, FLAG_FIN))

    def test_busy_calls_are_no_flood(self) -> None:
        # An agent that logs a lot makes a call per batch, each on a stream of its own, as fast as answers come.
        session = server(max_idle_frames=10)
        for stream_id in range(1, 4001, 2):
            session.receive_data(syn(stream_id) + data(stream_id, b"call") + update(stream_id, 0, FLAG_FIN))
            session.close_stream(stream_id)

    def test_what_was_in_flight_at_a_reset_is_dropped_once(self) -> None:
        session = opened(1)
        session.reset_stream(1)
        body = data(1, bytes(1024))
        # The window of the reset stream, and the same again for races of the peer with itself.
        assert session.receive_data(body * 512) == []
        with pytest.raises(RemoteProtocolError, match="not open"):
            session.receive_data(body)

    def test_what_follows_a_refused_stream_is_dropped_too(self) -> None:
        session = opened(1, max_streams=1)
        session.receive_data(syn(3) + syn(5))
        for stream_id in (3, 5):
            assert session.receive_data(data(stream_id, bytes(WINDOW_BYTES))) == []
        assert body_of(feed(session, data(1, b"ok"))) == b"ok"

    def test_the_rest_of_a_frame_whose_stream_we_reset(self) -> None:
        session = opened(1, 3)
        wire = data(1, b"first half second half") + data(3, b"other")
        assert body_of(feed(session, wire[:22])) == b"first half"
        session.reset_stream(1)
        assert shape(feed(session, wire[22:])) == [(DATA, 3, b"other")]

    def test_what_may_stray_is_granted_anew_at_each_tick(self) -> None:
        session = server(ping_seconds=None)
        for tick in range(1, 5):
            session.receive_data(data(99, bytes(WINDOW_BYTES)))
            session.handle_timeout(15.0 * tick)

    def test_a_writer_that_races_its_own_fin_is_forgiven(self) -> None:
        session = opened(1)
        assert shape(feed(session, update(1, 0, FLAG_FIN) + data(1, b"late"))) == [(ENDED, 1, None)]
        session.close_stream(1)
        assert frames(sent(session)) == [(TYPE_WINDOW_UPDATE | FLAG_FIN, 1, 0, b"")]

    def test_our_own_streams_wait_for_acknowledgement(self) -> None:
        session = client(max_unacknowledged=2)
        session.open_stream()
        session.open_stream()
        with pytest.raises(LocalProtocolError, match="acknowledgement"):
            session.open_stream()
        session.receive_data(update(1, 0, FLAG_ACK))
        assert session.open_stream() == 5


class TestReceiveWindow:
    def test_credit_comes_once_half_is_consumed(self) -> None:
        session = opened(1)
        session.receive_data(data(1, bytes(WINDOW_BYTES // 2 - 1)))
        assert not session.has_output
        session.receive_data(data(1, b"x"))
        assert sent(session) == update(1, WINDOW_BYTES // 2)

    @pytest.mark.parametrize("chunk", [1000, 65536, WINDOW_BYTES])
    def test_a_sender_within_its_window_never_stalls(self, chunk: int) -> None:
        session, window, got = opened(1), WINDOW_BYTES, 0
        for _ in range(40):
            size = min(chunk, window)
            got += len(body_of(feed(session, data(1, bytes(size)), iter([5000] * 1000))))
            window -= size
            window += sum(length for word, _, length, _ in frames(sent(session)) if word == TYPE_WINDOW_UPDATE)
            assert window > 0
        assert got > 30 * min(chunk, WINDOW_BYTES // 2)

    def test_withheld_bytes_bring_no_credit_until_consumed(self) -> None:
        session = opened(1)
        session.withhold(1)
        session.receive_data(data(1, bytes(WINDOW_BYTES)))
        assert not session.has_output
        session.consume(1, WINDOW_BYTES // 2 - 1)
        assert not session.has_output
        session.consume(1, 1)
        assert sent(session) == update(1, WINDOW_BYTES // 2)
        session.receive_data(data(1, bytes(WINDOW_BYTES // 2)))

    def test_more_than_was_handed_out_cannot_be_consumed(self) -> None:
        session = opened(1)
        session.withhold(1)
        session.receive_data(data(1, b"four"))
        session.consume(1, 3)
        with pytest.raises(LocalProtocolError, match="never handed out"):
            session.consume(1, 2)

    def test_no_credit_for_a_direction_that_ended(self) -> None:
        session = opened(1)
        session.withhold(1)
        session.receive_data(data(1, bytes(WINDOW_BYTES), FLAG_FIN))
        session.consume(1, WINDOW_BYTES)
        assert not session.has_output


class TestSendWindow:
    def test_beyond_the_window_bytes_wait_for_credit_in_order(self) -> None:
        session = opened(1)
        payload = bytes(range(256)) * 1200  # 307,200 bytes
        assert session.send_data(1, [b"head", payload])
        first = frames(sent(session))
        assert [length for _, _, length, _ in first] == [WINDOW_BYTES]
        waiting = 4 + len(payload) - WINDOW_BYTES
        assert session.unsent_bytes_of(1) == waiting
        session.receive_data(update(1, 100))
        session.receive_data(update(1, WINDOW_BYTES))
        rest = frames(sent(session))
        assert [length for _, _, length, _ in rest] == [100, waiting - 100]
        assert b"".join(body for *_, body in first + rest) == b"head" + payload
        assert session.unsent_bytes_of(1) == 0

    def test_later_bytes_queue_behind_earlier_ones(self) -> None:
        session = opened(1)
        session.send_data(1, [bytes(WINDOW_BYTES)])
        session.send_data(1, [b"a"])
        session.send_data(1, [b"b", b"c"])
        session.data_to_send()
        session.receive_data(update(1, 10))
        assert sent(session) == data(1, b"abc")

    def test_a_peer_that_does_not_read_is_reported_and_loses_nothing_taken(self) -> None:
        session = opened(1, max_unsent_bytes=1000)
        session.send_data(1, [bytes(WINDOW_BYTES)])
        assert session.send_data(1, [bytes(600)])
        assert not session.send_data(1, [bytes(401)])
        assert session.send_data(1, [bytes(400)])
        assert session.unsent_bytes_of(1) == 1000

    def test_one_large_message_is_no_offence(self) -> None:
        session = opened(1, max_unsent_bytes=1000)
        assert session.send_data(1, [bytes(4 << 20)])
        assert not session.send_data(1, [b"x"])

    def test_a_boundless_window_is_no_boundless_queue(self) -> None:
        session = opened(1, max_output_bytes=1_000_000)
        session.receive_data(update(1, 1 << 31))
        taken = 0
        while session.send_data(1, [bytes(1000)]):
            taken += 1000
            assert taken <= 1_001_000
        assert len(sent(session)) > 1_000_000  # the transport took it: there is room again
        assert session.send_data(1, [bytes(1000)])

    def test_a_window_granted_late_counts_too(self) -> None:
        session = opened(1, max_output_bytes=WINDOW_BYTES)
        session.send_data(1, [bytes(WINDOW_BYTES + 1)])
        assert session.send_data(1, [b"x"])
        session.receive_data(update(1, 1 << 20))
        assert not session.send_data(1, [b"y"])

    def test_the_payload_is_shared_not_copied(self) -> None:
        payload = bytes(5000)
        pieces = []
        for _ in range(3):
            session = opened(1)
            session.send_data(1, [b"h", payload])
            pieces += session.data_to_send()[1:]
        assert all(piece is payload for piece in pieces)

    def test_fin_waits_behind_unsent_bytes(self) -> None:
        session = opened(1)
        session.send_data(1, [bytes(WINDOW_BYTES + 1)])
        session.data_to_send()
        session.close_stream(1)
        assert not session.has_output
        with pytest.raises(LocalProtocolError, match="closed for sending"):
            session.send_data(1, [b"x"])
        session.receive_data(update(1, 1))
        assert sent(session) == data(1, b"\0") + update(1, 0, FLAG_FIN)

    def test_reset_drops_what_waits(self) -> None:
        session = opened(1)
        session.send_data(1, [bytes(WINDOW_BYTES + 1)])
        session.data_to_send()
        session.reset_stream(1)
        assert session.unsent_bytes_of(1) == 0
        session.receive_data(update(1, 100))
        assert sent(session) == update(1, 0, FLAG_RST)

    def test_nothing_is_sent_for_nothing(self) -> None:
        session = opened(1)
        assert session.send_data(1, [])
        assert session.send_data(1, [b"", b""])
        assert not session.has_output

    def test_a_stream_that_is_gone_takes_anything(self) -> None:
        session = opened(1)
        session.receive_data(update(1, 0, FLAG_RST))
        assert session.send_data(1, [b"late"])
        assert not session.has_output


class TestOpening:
    def test_numbers_of_both_sides(self) -> None:
        assert [client().open_stream(), server().open_stream()] == [1, 2]
        session = client()
        assert [session.open_stream() for _ in range(3)] == [1, 3, 5]
        assert sent(session) == syn(1) + syn(3) + syn(5)

    def test_go_away_of_the_peer_ends_opening_and_nothing_else(self) -> None:
        session = client()
        stream_id = session.open_stream()
        session.receive_data(frame(TYPE_GO_AWAY, 0, 0))
        with pytest.raises(LocalProtocolError, match="dial again"):
            session.open_stream()
        session.data_to_send()
        session.send_data(stream_id, [b"still here"])
        assert sent(session) == data(1, b"still here")

    def test_after_our_go_away_new_streams_are_reset(self) -> None:
        session = opened(1)
        session.go_away()
        assert body_of(feed(session, syn(3) + data(1, b"old"))) == b"old"
        assert sent(session) == frame(TYPE_GO_AWAY, 0, 0) + update(3, 0, FLAG_RST)

    def test_data_may_follow_before_the_acknowledgement(self) -> None:
        one, other = client(), server()
        one.send_data(one.open_stream(), [b"early"])
        _, events = settle(one, other)
        assert events == [(OPENED, 1, None), (DATA, 1, b"early")]


class TestTime:
    def test_pings_keep_both_sides_alive(self) -> None:
        one, other = client(), server()
        for minute in range(60):
            for second in range(0, 60, 5):
                now = 60.0 * minute + second
                for session in (one, other):
                    if now >= session.next_timeout():
                        session.handle_timeout(now)
                settle(one, other)

    def test_silence_is_death_after_the_deadline_and_not_before(self) -> None:
        session = server(ping_seconds=15.0, pong_seconds=30.0)
        assert session.next_timeout() == 15.0
        session.handle_timeout(15.0)
        assert sent(session) == frame(TYPE_PING | FLAG_SYN, 0, 1)
        for now in (30.0, 44.9):
            session.handle_timeout(now)
            assert not session.has_output  # one ping at a time
        assert session.next_timeout() == 45.0
        with pytest.raises(PeerSilent, match="30 s"):
            session.handle_timeout(45.0)

    def test_only_the_right_answer_counts(self) -> None:
        session = server()
        session.handle_timeout(15.0)
        session.receive_data(frame(TYPE_PING | FLAG_ACK, 0, 999))
        with pytest.raises(PeerSilent):
            session.handle_timeout(45.0)

    def test_an_early_call_changes_nothing(self) -> None:
        session = server()
        session.handle_timeout(14.9)
        assert not session.has_output
        assert session.next_timeout() == 15.0

    def test_without_pings_there_are_still_ticks(self) -> None:
        session = server(ping_seconds=None, tick_seconds=20.0)
        for tick in range(1, 100):
            assert session.next_timeout() == 20.0 * tick
            session.handle_timeout(20.0 * tick)
        assert not session.has_output

    def pass_time(self, session: YamuxSession, after: int, until: int) -> list[Any]:
        """Ticks with answered pings; the events, and the frames that are no pings."""
        events: list[Any] = []
        for now in range(after + 15, until + 1, 15):
            events += session.handle_timeout(float(now))
            for word, _, opaque, _ in frames(sent(session)):
                if word == TYPE_PING | FLAG_SYN:
                    session.receive_data(frame(TYPE_PING | FLAG_ACK, 0, opaque))
                else:
                    events.append(word)
        return events

    def test_a_half_closed_stream_is_reset_after_five_minutes(self) -> None:
        session = opened(1, 3)
        session.close_stream(1)
        session.data_to_send()
        assert self.pass_time(session, 0, 300) == []
        assert self.pass_time(session, 300, 330) == [(RESET, 1, None), TYPE_WINDOW_UPDATE | FLAG_RST]
        assert body_of(feed(session, data(3, b"alive")), 3) == b"alive"

    def test_a_fin_that_never_gets_out_ages_too(self) -> None:
        session = opened(1)
        session.send_data(1, [bytes(WINDOW_BYTES + 1)])
        session.close_stream(1)
        session.data_to_send()
        assert self.pass_time(session, 0, 330) == [(RESET, 1, None), TYPE_WINDOW_UPDATE | FLAG_RST]

    def test_a_stream_that_only_the_peer_closed_may_stay(self) -> None:
        # We still answer; how long is for the layer above to say.
        session = opened(1)
        session.receive_data(update(1, 0, FLAG_FIN))
        assert self.pass_time(session, 0, 900) == []

    def test_a_peer_that_never_acknowledges_is_dead(self) -> None:
        session = client(ping_seconds=None)
        session.open_stream()
        for now in range(15, 90, 15):
            session.handle_timeout(float(now))
        with pytest.raises(PeerSilent, match="not acknowledged in 75 s"):
            session.handle_timeout(90.0)

    def test_a_stream_that_is_gone_needs_no_acknowledgement(self) -> None:
        session = client(ping_seconds=None)
        session.reset_stream(session.open_stream())
        for now in range(15, 300, 15):
            session.handle_timeout(float(now))

    def test_the_end_of_the_transport_ends_every_stream(self) -> None:
        session = opened(1, 3)
        assert session.receive_eof() == [(RESET, 1, None), (RESET, 3, None)]
        with pytest.raises(LocalProtocolError):
            session.receive_data(b"")
