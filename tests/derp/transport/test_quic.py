"""Two ends of a QUIC connection in virtual time: losses, windows, refusals, ends."""

import ssl
from datetime import UTC, datetime

import pytest

from derp.close_reason import CloseReason
from derp.errors import ConfigError
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.quic import DATAGRAM_BYTES, UDP_BYTES
from derp.transport.quic import (
    IDLE_SECONDS,
    SLACK_BYTES,
    STREAM_BYTES,
    HeadKind,
    Place,
    QuicDoor,
    QuicLine,
    check_chain,
    connection_id,
    dial,
    read_head,
)
from derp.transport.tls import make_self_signed
from tests.support.certificates import client_context, issue
from tests.support.quic import CLIENT, NAME, SERVER, Pair, certificate, connected, open_door

PACKET = encode_frame(FrameType.SEND_PACKET, bytes(32) + b"packet")
FULL = encode_frame(FrameType.SEND_PACKET, bytes(DATAGRAM_BYTES - 5))
LARGE = encode_frame(FrameType.SEND_PACKET, bytes(32 + 60_000))


def test_the_handshake_s_datagrams_show_what_the_path_carries() -> None:
    pair = Pair()
    (first, _), *_ = pair.client.datagrams_to_send(pair.now)
    assert len(first) == UDP_BYTES
    head = read_head(first)
    assert head is not None
    server = open_door().accept(head, CLIENT, pair.now)
    assert server is not None
    server.receive(first, CLIENT, pair.now)
    assert next(len(datagram) for datagram, _ in server.datagrams_to_send(pair.now)) == UDP_BYTES


def test_packets_and_frames_come_through() -> None:
    pair = connected()
    pair.client.send_frames(PACKET + LARGE + PACKET + FULL)
    pair.settle()
    assert pair.relay.packets == [PACKET, PACKET, FULL]
    assert pair.relay.take_stream(1 << 20) == LARGE
    assert pair.client.rtt_seconds == pytest.approx(0.02, abs=0.005)


def test_each_full_packet_leaves_in_a_datagram_of_its_own() -> None:
    pair = connected()
    pair.client.send_frames(FULL * 3)
    sent = [len(datagram) for datagram, _ in pair.client.datagrams_to_send(pair.now)]
    assert len([size for size in sent if size > DATAGRAM_BYTES]) == 3
    assert max(sent) <= UDP_BYTES


def test_packets_of_a_quarter_of_a_round_trip_are_acknowledged_together() -> None:
    pair = connected()
    server, now = pair.relay, pair.now
    assert server.rtt_seconds == pytest.approx(0.02, abs=0.005)
    acknowledged = []
    for _ in range(20):  # of 20 ms
        pair.client.send_frames(PACKET)
        for datagram, _ in pair.client.datagrams_to_send(now):
            server.receive(datagram, CLIENT, now)
        sent = server.datagrams_to_send(now)
        acknowledged += sent
        if not sent:
            at = server.next_timeout()
            assert at is not None
            assert at <= now + 0.008
        now += 0.001
    assert 2 <= len(acknowledged) <= 5


def test_who_gets_packets_alone_may_wait_until_they_are_acknowledged() -> None:
    pair = connected()
    client, server, now = pair.client, pair.relay, pair.now

    def give(to: QuicLine) -> None:
        source, place = (client, CLIENT) if to is server else (server, SERVER)
        for datagram, _ in source.datagrams_to_send(now):
            to.receive(datagram, place, now)

    give(client)
    assert client.may_wait
    assert server.may_wait
    for _ in range(3):
        client.send_frames(PACKET)
        assert not client.may_wait
        give(server)
        assert client.may_wait
        assert server.may_wait
    at = server.next_timeout()
    assert at is not None
    assert at <= now + 0.008
    now = at + 0.001
    server.handle_timeout(now)
    assert not server.may_wait
    give(client)
    assert server.may_wait
    assert not client.may_wait, "an acknowledgement may let go what waits"
    give(server)
    for urgent in (lambda: client.send_stream(b"x"), client.ping, client.end_output):
        urgent()
        assert not client.may_wait
        give(server)
        assert not server.may_wait
        assert server.take_stream(10) in (b"x", b"")
        give(client)
        now += 0.01
    client.send_datagram(b"no frame")
    assert not client.may_wait


def test_what_the_peer_waits_before_it_acknowledges_is_no_queue() -> None:
    pair = connected()
    client, server, now = pair.client, pair.relay, pair.now
    assert client.rtt_seconds == pytest.approx(0.02, abs=0.005)
    for _ in range(10):  # bursts, acknowledged 20 ms after they came
        while client.has_room:
            client.send_frames(FULL)
        burst = client.datagrams_to_send(now)
        for datagram, _ in burst:
            server.receive(datagram, CLIENT, now + 0.01)
        for datagram, _ in server.datagrams_to_send(now + 0.03):
            client.receive(datagram, SERVER, now + 0.04)
        server.packets.clear()
        now += 0.1
    assert not client._connection.window._is_queued


