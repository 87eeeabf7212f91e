"""Every frame against the genuine implementation's own, then round trips, limits and perturbed bytes."""

import dataclasses
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.protocol import messages
from derp.protocol.frames import HEADER, HEADER_BYTES, FrameReader, FrameType, PeerGoneReason
from derp.protocol.messages import (
    ClientInfo,
    ClosePeer,
    ForwardPacket,
    Health,
    NotePreferred,
    ParsedMessage,
    Payload,
    PeerGone,
    PeerPresent,
    Ping,
    PlainMessage,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    ServerInfo,
    ServerKey,
    UnknownFrame,
    WatchConns,
    encode,
    parse_from_client,
    parse_from_server,
)
from tests.derp.protocol import values
from tests.vectors.derp import PUBLIC, VECTORS, wire

KEY = bytes(range(32))
OTHER = bytes(range(32, 64))
BOXED = {FrameType.CLIENT_INFO, FrameType.SERVER_INFO}
GREETING = FrameType.SERVER_KEY


def split(frame: bytes) -> tuple[int, bytes]:
    frame_type, length = HEADER.unpack_from(frame)
    assert len(frame) == HEADER_BYTES + length
    return frame_type, frame[HEADER_BYTES:]


# --- what genuine parties wrote ---


@pytest.mark.parametrize("index", range(len(VECTORS["session"])))
def test_recorded_frames_are_parsed_and_encoded_to_the_byte(index: int) -> None:
    recorded = VECTORS["session"][index]
    frame = bytes.fromhex(recorded["hex"])
    frame_type, payload = split(frame)
    if frame_type in BOXED or frame_type == GREETING:
        assert frame_type != GREETING or encode(ServerKey(PUBLIC["server"])) == frame
        return
    parse = parse_from_client if recorded["from"] == "client" else parse_from_server
    message = parse(frame_type, payload)
    assert not isinstance(message, UnknownFrame)
    assert encode(message) == frame


def test_the_recording_holds_every_frame_that_a_derper_and_its_clients_send() -> None:
    seen = {split(bytes.fromhex(frame["hex"]))[0] for frame in VECTORS["session"]}
    # KeepAlive comes once a minute, and no derper sends the last two: they stand in client_reads.
    assert seen == set(FrameType) - {FrameType.KEEP_ALIVE, FrameType.HEALTH, FrameType.RESTARTING}


def test_the_recorded_session_says_what_its_actors_did() -> None:
    from_a = [parse_from_client(*frame) for frame in FrameReader(1 << 20).receive_data(wire("a", "client"))[1:]]
    nobody = from_a[6]
    assert isinstance(nobody, SendPacket)
    assert from_a == [
        SendPacket(PUBLIC["b"], b"hello"),
        SendPacket(PUBLIC["b"], b""),
        NotePreferred(True),
        NotePreferred(False),
        Pong(bytes((8, 7, 6, 5, 4, 3, 2, 1))),
        Ping(bytes((1, 2, 3, 4, 5, 6, 7, 8))),
        SendPacket(nobody.dst, b"TS\xf0\x9f\x92\xac" + bytes(56)),
    ]
    from_mesh = [parse_from_client(*frame) for frame in FrameReader(1 << 20).receive_data(wire("mesh", "client"))[1:]]
    assert from_mesh[0] == WatchConns()
    assert from_mesh[2] == ClosePeer(PUBLIC["prober"])
    assert isinstance(from_mesh[1], ForwardPacket)
    assert (from_mesh[1].dst, from_mesh[1].packet) == (PUBLIC["b"], b"from afar")


def collapse(text: str) -> str:
    # One bad character is one U+FFFD in Python and one per byte in Go.
    return re.sub("\ufffd+", "\ufffd", text)


# The boxed frames, and permission, are asked of whole connections in test_connection.py.
PLAIN_CLIENT_READS = [v for v in VECTORS["client_reads"] if bytes.fromhex(v["hex"])[0] != FrameType.SERVER_INFO]
MESH_SERVER_READS = [v for v in VECTORS["server_reads"] if v["mesh"]]


@pytest.mark.parametrize("verdict", PLAIN_CLIENT_READS, ids=lambda v: v["hex"][:12])
def test_a_client_judges_frames_as_the_genuine_one(verdict: dict[str, Any]) -> None:
    data = bytes.fromhex(verdict["hex"])
    if HEADER.unpack_from(data)[1] > len(data):  # only the head of a frame that is too long
        assert verdict["verdict"] == "error"
        with pytest.raises(RemoteProtocolError):
            FrameReader(1 << 20).receive_data(data)
        return
    message = parse_from_server(*split(data))
    if verdict["verdict"] == "skipped":
        assert message == UnknownFrame(data[0], len(data) - HEADER_BYTES)
        return
    assert verdict["verdict"] == "message"
    expected = values.from_description(verdict["message"])
    if isinstance(message, Health) and isinstance(expected, Health):
        assert collapse(message.text) == collapse(expected.text)
    else:
        assert message == expected


