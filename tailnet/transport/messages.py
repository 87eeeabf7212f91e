"""A websocket over a stream that is open already: messages of somebody else's server, or to a client.  Layer L2.

The only file that imports trio-websocket, which keeps the boundaries of messages and puts their pieces together.  Two
habits of it are mended here: before the upgrade it waits for ever for a server that hung up, and takes a refusal's body
without a bound.  Used by services/agent_http.py and agent/http.py.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Final

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    wrap_client_stream,
    wrap_server_stream,
)

from derp.errors import TransportError
from derp.text import error_text

# Heads, and the body of a refusal.
MAX_ANSWER_BYTES: Final = 64 * 1024
# Messages that nobody took yet; then the other side waits.
_WAITING: Final = 1
# Of a client that is only told: it has nothing to say.
MAX_HEARD_BYTES: Final = 4096
SEND_SECONDS: Final = 30.0


class RefusedUpgrade(TransportError):
    """The server answered with something else than an upgrade."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(f"no websocket: the answer is {status}")
        self.status = status
        self.headers = headers
        self.body = body


async def serve_messages(
    stream: trio.abc.Stream,
    host: str,
    target: str,
    max_message_bytes: int,
    *,
    task_status: trio.TaskStatus[trio.MemoryReceiveChannel[str | bytes]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ask for a websocket; started with the channel of its messages, which ends when it does.

    Raises RefusedUpgrade and TransportError, before it has started; the caller sets the deadline for that.
    """
    put, got = trio.open_memory_channel[str | bytes](0)
    opening = _Opening(stream)
    failure: TransportError | None = None
    try:
        async with put, trio.open_nursery() as nursery:
            socket = await wrap_client_stream(
                nursery,
                opening,  # type: ignore[arg-type]  # any stream will do
                host,
                target,
                message_queue_size=_WAITING,
                max_message_size=max_message_bytes,
            )
            opening.is_open = True
            task_status.started(got)
            while True:
                await put.send(await socket.get_message())
    except* ConnectionRejected as group:
        [rejected] = group.exceptions
        assert isinstance(rejected, ConnectionRejected)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in rejected.headers or ()}
        failure = RefusedUpgrade(rejected.status_code, headers, bytes(rejected.body or b""))
    except* Exception as group:
        # Open, it has ended, or nobody is interested any more.  Before that the library lets errors of h11 through.
        if not opening.is_open:
            failure = TransportError(error_text(group))
    if failure is not None:
        raise failure


class _NotOpened(Exception):
    """No upgrade will come."""


class _Around(trio.abc.Stream):
    """The stream as it is; what is read of it is another matter."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Opening(_Around):
    """It says that it ended, or said too much, before it was a websocket."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self._left = MAX_ANSWER_BYTES
        self.is_open = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await super().receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if self.is_open:
                raise
            raise _NotOpened(error_text(error)) from None
        if self.is_open:
            return data
        self._left -= len(data)
        if not data or self._left < 0:
            raise _NotOpened("the connection ended" if not data else "the answer is longer than one may be")
        return data


async def accept_messages(stream: trio.abc.Stream, head: bytes, messages: AsyncGenerator[str, None]) -> None:
    """Serve a websocket whose request, `head`, was read from the stream already: send messages until one side ends.

    `messages` raise nothing, and what the client says is passed over.  Raises TransportError: the request asks for no
    websocket, or the client takes no message within SEND_SECONDS.
    """
    failure: TransportError | None = None
    try:
        async with aclosing(messages), trio.open_nursery() as nursery:
            with trio.fail_after(SEND_SECONDS):
                asked = await wrap_server_stream(
                    nursery,
                    _Replayed(stream, head),
                    max_message_size=MAX_HEARD_BYTES,
                )
                socket = await asked.accept()

            async def listen() -> None:
                with suppress(ConnectionClosed):
                    while True:
                        await socket.get_message()
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            async for message in messages:
                with trio.fail_after(SEND_SECONDS):
                    await socket.send_message(message)
            with trio.move_on_after(SEND_SECONDS):
                await socket.aclose()
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client has left
    except* trio.TooSlowError:
        failure = TransportError(f"the client took nothing for {SEND_SECONDS:g} s")
    except* HandshakeError as group:
        failure = TransportError(error_text(group))
    if failure is not None:
        raise failure


class _Replayed(_Around):
    """Some was read of it already."""

    def __init__(self, stream: trio.abc.Stream, read: bytes) -> None:
        super().__init__(stream)
        self._read = read

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._read:
            await trio.lowlevel.checkpoint()
            read, self._read = self._read, b""
            return read
        return await super().receive_some(max_bytes)