def test_only_what_was_lost_is_missing_and_the_stream_mends_itself() -> None:
    pair = connected()
    at = pair.sent_count
    pair.loses = lambda number, datagram: number in (at + 2, at + 4)
    for _ in range(8):
        pair.client.send_frames(FULL)
        pair.exchange()
    pair.loses = lambda number, datagram: number % 5 == 0
    pair.client.send_stream(LARGE)
    pair.settle(2000)
    assert 5 <= len(pair.relay.packets) < 8
    assert pair.relay.take_stream(1 << 20) == LARGE


def test_whoever_is_not_read_is_held_back() -> None:
    pair = connected()
    pair.client.send_stream(bytes(3 * STREAM_BYTES))
    pair.settle(500)
    assert pair.relay.has_stream
    taken = len(pair.relay.take_stream(1 << 20))
    assert STREAM_BYTES // 2 <= taken <= STREAM_BYTES
    assert pair.client.has_unsent
    got = taken
    for _ in range(20):
        pair.settle(100)
        got += len(pair.relay.take_stream(1 << 20))
    assert got == 3 * STREAM_BYTES
    # The window slides: it does not grow by what was sent in a connection's life.
    pair.client.send_stream(bytes(3 * STREAM_BYTES))
    pair.settle(500)
    assert len(pair.relay.take_stream(1 << 20)) <= STREAM_BYTES


def test_packets_for_nobody_who_takes_them_are_dropped_and_counted() -> None:
    pair = connected()
    for _ in range(300):
        pair.client.send_frames(PACKET)
        pair.exchange()
    assert len(pair.relay.packets) == 256
    assert pair.relay.dropped_count == 44


def test_room_ends_when_more_waits_than_the_path_takes() -> None:
    pair = connected()
    assert pair.client.has_room
    count = 0
    while pair.client.has_room:
        pair.client.send_frames(FULL)
        count += 1
    # the first window of ten packets, and the slack
    assert SLACK_BYTES + 9 * UDP_BYTES < count * len(FULL) < SLACK_BYTES + 12 * UDP_BYTES
    pair.settle()
    assert pair.client.has_room


def test_the_client_opens_one_stream_and_the_relay_none() -> None:
    pair = connected()
    pair.client._connection.send_stream_data(4, b"another")
    pair.relay._connection.send_stream_data(1, b"one of the relay")
    pair.client._connection.send_stream_data(2, b"one way")
    pair.settle()
    assert not pair.relay.has_stream
    assert not pair.client.has_stream
    assert pair.relay.ended is None


def test_a_stream_beyond_what_is_allowed_ends_the_connection() -> None:
    pair = connected()
    pair.client._connection._remote_max_streams_bidi = 2  # a client that does not mind
    pair.client._connection.send_stream_data(4, b"another")
    pair.settle()
    assert pair.relay.ended is not None
    assert pair.relay.ended.reason is CloseReason.PROTOCOL_ERROR
    assert pair.client.ended is not None


def test_a_reset_of_the_stream_ends_the_connection() -> None:
    pair = connected()
    pair.client._connection.reset_stream(0, 7)
    pair.settle()
    assert pair.relay.ended is not None
    assert pair.relay.ended.reason is CloseReason.PROTOCOL_ERROR


def test_the_end_of_the_stream_is_seen_behind_its_bytes() -> None:
    pair = connected()
    pair.relay.send_stream(b"last words")
    pair.relay.end_output()
    pair.relay.send_stream(b"and nothing behind them")
    pair.settle()
    assert pair.client.has_peer_ended
    assert pair.client.take_stream(100) == b"last words"
    assert not pair.relay.has_unsent


def test_a_closed_connection_says_why() -> None:
    pair = connected()
    pair.relay.close(CloseReason.DRAINED, "enough")
    pair.settle()
    assert pair.client.ended is not None
    assert (pair.client.ended.reason, str(pair.client.ended)) == (CloseReason.CLOSED_BY_PEER, "enough")


def test_silence_ends_it() -> None:
    pair = connected()
    pair.now += IDLE_SECONDS + 5
    pair.relay.handle_timeout(pair.now)
    assert pair.relay.ended is not None
    assert pair.relay.ended.reason is CloseReason.SOCKET_FAILED


def test_another_protocol_is_refused() -> None:
    pair = Pair()
    pair.client = dial(SERVER, NAME, pair.now, alpn="h3")
    pair.settle()
    assert pair.relay.ended is not None
    assert pair.relay.ended.reason is CloseReason.TLS_FAILED
    assert pair.client.ended is not None
    assert not pair.relay.is_open


