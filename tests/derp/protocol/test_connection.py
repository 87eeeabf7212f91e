"""Both cores against recorded genuine peers, against each other over a virtual link, and against bad peers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.connection import ClientConnection, ClientEvent, ClientIdentified, ServerHandshake
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.handshake import server_key_frame
from derp.protocol.messages import (
    ClientInfo,
    ClosePeer,
    ForwardPacket,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    Ping,
    PlainMessage,
    Pong,
    RecvPacket,
    RecvPackets,
    Restarting,
    SendPacket,
    ServerInfo,
    WatchConns,
    encode,
)
from derp.protocol.states import ClientState, ServerState
from tests.derp.protocol import values
from tests.support.derp_server import ServerConnection, ServerEvent
from tests.vectors.derp import MESH_KEY, PRIVATE, PUBLIC, VECTORS, wire

OTHER_MESH_KEY = MeshKey(bytes(range(1, 33)))


def numbers(seed: int = 1) -> "random.Random":
    return random.Random(seed)


class Link:
    """A client and a relay, joined by two byte streams that are cut anew on every turn."""

    def __init__(
        self,
        *,
        client_mesh_key: MeshKey | None = None,
        server_mesh_key: MeshKey | None = MESH_KEY,
        fast_start: bool = False,
        seed: int = 1,
    ) -> None:
        self.numbers = numbers(seed)
        self.client = ClientConnection(
            PRIVATE["a"],
            random_bytes=self.numbers.randbytes,
            mesh_key=client_mesh_key,
            server_key=PUBLIC["server"] if fast_start else None,
        )
        self.server = ServerConnection(PRIVATE["server"], random_bytes=self.numbers.randbytes, mesh_key=server_mesh_key)
        self.client_events: list[ClientEvent] = []
        self.server_events: list[ServerEvent] = []

    def _pieces(self, frames: list[bytes]) -> list[bytes]:
        stream, pieces = b"".join(frames), []
        while stream:
            cut = self.numbers.choice((1, 2, 5, 44, 200, len(stream)))
            pieces.append(stream[:cut])
            stream = stream[cut:]
        return pieces

    def run(self) -> None:
        """Move bytes until both sides are silent; the relay accepts everyone."""
        while True:
            to_server = self._pieces(self.client.data_to_send())
            to_client = self._pieces(self.server.data_to_send())
            if not to_server and not to_client:
                return
            for piece in to_server:
                self.server_events += self.server.receive_data(piece)
                if self.server.state is ServerState.JUDGING:
                    self.server_events += self.server.accept()
            for piece in to_client:
                self.client_events += self.client.receive_data(piece)

    def take(self) -> tuple[list[ClientEvent], list[ServerEvent]]:
        self.run()
        events = self.client_events, self.server_events
        self.client_events, self.server_events = [], []
        return events


# --- recorded genuine peers ---


@pytest.mark.parametrize("peer", ["a", "b", "mesh", "prober"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_client_core_reads_the_genuine_relay(peer: str, step: int) -> None:
    stream = wire(peer, "server")
    client = ClientConnection(PRIVATE[peer], random_bytes=numbers().randbytes, mesh_key=MESH_KEY)
    events = [event for i in range(0, len(stream), step) for event in client.receive_data(stream[i : i + step])]
    expected = [values.from_description(entry["message"]) for entry in VECTORS["received"] if entry["peer"] == peer]
    # Where several messages came at once the vectors are sorted.
    assert sorted(events, key=repr) == sorted(expected, key=repr)
    assert events[0] == ServerInfo(2)
    assert client.server_key == PUBLIC["server"]
    assert client.skipped_frames == 0


@pytest.mark.parametrize("peer", ["a", "b", "mesh", "prober"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_server_core_reads_the_genuine_client(peer: str, step: int) -> None:
    stream = wire(peer, "client")
    server = ServerConnection(PRIVATE["server"], random_bytes=numbers().randbytes, mesh_key=MESH_KEY)
    events: list[ServerEvent] = []
    for i in range(0, len(stream), step):
        events += server.receive_data(stream[i : i + step])
        if server.state is ServerState.JUDGING:
            events += server.accept()
    identified, *rest = events
    assert isinstance(identified, ClientIdentified)
    assert (identified.key, identified.is_mesh_peer) == (PUBLIC[peer], peer == "mesh")
    kinds = {
        "a": [SendPacket, SendPacket, NotePreferred, NotePreferred, Pong, Ping, SendPacket],
        "b": [],
        "mesh": [WatchConns, ForwardPacket, ClosePeer],
        "prober": [],
    }
    assert [type(event) for event in rest] == kinds[peer]


@pytest.mark.parametrize("verdict", VECTORS["client_reads"], ids=lambda v: v["hex"][:12])
def test_a_client_core_fails_where_the_genuine_client_fails(verdict: dict[str, object]) -> None:
    client = ClientConnection(PRIVATE["a"], random_bytes=numbers().randbytes)
    client.receive_data(server_key_frame(PUBLIC["server"]))
    frame = bytes.fromhex(str(verdict["hex"]))
    if verdict["verdict"] == "error":
        with pytest.raises(RemoteProtocolError):
            client.receive_data(frame)
        assert client.state is ClientState.CLOSED
        return
    events = client.receive_data(frame)
    assert len(events) == (verdict["verdict"] == "message")


# --- the two cores together ---


@pytest.mark.parametrize("fast_start", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_handshake_over_any_cut(fast_start: bool, seed: int) -> None:
    link = Link(fast_start=fast_start, seed=seed)
    client_events, server_events = link.take()
    assert client_events == [ServerInfo(2)]
    assert server_events == [ClientIdentified(PUBLIC["a"], ClientInfo(can_ack_pings=True), False)]
    assert (link.client.state, link.server.state) == (ClientState.OPEN, ServerState.ADMITTED)
    assert link.client.server_key == PUBLIC["server"]
    assert link.client.server_info == ServerInfo(2)


def test_nothing_is_known_before_the_handshake() -> None:
    client = ClientConnection(PRIVATE["a"], random_bytes=numbers().randbytes)
    server = ServerConnection(PRIVATE["server"], random_bytes=numbers().randbytes, mesh_key=MESH_KEY)
    assert (client.server_key, client.server_info, client.data_to_send()) == (None, None, [])
    assert (server.client, server.is_mesh_peer, server.data_to_send()) == (
        None,
        False,
        [server_key_frame(PUBLIC["server"])],
    )


def test_fast_start_speaks_first() -> None:
    client = ClientConnection(PRIVATE["a"], random_bytes=numbers().randbytes, server_key=PUBLIC["server"])
    assert [frame[0] for frame in client.data_to_send()] == [FrameType.CLIENT_INFO]
    # The relay greets all the same.
    assert client.receive_data(server_key_frame(PUBLIC["server"])) == []
    assert client.data_to_send() == []
    assert client.skipped_frames == 0


def test_a_client_may_send_before_the_answer() -> None:
    link = Link()
    link.client.receive_data(b"".join(link.server.data_to_send()))
    link.client.send_packet(PUBLIC["b"], b"early")
    link.client.send_note_preferred(True)
    _, server_events = link.take()
    assert server_events[1:] == [SendPacket(PUBLIC["b"], b"early"), NotePreferred(True)]


def test_what_comes_with_the_client_info_waits_for_its_acceptance() -> None:
    link = Link(fast_start=True)
    link.client.send_packet(PUBLIC["b"], b"one")
    link.client.send_ping(b"12345678")
    events = link.server.receive_data(b"".join(link.client.data_to_send()))
    assert [type(event) for event in events] == [ClientIdentified]
    with pytest.raises(LocalProtocolError, match="JUDGING"):
        link.server.receive_data(b"")
    behind = encode(SendPacket(PUBLIC["b"], b"one")) + encode(Ping(b"12345678"))
    assert link.server.handshake.trailing_data() == behind
    assert link.server.accept(ServerInfo(2, 1000, 50)) == [SendPacket(PUBLIC["b"], b"one"), Ping(b"12345678")]
    assert [frame[0] for frame in link.server.data_to_send()] == [0x01, 0x03, 0x13]


def test_a_bad_frame_behind_the_client_info_is_found_on_acceptance() -> None:
    link = Link(fast_start=True)
    link.client._to_send.append(encode_frame(FrameType.NOTE_PREFERRED, b""))
    link.server.receive_data(b"".join(link.client.data_to_send()))
    with pytest.raises(RemoteProtocolError, match="NotePreferred"):
        link.server.accept()
    assert link.server.state is ServerState.CLOSED


@pytest.mark.parametrize("seed", range(4))
def test_everything_each_side_can_say_arrives(seed: int) -> None:
    link = Link(client_mesh_key=MESH_KEY, seed=seed)
    link.take()
    a, b = PUBLIC["a"], PUBLIC["b"]
    link.client.send_packet(b, b"packet")
    link.client.send_packet(b, memoryview(b""))
    link.client.send_packet(b, bytearray(65536))
    link.client.send_ping(b"abcdefgh")
    link.client.send_note_preferred(False)
    link.client.send_watch_conns()
    link.client.send_close_peer(b)
    link.client.send_forward_packet(a, b, b"forwarded")
    said: list[PlainMessage] = [
        RecvPacket(b, b"hello"),
        KeepAlive(),
        PeerGone(b, 1),
        Ping(b"12345678"),
        Health("well"),
        Restarting(5, 6),
    ]
    for message in said:
        link.server.send(message)
    client_events, server_events = link.take()
    assert server_events == [
        SendPacket(b, b"packet"),
        SendPacket(b, b""),
        SendPacket(b, bytes(65536)),
        Ping(b"abcdefgh"),
        NotePreferred(False),
        WatchConns(),
        ClosePeer(b),
        ForwardPacket(a, b, b"forwarded"),
        Pong(b"12345678"),
    ]
    assert [event for event in client_events if event != Pong(b"abcdefgh")] == said
    assert client_events.count(Pong(b"abcdefgh")) == 1


def test_whoever_gathers_gets_runs_of_packets_in_their_order_among_the_others() -> None:
    link = Link()
    link.take()
    link.client.gathers_packets = True
    a, b = PUBLIC["a"], PUBLIC["b"]
    for message in (RecvPacket(a, b"1"), RecvPacket(a, b""), RecvPacket(b, b"2"), PeerGone(a, 1), RecvPacket(b, b"3")):
        link.server.send(message)
    events, _ = link.take()
    assert events == [(a, [b"1", b""]), (b, [b"2"]), PeerGone(a, 1), (b, [b"3"])]
    assert [type(event) for event in events] == [RecvPackets, RecvPackets, PeerGone, RecvPackets]


@given(st.lists(values.server_messages, max_size=10), st.integers(0, 100))
def test_any_talk_of_a_relay_arrives(said: list[PlainMessage], seed: int) -> None:
    link = Link(seed=seed)
    link.take()
    for message in said:
        link.server.send(message)
    client_events, server_events = link.take()
    assert client_events == said
    assert server_events == [Pong(message.payload) for message in said if isinstance(message, Ping)]


def test_a_second_server_info_replaces_the_first() -> None:
    link = Link()
    link.take()
    assert link.server.client is not None
    link.client.receive_data(link.server.client.seal_server_info(ServerInfo(2, 500, 900), bytes(24)))
    assert link.client.server_info == ServerInfo(2, 500, 900)
    # The bucket is a value for the driver: the core itself goes on sending.
    for _ in range(100):
        link.client.send_packet(PUBLIC["b"], bytes(60_000))
    assert len(link.client.data_to_send()) == 100


def test_unknown_and_stunted_frames_are_counted_and_skipped() -> None:
    link = Link()
    link.take()
    for frame in (encode_frame(0x99, bytes(3)), encode_frame(FrameType.RECV_PACKET, bytes(31)), encode(KeepAlive())):
        link.client_events += link.client.receive_data(frame)
    assert link.client_events == [KeepAlive()]
    assert link.client.skipped_frames == 2
    assert link.server.receive_data(encode_frame(0x99, bytes(300 * 1024)) + encode_frame(0x02, bytes(60))) == []
    assert link.server.skipped_frames == 2


# --- the mesh ---


@pytest.mark.parametrize(
    ("client_key", "server_key", "is_peer"),
    [
        (MESH_KEY, MESH_KEY, True),
        (MESH_KEY, OTHER_MESH_KEY, False),
        (None, MESH_KEY, False),
        (MESH_KEY, None, False),
        (None, None, False),
    ],
)
def test_who_is_a_mesh_peer(client_key: MeshKey | None, server_key: MeshKey | None, is_peer: bool) -> None:
    link = Link(client_mesh_key=client_key, server_mesh_key=server_key)
    (identified,) = link.take()[1]
    assert isinstance(identified, ClientIdentified)
    assert (identified.is_mesh_peer, link.server.is_mesh_peer) == (is_peer, is_peer)


def test_a_client_without_the_key_does_not_try() -> None:
    link = Link()
    link.take()
    with pytest.raises(LocalProtocolError, match="mesh key"):
        link.client.send_watch_conns()
    with pytest.raises(LocalProtocolError, match="mesh key"):
        link.client.send_close_peer(bytes(32))
    with pytest.raises(LocalProtocolError, match="mesh key"):
        link.client.send_forward_packet(bytes(32), bytes(32), b"")
    assert link.client.data_to_send() == []


# --- bad peers, and the end ---


def test_what_a_relay_says_in_place_of_server_info_is_kept() -> None:
    link = Link()
    assert link.client.refusal == ""
    link.client.receive_data(server_key_frame(PUBLIC["server"]))
    link.client.receive_data(encode(Health("not you")))
    assert (link.client.refusal, link.client.server_info) == ("not you", None)


def test_a_relay_that_closes_during_the_handshake_is_explained() -> None:
    for greeted in (b"", server_key_frame(PUBLIC["server"])):
        client = ClientConnection(PRIVATE["a"], random_bytes=numbers().randbytes)
        client.receive_data(greeted)
        with pytest.raises(RemoteProtocolError, match="may not admit this client's key"):
            client.receive_eof()
        assert client.data_to_send() == []
        client.receive_eof()  # once is enough


def test_the_end_within_a_frame_is_an_error_and_between_frames_is_not() -> None:
    link = Link()
    link.take()
    link.client.receive_data(encode(KeepAlive())[:3])
    with pytest.raises(RemoteProtocolError, match="within a frame"):
        link.client.receive_eof()
    link.server.receive_data(encode(NotePreferred(True))[:5])
    with pytest.raises(RemoteProtocolError, match="within a frame"):
        link.server.receive_eof()

    link = Link()
    link.take()
    link.client.receive_eof()
    link.server.receive_eof()
    assert (link.client.state, link.server.state) == (ClientState.CLOSED, ServerState.CLOSED)
    with pytest.raises(LocalProtocolError, match="closed"):
        link.client.receive_data(b"x")


def test_a_port_scan_is_no_error() -> None:
    server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes)
    server.receive_eof()
    assert server.state is ServerState.CLOSED


def test_a_client_that_leaves_within_its_client_info_is_an_error() -> None:
    server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes)
    server.receive_data(wire("a", "client")[:20])
    with pytest.raises(RemoteProtocolError, match="within a frame"):
        server.receive_eof()
    assert server.state is ServerState.CLOSED


def test_what_is_no_client_info_is_refused_by_its_header() -> None:
    """Not held until it is whole: the header alone tells."""
    for header in (encode_frame(FrameType.SEND_PACKET, bytes(64))[:5], b"\x02" + (256 * 1024 + 1).to_bytes(4, "big")):
        server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes)
        assert server.receive_data(header[:4]) == []
        with pytest.raises(RemoteProtocolError) as caught:
            server.receive_data(header[4:])
        with pytest.raises(RemoteProtocolError) as again:
            server.receive_data(wire("a", "client"))
        assert again.value is caught.value
        assert server.data_to_send() == []


@pytest.mark.parametrize("peer", ["a", "mesh"])
def test_a_login_has_the_nonce_of_its_box(peer: str) -> None:
    server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes, mesh_key=MESH_KEY)
    login = wire(peer, "client")
    assert len(server.receive_data(login)) == 1
    assert server.nonce == login[37:61]


def test_a_greeting_that_is_given_is_the_one_that_is_sent() -> None:
    server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes, greeting=b"made before")
    assert server.data_to_send() == [b"made before"]


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        encode_frame(FrameType.KEEP_ALIVE),
        encode_frame(FrameType.SERVER_KEY, bytes(40)),
        encode_frame(FrameType.SERVER_INFO, bytes(60)),
        encode_frame(0x99, bytes(60)),
    ],
    ids=["http", "keep-alive", "other magic", "server info first", "unknown"],
)
def test_a_stream_that_does_not_begin_with_the_greeting_is_refused(stream: bytes) -> None:
    client = ClientConnection(PRIVATE["a"], random_bytes=numbers().randbytes)
    with pytest.raises(RemoteProtocolError) as caught:
        client.receive_data(stream)
    with pytest.raises(RemoteProtocolError) as again:
        client.receive_data(server_key_frame(PUBLIC["server"]))
    assert again.value is caught.value
    assert client.data_to_send() == []


@pytest.mark.parametrize("frame_type", sorted(set(range(0x20)) - {FrameType.CLIENT_INFO}))
def test_a_client_that_does_not_introduce_itself_is_refused(frame_type: int) -> None:
    server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes)
    with pytest.raises(RemoteProtocolError, match="not ClientInfo"):
        server.receive_data(encode_frame(frame_type, bytes(64)))
    assert server.client is None
    assert server.data_to_send() == []


def test_a_relay_with_another_key_than_the_certificate_said_is_found_out() -> None:
    client = ClientConnection(PRIVATE["a"], random_bytes=numbers().randbytes, server_key=PUBLIC["b"])
    server = ServerHandshake(PRIVATE["server"], random_bytes=numbers().randbytes)
    with pytest.raises(RemoteProtocolError, match="does not open"):
        server.receive_data(b"".join(client.data_to_send()))


@pytest.mark.parametrize(("dst", "packet"), [(bytes(31), b""), (bytes(33), b""), (b"", b""), (bytes(32), bytes(65537))])
def test_packets_that_fit_no_frame_change_nothing(dst: bytes, packet: bytes) -> None:
    link = Link()
    link.take()
    with pytest.raises(LocalProtocolError):
        link.client.send_packet(dst, packet)
    assert link.client.data_to_send() == []
    assert link.client.state is ClientState.OPEN


def test_each_connection_has_its_own_nonce() -> None:
    random_bytes = numbers().randbytes
    first, second = (
        ClientConnection(PRIVATE["a"], random_bytes=random_bytes, server_key=PUBLIC["server"]).data_to_send()[0]
        for _ in range(2)
    )
    assert first[5:37] == second[5:37]
    assert first[37:61] != second[37:61]


def test_neither_core_prints_secrets() -> None:
    private = NodePrivate(bytes(range(100, 132)))
    client = ClientConnection(private, random_bytes=numbers().randbytes, mesh_key=MESH_KEY)
    for secret in (private.raw, MESH_KEY.raw):
        assert repr(secret) not in repr(vars(client))
        assert secret.hex() not in repr(vars(client))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_frames_or_an_error(data: bytes, client_side: bool) -> None:
    link = Link()
    link.take()
    core = link.client if client_side else link.server
    try:
        core.receive_data(data)
        core.receive_eof()
    except RemoteProtocolError:
        pass
    else:
        assert core.state in (ClientState.CLOSED, ServerState.CLOSED)
