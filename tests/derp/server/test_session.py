"""Logging in and a client's frames, on real sockets: whole, in pieces, wrong, hostile; bystanders' packets go on."""

import re
import socket
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derp.close_reason import CloseReason
from derp.config import Rate
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import (
    HEADER,
    MAX_CLIENT_INFO_BYTES,
    MAX_SEND_BYTES,
    MAX_UNKNOWN_BYTES,
    FrameType,
    encode_frame,
)
from derp.protocol.handshake import seal_client_info
from derp.protocol.messages import (
    ClientInfo,
    ClosePeer,
    ForwardPacket,
    Health,
    NotePreferred,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    SendPacket,
    ServerInfo,
    WatchConns,
    encode,
)
from derp.protocol.websocket import Opcode
from derp.relay.counters import DropReason
from derp.relay.limits import NO_LIMITS
from derp.server.admission import Verdict
from derp.server.advisor import REFUSED_TEXT
from tests.derp.server.bare_relay import KINDS, MESH_KEY, BareRelay, Peer, SlowVerifier
from tests.support.wires import TlsWire, WebSocketWire, masked

MAX_PER_KEY = 64
Open = Callable[..., BareRelay]


@pytest.fixture
def open_bare() -> Iterator[Open]:
    opened: list[BareRelay] = []

    def open_one(**settings: object) -> BareRelay:
        opened.append(BareRelay(**settings))  # type: ignore[arg-type]  # each test names its own
        return opened[-1]

    yield open_one
    for bare in opened:
        bare.end()


@pytest.fixture
def bare(open_bare: Open) -> BareRelay:
    return open_bare()


class Bystanders:
    """Two clients whose packets must go on, whatever happens to others."""

    def __init__(self, bare: BareRelay) -> None:
        self.bare = bare
        self.a, self.b = bare.connect(), bare.connect("websocket")
        self.count = 0

    def check(self) -> None:
        self.count += 1
        for sender, receiver in ((self.a, self.b), (self.b, self.a)):
            sender.send_packets(receiver, b"packet %d" % self.count)
        self.bare.serve()
        for receiver, sender in ((self.a, self.b), (self.b, self.a)):
            assert receiver.read() == [RecvPacket(sender.key, b"packet %d" % self.count)]


def client_info(bare: BareRelay, private: NodePrivate, **said: object) -> bytes:
    info = ClientInfo(**said)  # type: ignore[arg-type]  # each test names its own
    return seal_client_info(private, bare.private.public().raw, info, b"n" * 24)


# --- logging in


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_comes_in_and_packets_flow(bare: BareRelay, kind: str) -> None:
    a, b = bare.connect(kind, is_ideal=False), bare.connect()
    assert (a.core.server_key, len(bare.lobby.waiting)) == (bare.router.own_key, 0)
    assert (a.client.address, a.client.port, a.client.is_ideal) == ("127.0.0.1", 40_001, False)
    a.send_packets(b, b"hello", b"")
    b.send_packets(a, b"world")
    bare.serve()
    assert b.read() == [RecvPacket(a.key, b"hello"), RecvPacket(a.key, b"")]
    assert a.read() == [RecvPacket(b.key, b"world")]
    a.wire.close()
    bare.serve()
    assert b.read() == [PeerGone(a.key, 0)]
    assert bare.closed() == {CloseReason.CLOSED_BY_PEER: 1}


def test_what_a_client_says_of_itself_is_kept(bare: BareRelay) -> None:
    private = NodePrivate(b"x" * 32)
    peer = bare.open(private=private)
    peer.read()
    other = bare.open()
    other.write(client_info(bare, private, is_prober=True, can_ack_pings=True, app_name="a" * 1000))
    bare.serve()
    (client,) = (client for client in bare.router.clients.values() if client.wire is other.near)
    assert (client.is_prober, client.can_ack_pings, client.app_name) == (True, True, "a" * 64)


