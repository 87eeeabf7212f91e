"""Messages of a websocket against a server of the same library, and against servers that are none."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import trio
import trio.testing
from trio_websocket import wrap_server_stream

from derp.errors import TransportError
from tailnet.transport.messages import MAX_ANSWER_BYTES, RefusedUpgrade, accept_messages, serve_messages

MAX_BYTES = 100_000
Server = Callable[[trio.abc.Stream], Awaitable[None]]


async def collect(server: Server, max_messages: int = 10) -> list[str | bytes]:
    """What comes from a server until it ends."""
    near, far = trio.testing.memory_stream_pair()
    found: list[str | bytes] = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server, far)
            messages = await nursery.start(serve_messages, near, "agent", "/watch", MAX_BYTES)
            async for message in messages:
                found.append(message)
                if len(found) == max_messages:
                    break
            nursery.cancel_scope.cancel()
    return found


async def failure(server: Server) -> TransportError:
    """Why there is no websocket."""
    with pytest.raises(BaseExceptionGroup) as caught:
        await collect(server)
    [error] = caught.value.exceptions
    assert isinstance(error, TransportError)
    return error


async def test_messages_one_by_one(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            assert request.path == "/watch"
            socket = await request.accept()
            for message in ("one", b"two", "x" * MAX_BYTES):
                await socket.send_message(message)
            await socket.aclose()

    assert await collect(serve) == ["one", b"two", "x" * MAX_BYTES]


async def test_one_that_is_too_long_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            socket = await (await wrap_server_stream(nursery, stream)).accept()
            await socket.send_message("x")
            await socket.send_message("x" * (MAX_BYTES + 1))

    assert await collect(serve) == ["x"]


def saying(answer: bytes, ends: bool = True) -> Server:
    async def serve(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.StapledStream)
        await stream.receive_some()
        await stream.send_all(answer)
        if ends:
            await stream.aclose()

    return serve


async def test_a_refusal_comes_whole(autojump_clock: trio.testing.MockClock) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    refused = await failure(saying(answer, ends=False))
    assert isinstance(refused, RefusedUpgrade)
    assert (refused.status, refused.headers["content-type"], refused.body) == (403, "application/json", b"{}")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "ended"),
        (b"HTTP/1.1 101 Switching", "ended"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n" + b"x" * (MAX_ANSWER_BYTES + 1), "longer"),
    ],
)
async def test_what_is_no_upgrade(autojump_clock: trio.testing.MockClock, answer: bytes, reason: str) -> None:
    assert reason in str(await failure(saying(answer)))


async def test_nonsense_in_place_of_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    assert str(await failure(saying(b"SSH-2.0-x\r\n\r\n", ends=False)))


async def texts(*said: str, is_endless: bool = False) -> AsyncGenerator[str, None]:
    for text in said:
        yield text
    if is_endless:
        await trio.sleep_forever()


async def test_a_client_whose_request_was_read_already(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some()
        await accept_messages(stream, head, texts("one", "x" * MAX_BYTES))
        await stream.aclose()

    assert await collect(serve) == ["one", "x" * MAX_BYTES]


async def test_a_client_that_leaves_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    ended = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        await accept_messages(stream, b"", texts("one", is_endless=True))
        ended.set()

    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, far)
            async with trio.open_nursery() as client:
                messages = await client.start(serve_messages, near, "agent", "/watch", MAX_BYTES)
                assert await messages.receive() == "one"
                client.cancel_scope.cancel()
            await near.aclose()
            await ended.wait()


async def test_a_client_that_asks_for_no_websocket_or_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()
    with pytest.raises(TransportError, match="took nothing for 30 s"):
        await accept_messages(far, b"GET / HT", texts())
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    near, far = trio.testing.lockstep_stream_pair()  # nobody reads at the near end
    with pytest.raises(TransportError, match="took nothing for 30 s"):
        await accept_messages(far, upgrade, texts("one"))
    await near.aclose()
