"""Streams of bytes over a carrier in memory: what does not fit waits, and websocket framing cuts and mends nothing.

Over sockets and TLS: test_links.py.
"""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.close_reason import CloseReason
from derp.protocol.websocket import Opcode, WebSocketDecoder, WebSocketError, encode_masked
from derp.transport.framing import MAX_MESSAGE_BYTES, RECEIVE_BYTES, RECORD_BYTES
from derp.transport.host import WireEnded
from tests.support.memory_host import FarEnd, MemoryWire
from tests.support.wires import WebSocketWire

ADDRESS = ("192.0.2.1", 443)


def pair(room_bytes: int, *, websocket: bool) -> tuple[MemoryWire, WebSocketWire | FarEnd]:
    near = MemoryWire(ADDRESS, room_bytes)
    if not websocket:
        return near, FarEnd(near)
    near.codec = WebSocketDecoder(True, 1 << 20)
    return near, WebSocketWire(FarEnd(near))


def receive(near: MemoryWire) -> bytes:
    view = memoryview(bytearray(RECEIVE_BYTES + RECORD_BYTES))
    return bytes(view[: near.receive(view, 0, memoryview(bytearray(1)), memoryview(bytearray(RECEIVE_BYTES)))])


@pytest.mark.parametrize("websocket", [False, True])
@given(
    room_bytes=st.integers(1, 100_000),
    sizes=st.lists(st.lists(st.integers(1, 70_000), min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_everything_arrives_in_order_whatever_the_room(
    websocket: bool, room_bytes: int, sizes: list[list[int]]
) -> None:
    near, far = pair(room_bytes, websocket=websocket)
    sent = received = b""
    for group in sizes:
        pieces = [os.urandom(size) for size in group]
        taken = near.send(pieces, sum(group))
        sent += b"".join(pieces)[:taken]
        assert taken == sum(group) or near.blocked
        near.push(b"the end of a frame")
        sent += b"the end of a frame"
        while near.blocked or near.tail:
            received += far.read()
            near.flush_tail()
    received += far.read()
    assert received == sent


def test_messages_are_as_small_as_genuine_clients_want_them() -> None:
    near, far = pair(1 << 20, websocket=True)
    assert isinstance(far, WebSocketWire)
    near.send([bytes(100_000)], 100_000)
    near.push(bytes(50_000))
    far.read()
    assert sum(far.messages) >= 150_000 - 64
    assert max(far.messages) == MAX_MESSAGE_BYTES


def test_a_blocked_wire_takes_nothing_and_a_raw_answer_waits() -> None:
    near, far = pair(10, websocket=False)
    assert near.send([b"0123456789", b"abc"], 13) == 10
    assert near.send([b"more"], 4) == 0
    near.send_raw(b"answer")
    assert near.tail == b"answer"
    assert far.read() == b"0123456789"
    assert near.flush_tail()
    assert far.read() == b"answer"


def test_pings_are_answered_but_not_for_who_does_not_read() -> None:
    near, far = pair(100, websocket=True)
    assert isinstance(far, WebSocketWire)
    ping = encode_masked(Opcode.PING, b"are you there?", os.urandom(4))
    far.write_raw(ping)
    assert receive(near) == b""
    far.read()
    assert far.control.pop() == (Opcode.PONG, b"are you there?")
    near.send_raw(bytes(100 + MAX_MESSAGE_BYTES))
    before = len(near.tail)
    far.write_raw(ping)
    assert receive(near) == b""
    assert len(near.tail) == before, "no pong to who has not read what was before it"


def test_a_broken_websocket_is_told_why_and_a_closed_one_ends() -> None:
    near, far = pair(1000, websocket=True)
    assert isinstance(far, WebSocketWire)
    far.wire.write(b"\xff\xff")
    with pytest.raises(WebSocketError):
        receive(near)
    far.read()
    assert [opcode for opcode, _ in far.control] == [Opcode.CLOSE]

    near, far = pair(1000, websocket=True)
    assert isinstance(far, WebSocketWire)
    far.write(b"last words")
    far.write_raw(encode_masked(Opcode.CLOSE, b"", os.urandom(4)))
    assert receive(near) == b"last words"
    assert near.ending is not None
    assert near.ending.reason is CloseReason.CLOSED_BY_PEER


def test_the_end_of_the_carrier_and_its_failure() -> None:
    near, far = pair(1000, websocket=False)
    assert receive(near) == b""
    far.close()
    with pytest.raises(WireEnded) as ended:
        receive(near)
    assert ended.value.reason is CloseReason.CLOSED_BY_PEER
    with pytest.raises(WireEnded) as ended:
        near.send([b"x"], 1)
    assert ended.value.reason is CloseReason.SOCKET_FAILED
    assert repr(near) == "MemoryWire of 192.0.2.1:443"
