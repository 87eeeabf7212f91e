"""Frames of the genuine library, every cut of a stream, every rule of RFC 6455 that we enforce, an independent peer."""

import hashlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection
from wsproto.events import Ping as WsPing
from wsproto.events import Pong as WsPong

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.protocol.websocket import (
    GENUINE_MAX_MESSAGE_BYTES,
    MAX_IDLE_PER_RECEIVE,
    TINY_BYTES,
    CloseCode,
    Opcode,
    WebSocketDecoder,
    WebSocketError,
    WebSocketFlood,
    accept_token,
    answer_control,
    close_frame,
    close_payload,
    encode_header,
    encode_masked,
    parse_close,
)
from tests.vectors.derp import VECTORS

MASK = bytes.fromhex("37fa213d")
LIMIT = 1 << 20


def server_decoder(limit: int = LIMIT) -> WebSocketDecoder:
    return WebSocketDecoder(expect_masked=True, max_message_bytes=limit)


def client_decoder(limit: int = LIMIT) -> WebSocketDecoder:
    return WebSocketDecoder(expect_masked=False, max_message_bytes=limit)


def decode(decoder: WebSocketDecoder, *pieces: bytes) -> bytes:
    """The payload bytes of these receives, which must stay within the room that the contract promises."""
    payload = b""
    for piece in pieces:
        margin = b"\xee" * 5
        out = bytearray(margin + bytes(len(piece)) + margin)
        end = decoder.receive_into(memoryview(piece), out, len(margin))
        assert len(margin) <= end <= len(margin) + len(piece)
        assert len(out) == len(piece) + 2 * len(margin)
        assert out[:5] == margin
        assert out[-5:] == margin
        payload += out[5:end]
    return payload


