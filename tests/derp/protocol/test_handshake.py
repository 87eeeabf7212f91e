"""The boxes of genuine parties opened, ours opened again, and the JSON inside judged as Go judges it."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey, PublicKey

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.frames import HEADER, HEADER_BYTES, MAGIC, FrameReader, FrameType
from derp.protocol.handshake import (
    open_client_info,
    open_server_info,
    parse_client_info_json,
    parse_server_info_json,
    parse_server_key,
    seal_client_info,
    server_key_frame,
)
from derp.protocol.messages import ClientInfo, ServerInfo
from tests.derp.protocol import values
from tests.vectors.derp import MESH_KEY, PRIVATE, PUBLIC, VECTORS, wire

SERVER = PRIVATE["server"]
CLIENT = PRIVATE["a"]
NONCE = bytes(range(24))

GENUINE_INFOS = {
    "a": ClientInfo(version=2),
    "b": ClientInfo(version=2, can_ack_pings=True),
    "mesh": ClientInfo(MESH_KEY, version=2),
    "prober": ClientInfo(version=2, is_prober=True, app_name='vectors "é"'),
}


def first_payload(frame: bytes, expected: FrameType) -> bytes:
    frame_type, payload = FrameReader(1 << 20).receive_data(frame)[0]
    assert frame_type == expected
    return bytes(payload)


def boxed_by_hand(text: bytes, private: NodePrivate = CLIENT, public: bytes = PUBLIC["server"]) -> bytes:
    """A ClientInfo payload made by PyNaCl's own box, not by the code under test."""
    box = Box(PrivateKey(private.raw), PublicKey(public)).encrypt(text, NONCE)
    return private.public().raw + bytes(box)


# --- genuine parties ---


def test_the_greeting_is_the_genuine_one() -> None:
    recorded = wire("a", "server")
    greeting = server_key_frame(PUBLIC["server"])
    assert recorded.startswith(greeting)
    assert len(greeting) == 45
    assert parse_server_key(first_payload(recorded, FrameType.SERVER_KEY)) == PUBLIC["server"]


@pytest.mark.parametrize("peer", GENUINE_INFOS)
def test_genuine_client_infos_open(peer: str) -> None:
    opened = open_client_info(SERVER, first_payload(wire(peer, "client"), FrameType.CLIENT_INFO))
    assert opened.key == PUBLIC[peer]
    assert opened.info == GENUINE_INFOS[peer]


@pytest.mark.parametrize("peer", GENUINE_INFOS)
def test_genuine_server_infos_open(peer: str) -> None:
    (_, _), (frame_type, payload), *_ = FrameReader(1 << 20).receive_data(wire(peer, "server"))
    assert frame_type == FrameType.SERVER_INFO
    assert open_server_info(PRIVATE[peer], PUBLIC["server"], payload) == ServerInfo(version=2)


@pytest.mark.parametrize("peer", GENUINE_INFOS)
def test_our_boxes_equal_the_genuine_ones_under_the_same_nonce(peer: str) -> None:
    frame = wire(peer, "client")
    nonce = first_payload(frame, FrameType.CLIENT_INFO)[32:56]
    ours = seal_client_info(PRIVATE[peer], PUBLIC["server"], GENUINE_INFOS[peer], nonce)
    if peer == "prober":  # Python escapes the é, Go does not: equal only once opened
        opened = open_client_info(SERVER, first_payload(ours, FrameType.CLIENT_INFO))
        assert opened.info == GENUINE_INFOS[peer]
        return
    assert frame.startswith(ours)
    answer = wire(peer, "server")[45:]
    opened = open_client_info(SERVER, first_payload(frame, FrameType.CLIENT_INFO))
    assert answer.startswith(opened.seal_server_info(ServerInfo(), answer[5:29]))


# --- between ourselves ---


@given(values.client_infos, values.server_infos)
def test_handshakes_round_trip(info: ClientInfo, answer: ServerInfo) -> None:
    frame = seal_client_info(CLIENT, PUBLIC["server"], info, NONCE)
    opened = open_client_info(SERVER, first_payload(frame, FrameType.CLIENT_INFO))
    assert opened.key == PUBLIC["a"]
    assert opened.info == info
    sealed = first_payload(opened.seal_server_info(answer, NONCE), FrameType.SERVER_INFO)
    assert open_server_info(CLIENT, PUBLIC["server"], sealed) == answer


def test_the_shared_secret_is_not_printed() -> None:
    opened = open_client_info(SERVER, boxed_by_hand(b"{}"))
    shared = Box(PrivateKey(SERVER.raw), PublicKey(opened.key)).shared_key()
    assert opened._shared == shared  # that is what must not show
    assert repr(shared) not in repr(opened)
    assert "_shared" not in repr(opened)


def test_the_mesh_key_is_not_printed() -> None:
    text = repr(open_client_info(SERVER, boxed_by_hand(b'{"meshKey":"%s"}' % (b"ab" * 32))))
    assert "ab" * 32 not in text
    assert repr(bytes.fromhex("ab" * 32)) not in text