@pytest.mark.parametrize("verdict", MESH_SERVER_READS, ids=lambda v: v["hex"][:10])
def test_a_relay_judges_lengths_as_the_genuine_one(verdict: dict[str, str | bool]) -> None:
    frame_type, payload = split(bytes.fromhex(str(verdict["hex"])))
    if verdict["closed"]:
        with pytest.raises(RemoteProtocolError):
            parse_from_client(frame_type, payload)
    else:
        parse_from_client(frame_type, payload)


# --- round trips ---


@given(values.client_messages)
def test_client_messages_round_trip(message: PlainMessage) -> None:
    assert parse_from_client(*split(encode(message))) == message


@given(values.server_messages)
def test_server_messages_round_trip(message: PlainMessage) -> None:
    assert parse_from_server(*split(encode(message))) == message


@given(st.lists(values.client_messages, max_size=8), st.lists(values.server_messages, max_size=8), st.data())
def test_streams_survive_any_cut(sent: list[PlainMessage], answered: list[PlainMessage], data: st.DataObject) -> None:
    for said, parse in ((sent, parse_from_client), (answered, parse_from_server)):
        stream = b"".join(map(encode, said))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        reader, got = FrameReader(1 << 20), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            got += [parse(*frame) for frame in reader.receive_data(stream[start:end])]
        assert got == said
        assert reader.trailing_data() == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_read_and_nothing_of_it_is_kept(kind: Callable[[bytearray], Payload]) -> None:
    buffer = bytearray(KEY + b"packet")
    message = parse_from_client(FrameType.SEND_PACKET, kind(buffer))
    buffer[:] = bytes(len(buffer))
    assert message == SendPacket(KEY, b"packet")
    assert hash(message) == hash(SendPacket(KEY, b"packet"))


@pytest.mark.parametrize(
    ("message", "parse"),
    [
        (Ping(b"12345678"), parse_from_client),
        (Ping(b"12345678"), parse_from_server),
        (Pong(b"12345678"), parse_from_client),
        (Pong(b"12345678"), parse_from_server),
        (PeerGone(KEY, 1), parse_from_server),
        (PeerPresent(KEY, IPv4Address("192.0.2.7"), 41641, 1), parse_from_server),
        (Restarting(1, 2), parse_from_server),
    ],
)
def test_bytes_of_the_future_are_ignored(message: PlainMessage, parse: Callable[[int, bytes], ParsedMessage]) -> None:
    frame_type, payload = split(encode(message))
    assert parse(frame_type, payload + b"more") == message


# --- particular values ---


@pytest.mark.parametrize(
    ("address", "on_the_wire"),
    [
        (None, "00" * 16),
        (IPv4Address("192.0.2.7"), "00000000000000000000ffffc0000207"),
        (IPv6Address("::ffff:192.0.2.7"), "00000000000000000000ffffc0000207"),
        (IPv6Address("2001:db8::7"), "20010db8000000000000000000000007"),
    ],
)
def test_addresses_have_16_bytes(address: IPv4Address | IPv6Address | None, on_the_wire: str) -> None:
    frame = encode(PeerPresent(KEY, address, 0x1234, 9))
    assert frame.hex() == "0900000033" + KEY.hex() + on_the_wire + "1234" + "09"


def test_a_mapped_ipv4_address_comes_back_as_ipv4() -> None:
    frame = encode(PeerPresent(KEY, IPv6Address("::ffff:192.0.2.7")))
    assert parse_from_server(*split(frame)) == PeerPresent(KEY, IPv4Address("192.0.2.7"))


@pytest.mark.parametrize("byte", [0, 1, 2, 255])
def test_any_byte_but_zero_prefers(byte: int) -> None:
    assert parse_from_client(FrameType.NOTE_PREFERRED, bytes((byte,))) == NotePreferred(byte != 0)


