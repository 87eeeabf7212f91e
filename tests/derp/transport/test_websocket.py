"""The websocket stream: trio's laws for streams, splitting, control frames, broken rules, and the opening request."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from derp.errors import ConnectError
from derp.protocol.upgrade import Refusal, judge_websocket_request
from derp.protocol.websocket import (
    GENUINE_MAX_MESSAGE_BYTES,
    CloseCode,
    Opcode,
    WebSocketDecoder,
    close_frame,
    encode_header,
)
from derp.transport.http import ServerHttp
from derp.transport.websocket import _MAX_OWED, WebSocketStream, open_websocket

Pair = tuple[WebSocketStream, WebSocketStream]


async def memory_pair() -> Pair:
    near, far = trio.testing.memory_stream_pair()
    return WebSocketStream(near), WebSocketStream(far, is_client=False)


async def lockstep_pair() -> Pair:
    near, far = trio.testing.lockstep_stream_pair()
    return WebSocketStream(near), WebSocketStream(far, is_client=False)


@pytest.mark.parametrize(("maker", "clogged"), [(memory_pair, None), (lockstep_pair, lockstep_pair)])
async def test_the_laws_of_trio_streams(
    maker: Callable[[], Awaitable[Pair]],
    clogged: Callable[[], Awaitable[Pair]] | None,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await trio.testing.check_two_way_stream(maker, clogged)


def raw_pair() -> tuple[WebSocketStream, trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]:
    """A client, what it receives is put into the first, what it sends comes out of the second."""
    near, far = trio.testing.memory_stream_pair()
    return WebSocketStream(near), far.send_stream, far.receive_stream


async def take(sent: trio.abc.ReceiveStream) -> bytes:
    with trio.fail_after(5):  # a hang guard
        return bytes(await sent.receive_some(1 << 20))


def frames(raw: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Payload and control frames of what a client sent."""
    decoder, out = WebSocketDecoder(True, GENUINE_MAX_MESSAGE_BYTES), bytearray(len(raw))
    end = decoder.receive_into(memoryview(raw), out, 0)
    return bytes(out[:end]), decoder.control


async def test_long_sends_are_split_as_genuine_relays_want_it() -> None:
    client, _, sent = raw_pair()
    data = bytes(range(256)) * 300
    await client.send_all(data)
    assert frames(await take(sent)) == (data, [])  # the decoder enforces the limit


async def test_message_boundaries_vanish() -> None:
    client, inbound, _ = raw_pair()
    await inbound.send_all(encode_header(Opcode.BINARY, 3) + b"abc" + encode_header(Opcode.BINARY, 0))
    await inbound.send_all(bytes((Opcode.BINARY, 2)) + b"de" + encode_header(Opcode.CONTINUATION, 1) + b"f")
    assert await client.receive_some(2) == b"ab"
    assert await client.receive_some(3) == b"cde"
    assert await client.receive_some(100) == b"f"


async def test_bytes_that_came_with_the_answer_are_read_first() -> None:
    near, far = trio.testing.memory_stream_pair()
    client = WebSocketStream(near, received=encode_header(Opcode.BINARY, 2) + b"hi")
    await far.send_all(encode_header(Opcode.BINARY, 6) + b" there")
    assert await client.receive_some() == b"hi"
    assert await client.receive_some() == b" there"


async def test_pings_are_answered_while_data_flows() -> None:
    client, inbound, sent = raw_pair()
    await inbound.send_all(encode_header(Opcode.PING, 4) + b"life" + encode_header(Opcode.BINARY, 1) + b"x")
    assert await client.receive_some() == b"x"
    assert frames(await take(sent)) == (b"", [(Opcode.PONG, b"life")])


async def test_a_ping_during_a_blocked_send_is_answered_behind_it() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    client = WebSocketStream(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"packet")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(far.send_all, encode_header(Opcode.PING, 1) + b"?" + encode_header(Opcode.BINARY, 1) + b"x")
        with trio.fail_after(5):
            assert await client.receive_some() == b"x"  # not held up by the sender
        raw = b""
        while frames(raw) != (b"packet", [(Opcode.PONG, b"?")]):
            raw += await take(far)