def test_every_changed_byte_of_a_box_is_noticed() -> None:
    payload = bytearray(boxed_by_hand(b'{"version":2}'))
    for position in range(len(payload)):
        payload[position] ^= 0x40
        with pytest.raises(RemoteProtocolError):
            open_client_info(SERVER, payload)
        payload[position] ^= 0x40
    assert open_client_info(SERVER, payload).info.version == 2


def test_every_changed_byte_of_an_answer_is_noticed() -> None:
    opened = open_client_info(SERVER, boxed_by_hand(b"{}"))
    payload = bytearray(first_payload(opened.seal_server_info(ServerInfo(), NONCE), FrameType.SERVER_INFO))
    for position in range(len(payload)):
        payload[position] ^= 0x01
        with pytest.raises(RemoteProtocolError, match="does not open"):
            open_server_info(CLIENT, PUBLIC["server"], payload)
        payload[position] ^= 0x01


def test_a_box_for_another_relay_stays_shut() -> None:
    with pytest.raises(RemoteProtocolError, match="sealed for another key"):
        open_client_info(PRIVATE["b"], boxed_by_hand(b"{}"))


def test_an_answer_for_another_client_stays_shut() -> None:
    opened = open_client_info(SERVER, boxed_by_hand(b"{}"))
    payload = first_payload(opened.seal_server_info(ServerInfo(), NONCE), FrameType.SERVER_INFO)
    with pytest.raises(RemoteProtocolError):
        open_server_info(PRIVATE["b"], PUBLIC["server"], payload)


# The points of order 1, 2, 4 and 8 that a stranger may send as a key: with them anybody could open the answer.
@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ],
)
def test_keys_of_small_order_are_refused(point: str) -> None:
    with pytest.raises(RemoteProtocolError, match="not a usable"):
        open_client_info(SERVER, bytes.fromhex(point) + bytes(60))
    with pytest.raises(RemoteProtocolError, match="not a usable"):
        seal_client_info(CLIENT, bytes.fromhex(point), ClientInfo(), NONCE)


@pytest.mark.parametrize("length", [0, 31, 55, 256 * 1024 + 1])
def test_client_infos_of_impossible_length_are_refused_before_any_work(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"ClientInfo of {length} bytes, must be 56 to 262144"):
        open_client_info(SERVER, bytes(length))


@pytest.mark.parametrize("length", [56, 57, 71])
def test_boxes_too_short_for_their_tag_are_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="does not open"):
        open_client_info(SERVER, PUBLIC["a"] + bytes(length - 32))


@pytest.mark.parametrize("length", [0, 23, 24 + (1 << 20) + 1])
def test_server_infos_of_impossible_length_are_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"ServerInfo of {length} bytes"):
        open_server_info(CLIENT, PUBLIC["server"], bytes(length))


def test_the_longest_client_info_is_taken() -> None:
    room = 256 * 1024 - 32 - 24 - 16
    text = b'{"AppName":"' + b"x" * (room - 14) + b'"}'
    assert len(text) == room
    assert len(open_client_info(SERVER, boxed_by_hand(text)).info.app_name) == room - 14
    with pytest.raises(RemoteProtocolError, match="262145"):
        open_client_info(SERVER, boxed_by_hand(text + b" "))
    with pytest.raises(LocalProtocolError, match="shorten the app name"):
        seal_client_info(CLIENT, PUBLIC["server"], ClientInfo(app_name="x" * room), NONCE)


def test_our_own_longest_client_info_is_sent_and_taken() -> None:
    room = 256 * 1024 - 32 - 24 - 16
    frame = '{"version":2,"CanAckPings":false,"AppName":""}'
    info = ClientInfo(app_name="x" * (room - len(frame)))
    payload = first_payload(seal_client_info(CLIENT, PUBLIC["server"], info, NONCE), FrameType.CLIENT_INFO)
    assert len(payload) == 256 * 1024
    assert open_client_info(SERVER, payload).info == info


def test_the_longest_server_info_is_taken() -> None:
    box = Box(PrivateKey(SERVER.raw), PublicKey(PUBLIC["a"]))
    longest = bytes(box.encrypt(b"{}".ljust((1 << 20) - 16), NONCE))
    assert len(longest) == 24 + (1 << 20)
    assert open_server_info(CLIENT, PUBLIC["server"], longest) == ServerInfo(version=0)


@pytest.mark.parametrize("nonce", [b"", bytes(23), bytes(25)])
def test_nonces_have_24_bytes(nonce: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="24"):
        seal_client_info(CLIENT, PUBLIC["server"], ClientInfo(), nonce)
    with pytest.raises(LocalProtocolError, match="24"):
        open_client_info(SERVER, boxed_by_hand(b"{}")).seal_server_info(ServerInfo(), nonce)