def test_a_packet_has_at_most_65536_bytes() -> None:
    longest = bytes(65536)
    assert parse_from_client(*split(encode(SendPacket(KEY, longest)))) == SendPacket(KEY, longest)
    assert parse_from_client(*split(encode(ForwardPacket(KEY, OTHER, longest)))) == ForwardPacket(KEY, OTHER, longest)
    assert parse_from_server(*split(encode(RecvPacket(KEY, longest)))) == RecvPacket(KEY, longest)
    for message in (SendPacket(KEY, longest + b"x"), ForwardPacket(KEY, OTHER, longest + b"x")):
        with pytest.raises(LocalProtocolError, match="65536"):
            encode(message)
    with pytest.raises(RemoteProtocolError, match="65568"):
        parse_from_client(FrameType.SEND_PACKET, KEY + longest + b"x")
    with pytest.raises(RemoteProtocolError, match="65600"):
        parse_from_client(FrameType.FORWARD_PACKET, KEY + OTHER + longest + b"x")
    # A client takes what its relay lets through, up to the largest frame.
    assert isinstance(parse_from_server(FrameType.RECV_PACKET, KEY + longest + b"x"), RecvPacket)


def test_a_client_refuses_frames_above_one_mebibyte_of_any_type() -> None:
    assert parse_from_server(0x99, bytes(1 << 20)) == UnknownFrame(0x99, 1 << 20)
    for frame_type in (0x99, FrameType.HEALTH, FrameType.RECV_PACKET):
        with pytest.raises(RemoteProtocolError, match="1048577"):
            parse_from_server(frame_type, bytes((1 << 20) + 1))


@pytest.mark.parametrize(
    "message",
    [
        SendPacket(KEY[:31], b""),
        SendPacket(KEY + b"x", b""),
        RecvPacket(b"", b""),
        ForwardPacket(KEY, b"", b""),
        ForwardPacket(b"", KEY, b""),
        ClosePeer(b"short"),
        ServerKey(b"short"),
        PeerGone(b"short"),
        PeerGone(KEY, 256),
        PeerGone(KEY, -1),
        PeerPresent(b"short"),
        PeerPresent(KEY, None, 65536),
        PeerPresent(KEY, None, -1),
        PeerPresent(KEY, None, 0, 256),
        Ping(b"1234567"),
        Pong(b"123456789"),
        Restarting(-1, 0),
        Restarting(0, 1 << 32),
        Health("x" * ((1 << 20) + 1)),
    ],
    ids=repr,
)
def test_values_that_fit_no_frame_are_refused(message: PlainMessage) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


@pytest.mark.parametrize(
    "message",
    [
        PeerGone(KEY, 0),
        PeerGone(KEY, 255),
        PeerPresent(KEY, None, 0, 0),
        PeerPresent(KEY, None, 65535, 255),
        Restarting(0, 0),
        Restarting(0xFFFFFFFF, 0xFFFFFFFF),
        Health("x" * (1 << 20)),
    ],
    ids=lambda message: repr(message)[:60],
)
def test_the_outermost_values_fit(message: PlainMessage) -> None:
    assert parse_from_server(*split(encode(message))) == message


def test_what_is_boxed_is_not_encoded_here() -> None:
    # A type checker says so before; without one it must not pass for an empty frame.
    for boxed in (ClientInfo(), ServerInfo(), UnknownFrame(0x99, 0)):
        with pytest.raises(AssertionError):
            encode(cast(PlainMessage, boxed))


def test_messages_are_small_and_cannot_change() -> None:
    kinds = [kind for kind in vars(messages).values() if getattr(kind, "__module__", "") == messages.__name__]
    kinds = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    assert len(kinds) == 17
    for kind in kinds:
        assert not hasattr(kind(*[b"" for _ in dataclasses.fields(kind)]), "__dict__")
        assert vars(kind)["__dataclass_params__"].frozen


def test_what_is_not_said_is_no() -> None:
    assert ClientInfo() == ClientInfo(None, 2, False, False, "")
    assert ServerInfo() == ServerInfo(2, 0, 0)
    assert PeerGone(KEY) == PeerGone(KEY, PeerGoneReason.DISCONNECTED)
    assert PeerPresent(KEY) == PeerPresent(KEY, None, 0, 0)
    assert Health() == Health("")


def test_a_health_text_with_a_lone_surrogate_is_still_sent() -> None:
    assert parse_from_server(*split(encode(Health("a\ud800b")))) == Health("a?b")


# --- the law: bytes parse, or raise RemoteProtocolError ---


@given(st.integers(0, 255), st.binary(max_size=120))
def test_any_payload_is_a_message_or_an_error(frame_type: int, payload: bytes) -> None:
    try:
        message = parse_from_client(frame_type, payload)
    except RemoteProtocolError:
        pass
    else:
        assert not isinstance(message, UnknownFrame) or message == UnknownFrame(frame_type, len(payload))
    parse_from_server(frame_type, payload)  # to a client no payload below 1 MiB is an error