def test_no_ticket_is_given_so_nothing_can_be_sent_again() -> None:
    tickets: list[object] = []
    pair = Pair()
    pair.client._connection._session_ticket_handler = tickets.append
    pair.settle()
    assert pair.client.is_open
    assert tickets == []


def test_a_moved_client_is_followed_once_it_has_shown_itself() -> None:
    pair = connected()
    pair.client_place = moved = Place(("198.51.100.7", 2222))
    pair.client.change_address()
    pair.client.send_frames(PACKET)
    pair.settle()
    assert pair.relay.place == moved
    assert pair.relay.packets == [PACKET]
    pair.relay.send_stream(b"found you")
    pair.settle()
    assert pair.client.take_stream(100) == b"found you"
    assert len(pair.relay.names) > 2


def test_a_retry_has_the_client_show_its_address() -> None:
    pair = Pair()
    (first, _), *_ = pair.client.datagrams_to_send(pair.now)
    head = read_head(first)
    assert head is not None
    pair.client.receive(pair.door.ask_again(head, CLIENT, pair.now), SERVER, pair.now)
    (second, _), *_ = pair.client.datagrams_to_send(pair.now)
    again = read_head(second)
    assert again is not None
    assert again.token
    assert pair.door.accept(again, Place(("192.0.2.99", 1111)), pair.now) is None  # from somewhere else
    assert pair.door.accept(again, CLIENT, pair.now + 60.0) is None  # too late
    pair.server = pair.door.accept(again, CLIENT, pair.now)
    assert pair.server is not None
    pair.server.receive(second, CLIENT, pair.now)
    pair.settle()
    assert pair.relay.is_open
    assert pair.client.is_open


def test_heads_of_strangers_are_read() -> None:
    pair = Pair()
    (first, _), *_ = pair.client.datagrams_to_send(pair.now)
    kinds = {
        b"": None,
        b"\x00": None,
        b"\xff" * 20: None,
        first: HeadKind.FIRST,
        first[:1199]: HeadKind.OTHER,  # too short to begin anything
        first[:1] + b"\x0a\x0a\x0a\x0a" + first[5:]: HeadKind.UNKNOWN_VERSION,
        first[:1] + bytes(4) + first[5:27]: HeadKind.OTHER,  # a negotiation, which no server answers
        b"\x40" + bytes(30): HeadKind.OTHER,
    }
    for datagram, kind in kinds.items():
        head = read_head(datagram)
        assert (head.kind if head is not None else None) is kind, datagram[:10]
    for size in range(1, 64):  # none raises
        connection_id(first[:size])
        read_head(first[:size])


def test_another_version_is_told_ours() -> None:
    pair = Pair()
    (first, _), *_ = pair.client.datagrams_to_send(pair.now)
    head = read_head(first[:1] + b"\x0a\x0a\x0a\x0a" + first[5:])
    assert head is not None
    answer = pair.door.negotiate(head)
    assert answer[1:5] == bytes(4)
    assert answer.endswith(b"\0\0\0\1")
    assert len(answer) < len(first)


def test_a_bad_certificate_is_named() -> None:
    chain, key = certificate()
    door = QuicDoor(b"secret")
    with pytest.raises(ConfigError, match="certificate"):
        door.configure(b"none", key)
    with pytest.raises(ConfigError, match="certificate"):
        door.configure(chain, b"none")


def test_roots_decide_about_a_chain() -> None:
    authority = issue("authority.test", is_authority=True)
    leaf = issue(NAME, issuer=authority)
    context = client_context(authority)
    door = QuicDoor(b"secret")
    door.configure(leaf.pem, leaf.key_pem)
    pair = Pair()
    pair.door = door
    pair.settle()
    assert check_chain(pair.client.peer_chain(), context) == ""
    other = make_self_signed(NAME, datetime.now(UTC))[0]
    assert check_chain([ssl.PEM_cert_to_DER_cert(other.decode())], context)
    assert check_chain([b"no certificate"], context)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    assert check_chain([b"no certificate"], context) == ""


@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_never_do_more_than_nothing(seed: int) -> None:
    pair = connected()
    pair.client.send_frames(PACKET * 3)
    for number, (datagram, _) in enumerate(pair.client.datagrams_to_send(pair.now)):
        spoilt = bytearray(datagram)
        spoilt[(seed * 13 + number) % len(spoilt)] ^= 1 << seed
        relay: QuicLine = pair.relay
        relay.receive(bytes(spoilt), CLIENT, pair.now)
    assert pair.relay.packets == []
    assert pair.relay.ended is None