def plain(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    frame = bytearray(encode_header(opcode, len(payload)) + payload)
    if not fin:
        frame[0] &= 0x7F
    return bytes(frame)


def masked(opcode: int, payload: bytes, fin: bool = True, mask: bytes = MASK) -> bytes:
    frame = bytearray(encode_masked(opcode, payload, mask))
    if not fin:
        frame[0] &= 0x7F
    return bytes(frame)


def naive_xor(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[position & 3] for position, byte in enumerate(payload))


# --- the genuine library's frames ---


@pytest.mark.parametrize("vector", VECTORS["websocket"], ids=lambda v: f"{v['from']}-{v['opcode']}-{v['length']}")
def test_frames_equal_those_of_the_genuine_library(vector: dict[str, str | int]) -> None:
    length = int(vector["length"])
    payload = bytes(i % 251 for i in range(length)) if vector["opcode"] == 2 else close_payload(1000, "bye")
    head = bytes.fromhex(str(vector["head"]))
    if vector["from"] == "client":
        mask_at = 2 + (8 if length > 65535 else 2 if length > 125 else 0)
        frame = encode_masked(int(vector["opcode"]), payload, head[mask_at : mask_at + 4])
        decoder = server_decoder()
    else:
        frame = encode_header(int(vector["opcode"]), length) + payload
        decoder = client_decoder()
    assert frame.startswith(head)
    assert hashlib.sha256(frame).hexdigest() == vector["sha256"]
    got = decode(decoder, frame)
    if vector["opcode"] == 2:
        assert got == payload
    else:
        assert decoder.closed
        assert [parse_close(body) for _, body in decoder.control] == [(1000, "bye")]


def test_the_example_of_rfc_6455() -> None:
    assert accept_token("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    decoder = server_decoder()
    # Section 5.7: a masked ping and its pong with body "Hello".
    assert decode(decoder, bytes.fromhex("8985 37fa213d 7f9f4d5158")) == b""
    assert [answer_control(*frame) for frame in decoder.control] == [b"\x8a\x05Hello"]
    assert encode_masked(Opcode.PONG, b"Hello", MASK).hex() == "8a8537fa213d7f9f4d5158"


def test_the_numbers_are_those_of_rfc_6455_and_of_the_genuine_relay() -> None:
    # Written out again on purpose: the tests below use the names.
    assert [(code.name, code.value) for code in CloseCode] == [
        ("NORMAL", 1000),
        ("GOING_AWAY", 1001),
        ("PROTOCOL_ERROR", 1002),
        ("UNSUPPORTED_DATA", 1003),
        ("NO_STATUS", 1005),
        ("INVALID_DATA", 1007),
        ("POLICY_VIOLATION", 1008),
        ("MESSAGE_TOO_BIG", 1009),
        ("INTERNAL_ERROR", 1011),
    ]
    assert [int(opcode) for opcode in Opcode] == [0, 1, 2, 8, 9, 10]
    assert (GENUINE_MAX_MESSAGE_BYTES, MAX_IDLE_PER_RECEIVE, TINY_BYTES) == (32768, 64, 12)


# --- payload ---

# Around every form of the length, every residue of the mask, the table of factors (1,536) and the chunk (4,096).
LENGTHS = [*range(10), 124, 125, 126, 127, 1317, *range(1533, 1545), *range(4090, 4102), 8192, 12293, 65535, 65536]


@pytest.mark.parametrize("length", LENGTHS)
def test_payload_is_unmasked_whole_and_in_two_pieces(length: int) -> None:
    payload = random.Random(length).randbytes(length)
    frame = encode_masked(Opcode.BINARY, payload, MASK)
    assert frame[-length:] == naive_xor(payload, MASK) or length == 0
    assert decode(server_decoder(), frame) == payload
    for cut in sorted({1, 3, 7, 8, 9, 10, 11, len(frame) // 2, len(frame) - 1} & set(range(len(frame)))):
        assert decode(server_decoder(), frame[:cut], frame[cut:]) == payload
    unmasked = plain(Opcode.BINARY, payload)
    assert decode(client_decoder(), unmasked) == payload
    for cut in sorted({1, 3, 4, 5, len(unmasked) // 2} & set(range(len(unmasked)))):
        assert decode(client_decoder(), unmasked[:cut], unmasked[cut:]) == payload


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_masking_is_xor(payload: bytes, mask: bytes) -> None:
    frame = encode_masked(Opcode.BINARY, payload, mask)
    assert frame[len(frame) - len(payload) :] == naive_xor(payload, mask)
    assert decode(server_decoder(), frame) == payload


frames = st.lists(
    st.one_of(
        st.binary(max_size=200).map(lambda p: [(Opcode.BINARY, p, True)]),
        st.lists(st.binary(max_size=60), min_size=2, max_size=4).map(
            lambda parts: [
                (Opcode.CONTINUATION if i else Opcode.BINARY, part, i == len(parts) - 1) for i, part in enumerate(parts)
            ]
        ),
        st.binary(max_size=125).map(lambda p: [(Opcode.PING, p, True)]),
        st.binary(max_size=125).map(lambda p: [(Opcode.PONG, p, True)]),
    ),
    max_size=6,
)


@given(frames, st.booleans(), st.data())
def test_streams_survive_any_cut(
    messages: list[list[tuple[int, bytes, bool]]], server: bool, data: st.DataObject
) -> None:
    sent = [frame for message in messages for frame in message]
    stream = b"".join((masked if server else plain)(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    decoder = server_decoder() if server else client_decoder()
    assert decode(decoder, *pieces) == b"".join(p for opcode, p, _ in sent if opcode < 8)
    control = [(opcode, p) for opcode, p, _ in sent if opcode >= 8]
    pings = [at for at, (opcode, _) in enumerate(control) if opcode == Opcode.PING]
    assert decoder.control == [frame for at, frame in enumerate(control) if at not in pings[:-1]]


def test_streams_survive_byte_by_byte() -> None:
    stream = (
        masked(Opcode.BINARY, b"one")
        + masked(Opcode.BINARY, b"x" * 300, fin=False)
        + masked(Opcode.PING, b"are you there")
        + masked(Opcode.CONTINUATION, b"", fin=False)
        + masked(Opcode.CONTINUATION, b"y" * 70000)
        + masked(Opcode.BINARY, b"")
        + masked(Opcode.CLOSE, close_payload(1001, "gone"))
    )
    decoder = server_decoder()
    assert decode(decoder, *(stream[i : i + 1] for i in range(len(stream)))) == b"one" + b"x" * 300 + b"y" * 70000
    assert decoder.control == [(Opcode.PING, b"are you there"), (Opcode.CLOSE, close_payload(1001, "gone"))]


def test_a_decoder_tells_when_a_new_one_could_go_on() -> None:
    stream = encode_masked(Opcode.BINARY, b"payload", b"mask")
    decoder = server_decoder()
    for number in range(len(stream)):
        assert decoder.is_between_messages is (number == 0)
        decode(decoder, stream[number : number + 1])
    assert decoder.is_between_messages
    decode(decoder, encode_masked(Opcode.PING, b"", b"mask"))
    assert not decoder.is_between_messages, "a pong is owed"


def test_many_frames_of_one_receive_leave_no_gap() -> None:
    payloads = [bytes((i,)) * (i * 37 % 1500) for i in range(120)]
    stream = b"".join(encode_masked(Opcode.BINARY, payload, bytes((i, 1, 2, 3))) for i, payload in enumerate(payloads))
    assert decode(server_decoder(), stream) == b"".join(payloads)


def test_payload_that_looks_like_frames_is_payload() -> None:
    inner = b"".join(encode_masked(Opcode.BINARY, b"inner" * n, MASK) for n in (1, 2, 30, 300))
    stream = (
        masked(Opcode.BINARY, inner, mask=bytes(4))
        + masked(Opcode.BINARY, inner, fin=False, mask=bytes(4))
        + masked(Opcode.CONTINUATION, inner, mask=bytes(4))
    )
    for step in (*range(1, 30), 700, len(stream)):
        pieces = [stream[i : i + step] for i in range(0, len(stream), step)]
        assert decode(server_decoder(), *pieces) == inner * 3


class LongWayCounted(WebSocketDecoder):
    """Counts the steps that leave the straight line of the hot path."""

    steps = 0

    def _step(self, data: memoryview, pos: int, out: bytearray | memoryview, at: int) -> tuple[int, int]:
        self.steps += 1
        return super()._step(data, pos, out, at)


@pytest.mark.parametrize("server", [True, False])
def test_whole_binary_messages_stay_on_the_straight_line(server: bool) -> None:
    decoder = LongWayCounted(expect_masked=server, max_message_bytes=LIMIT)
    one = masked if server else plain
    lengths = (8, 125, 126, 1317, 65535)
    stream = b"".join(one(Opcode.BINARY, bytes(length)) for length in lengths)
    assert len(decode(decoder, stream, stream)) == 2 * sum(lengths)
    assert decoder.steps == 0
    # An unfinished frame at the end takes one step for its head and one for each of its pieces, and no more.
    decode(decoder, stream + one(Opcode.BINARY, bytes(1317))[:500])
    assert decoder.steps == 2
    decode(decoder, one(Opcode.BINARY, bytes(1317))[500:] + stream)
    assert decoder.steps == 3


@pytest.mark.parametrize("as_view", [False, True])
def test_out_may_be_the_received_buffer_itself(as_view: bool) -> None:
    payloads = [bytes(range(i % 256)) * 9 for i in range(1, 60)]
    stream = b"".join(encode_masked(Opcode.BINARY, payload, MASK) for payload in payloads)
    decoder, kept = server_decoder(), b""
    buffer = bytearray(b"tail" + bytes(4096))
    for start in range(0, len(stream), 4096):
        piece = stream[start : start + 4096]
        buffer[4 : 4 + len(piece)] = piece
        data = memoryview(buffer)[4 : 4 + len(piece)]
        end = decoder.receive_into(data, memoryview(buffer) if as_view else buffer, 4)
        kept += buffer[4:end]
        data.release()
    assert kept == b"".join(payloads)


def test_lengths_in_a_longer_form_than_needed_are_taken() -> None:
    body = naive_xor(b"abc", MASK)
    assert decode(server_decoder(), b"\x82\xfe\x00\x03" + MASK + body) == b"abc"
    assert decode(server_decoder(), b"\x82\xff" + bytes(7) + b"\x03" + MASK + body) == b"abc"
    assert decode(client_decoder(), b"\x82\x7e\x00\x03abc") == b"abc"


# --- limits ---


@pytest.mark.parametrize("limit", [100, GENUINE_MAX_MESSAGE_BYTES, 70000])
@pytest.mark.parametrize("cut", [None, 1, 3])
def test_messages_above_the_limit_are_refused_at_their_head(limit: int, cut: int | None) -> None:
    longest = masked(Opcode.BINARY, bytes(limit))
    assert decode(server_decoder(limit), longest) == bytes(limit)
    too_long = masked(Opcode.BINARY, bytes(limit + 1))[:14]  # hardly more than the head
    with pytest.raises(WebSocketError, match=f"limit {limit}") as caught:
        decode(server_decoder(limit), *((too_long[:cut], too_long[cut:]) if cut else (too_long,)))
    assert caught.value.close_code == CloseCode.MESSAGE_TOO_BIG


def test_the_limit_counts_all_fragments_of_a_message_and_no_other() -> None:
    def half(opcode: int, fin: bool) -> bytes:
        return masked(opcode, bytes(50), fin)

    begun = half(Opcode.BINARY, False)
    decoder = server_decoder(100)
    for _ in range(3):  # each message starts anew
        assert decode(decoder, begun + half(Opcode.CONTINUATION, True)) == bytes(100)
    with pytest.raises(WebSocketError) as caught:
        decode(decoder, begun + half(Opcode.CONTINUATION, False) + masked(Opcode.CONTINUATION, b"x"))
    assert caught.value.close_code == CloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize("length", [1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_absurd_lengths_cost_nothing(length: int) -> None:
    head = b"\x82\xff" + struct.pack("!Q", length) + MASK
    with pytest.raises(WebSocketError) as caught:
        decode(server_decoder(), head)
    assert caught.value.close_code == CloseCode.MESSAGE_TOO_BIG


def test_of_several_pings_the_last_one_is_answered() -> None:
    decoder = server_decoder()
    frames = [(Opcode.PING, b"1"), (Opcode.PONG, b"a"), (Opcode.PING, b"2"), (Opcode.PONG, b"b"), (Opcode.PING, b"3")]
    decode(decoder, b"".join(masked(*frame) for frame in frames) + masked(Opcode.CLOSE, b""))
    assert decoder.control == [(Opcode.PONG, b"a"), (Opcode.PONG, b"b"), (Opcode.PING, b"3"), (Opcode.CLOSE, b"")]


# --- floods

IDLE = {
    "pings": masked(Opcode.PING, b""),
    "pongs": masked(Opcode.PONG, b"with some payload"),
    "messages": masked(Opcode.BINARY, b""),
    "fragments": masked(Opcode.CONTINUATION, b"", fin=False),
}


def in_message(kind: str) -> bytes:
    return masked(Opcode.BINARY, b"", fin=False) if kind == "fragments" else b""


@pytest.mark.parametrize("kind", IDLE)
def test_frames_that_carry_nothing_are_a_flood_beyond_a_few_at_once(kind: str) -> None:
    first = in_message(kind)
    decoder = server_decoder()
    decode(decoder, first + IDLE[kind] * (MAX_IDLE_PER_RECEIVE - bool(first)))
    decode(decoder, IDLE[kind] * MAX_IDLE_PER_RECEIVE)  # the next receive has its own
    with pytest.raises(WebSocketFlood, match="more than 64 messages at once that carry nothing") as caught:
        decode(decoder, IDLE[kind] * (MAX_IDLE_PER_RECEIVE + 1))
    assert caught.value.close_code == CloseCode.POLICY_VIOLATION
    with pytest.raises(WebSocketFlood):
        decode(decoder, masked(Opcode.BINARY, b"too late"))


@pytest.mark.parametrize("kind", IDLE)
def test_they_are_a_flood_too_when_they_keep_coming(kind: str) -> None:
    """256 at once, 16 a second: a quarter of a minute of them at 32 a second is too much, a day at 15 is not."""
    decoder = server_decoder()
    decode(decoder, in_message(kind))
    for second in range(1000):
        decode(decoder, IDLE[kind] * 15)
        decoder.settle(float(second))
        assert decoder.spent == 0
    for second in range(1000, 1015):
        decode(decoder, IDLE[kind] * 32)
        decoder.settle(float(second))
    decode(decoder, IDLE[kind] * 32)
    with pytest.raises(WebSocketFlood, match="carry next to nothing"):
        decoder.settle(1015.0)
    with pytest.raises(WebSocketFlood):
        decode(decoder, masked(Opcode.BINARY, b"too late"))


@pytest.mark.parametrize("size", [1, TINY_BYTES - 1, TINY_BYTES, 200])
def test_tiny_messages_are_counted_and_others_are_not(size: int) -> None:
    decoder, message = server_decoder(), masked(Opcode.BINARY, bytes(size))
    decode(decoder, message * 1000)  # the short way
    decode(decoder, message[:3], message[3:])  # the long way
    assert decoder.spent == (1001 if size < TINY_BYTES else 0)
    if size >= TINY_BYTES:
        return
    for second in range(100):
        decode(decoder, message * 500)
        decoder.settle(float(second))
    decode(decoder, message * 9000)
    with pytest.raises(WebSocketFlood):
        decoder.settle(100.0)


def test_an_empty_end_of_a_message_that_carried_something_is_what_some_writers_send() -> None:
    decoder = server_decoder()
    message = masked(Opcode.BINARY, b"x" * 100, fin=False) + masked(Opcode.CONTINUATION, b"")
    decode(decoder, message * 1000)
    assert decoder.spent == 1000


def test_a_client_takes_what_its_server_sends_and_keeps_little_of_it() -> None:
    decoder = client_decoder()
    decode(decoder, (plain(Opcode.PING, b"") + plain(Opcode.PONG, b"") + plain(Opcode.BINARY, b"")) * 10_000)
    assert len(decoder.control) <= MAX_IDLE_PER_RECEIVE
    assert decoder.spent == 0


# --- violations ---

PROTOCOL_ERROR = CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("stream", "close_code"),
    [
        (masked(Opcode.TEXT, b"hello"), CloseCode.UNSUPPORTED_DATA),
        (masked(Opcode.TEXT, b"hel", fin=False), CloseCode.UNSUPPORTED_DATA),
        (plain(Opcode.BINARY, b"not masked"), PROTOCOL_ERROR),
        (plain(Opcode.PING, b""), PROTOCOL_ERROR),
        (b"\xc2" + masked(Opcode.BINARY, b"compressed")[1:], PROTOCOL_ERROR),
        (b"\xa2" + masked(Opcode.BINARY, b"rsv2")[1:], PROTOCOL_ERROR),
        (b"\x92" + masked(Opcode.BINARY, b"rsv3")[1:], PROTOCOL_ERROR),
        (masked(Opcode.CONTINUATION, b"of nothing"), PROTOCOL_ERROR),
        (masked(Opcode.BINARY, b"a", fin=False) + masked(Opcode.BINARY, b"b"), PROTOCOL_ERROR),
        (masked(Opcode.BINARY, b"a", fin=False) + masked(Opcode.TEXT, b"b"), PROTOCOL_ERROR),
        (masked(Opcode.BINARY, b"a") + masked(Opcode.CONTINUATION, b"b"), PROTOCOL_ERROR),
        *((masked(opcode, b""), PROTOCOL_ERROR) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (masked(Opcode.PING, b"", fin=False), PROTOCOL_ERROR),
        (masked(Opcode.CLOSE, b"", fin=False), PROTOCOL_ERROR),
        (masked(Opcode.PING, bytes(126)), PROTOCOL_ERROR),
        (masked(Opcode.PING, bytes(126))[:4], PROTOCOL_ERROR),  # no need to see more of it
        (b"\x89\xff" + bytes(8), PROTOCOL_ERROR),
        (masked(Opcode.CLOSE, b"\x03"), PROTOCOL_ERROR),
        *(
            (masked(Opcode.CLOSE, struct.pack("!H", code)), PROTOCOL_ERROR)
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
        ),
        (masked(Opcode.CLOSE, b"\x03\xe8\xff\xfe"), CloseCode.INVALID_DATA),
    ],
    ids=lambda v: v[:12].hex() if isinstance(v, bytes) else None,
)
@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_violations_are_named_by_their_close_code(stream: bytes, close_code: int, byte_by_byte: bool) -> None:
    decoder = server_decoder()
    pieces = [stream[i : i + 1] for i in range(len(stream))] if byte_by_byte else [stream]
    with pytest.raises(WebSocketError) as caught:
        decode(decoder, *pieces)
    assert caught.value.close_code == close_code
    assert isinstance(caught.value, RemoteProtocolError)
    assert str(caught.value)[0].islower()  # a sentence, not a tuple
    with pytest.raises(WebSocketError) as again:  # the decoder is dead, and says why
        decode(decoder, masked(Opcode.BINARY, b"too late"))
    assert again.value is caught.value
    parse_close(close_frame(close_code, str(caught.value))[2:])  # and the peer can be told


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
def test_a_control_frame_may_have_125_bytes(opcode: Opcode) -> None:
    body = bytes(range(125))
    decoder = server_decoder()
    for pieces in ([masked(opcode, body)], [masked(opcode, body)[:50], masked(opcode, body)[50:]]):
        assert decode(decoder, *pieces) == b""
        assert decoder.control == [(opcode, body)]
        decoder.control.clear()


def test_a_server_that_masks_is_refused() -> None:
    for frame in (masked(Opcode.BINARY, b"x"), masked(Opcode.CLOSE, b"")):
        with pytest.raises(WebSocketError, match="masked frame from a server"):
            decode(client_decoder(), frame)


def test_a_bad_first_byte_is_noticed_with_the_second() -> None:
    with pytest.raises(WebSocketError):
        decode(server_decoder(), b"\x81\x80")
    with pytest.raises(WebSocketError):
        decode(server_decoder(), b"\x83", b"\x80")


# --- closing ---


def test_payload_before_a_close_is_delivered_and_all_behind_it_ignored() -> None:
    decoder = server_decoder()
    close = masked(Opcode.CLOSE, close_payload(1000))
    assert decode(decoder, masked(Opcode.BINARY, b"last words") + close + b"garbage") == b"last words"
    assert decoder.closed
    assert decode(decoder, masked(Opcode.TEXT, b"more"), masked(Opcode.PING, b"")) == b""
    assert decoder.control == [(Opcode.CLOSE, close_payload(1000))]


def test_a_close_between_fragments_ends_the_message() -> None:
    decoder = server_decoder()
    stream = masked(Opcode.BINARY, b"begun", fin=False) + masked(Opcode.CLOSE, b"")
    assert decode(decoder, stream, masked(Opcode.CONTINUATION, b"never")) == b"begun"
    assert decoder.closed


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("body", [b"", close_payload(1000, "bye"), close_payload(4999)])
def test_a_close_is_answered_with_its_code(mask: bytes | None, body: bytes) -> None:
    decoder = client_decoder() if mask is None else server_decoder()
    decode(decoder, answer_control(Opcode.CLOSE, body, mask))
    assert decoder.control == [(Opcode.CLOSE, body[:2])]


def test_pongs_want_no_answer() -> None:
    assert answer_control(Opcode.PONG, b"late") == b""


@pytest.mark.parametrize("code", [0, 1004, 1005 - 1, 1006, 1015, 2000, 5000, -1])
def test_codes_that_may_not_travel_are_refused(code: int) -> None:
    with pytest.raises(LocalProtocolError):
        close_frame(code)


def test_a_close_without_a_code_is_empty() -> None:
    assert close_frame(CloseCode.NO_STATUS) == b"\x88\x00"
    assert parse_close(b"") == (CloseCode.NO_STATUS, "")


@given(st.sampled_from([1000, 1001, 1011, 1014, 3000, 4999]), st.text(max_size=200))
def test_close_frames_round_trip_cut_to_what_fits(code: int, reason: str) -> None:
    frame = close_frame(code, reason)
    assert frame[1] <= 125
    got_code, got_reason = parse_close(frame[2:])
    assert got_code == code
    assert reason.encode("utf-8", "replace").decode().startswith(got_reason)
    assert len(got_reason.encode()) >= min(len(reason.encode("utf-8", "replace")), 120)


def test_a_long_reason_is_cut_between_characters_at_125_bytes() -> None:
    assert close_frame(1000, "x" * 200)[1] == 125
    assert close_frame(1000, "x" + "é" * 200)[1] == 125
    assert close_frame(1000, "é" * 200)[1] == 124
    assert parse_close(close_frame(1000, "é" * 200)[2:])[1] == "é" * 61


@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
def test_masks_have_four_bytes(mask: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="4"):
        encode_masked(Opcode.BINARY, b"x", mask)


# --- an independent implementation ---


@given(frames, st.integers(1, 400))
def test_wsproto_understands_us_and_we_understand_it(messages: list[list[tuple[int, bytes, bool]]], step: int) -> None:
    server, client = Connection(ConnectionType.SERVER), Connection(ConnectionType.CLIENT)
    ours, theirs, expected = b"", b"", b""
    for message in messages:
        payload = b"".join(part for _, part, _ in message)
        opcode = message[0][0]
        ours += b"".join(masked(*frame) for frame in message)
        if opcode == Opcode.BINARY:
            expected += payload
            theirs += client.send(BytesMessage(data=payload))
        else:
            theirs += client.send(WsPing(payload=payload) if opcode == Opcode.PING else WsPong(payload=payload))
    ours += masked(Opcode.CLOSE, close_payload(1001, "done"))
    theirs += client.send(CloseConnection(code=1001, reason="done"))

    decoder = server_decoder()
    assert decode(decoder, *(theirs[i : i + step] for i in range(0, len(theirs), step))) == expected
    assert parse_close(decoder.control[-1][1]) == (1001, "done")

    heard, got = b"", []
    for i in range(0, len(ours), step):
        server.receive_data(ours[i : i + step])
        for event in server.events():
            got.append(event)
            if isinstance(event, BytesMessage):
                heard += event.data
    assert heard == expected
    assert isinstance(got[-1], CloseConnection)
    assert (got[-1].code, got[-1].reason) == (1001, "done")


# --- the law: bytes parse, or raise RemoteProtocolError ---


def close_code_of(decoder: WebSocketDecoder, *pieces: bytes) -> int | None:
    try:
        decode(decoder, *pieces)
    except WebSocketError as error:
        return error.close_code
    return None


@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_any_bytes_parse_or_raise(pieces: list[bytes], server: bool) -> None:
    decoder = server_decoder(60) if server else client_decoder(60)
    assert close_code_of(decoder, *pieces) in (None, 1002, 1003, 1007, 1009)


@given(frames, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_parses_or_raises(messages: list[list[tuple[int, bytes, bool]]], at: int, flip: int) -> None:
    stream = bytearray(b"".join(masked(*frame) for message in messages for frame in message) + b"\x82\x80\0\0\0\0")
    stream[at % len(stream)] ^= flip
    assert close_code_of(server_decoder(), bytes(stream)) in (None, 1002, 1003, 1007, 1009)
