"""Links on real sockets: plain, TLS, websocket and both; cut anywhere, blocked at any byte, ended at bad moments."""

import os
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derp.close_reason import CloseReason
from derp.protocol.websocket import CloseCode, Opcode, WebSocketDecoder, WebSocketError, WebSocketFlood, parse_close
from derp.transport.framing import FIRST_RECEIVE_BYTES, MAX_MESSAGE_BYTES, RECEIVE_BYTES
from derp.transport.host import Piece, WireEnded
from derp.transport.links import MAX_TINY_RECORDS, Link, TlsLink
from derp.transport.tls_records import RecordLink
from tests.support.certificates import client_context, issue
from tests.support.wires import (
    HOSTNAME,
    PlainWire,
    TlsWire,
    WebSocketWire,
    Wire,
    masked,
    own_contexts,
    socket_pair,
    tcp_pair,
    tls_contexts,
)

ADDRESS = ("127.0.0.1", 1)
SMALL = 4096  # the kernel makes some 4 to 8 KiB of it
KINDS = ("plain", "tls", "tls12", "own tls", "websocket", "websocket over tls", "websocket over own tls")


class Receiver:
    """Calls `receive` as the reactor does and keeps everything."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.data = b""
        self.ended: WireEnded | None = None
        self._view = memoryview(bytearray(2 * RECEIVE_BYTES + 32 * 1024))
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._framed = memoryview(bytearray(RECEIVE_BYTES + 16384))

    def receive(self, at: int = 5) -> bytes:
        """One receive; what it brought."""
        try:
            end = self.link.receive(self._view, at, self._scratch, self._framed)
        except WireEnded as ended:
            self.ended = ended
            return b""
        brought = bytes(self._view[at:end])
        self.data += brought
        if self.link.ending is not None:
            self.ended = self.link.ending
        return brought


class Pair:
    """A link and the far end of its socket, connected and past any handshake."""

    def __init__(self, kind: str, near: socket.socket, far: socket.socket) -> None:
        self.plain = PlainWire(far)
        self.wire: Wire = self.plain
        if "own tls" in kind:
            server, client, keeper = own_contexts()
            self.link: Link = RecordLink(near, ADDRESS, server, keeper)
            self.wire = self.tls = TlsWire(self.plain, client)
        elif "tls" in kind:
            server, client = tls_contexts(tls12=kind == "tls12")
            self.link = TlsLink(near, ADDRESS, server)
            self.wire = self.tls = TlsWire(self.plain, client)
        else:
            self.link = Link(near, ADDRESS)
        self.receiver = Receiver(self.link)
        if "tls" in kind:
            self._shake_hands()
        if "websocket" in kind:
            self.wire = self.websocket = WebSocketWire(self.wire)
            self.link.codec = WebSocketDecoder(True, 1 << 20)
        self.link.appetite = RECEIVE_BYTES  # of one that has received for a while

    def _shake_hands(self) -> None:
        link = self.link
        assert isinstance(link, TlsLink)
        while not (link.is_open and self.tls.version()):
            self.receiver.receive()
            link.flush_tail()
            assert self.receiver.ended is None
            self.wire.read()
        assert hasattr(link, "_tls") is not isinstance(link, RecordLink), "not what is to be tested"

    def close(self) -> None:
        self.link.close()
        self.wire.close()


@pytest.fixture
def open_pair() -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def open_one(kind: str, buffer_bytes: int | None = None, *, tcp: bool = False) -> Pair:
        pair = Pair(kind, *(tcp_pair(buffer_bytes) if tcp else socket_pair(buffer_bytes)))
        pairs.append(pair)
        return pair

    yield open_one
    for pair in pairs:
        pair.close()


OpenPair = Callable[..., Pair]


# --- receiving


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_arrive_as_they_were_sent(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    sent = b""
    for size in (1, 100, 16 * 1024, 40_000, 100_000):
        data = os.urandom(size)
        sent += data
        pair.wire.write(data)
        while pair.receiver.data != sent:
            pair.receiver.receive()
            pair.wire.flush()
    assert pair.receiver.receive() == b"", "there was more"
    assert pair.receiver.ended is None


@pytest.mark.parametrize("kind", ["tls", "tls12", "own tls", "websocket", "websocket over tls"])
def test_records_and_messages_cut_anywhere(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    data = os.urandom(700)
    framed = b"".join(masked(part) for part in (data[:300], data[300:])) if "websocket" in kind else data
    if "tls" in kind:
        framed = pair.tls.encrypt(framed[:400]) + pair.tls.encrypt(framed[400:])
    for number in range(len(framed)):
        pair.plain.write(framed[number : number + 1])
        pair.receiver.receive()
    assert pair.receiver.data == data


@pytest.mark.parametrize("kind", ["tls", "tls12", "own tls"])
def test_many_records_of_one_receive_come_at_once(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    parts = [os.urandom(number) for number in range(1, 200)]
    pair.plain.write(b"".join(map(pair.tls.encrypt, parts)))
    assert pair.receiver.receive() == b"".join(parts)


@pytest.mark.parametrize("kind", ["tls", "tls12", "own tls"])
def test_a_full_receive_leaves_no_record_behind(kind: str, open_pair: OpenPair) -> None:
    # Nothing may follow for hours: what was received and decrypts must come out at once.
    pair = open_pair(kind)
    for sock in (pair.link.sock, pair.plain.sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    data = random.Random(8).randbytes(RECEIVE_BYTES - 8 * 1024)
    encrypted = pair.tls.encrypt(data)
    pair.plain.write(encrypted[:16_000])
    assert pair.receiver.receive() == b""
    pair.plain.write(encrypted[16_000:])
    assert pair.plain.flush()
    assert pair.receiver.receive() == data


@pytest.mark.parametrize("kind", ["tls", "own tls"])
def test_a_full_receive_of_records_fits(kind: str, open_pair: OpenPair) -> None:
    # The largest receive, with a record begun in the one before it: more plain text than ciphertext in this receive.
    pair = open_pair(kind)
    data = random.Random(1).randbytes(3 * RECEIVE_BYTES)
    pair.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    pair.plain.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    pair.plain.write(pair.tls.encrypt(data))
    while len(pair.receiver.data) < len(data):
        assert pair.receiver.receive(at=RECEIVE_BYTES) or pair.receiver.ended is None
        pair.plain.flush()
    assert pair.receiver.data == data


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_there_is_nothing(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    assert pair.receiver.receive() == b""
    assert pair.receiver.ended is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_stream(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    pair.wire.close()
    pair.receiver.receive()
    assert pair.receiver.ended is not None
    assert pair.receiver.ended.reason is CloseReason.CLOSED_BY_PEER


@pytest.mark.parametrize("kind", ["plain", "tls", "own tls"])
def test_a_reset(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind, tcp=True)
    pair.plain.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.wire.close()
    pair.receiver.receive()
    assert pair.receiver.ended is not None
    assert pair.receiver.ended.reason is CloseReason.SOCKET_FAILED
    assert str(pair.receiver.ended) == "receive failed: Connection reset by peer"


@pytest.mark.parametrize("kind", ["tls", "tls12", "own tls", "websocket over tls", "websocket over own tls"])
def test_last_words_before_close_notify_are_heard(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    last = masked(b"last words") if "websocket" in kind else b"last words"
    pair.plain.write(pair.tls.encrypt(last) + pair.tls.say_goodbye())
    assert pair.receiver.receive() == b"last words"
    assert pair.receiver.ended is not None
    assert pair.receiver.ended.reason is CloseReason.CLOSED_BY_PEER
    with pytest.raises(WireEnded):  # for those who receive again instead of looking at `ending`
        pair.link.receive(
            memoryview(bytearray(1 << 20)), 0, memoryview(bytearray(1 << 20)), memoryview(bytearray(1 << 20))
        )


@pytest.mark.parametrize("kind", ["tls", "own tls"])
def test_good_records_before_a_broken_one(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    good, bad = pair.tls.encrypt(b"last words"), bytearray(pair.tls.encrypt(b"never heard"))
    bad[-1] ^= 1
    pair.plain.write(good + bytes(bad))
    assert pair.receiver.receive() == b"last words"
    assert pair.receiver.ended is not None
    assert pair.receiver.ended.reason is CloseReason.TLS_FAILED
    assert pair.plain.read()[0] == 23, "no alert"  # TLS 1.3 hides it in a record of data


def test_no_tls_at_all() -> None:
    near, far = socket_pair()
    server, _ = tls_contexts()
    link = TlsLink(near, ADDRESS, server)
    far.sendall(b"GET / HTTP/1.1\r\n\r\n")
    receiver = Receiver(link)
    receiver.receive()
    assert receiver.ended is not None
    assert receiver.ended.reason is CloseReason.TLS_NOT_SPOKEN
    assert "plain HTTP came to a port that speaks TLS" in str(receiver.ended)
    assert not link.is_open
    link.close()
    far.close()


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=400))
def test_garbage_instead_of_tls_ends_or_waits(garbage: bytes) -> None:
    near, far = socket_pair()
    link = TlsLink(near, ADDRESS, tls_contexts()[0])
    far.sendall(garbage)
    receiver = Receiver(link)
    receiver.receive()
    assert receiver.data == b""
    assert receiver.ended is None or receiver.ended.reason.is_of_tls
    link.close()
    far.close()


# --- the handshake


@pytest.mark.parametrize("tls12", [False, True])
def test_a_handshake_byte_by_byte(tls12: bool) -> None:
    near, far = socket_pair()
    one, two = socket_pair()  # the client's bytes pass through here
    server, client = tls_contexts(tls12=tls12)
    link = TlsLink(near, ADDRESS, server)
    receiver = Receiver(link)
    wire = TlsWire(PlainWire(two), client)
    between, plain = PlainWire(one), PlainWire(far)
    while not wire.version():
        for byte in between.read():
            plain.write(bytes([byte]))
            receiver.receive()
        between.write(plain.read())
        wire.read()
        assert receiver.ended is None
    for byte in between.read():
        plain.write(bytes([byte]))
        receiver.receive()
    assert link.is_open
    assert link.version() == ("TLSv1.2" if tls12 else "TLSv1.3") == wire.version()
    for sock in (near, far, one, two):
        sock.close()


def test_first_bytes_right_behind_the_handshake(open_pair: OpenPair) -> None:
    near, far = socket_pair()
    server, client = tls_contexts()
    link = TlsLink(near, ADDRESS, server)
    wire = TlsWire(PlainWire(far), client)
    wire.write(b"early")  # goes in one segment with the client's Finished
    receiver = Receiver(link)
    receiver.receive()
    wire.read()
    assert receiver.receive() == b"early"
    assert link.is_open
    link.close()
    wire.close()


def test_both_ends_may_be_links() -> None:
    near, far = socket_pair()
    far.setblocking(False)
    server, client = tls_contexts()
    serving, dialling = TlsLink(near, ADDRESS, server), TlsLink(far, ADDRESS, client, HOSTNAME)
    dialling.start()
    here, there = Receiver(serving), Receiver(dialling)
    while not (serving.is_open and dialling.is_open):
        here.receive()
        there.receive()
    dialling.send_raw(b"question")
    assert here.receive() == b"question"
    serving.send_raw(b"answer")
    assert there.receive() == b"answer"
    serving.close()
    dialling.close()


def test_a_certificate_nobody_trusts_fails_with_the_reason() -> None:
    near, far = socket_pair()
    far.setblocking(False)
    server, _ = tls_contexts()
    serving = TlsLink(near, ADDRESS, server)
    dialling = TlsLink(far, ADDRESS, client_context(issue(common_name="another", is_authority=True)), HOSTNAME)
    dialling.start()
    here, there = Receiver(serving), Receiver(dialling)
    here.receive()
    there.receive()
    assert there.ended is not None
    assert "CERTIFICATE_VERIFY_FAILED" in str(there.ended)
    here.receive()
    assert here.ended is not None
    assert there.ended.reason is CloseReason.TLS_FAILED
    assert here.ended.reason is CloseReason.TLS_DISTRUSTED
    assert "the client refuses our certificate (TLSV1_ALERT_UNKNOWN_CA)" in str(here.ended)
    serving.close()
    dialling.close()


def test_a_client_that_cannot_begin_says_so() -> None:
    near, far = socket_pair()
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    link = TlsLink(near, ADDRESS, context, HOSTNAME)
    with pytest.raises(WireEnded, match="TLS: "):
        link.start()
    link.close()
    far.close()


# --- sending


def send_all(pair: Pair, pieces: list[Piece], *, size: int | None = None) -> bytes:
    """Send as the flush does, reading at the far end whenever the kernel is full; what arrived there."""
    link, arrived = pair.link, b""
    data = b"".join(pieces)
    size = len(data) if size is None else size
    sent = link.send(pieces, size)
    while sent < size or link.blocked:
        assert sent == size or link.blocked
        assert link.send([b"refused"], 7) == 0
        arrived += pair.wire.read()
        if link.flush_tail() and sent < size:
            sent += link.send([data[sent:]], size - sent)
    return arrived + pair.wire.read()


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_arrives_through_a_narrow_kernel(kind: str, tcp: bool, open_pair: OpenPair) -> None:
    pair = open_pair(kind, SMALL, tcp=tcp)
    generator = random.Random(2)
    for number, size in enumerate((1, 1000, 32_768, 32_769, 65_504, 65_505, 65_536, 65_537, 300_000) * 2):
        if number == 9:
            pair.link.limit_unsent(16 * 1024)
        data = generator.randbytes(size)
        assert send_all(pair, [data]) == data, size


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.lists(st.one_of(st.integers(1, 100), st.integers(1, 70_000)), min_size=1, max_size=12),
)
def test_any_gather_list_arrives(kind: str, sizes: list[int]) -> None:
    pair = Pair(kind, *socket_pair(SMALL))
    generator = random.Random(3)
    pieces: list[Piece] = [memoryview(generator.randbytes(size)) for size in sizes]
    assert send_all(pair, pieces) == b"".join(pieces)
    pair.close()


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2048, 5000])
def test_more_pieces_than_the_kernel_takes_in_a_call(count: int, open_pair: OpenPair) -> None:
    pair = open_pair("plain")
    pieces: list[Piece] = [b"%07d" % number for number in range(count)]
    assert pair.link.send(pieces, 7 * count) == 7 * count
    assert not pair.link.blocked
    assert pair.wire.read() == b"".join(pieces)


def test_a_kernel_that_is_full_within_many_pieces(open_pair: OpenPair) -> None:
    for size in (1, 7, 100):
        pair = open_pair("plain", SMALL)
        pieces: list[Piece] = [bytes([number % 251]) * size for number in range(5000)]
        assert send_all(pair, pieces) == b"".join(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_a_send_to_nobody_fails(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    pair.wire.close()
    with pytest.raises(WireEnded, match="send failed: Broken pipe") as caught:
        pair.link.send([b"hello"], 5)
    assert caught.value.reason is CloseReason.SOCKET_FAILED


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_not_be_refused_comes_right_after_what_was_taken(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind, SMALL)
    data = random.Random(4).randbytes(200_000)
    sent = pair.link.send([data], len(data))
    assert pair.link.blocked
    rest = random.Random(5).randbytes(66_000)
    pair.link.push(rest)
    arrived = pair.wire.read()  # there is room now, but not for those at the end of the line
    pair.link.push(b"the end")
    while not pair.link.flush_tail():
        arrived += pair.wire.read()
    assert arrived + pair.wire.read() == data[:sent] + rest + b"the end"
    assert pair.link.tail == b""


@pytest.mark.parametrize("kind", KINDS)
def test_little_hides_behind_a_full_kernel(kind: str, open_pair: OpenPair) -> None:
    # What a link takes charge of is out of reach of the queue's fairness and of its drop policy.
    pair = open_pair(kind, SMALL)
    sent = pair.link.send([bytes(1_000_000)], 1_000_000)
    assert sent < 150_000
    assert len(pair.link.tail) < 70_000


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_slow_destination_the_kernel_holds_less_and_the_link_a_record(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind, SMALL, tcp=True)
    pair.link.limit_unsent(16 * 1024)
    assert pair.link.sock.getsockopt(socket.IPPROTO_TCP, 25) == 16 * 1024  # TCP_NOTSENT_LOWAT
    sent = pair.link.send([bytes(1_000_000)], 1_000_000)
    assert sent < 150_000
    assert len(pair.link.tail) < (70_000 if "websocket" in kind else 17_000)
    pair.link.close()
    pair.link.limit_unsent(32 * 1024)  # which its next event ends


@pytest.mark.parametrize("kind", ["websocket", "websocket over tls", "websocket over own tls"])
@pytest.mark.parametrize("buffer_bytes", [None, SMALL])
def test_no_message_is_above_what_stock_clients_take(kind: str, buffer_bytes: int | None, open_pair: OpenPair) -> None:
    pair = open_pair(kind, buffer_bytes)
    data = random.Random(6).randbytes(200_000)
    arrived = b""
    while data:
        sent = pair.link.send([data], len(data))
        rest, data = data[sent : sent + 70_000], data[sent + 70_000 :]
        if rest:
            pair.link.push(rest)
        while not pair.link.flush_tail():
            arrived += pair.wire.read()
    assert arrived + pair.wire.read() == random.Random(6).randbytes(200_000)
    assert max(pair.websocket.messages) == MAX_MESSAGE_BYTES


def test_a_flush_is_one_message(open_pair: OpenPair) -> None:
    pair = open_pair("websocket")
    pair.link.send([b"one", b"two", memoryview(b"three")], 11)
    assert pair.wire.read() == b"onetwothree"
    assert pair.websocket.messages == [11]


# --- websocket control frames


@pytest.mark.parametrize("kind", ["websocket", "websocket over tls", "websocket over own tls"])
def test_pings_are_answered_and_pongs_are_not(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    frames = masked(b"be") + masked(b"ping!", Opcode.PING) + masked(b"fore", Opcode.BINARY) + masked(b"x", Opcode.PONG)
    pair.websocket.write_raw(frames)
    assert pair.receiver.receive() == b"before"
    pair.wire.read()
    assert pair.websocket.control == [(Opcode.PONG, b"ping!")]


def test_a_pinger_that_does_not_read_is_not_kept_in_memory(open_pair: OpenPair) -> None:
    pair = open_pair("websocket", SMALL)
    for _ in range(200):
        pair.websocket.write_raw(masked(b"p" * 125, Opcode.PING))
        pair.receiver.receive()
    assert pair.link.blocked
    assert len(pair.link.tail) < MAX_MESSAGE_BYTES + 127
    while not pair.link.flush_tail():
        pair.wire.read()
    pair.wire.read()
    assert set(pair.websocket.control) == {(Opcode.PONG, b"p" * 125)}


@pytest.mark.parametrize("kind", ["websocket", "websocket over tls", "websocket over own tls"])
def test_a_flood_of_pings_is_told_so_and_ended(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    with pytest.raises(WebSocketFlood, match="next to nothing"):  # noqa: PT012  # one of them is too many
        for _ in range(300):
            pair.websocket.write_raw(masked(b"", Opcode.PING))
            pair.receiver.receive()
    pair.wire.read()
    opcode, payload = pair.websocket.control[-1]
    assert (opcode, parse_close(payload)[0]) == (Opcode.CLOSE, CloseCode.POLICY_VIOLATION)


@pytest.mark.parametrize("kind", ["tls", "tls12", "own tls"])
def test_a_flood_of_tiny_records_is_ended_and_some_are_none(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    for _ in range(10):
        pair.plain.write(b"".join(pair.tls.encrypt(b"x") for _ in range(MAX_TINY_RECORDS)))
        assert pair.receiver.receive() == b"x" * MAX_TINY_RECORDS
    pair.plain.write(b"".join(pair.tls.encrypt(b"x") for _ in range(MAX_TINY_RECORDS + 1)))
    pair.receiver.receive()
    assert pair.receiver.ended is not None
    assert (pair.receiver.ended.reason, str(pair.receiver.ended)) == (
        CloseReason.FLOOD,
        "65 TLS records at once that carry 65 bytes in all",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_receives_begin_small_and_grow_with_what_comes(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    pair.link.appetite = FIRST_RECEIVE_BYTES
    asked = [FIRST_RECEIVE_BYTES]
    data = os.urandom(RECEIVE_BYTES)
    pair.wire.write(data)
    while len(pair.receiver.data) < len(data):
        pair.receiver.receive()
        asked.append(pair.link.appetite)
        pair.wire.flush()
    assert asked == sorted(asked)
    assert asked[1:4] == [2 * FIRST_RECEIVE_BYTES, 4 * FIRST_RECEIVE_BYTES, 8 * FIRST_RECEIVE_BYTES]
    assert pair.receiver.data == data
    grown = pair.link.appetite
    pair.wire.write(b"a little")
    assert pair.receiver.receive() == b"a little"
    assert pair.link.appetite == grown


@pytest.mark.parametrize("kind", ["websocket", "websocket over tls", "websocket over own tls"])
def test_a_close_is_answered_after_the_last_words(kind: str, open_pair: OpenPair) -> None:
    pair = open_pair(kind)
    close = masked(CloseCode.NORMAL.to_bytes(2, "big") + b"bye", Opcode.CLOSE)
    pair.websocket.write_raw(masked(b"last words") + close + masked(b"ignored"))
    assert pair.receiver.receive() == b"last words"
    assert pair.receiver.ended is not None
    assert pair.receiver.ended.reason is CloseReason.CLOSED_BY_PEER
    pair.wire.read()
    assert [(kind, parse_close(payload)) for kind, payload in pair.websocket.control] == [(Opcode.CLOSE, (1000, ""))]


def test_a_close_alone_ends_at_once(open_pair: OpenPair) -> None:
    pair = open_pair("websocket")
    pair.websocket.write_raw(masked(b"", Opcode.CLOSE))
    assert pair.receiver.receive() == b""
    assert pair.receiver.ended is not None
    assert str(pair.receiver.ended) == "websocket closed by the peer"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (masked(b"hello", Opcode.TEXT), CloseCode.UNSUPPORTED_DATA),
        (masked(bytes((1 << 20) + 1))[:14], CloseCode.MESSAGE_TOO_BIG),
        (b"\x82\x05hello", CloseCode.PROTOCOL_ERROR),
    ],
)
@pytest.mark.parametrize("kind", ["websocket", "websocket over tls", "websocket over own tls"])
def test_violations_are_named_in_the_close_frame(
    kind: str, frames: bytes, code: CloseCode, open_pair: OpenPair
) -> None:
    pair = open_pair(kind)
    pair.websocket.write_raw(frames)
    with pytest.raises(WebSocketError) as caught:
        pair.receiver.receive()
    assert caught.value.close_code == code
    pair.wire.read()
    ((opcode, payload),) = pair.websocket.control
    assert opcode == Opcode.CLOSE
    assert parse_close(payload) == (code, str(caught.value))


def test_a_pong_to_a_peer_that_left_does_not_lose_its_packets(open_pair: OpenPair) -> None:
    pair = open_pair("websocket")
    pair.websocket.write_raw(masked(b"last words") + masked(b"?", Opcode.PING))
    pair.wire.close()
    assert pair.receiver.receive() == b"last words"
    assert pair.receiver.ended is not None
    assert pair.receiver.ended.reason is CloseReason.SOCKET_FAILED