@pytest.mark.parametrize(
    "payload",
    [b"", MAGIC, MAGIC + bytes(31), b"DERP\xf0\x9f\x94\x90" + bytes(32), MAGIC + bytes(1024), b"HTTP/1.1" + bytes(32)],
    ids=["empty", "no key", "short key", "other magic", "too long", "http"],
)
def test_a_greeting_of_something_else_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="DERP relay"):
        parse_server_key(payload)


@given(st.binary(max_size=1024 - 40))
def test_a_greeting_may_have_bytes_of_the_future(future: bytes) -> None:
    assert parse_server_key(MAGIC + PUBLIC["server"] + future) == PUBLIC["server"]


def test_the_longest_greeting_is_taken() -> None:
    assert parse_server_key((MAGIC + PUBLIC["server"]).ljust(1024)) == PUBLIC["server"]


# --- JSON ---


@pytest.mark.parametrize("verdict", VECTORS["client_info_json"], ids=lambda v: repr(bytes.fromhex(v["hex"]))[:60])
def test_client_info_json_is_read_as_go_reads_it(verdict: dict[str, object]) -> None:
    text = bytes.fromhex(str(verdict["hex"]))
    if not verdict["ok"]:
        with pytest.raises(RemoteProtocolError):
            parse_client_info_json(text)
        return
    value = verdict["value"]
    assert isinstance(value, dict)
    mesh_key = MeshKey.parse(value["mesh_key"]) if value["mesh_key"] else None
    expected = ClientInfo(
        mesh_key, value["version"], value["can_ack_pings"], value["is_prober"], app_name=value["app_name"]
    )
    assert parse_client_info_json(text) == expected


@pytest.mark.parametrize("verdict", VECTORS["server_info_json"], ids=lambda v: repr(bytes.fromhex(v["hex"]))[:60])
def test_server_info_json_is_read_as_go_reads_it(verdict: dict[str, object]) -> None:
    text = bytes.fromhex(str(verdict["hex"]))
    if not verdict["ok"]:
        with pytest.raises(RemoteProtocolError):
            parse_server_info_json(text)
        return
    value = verdict["value"]
    assert isinstance(value, dict)
    expected = ServerInfo(value["version"], value["bytes_per_second"], value["burst"])
    assert parse_server_info_json(text) == expected


def test_the_depth_of_a_relays_queue_is_read() -> None:
    assert parse_server_info_json(b'{"version":2,"QueueDepth":512}') == ServerInfo(queue_depth=512)
    with pytest.raises(RemoteProtocolError, match="QueueDepth"):
        parse_server_info_json(b'{"QueueDepth":"512"}')


@pytest.mark.parametrize(
    "text",
    [b"[" * 200_000, b'{"x":' * 50_000, b'{"x":' + b"9" * 5000 + b"}", '{"version":2}'.encode("utf-16")],
    ids=["deep list", "deep object", "a number of 5,000 digits", "utf-16"],
)
@pytest.mark.parametrize("parse", [parse_client_info_json, parse_server_info_json])
def test_hostile_json_is_an_error_like_any_other(text: bytes, parse: Callable[[bytes], object]) -> None:
    with pytest.raises(RemoteProtocolError):
        parse(text)


def test_an_error_about_the_mesh_key_does_not_repeat_it() -> None:
    almost = "ab" * 31 + "zz"
    with pytest.raises(RemoteProtocolError, match="64 hex digits") as caught:
        parse_client_info_json(f'{{"meshKey":"{almost}"}}'.encode())
    assert almost not in str(caught.value)
    assert caught.value.__suppress_context__


# --- the law: bytes parse, or raise RemoteProtocolError ---


@given(st.binary(max_size=200))
def test_any_bytes_are_a_greeting_or_an_error(payload: bytes) -> None:
    for prefix in (b"", MAGIC):
        try:
            assert len(parse_server_key(prefix + payload)) == 32
        except RemoteProtocolError:
            assert not (prefix and len(payload) >= 32)


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_boxed_text_is_client_info_or_an_error(text: bytes) -> None:
    try:
        opened = open_client_info(SERVER, boxed_by_hand(text))
    except RemoteProtocolError:
        return
    assert opened.key == PUBLIC["a"]


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
field_names = st.sampled_from(["meshKey", "version", "VERSION", "CanAckPings", "isprober", "AppName", "other"])


@given(st.dictionaries(field_names, json_values, max_size=4))
def test_any_json_object_is_client_info_or_an_error(members: dict[str, object]) -> None:
    try:
        info = parse_client_info_json(json.dumps(members).encode())
    except RemoteProtocolError:
        return
    # What was accepted can be told again.
    frame = seal_client_info(CLIENT, PUBLIC["server"], info, NONCE)
    assert open_client_info(SERVER, frame[HEADER_BYTES:]).info == info
    assert HEADER.unpack_from(frame)[1] == len(frame) - HEADER_BYTES