def test_a_login_in_single_bytes_with_packets_right_behind_it(bare: BareRelay) -> None:
    bystanders = Bystanders(bare)
    private = NodePrivate(b"x" * 32)
    peer = bare.open(private=private)
    stream = client_info(bare, private) + encode(SendPacket(bystanders.a.key, b"early")) + encode(Ping(b"12345678"))
    for at in range(len(stream)):
        peer.write(stream[at : at + 1])
        bare.serve()
        if at == len(stream) // 2:
            bystanders.check()
    assert peer.read() == [ServerInfo(), Pong(b"12345678")]
    assert bystanders.a.read() == [RecvPacket(private.public().raw, b"early")]


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 600), max_size=5), count=st.integers(0, 5))
def test_a_login_and_packets_cut_anywhere(cuts: list[int], count: int) -> None:
    # Fast start: everything in one segment, or in any others.
    with BareRelay() as bare:
        receiver = bare.connect()
        private = NodePrivate(b"x" * 32)
        peer = bare.open(private=private)
        stream = client_info(bare, private)
        stream += b"".join(encode(SendPacket(receiver.key, bytes([number]))) for number in range(count))
        for first, last in pairwise([0, *sorted(cuts), len(stream)]):
            peer.write(stream[first:last])
            bare.serve()
        assert receiver.read_packets() == [bytes([number]) for number in range(count)]
        assert peer.read() == [ServerInfo()]


