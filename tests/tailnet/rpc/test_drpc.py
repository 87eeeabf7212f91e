"""dRPC: the genuine bytes, frames however cut, calls in a row, and what each side refuses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import LocalProtocolError, RemoteProtocolError, RpcError, Unimplemented
from tailnet.rpc.drpc import (
    DONE,
    MAX_PACKET_BYTES,
    MAY_BE_IGNORED,
    SPLIT_BYTES,
    CallEvent,
    ClientStream,
    PacketKind,
    ServerStream,
    encode_frame,
    encode_message_frames,
)
from tailnet.rpc.metadata import encode_metadata
from tests.tailnet.rpc.link import cuts, one_byte_each, whole

INVOKED, MESSAGE, CLOSE_SEND = CallEvent.INVOKED, CallEvent.MESSAGE, CallEvent.CLOSE_SEND
CLOSED, FAILED, CANCELLED = CallEvent.CLOSED, CallEvent.FAILED, CallEvent.CANCELLED
PATH = "/coder.tailnet.v2.Tailnet/Coordinate"


def packet(kind: int, data: bytes = b"", *, stream: int = 1, message: int = 1, flags: int = DONE) -> bytes:
    return encode_frame(kind << 1 | flags, stream, message, data)


def feed(stream: ServerStream | ClientStream, wire: bytes, sizes: Any = whole) -> list[Any]:
    return [event for piece in cuts(wire, sizes()) for event in stream.receive_data(piece)]


def invoked(path: str = PATH) -> ServerStream:
    stream = ServerStream()
    assert stream.receive_data(packet(PacketKind.INVOKE, path.encode())) == [(INVOKED, path)]
    return stream


def invoking() -> ClientStream:
    stream = ClientStream()
    stream.invoke(PATH)
    return stream


# Bytes of a client, and what a server makes of them; every row is legal.
TABLE: dict[str, tuple[bytes, list[Any]]] = {
    "unary": (
        packet(1, PATH.encode()) + packet(2, b"", message=2) + packet(6, message=3),
        [(INVOKED, PATH), (MESSAGE, b""), (CLOSE_SEND, None)],
    ),
    "closed": (packet(1, b"/x") + packet(5, message=2), [(INVOKED, "/x"), (CLOSED, None)]),
    "cancelled": (
        packet(1, b"/x") + packet(4, message=2, flags=DONE | MAY_BE_IGNORED),
        [(INVOKED, "/x"), (CANCELLED, None)],
    ),
    "split message": (
        packet(1, b"/x") + packet(2, b"one ", message=2, flags=0) + packet(2, b"two", message=2),
        [(INVOKED, "/x"), (MESSAGE, b"one two")],
    ),
    "split into nothing": (
        packet(1, b"/x") + packet(2, b"", message=2, flags=0) * 3 + packet(2, b"", message=2),
        [(INVOKED, "/x"), (MESSAGE, b"")],
    ),
    "split path": (packet(1, b"/x", flags=0) + packet(1, b"/y"), [(INVOKED, "/x/y")]),
    "an interrupted packet is dropped": (
        packet(1, b"/x") + packet(2, b"half", message=2, flags=0) + packet(4, message=3),
        [(INVOKED, "/x"), (CANCELLED, None)],
    ),
    "an interrupted packet is dropped by a split one": (
        packet(1, b"/x")
        + packet(2, b"half", message=2, flags=0)
        + packet(2, b"w", message=3, flags=0)
        + packet(2, b"hole", message=3),
        [(INVOKED, "/x"), (MESSAGE, b"whole")],
    ),
    "ids may jump": (packet(1, b"/x", message=9) + packet(2, b"m", message=300), [(INVOKED, "/x"), (MESSAGE, b"m")]),
    "unknown kinds with bit 7 are ignored": (
        packet(63, b"future", flags=DONE | MAY_BE_IGNORED)
        + packet(1, b"/x", message=2)
        + packet(40, message=3, flags=DONE | MAY_BE_IGNORED)
        + packet(2, b"m", message=4),
        [(INVOKED, "/x"), (MESSAGE, b"m")],
    ),
    "bit 7 on any frame counts for the packet": (
        packet(1, b"/x") + packet(40, b"a", message=2, flags=MAY_BE_IGNORED) + packet(40, b"b", message=2),
        [(INVOKED, "/x")],
    ),
    "also on the last one": (
        packet(1, b"/x") + packet(40, b"a", message=2, flags=0) + packet(40, message=2, flags=DONE | MAY_BE_IGNORED),
        [(INVOKED, "/x")],
    ),
    "a whole packet overtakes an unfinished one": (
        packet(1, b"/x") + packet(2, b"half", message=2, flags=0) + packet(2, b"whole", message=3),
        [(INVOKED, "/x"), (MESSAGE, b"whole")],
    ),
    "after CloseSend messages are dropped": (
        packet(1, b"/x") + packet(6, message=2) + packet(2, b"m", message=3) + packet(6, message=4),
        [(INVOKED, "/x"), (CLOSE_SEND, None)],
    ),
    "after the end everything is ignored": (
        packet(1, b"/x")
        + packet(5, message=2)
        + packet(2, b"m", message=3)
        + packet(1, b"/y", message=4)
        + packet(40, message=5)
        + packet(3, b"", message=6),
        [(INVOKED, "/x"), (CLOSED, None)],
    ),
    "one call after the other": (
        packet(1, b"/x") + packet(5, message=2) + packet(1, b"/y", stream=2) + packet(2, b"m", stream=2, message=2),
        [(INVOKED, "/x"), (CLOSED, None), (INVOKED, "/y"), (MESSAGE, b"m")],
    ),
    "the next call cancels the one in hand": (
        packet(1, b"/x") + packet(1, b"/y", stream=5),
        [(INVOKED, "/x"), (CANCELLED, None), (INVOKED, "/y")],
    ),
    "so does its metadata": (
        packet(1, b"/x") + packet(7, b"", stream=2) + packet(1, b"/y", stream=2, message=2),
        [(INVOKED, "/x"), (CANCELLED, None), (INVOKED, "/y")],
    ),
}


@pytest.mark.parametrize("sizes", [whole, one_byte_each], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", TABLE)
def test_what_a_server_understands(name: str, sizes: Any) -> None:
    wire, events = TABLE[name]
    assert feed(ServerStream(), wire, sizes) == events


@pytest.mark.parametrize("sizes", [whole, one_byte_each], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (packet(2, b"m"), "before the Invoke"),
        (packet(6), "before the Invoke"),
        (packet(40), "before the Invoke"),
        (packet(1, b"/x") + packet(2, b"m", stream=2), "before the Invoke"),
        (packet(1, b"/x") + packet(1, b"/x", message=2), "Invoke within a call"),
        (packet(1, b"/x") + packet(7, b"", message=2), "unknown packet kind 7"),
        (packet(1, b"/x") + packet(0, message=2), "unknown packet kind 0"),
        (packet(1, b"/x") + packet(40, message=2), "unknown packet kind 40"),
        (packet(1, b"/x") + packet(2, b"m"), "ids only rise"),
        (packet(1, b"/x", stream=2) + packet(1, b"/y"), "ids only rise"),
        (packet(1, b"/x", stream=0), "ids only rise"),
        (packet(1, b"/x", message=0), "ids only rise"),
        (packet(1, b"/x") + packet(2, b"m", message=2, flags=0) + packet(4, message=2), "kind changes"),
        (packet(1, b"\xff/x"), "UTF-8"),
        (packet(7, b"\x0a"), "metadata"),
        (b"\x03" + b"\xff" * 11, "ten bytes"),
        (bytes.fromhex("050101 81808002"), "limit 4194304"),
        (b"\x05\x01\x01" + b"\xff" * 9 + b"\x01", "limit 4194304"),
    ],
)
def test_what_a_server_refuses(wire: bytes, reason: str, sizes: Any) -> None:
    stream = ServerStream()
    with pytest.raises(RemoteProtocolError, match=reason):
        feed(stream, wire, sizes)
    assert stream.held_bytes == 0
    with pytest.raises(LocalProtocolError):
        stream.receive_data(b"")


def test_metadata_belongs_to_its_call() -> None:
    stream = ServerStream()
    stream.receive_data(packet(7, encode_metadata({"trace": "7"})) + packet(1, b"/x", message=2))
    assert stream.metadata == {"trace": "7"}
    stream.receive_data(packet(1, b"/y", stream=2))
    assert stream.metadata is None


def test_a_packet_may_be_as_long_as_genuine_readers_allow() -> None:
    stream = invoked()
    part = bytes(MAX_PACKET_BYTES // 4)
    for _ in range(3):
        assert stream.receive_data(packet(2, part, message=2, flags=0)) == []
    assert stream.held_bytes == 3 * len(part)
    [(kind, payload)] = stream.receive_data(packet(2, part, message=2))
    assert (kind, len(payload)) == (MESSAGE, MAX_PACKET_BYTES)
    assert stream.held_bytes == 0


def test_one_byte_more_is_refused() -> None:
    stream = invoked()
    stream.receive_data(packet(2, bytes(MAX_PACKET_BYTES), message=2, flags=0))
    with pytest.raises(RemoteProtocolError, match="more than 4194304"):
        stream.receive_data(packet(2, b"x", message=2))


def test_unfinished_bytes_are_counted_as_held() -> None:
    stream = invoked()
    wire = packet(2, b"part", message=2, flags=0) + packet(2, bytes(1000), message=2)
    stream.receive_data(wire[:500])
    assert stream.held_bytes == 4 + 500 - 8  # the payload of the first frame, and the beginning of the second
    stream.receive_data(wire[500:600])
    assert stream.held_bytes == 4 + 600 - 8


class TestSending:
    def test_message_ids_count_per_side_and_call(self) -> None:
        stream = invoked()
        assert b"".join(stream.send_message(b"a")) == bytes.fromhex("05010101") + b"a"
        assert stream.message_head(200) == bytes.fromhex("050102c801")
        assert stream.send_close_send() == bytes.fromhex("0d010300")
        assert stream.send_close() == bytes.fromhex("0b010400")
        stream.receive_data(packet(1, b"/y", stream=2))
        assert stream.message_head(0) == bytes.fromhex("05020100")

    def test_errors_carry_code_and_text(self) -> None:
        assert invoked().send_error(Unimplemented()).hex() == ("07010115000000000000000c" + b"Unimplemented".hex())
        assert invoked().send_error(RpcError("né")).hex() == "0701010b0000000000000000" + "né".encode().hex()

    def test_long_messages_are_split_without_copying(self) -> None:
        payload = bytes(SPLIT_BYTES) + b"tail"
        pieces = invoked().send_message(payload)
        assert [bytes(piece)[:9].hex() for piece in pieces[::2]] == ["040101808004", "05010104"]
        assert all(isinstance(piece, memoryview) and piece.obj is payload for piece in pieces[1::2])

    @pytest.mark.parametrize("size", [0, 1, 127, 128, SPLIT_BYTES - 1, SPLIT_BYTES, SPLIT_BYTES + 1, 5 * SPLIT_BYTES])
    def test_what_one_side_sends_the_other_reads(self, size: int) -> None:
        client, server = ClientStream(), ServerStream()
        payload = bytes(range(256)) * (size // 256 + 1)
        server.receive_data(client.invoke(PATH))
        events = feed(server, b"".join(client.send_message(payload[:size])))
        events += feed(server, b"".join(client.send_message(b"next")))
        assert events == [(MESSAGE, payload[:size]), (MESSAGE, b"next")]

    def test_a_message_that_no_peer_accepts_is_not_sent(self) -> None:
        with pytest.raises(LocalProtocolError, match="peers refuse"):
            invoked().send_message(bytes(MAX_PACKET_BYTES + 1))

    @pytest.mark.parametrize("received", [b"", packet(1, b"/x") + packet(5, message=2)], ids=["before", "behind"])
    def test_nothing_may_be_sent_before_or_behind_a_call(self, received: bytes) -> None:
        stream = ServerStream()
        stream.receive_data(received)
        for send in (stream.send_close, stream.send_close_send, lambda: stream.send_error(RpcError("x"))):
            with pytest.raises(LocalProtocolError, match="cannot be sent"):
                send()
        for payload in (b"x", bytes(SPLIT_BYTES + 1)):
            with pytest.raises(LocalProtocolError, match="no message can be sent"):
                stream.send_message(payload)


class TestClient:
    def test_metadata_goes_before_the_invoke(self) -> None:
        assert ClientStream().invoke("/x", {"k": "v"}) == (
            packet(7, encode_metadata({"k": "v"})) + packet(1, b"/x", message=2)
        )

    def test_calls_in_a_row_get_rising_numbers(self) -> None:
        stream = ClientStream()
        assert stream.invoke("/x") == packet(1, b"/x")
        with pytest.raises(LocalProtocolError, match="not ended"):
            stream.invoke("/y")
        stream.send_cancel()
        assert stream.invoke("/y") == packet(1, b"/y", stream=2)

    def test_cancel_is_a_packet_that_old_servers_skip(self) -> None:
        assert invoking().send_cancel() == bytes.fromhex("89010200")

    @pytest.mark.parametrize(
        ("wire", "events"),
        [
            (packet(2, b"a") + packet(2, b"b", message=2), [(MESSAGE, b"a"), (MESSAGE, b"b")]),
            (packet(2, b"a") + packet(6, message=2), [(MESSAGE, b"a"), (CLOSE_SEND, None)]),
            (packet(5), [(CLOSED, None)]),
            (packet(4, flags=DONE | MAY_BE_IGNORED), [(CANCELLED, None)]),
            (packet(9, stream=4, flags=DONE | MAY_BE_IGNORED) + packet(5, stream=4, message=2, flags=0), []),
        ],
    )
    def test_answers(self, wire: bytes, events: list[Any]) -> None:
        assert feed(invoking(), wire) == events

    @pytest.mark.parametrize("wire", [packet(1, b"/x"), packet(7, b""), packet(2, b"", stream=2), packet(0)])
    def test_refused_of_a_server(self, wire: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            feed(invoking(), wire)

    def test_late_answers_to_an_earlier_call_are_skipped(self) -> None:
        stream = invoking()
        stream.send_close()
        stream.invoke("/y")
        assert feed(stream, packet(2, b"old") + packet(2, b"new", stream=2)) == [(MESSAGE, b"new")]

    @pytest.mark.parametrize(
        ("data", "kind", "code", "text"),
        [
            (bytes(7) + b"\x0cUnimplemented", Unimplemented, 12, "Unimplemented"),
            (bytes(8) + b"no such agent", RpcError, 0, "no such agent"),
            (b"\xff" * 8, RpcError, (1 << 64) - 1, ""),
            (bytes(8) + b"\xff\xfe", RpcError, 0, "\ufffd\ufffd"),
            (b"short", RpcError, 0, "short (without a code)"),
            (b"", RpcError, 0, " (without a code)"),
        ],
    )
    def test_errors(self, data: bytes, kind: type[RpcError], code: int, text: str) -> None:
        [(event, error)] = feed(invoking(), packet(3, data))
        assert event is FAILED
        assert (type(error), error.code, error.text) == (kind, code, text)

    def test_an_error_is_bounded_before_it_reaches_a_log(self) -> None:
        [(_, error)] = feed(invoking(), packet(3, bytes(8) + b"x" * 100_000))
        assert len(str(error)) < 2000


@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.lists(st.integers(1, 60), max_size=80),
    st.integers(1, 1 << 40),
)
def test_any_messages_cut_anyhow_arrive(messages: list[bytes], sizes: list[int], first_id: int) -> None:
    wire = packet(1, PATH.encode())
    for number, message in enumerate(messages):
        wire += b"".join(encode_message_frames(1, first_id + number + 1, message))
    events = feed(ServerStream(), wire, lambda: iter(sizes))
    assert events == [(INVOKED, PATH), *((MESSAGE, message) for message in messages)]


@given(st.data())
def test_any_packets_split_anyhow_arrive(data: st.DataObject) -> None:
    message = data.draw(st.binary(min_size=1, max_size=200))
    places = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=6)))
    parts = [message[a:b] for a, b in zip([0, *places], [*places, len(message)], strict=True)]
    wire = packet(1, b"/x")
    for number, part in enumerate(parts):
        wire += packet(2, part, message=2, flags=DONE if number == len(parts) - 1 else 0)
    assert feed(ServerStream(), wire, one_byte_each) == [(INVOKED, "/x"), (MESSAGE, message)]