async def test_a_flood_of_pings_costs_a_bounded_answer() -> None:
    client, inbound, sent = raw_pair()
    await inbound.send_all((encode_header(Opcode.PING, 1) + b"?") * 1000 + encode_header(Opcode.BINARY, 1) + b"x")
    assert await client.receive_some() == b"x"
    payload, control = frames(await take(sent))
    assert payload == b""
    assert control == [(Opcode.PONG, b"?")]


async def test_pings_during_a_blocked_send_do_not_pile_up() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    client = WebSocketStream(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"packet")
        await trio.testing.wait_all_tasks_blocked()
        pings = (encode_header(Opcode.PING, 1) + b"?") * 3
        for _ in range(_MAX_OWED + 5):
            async with trio.open_nursery() as exchange:
                exchange.start_soon(far.send_all, pings + encode_header(Opcode.BINARY, 1) + b"x")
                assert await client.receive_some() == b"x"
        raw = await take(far)
        raw += await take(far)
    # Head and mask before each.
    assert len(raw) == 6 + len(b"packet") + _MAX_OWED * (6 + len(b"?"))


async def test_the_peers_close_is_the_end_and_is_echoed() -> None:
    client, inbound, sent = raw_pair()
    await inbound.send_all(encode_header(Opcode.BINARY, 1) + b"x" + close_frame(CloseCode.GOING_AWAY, "bye"))
    assert [await client.receive_some() for _ in range(3)] == [b"x", b"", b""]
    assert client.close_code == CloseCode.GOING_AWAY
    assert frames(await take(sent)) == (b"", [(Opcode.CLOSE, b"\x03\xe9")])
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"late")


async def test_closing_says_goodbye_once() -> None:
    client, _, sent = raw_pair()
    await client.aclose()
    await client.aclose()
    assert frames(await take(sent)) == (b"", [(Opcode.CLOSE, b"\x03\xe8")])
    assert await take(sent) == b""


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (encode_header(Opcode.TEXT, 2) + b"hi", CloseCode.UNSUPPORTED_DATA),
        (b"\xc2\x01x", CloseCode.PROTOCOL_ERROR),
        (b"\x82\x81\x00\x00\x00\x00x", CloseCode.PROTOCOL_ERROR),
    ],
)
async def test_broken_rules_break_the_stream_and_are_told(raw: bytes, code: CloseCode) -> None:
    client, inbound, sent = raw_pair()
    await inbound.send_all(raw)
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await client.receive_some()
    payload, control = frames(await take(sent))
    assert (payload, control[0][0]) == (b"", Opcode.CLOSE)
    assert int.from_bytes(control[0][1][:2], "big") == code


async def test_a_cancelled_send_leaves_no_half_frame_in_use() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    client = WebSocketStream(near)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            scope.deadline = trio.current_time()
            await client.send_all(b"x" * 1000)
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"more")
    await far.aclose()


async def open_against(answer: bytes | Callable[[bytes], bytes]) -> WebSocketStream:
    """A client that asked, against a server which gives this answer (or what it makes of the request)."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += await far.receive_some()
            await far.send_all(answer if isinstance(answer, bytes) else answer(request))
            await far.send_stream.aclose()

        try:
            return await open_websocket(
                near, host="relay.example", target="/derp", label="relay.example:443", extra_headers=[("X-Token", "t")]
            )
        except BaseException:
            nursery.cancel_scope.cancel()
            raise


def grant(request: bytes) -> bytes:
    parsed = ServerHttp().receive_data(request)
    assert parsed is not None
    assert (parsed.target, parsed.headers["host"], parsed.headers["x-token"]) == ("/derp", "relay.example", "t")
    judged = judge_websocket_request(parsed.method, parsed.http_version, parsed.headers, "derp")
    assert not isinstance(judged, Refusal)
    return judged + encode_header(Opcode.BINARY, 5) + b"hello"


async def test_opening() -> None:
    client = await open_against(grant)
    assert await client.receive_some() == b"hello"
    assert await client.receive_some() == b""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "status 403"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n<html>", "status 200"),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", "Accept"),
        (b"", "instead of answering"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "malformed HTTP answer"),
    ],
)
async def test_refusals(answer: bytes, said: str) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectError, match=f"^websocket to relay.example:443: .*{said}")):
        await open_against(answer)