def wrong_logins() -> dict[str, bytes]:
    private = NodePrivate(b"x" * 32)
    with BareRelay() as bare:
        flipped = bytearray(client_info(bare, private))
    flipped[-1] ^= 1
    elsewhere = seal_client_info(private, NodePrivate(b"y" * 32).public().raw, ClientInfo(), b"n" * 24)
    return {
        "another frame": encode(Ping(b"12345678")),
        "too long": HEADER.pack(FrameType.CLIENT_INFO, MAX_CLIENT_INFO_BYTES + 1),
        "too short": encode_frame(FrameType.CLIENT_INFO, bytes(55)),
        "nothing in the box": encode_frame(FrameType.CLIENT_INFO, bytes(56)),
        "damaged": bytes(flipped),
        "for another relay": elsewhere,
        "a key of small order": encode_frame(FrameType.CLIENT_INFO, bytes(200)),
        "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    }


@pytest.mark.parametrize("name", wrong_logins())
def test_a_wrong_login_ends_the_connection(bare: BareRelay, name: str) -> None:
    bystanders = Bystanders(bare)
    peer = bare.open()
    peer.read()  # only now: what the core answers is not sent
    peer.wire.close()
    peer = bare.open()
    peer.write(wrong_logins()[name])
    bare.serve()
    assert peer.plain.read()[:5] == b"\x01\x00\x00\x00\x28", "the greeting"
    assert peer.ended
    assert bare.closed()[CloseReason.PROTOCOL_ERROR] == 1
    assert len(bare.router.clients) == 2
    assert len(bare.lobby.waiting) == 0
    bystanders.check()


def test_a_login_that_is_announced_long_and_never_ends_waits_for_its_deadline(bare: BareRelay) -> None:
    peer = bare.open()
    peer.write(HEADER.pack(FrameType.CLIENT_INFO, MAX_CLIENT_INFO_BYTES) + bytes(MAX_CLIENT_INFO_BYTES - 1))
    bare.serve()
    assert list(bare.lobby.waiting) == [peer.near]
    assert bare.lobby.waiting.at(peer.near) == 1010.0
    bare.time = 1009.9
    bare.serve()
    assert len(bare.reactor.wires) == 1
    bare.time = 1010.0
    bare.serve()
    assert (len(bare.lobby.waiting), bare.closed()) == (0, {CloseReason.HANDSHAKE_TIMEOUT: 1})


@pytest.mark.parametrize(("mesh_key", "is_mesh_peer"), [(MESH_KEY, True), (MeshKey(b"x" * 32), False), (None, False)])
def test_only_the_right_mesh_key_makes_a_mesh_peer(
    bare: BareRelay, mesh_key: MeshKey | None, is_mesh_peer: bool
) -> None:
    assert bare.connect(mesh_key=mesh_key).client.is_mesh_peer is is_mesh_peer
    assert bare.router.counters.wrong_mesh_keys == (mesh_key is not None and not is_mesh_peer)


@pytest.mark.parametrize("ours", [MESH_KEY, None])
def test_a_wrong_mesh_key_is_a_line_once_a_minute(
    open_bare: Open, ours: MeshKey | None, caplog: pytest.LogCaptureFixture
) -> None:
    bare = open_bare(mesh_key=ours)
    for _ in range(3):
        peer = bare.connect(mesh_key=MeshKey(b"x" * 32))
    (line,) = (record for record in caplog.records if "mesh-psk-file" in record.getMessage())
    has = "has another mesh key than this relay" if ours else "has a mesh key, and this relay none"
    assert re.match(rf"! 127\.0\.0\.1:40001 \[\S{{5}}\] {has}; ", line.getMessage())
    assert ("x" * 32).encode().hex() not in caplog.text
    bare.time += 60.0
    bare.serve()
    peer = bare.connect(mesh_key=MeshKey(b"y" * 32))
    assert caplog.messages[-1].endswith("(2 more since the last such line)")
    assert caplog.records[-1].__dict__["fields"]["key"] == peer.key
    assert bare.router.counters.wrong_mesh_keys == 4


# --- admission


def wait_for_the_end(bare: BareRelay, peer: Peer) -> None:
    """A client that was refused is closed after five seconds, whatever it says meanwhile."""
    bare.time += 4.9
    peer.write(b"whatever it says")
    bare.serve()
    assert (peer.read(), peer.ended) == ([], False)
    bare.time += 0.2
    bare.serve()
    assert (peer.read(), peer.ended) == ([], True)
    assert bare.closed() == {CloseReason.NOT_ADMITTED: 1}


def test_a_denied_key_is_told_and_turned_away(open_bare: Open) -> None:
    private = NodePrivate(b"x" * 32)
    bare = open_bare(deny_keys=frozenset({private.public().raw}))
    peer = bare.open(private=private)
    peer.read()
    bare.serve()
    assert (peer.read(), peer.ended) == ([Health(REFUSED_TEXT)], False)
    wait_for_the_end(bare, peer)
    # ... unless it proves to be a relay of ours.
    assert bare.connect(private=private, mesh_key=MESH_KEY).client.is_mesh_peer


@pytest.mark.parametrize("verdict", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_waits_for_the_verdict(open_bare: Open, kind: str, verdict: bool) -> None:
    verifier = SlowVerifier()
    bare = open_bare(verifier=verifier)
    mesh = bare.connect(mesh_key=MESH_KEY)
    private = NodePrivate(b"x" * 32)
    peer = bare.open(kind, private=private)
    early = encode(SendPacket(mesh.key, b"early")) + encode(SendPacket(mesh.key, b"in two parts"))
    peer.write(client_info(bare, private) + early[:-5])
    bare.serve()
    peer.write(early[-5:] + encode(SendPacket(mesh.key, b"later")))
    bare.serve()
    ((key, address, answer),) = verifier.questions
    assert (key, address) == (private.public().raw, "127.0.0.1")
    assert peer.near in bare.lobby.waiting, "or it would have no deadline"
    assert (mesh.read(), len(bare.router.clients)) == ([], 1)
    answer(verdict)
    bare.serve()
    if verdict:
        assert mesh.read_packets() == [b"early", b"in two parts", b"later"]
        assert peer.read() == [ServerInfo()]
    else:
        assert (mesh.read(), peer.read(), peer.ended) == ([], [Health(REFUSED_TEXT)], False)
        wait_for_the_end(bare, peer)
    assert len(bare.lobby.waiting) == 0


def test_packets_let_in_by_a_verdict_do_not_wait_for_the_next_batch(open_bare: Open) -> None:
    verifier = SlowVerifier()
    bare = open_bare(verifier=verifier)
    mesh = bare.connect(mesh_key=MESH_KEY)
    private = NodePrivate(b"x" * 32)
    peer = bare.open(private=private)
    peer.write(client_info(bare, private) + encode(SendPacket(mesh.key, b"early")))
    bare.serve()
    verifier.questions[0][2](True)
    assert mesh.read_packets() == [b"early"]


def test_a_client_is_refused_at_once_where_too_many_wait(open_bare: Open) -> None:
    verifier = SlowVerifier()
    verifier.at_once = Verdict(False, "too many wait", answered=False)
    bare = open_bare(verifier=verifier)
    private = NodePrivate(b"x" * 32)
    peer = bare.open(private=private)
    peer.read()
    peer.write(client_info(bare, private))
    bare.serve()
    assert (peer.read(), peer.ended) == ([Health(REFUSED_TEXT)], False)
    wait_for_the_end(bare, peer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tcp", [True, False])
def test_who_leaves_while_it_waits_is_found_to_have_left(open_bare: Open, kind: str, tcp: bool) -> None:
    verifier = SlowVerifier()
    bare = open_bare(verifier=verifier)
    private = NodePrivate(b"x" * 32)
    peer = bare.open(kind, private=private, tcp=tcp)
    peer.read()  # or the kernel would reset the connection, which anybody sees
    peer.write(client_info(bare, private))
    bare.serve()
    (question,) = verifier.asked
    assert question.is_waiting()
    if tcp:  # what it sent before is still there to be read
        peer.write(encode(SendPacket(b"k" * 32, b"early")))
    peer.plain.sock.shutdown(socket.SHUT_WR)
    bare.serve()
    assert peer.near in bare.reactor.wires, "nobody reads it"
    assert not question.is_waiting()
    assert bare.closed() == {CloseReason.CLOSED_BY_PEER: 1}
    assert not question.is_waiting()


@pytest.mark.parametrize("verdict", [True, False])
def test_a_verdict_about_somebody_who_left(open_bare: Open, verdict: bool) -> None:
    verifier = SlowVerifier()
    bare = open_bare(verifier=verifier)
    private = NodePrivate(b"x" * 32)
    for number in range(3):
        peer = bare.open(private=private, tcp=True)
        peer.write(client_info(bare, private))
        bare.serve()
        if number == 0:  # by our deadline
            bare.reactor.close(peer.near, CloseReason.HANDSHAKE_TIMEOUT)
        peer.plain.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.wire.close()
        if number == 1:  # the reactor saw that it left
            bare.serve()
        verifier.questions.pop()[2](verdict)  # in the third case nobody noticed yet
        bare.serve()
    assert (bare.router.clients, bare.reactor.wires, len(bare.lobby.waiting)) == ({}, {}, 0)
    assert sum(bare.closed().values()) == 3


# --- many connections of one key


def test_a_key_has_no_more_connections_than_are_allowed(bare: BareRelay) -> None:
    private = NodePrivate(b"x" * 32)
    peers = [bare.open(private=private) for _ in range(MAX_PER_KEY + 20)]
    for peer in peers:
        peer.read()
    bare.serve()  # all of them in one batch
    member = bare.router.members[private.public().raw]
    assert len(member.connections) == len(bare.router.clients) == MAX_PER_KEY
    assert bare.closed() == {CloseReason.TOO_MANY: 20}
    for peer in peers:
        peer.read()
    assert [peer.ended for peer in peers].count(True) == 20


def test_the_connection_that_gives_way_is_the_one_silent_for_longest(bare: BareRelay) -> None:
    private = NodePrivate(b"x" * 32)
    peers = [bare.connect(private=private) for _ in range(MAX_PER_KEY)]
    peers[0].send(Ping(b"12345678"))
    bare.serve()
    bare.connect(private=private)
    for peer in peers:
        peer.read()
    assert [peer.ended for peer in peers[:3]] == [False, True, False]


# --- frames of a client


def test_any_frame_makes_a_connection_the_active_one(bare: BareRelay) -> None:
    private = NodePrivate(b"x" * 32)
    first, second = bare.connect(private=private), bare.connect(private=private)
    sender = bare.connect()
    for active, message in ((first, Ping(b"12345678")), (second, NotePreferred(True)), (first, NotePreferred(False))):
        active.send(message)
        bare.serve()
        active.read()
        sender.send_packets(active, b"for the active one")
        bare.serve()
        assert active.read_packets() == [b"for the active one"]
    assert second.read() == []


def test_the_frames_of_a_client(bare: BareRelay) -> None:
    peer = bare.connect()
    ping = encode_frame(FrameType.PING, b"12345678 and more")
    peer.write(encode(NotePreferred(True)) + ping + encode(Pong(b"87654321")) + encode_frame(FrameType.PONG, b"x"))
    bare.serve()
    assert peer.read() == [Pong(b"12345678")]
    counters = bare.router.counters
    assert (bare.router.home_clients, counters.got_ping, counters.sent_pong) == (1, 1, 1)
    assert peer.client.is_preferred
    peer.send(NotePreferred(False))
    bare.serve()
    assert bare.router.home_clients == 0


def test_the_frames_of_a_mesh_peer(bare: BareRelay) -> None:
    mesh, a, b = bare.connect(mesh_key=MESH_KEY), bare.connect(), bare.connect("websocket")
    mesh.send(WatchConns())
    bare.serve()
    assert {message.key for message in mesh.read() if isinstance(message, PeerPresent)} == {mesh.key, a.key, b.key}
    mesh.send(ForwardPacket(b"f" * 32, a.key, b"one"), ForwardPacket(a.key, b.key, b"two"), Ping(b"12345678"))
    mesh.send(ForwardPacket(b"f" * 32, a.key, b"three"), SendPacket(b.key, b"four"))
    bare.serve()
    assert a.read() == [RecvPacket(b"f" * 32, b"one"), RecvPacket(b"f" * 32, b"three")]
    assert b.read() == [RecvPacket(a.key, b"two"), RecvPacket(mesh.key, b"four")]
    assert mesh.read() == [Pong(b"12345678")]
    mesh.send(ClosePeer(a.key))
    bare.serve()
    assert (a.read(), a.ended) == ([], True)
    assert b.read() == [PeerGone(a.key, 0)]
    assert mesh.read() == [PeerGone(a.key, 0)]
    assert bare.closed() == {CloseReason.CLOSED_BY_MESH: 1}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_frames_of_all_kinds_cut_anywhere(data: st.DataObject) -> None:
    stream, packets, pings = b"", [], 0
    with BareRelay() as bare:
        peer, receiver = bare.connect(mesh_key=MESH_KEY), bare.connect()
        for number in range(data.draw(st.integers(1, 8))):
            body = bytes([number]) * data.draw(st.sampled_from((0, 1, 500, 65_536)))
            match data.draw(st.sampled_from(("packet", "forward", "ping", "prefer", "unknown"))):
                case "packet":
                    packets.append(body)
                    stream += encode(SendPacket(receiver.key, body))
                case "forward":
                    packets.append(body)
                    stream += encode(ForwardPacket(b"f" * 32, receiver.key, body))
                case "ping":
                    pings += 1
                    stream += encode(Ping(b"ping%04d" % number))
                case "prefer":
                    stream += encode(NotePreferred(True))
                case _:
                    stream += encode_frame(0x7F, body + bytes(data.draw(st.integers(498, 502))))
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
        got: list[bytes] = []
        for first, last in pairwise([0, *sorted(cuts), len(stream)]):
            peer.write(stream[first:last])
            for message in bare.serve_reading(receiver)[receiver]:
                assert isinstance(message, RecvPacket)
                got.append(message.packet)
        assert got == packets
        assert len(peer.read()) == pings
        assert bare.totals() == (len(packets), sum(map(len, packets)))


def test_a_stream_of_frames_in_single_bytes(bare: BareRelay) -> None:
    peer, receiver = bare.connect(mesh_key=MESH_KEY), bare.connect()
    stream = b"".join(
        (
            encode(SendPacket(receiver.key, b"1")),
            encode_frame(0x33, b"unknown"),
            encode(ForwardPacket(b"f" * 32, receiver.key, b"22")),
            encode(NotePreferred(True)),
            encode_frame(0x34, bytes(1100)),
            encode(SendPacket(receiver.key, b"333")),
        )
    )
    for at in range(len(stream)):
        peer.write(stream[at : at + 1])
        bare.serve()
    assert receiver.read_packets() == [b"1", b"22", b"333"]
    assert bare.router.counters.unknown_frames == 2


@pytest.mark.parametrize("length", [0, 1000, 1001, 300_000, MAX_UNKNOWN_BYTES])
def test_unknown_frames_are_skipped_however_they_arrive(bare: BareRelay, length: int) -> None:
    peer, receiver = bare.connect(), bare.connect()
    frame = encode_frame(0x7F, bytes(length))
    after = encode(SendPacket(receiver.key, b"after"))
    peer.write(frame + after)  # goes in receives of some 200 KiB
    bare.serve()
    for at in (1, 5, 6, 700):
        peer.write(frame[:at])
        bare.serve()
        peer.write(frame[at:] + after)
        bare.serve()
    assert receiver.read_packets() == [b"after"] * 5
    assert bare.router.counters.unknown_frames == 5
    assert peer.near.kept == b""


# --- frames no client may send


WRONG = {
    "SendPacket too short": HEADER.pack(FrameType.SEND_PACKET, 31),
    "SendPacket too long": HEADER.pack(FrameType.SEND_PACKET, MAX_SEND_BYTES + 1),
    "NotePreferred too long": encode_frame(FrameType.NOTE_PREFERRED, b"\0\0"),
    "NotePreferred empty": encode_frame(FrameType.NOTE_PREFERRED),
    "NotePreferred of a megabyte": HEADER.pack(FrameType.NOTE_PREFERRED, 1 << 20),
    "Ping too short": encode_frame(FrameType.PING, b"1234567"),
    "Ping too long": HEADER.pack(FrameType.PING, 1001),
    "an unknown frame too long": HEADER.pack(0x7F, MAX_UNKNOWN_BYTES + 1),
    "four gigabytes": HEADER.pack(0x7F, 0xFFFFFFFF),
    "WatchConns of a stranger": encode(WatchConns()),
    "ClosePeer of a stranger": encode(ClosePeer(b"k" * 32)),
    "ForwardPacket of a stranger": encode(ForwardPacket(b"k" * 32, b"l" * 32, b"x")),
    "the head of a ForwardPacket of a stranger": HEADER.pack(FrameType.FORWARD_PACKET, 100),
}
WRONG_OF_MESH = {
    "ForwardPacket too short": HEADER.pack(FrameType.FORWARD_PACKET, 63),
    "ForwardPacket too long": HEADER.pack(FrameType.FORWARD_PACKET, MAX_SEND_BYTES + 33),
    "WatchConns with a body": encode_frame(FrameType.WATCH_CONNS, b"x"),
    "ClosePeer too short": encode_frame(FrameType.CLOSE_PEER, bytes(31)),
    "ClosePeer too long": HEADER.pack(FrameType.CLOSE_PEER, 2000),
}


@pytest.mark.parametrize("kind", ["plain", "websocket over tls"])
@pytest.mark.parametrize("name", [*WRONG, *WRONG_OF_MESH])
def test_a_wrong_frame_ends_its_sender_and_nobody_else(bare: BareRelay, name: str, kind: str) -> None:
    bystanders = Bystanders(bare)
    peer = bare.connect(kind, mesh_key=MESH_KEY if name in WRONG_OF_MESH else None)
    wrong = (WRONG | WRONG_OF_MESH)[name]
    before = encode(SendPacket(bystanders.a.key, b"in good faith"))
    after = encode(SendPacket(bystanders.a.key, b"too late"))
    peer.write(before + wrong + (after if "long" in name or "stranger" in name else b""))
    bystanders.b.send_packets(bystanders.a, b"meanwhile")
    bare.serve()
    got = bystanders.a.read()
    assert [message.packet for message in got if isinstance(message, RecvPacket) and message.src == peer.key] == [
        b"in good faith"
    ]
    assert PeerGone(peer.key, 0) in got
    assert RecvPacket(bystanders.b.key, b"meanwhile") in got
    assert (peer.read(), peer.ended) == ([], True)
    assert bare.closed() == {CloseReason.PROTOCOL_ERROR: 1}
    bystanders.check()


@pytest.mark.parametrize("frame", [encode(NotePreferred(True)), encode(Ping(b"12345678")), HEADER.pack(0x7F, 0)])
def test_a_flood_of_control_frames_ends_its_sender(bare: BareRelay, frame: bytes) -> None:
    bystanders = Bystanders(bare)
    peer = bare.connect()
    peer.write(frame * 2900)
    bare.serve()
    peer.read()
    assert peer.near in bare.reactor.wires, "an eager client is none"
    near = peer.near.sock
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    peer.plain.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    peer.write(frame * 20_000)
    bare.serve()
    peer.read()
    assert peer.ended
    assert bare.closed() == {CloseReason.FLOOD: 1}
    bystanders.check()


def test_a_flood_of_packets_to_nobody_costs_only_packets(bare: BareRelay) -> None:
    bystanders = Bystanders(bare)
    peer = bare.connect()
    disco = b"TS\xf0\x9f\x92\xac" + bytes(56)
    keys = [number.to_bytes(32, "big") for number in range(2000)]
    peer.send(*(SendPacket(key, disco) for key in keys))
    bare.serve()
    assert [type(message) for message in peer.read()] == [PeerGone] * 3
    assert bare.router.counters.dropped(DropReason.UNKNOWN_DEST) == 2000
    assert len(bare.router.members) == 3, "what a client sends to leaves nothing behind"
    bystanders.check()


def test_last_packets_before_leaving_arrive(bare: BareRelay) -> None:
    receiver = bare.connect()
    for kind in KINDS:
        peer = bare.connect(kind)
        peer.send_packets(receiver, b"last words")
        if "tls" in kind:
            peer.plain.write(tls_of(peer).say_goodbye())
        peer.wire.close()
        bare.serve()
        assert receiver.read() == [RecvPacket(peer.key, b"last words"), PeerGone(peer.key, 0)]


@pytest.mark.parametrize("kind", ["tls", "websocket", "websocket over tls"])
def test_who_says_goodbye_is_gone_though_its_socket_stays(bare: BareRelay, kind: str) -> None:
    receiver, peer = bare.connect(), bare.connect(kind)
    words = encode(SendPacket(receiver.key, b"last words"))
    if kind == "tls":
        peer.plain.write(tls_of(peer).encrypt(words) + tls_of(peer).say_goodbye())
    else:
        assert isinstance(peer.wire, WebSocketWire)
        peer.wire.write_raw(masked(words) + masked(b"", Opcode.CLOSE))
    bare.serve()
    assert receiver.read() == [RecvPacket(peer.key, b"last words"), PeerGone(peer.key, 0)]
    assert bare.closed() == {CloseReason.CLOSED_BY_PEER: 1}


def tls_of(peer: Peer) -> TlsWire:
    wire = peer.wire.wire if isinstance(peer.wire, WebSocketWire) else peer.wire
    assert isinstance(wire, TlsWire)
    return wire


# --- rate limits


def test_a_client_that_sends_too_much_is_read_later_and_loses_nothing(bare: BareRelay) -> None:
    sender, receiver = bare.connect(), bare.connect()
    bare.sessions.set_limits(Rate(bytes_per_second=100_000, burst_bytes=100_000), {}, NO_LIMITS)
    packets = [bytes([number]) * 1000 for number in range(250)]
    sender.send_packets(receiver, *packets)
    got = read_all(bare, receiver)
    assert got == packets[: len(got)]
    until = bare.sessions.limiter.throttled.next_timeout()
    assert until == pytest.approx(bare.time + (len(got) * 1032 - 100_000) / 100_000, abs=1e-6)
    assert until is not None
    bare.time = until - 0.001
    assert read_all(bare, receiver) == []
    pauses = 0
    while pauses < 20 and (until := bare.sessions.limiter.throttled.next_timeout()) is not None:
        pauses += 1
        bare.time = until
        bare.reactor.serve_ready()
        got += read_all(bare, receiver)
    assert got == packets
    assert bare.router.counters.rate_limited == pauses
    assert bare.time == pytest.approx(1000.0 + (250 * 1032 - 100_000) / 100_000, abs=1e-6)


def read_all(bare: BareRelay, receiver: Peer) -> list[bytes]:
    messages = bare.serve_reading(receiver)[receiver]
    return [message.packet for message in messages if isinstance(message, RecvPacket)]


def test_a_mesh_peer_is_exempt_and_single_keys_have_their_own_limit(bare: BareRelay) -> None:
    mesh, other, receiver = bare.connect(mesh_key=MESH_KEY), bare.connect(), bare.connect()
    slow, none = Rate(1000, 70_000), Rate()
    bare.sessions.set_limits(slow, {other.key: none}, NO_LIMITS)
    for peer in (mesh, other):
        peer.send_packets(receiver, *[bytes(1000)] * 150)
    assert len(read_all(bare, receiver)) == 300
    assert len(bare.sessions.limiter.throttled) == 0


def test_who_leaves_while_it_is_throttled_is_forgotten(bare: BareRelay) -> None:
    sender, receiver = bare.connect(), bare.connect()
    bare.sessions.set_limits(Rate(bytes_per_second=1, burst_bytes=1), {}, NO_LIMITS)
    sender.send_packets(receiver, *[bytes(60_000)] * 2)
    bare.serve()
    assert [each.client for each in bare.sessions.limiter.throttled] == [sender.client]
    sender.wire.close()
    bare.serve()
    assert (len(bare.sessions.limiter.throttled), len(bare.router.clients)) == (0, 1)
