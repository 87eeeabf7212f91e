"""An agent's ports for programs on asyncio, notebooks among them.  Layer L3.

    async with connect_asyncio(url, token, "dev.main") as client:
        reader, writer = await client.open_connection(8080)
The node runs on trio in a thread of its own, and each connection comes over a pair of sockets.  trio's guest mode would
also cost a thread, and allow one node in a loop and none beside another trio.  Next hop: tunnel.py.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from threading import Thread
from typing import Any, TypeVar

import trio

from tailnet.node.engine import DIAL_SECONDS
from tailnet.node.membership import Client
from tailnet.node.tunnel import connect, join_streams

T = TypeVar("T")


class AsyncioClient:
    """Made by `connect_asyncio`; for tasks of the loop that made it."""

    def __init__(self, client: Client, nursery: trio.Nursery, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._nursery = nursery
        self._loop = loop
        self._trio = trio.lowlevel.current_trio_token()

    async def open_connection(
        self, port: int, *, timeout_seconds: float = DIAL_SECONDS
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to a port of the agent.  Raises OSError: refused, lost; TimeoutError.

        Whoever reads from one that breaks gets ConnectionResetError.
        """
        ours, theirs = socket.socketpair()
        dialled: asyncio.Future[None] = self._loop.create_future()
        end = _End()

        async def serve() -> None:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as local:
                with _telling(self._loop, dialled):
                    remote = await self._client.dial(port, timeout_seconds=timeout_seconds)
                    self._loop.call_soon_threadsafe(_set_result, dialled, None)
                    try:
                        # A task of asyncio that has gone meanwhile has closed its end.
                        await join_streams(local, remote)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self._loop.call_soon_threadsafe(end.broke)

        try:
            self._begin(serve)
            await dialled
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        end.watch(reader)
        return reader, writer

    async def ping(self, *, timeout_seconds: float = 5.0) -> float:
        """A round trip through the tunnel, in seconds.  Raises TimeoutError."""
        answer: asyncio.Future[float] = self._loop.create_future()

        async def ask() -> None:
            with _telling(self._loop, answer):
                seconds = await self._client.ping(timeout_seconds=timeout_seconds)
                self._loop.call_soon_threadsafe(_set_result, answer, seconds)

        self._begin(ask)
        return await answer

    def _begin(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            self._trio.run_sync_soon(self._nursery.start_soon, task)
        except trio.RunFinishedError:
            raise ConnectionAbortedError("the node has ended") from None


class _End:
    """How a connection ends, which may be before somebody reads."""

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader | None = None
        self._is_broken = False

    def watch(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        if self._is_broken:
            self.broke()

    def broke(self) -> None:
        self._is_broken = True
        if self._reader is not None:
            self._reader.set_exception(ConnectionResetError("the connection to the agent broke"))


class _Node:
    """The thread, and how it is left."""

    def __init__(self, opening: AbstractAsyncContextManager[Client]) -> None:
        self._opening = opening
        self._loop = asyncio.get_running_loop()
        self._scope = trio.CancelScope()
        self._trio: trio.lowlevel.TrioToken | None = None
        self._is_leaving = False
        self.opened: asyncio.Future[AsyncioClient] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def run(self) -> None:
        """All of the thread."""
        with suppress(RuntimeError), _telling(self._loop, self.ended, BaseException):  # a loop that is closed
            trio.run(self._main)
            self._loop.call_soon_threadsafe(_set_result, self.ended, None)

    def leave(self) -> None:
        """From the loop, any time."""
        self._is_leaving = True
        if self._trio is not None:
            with suppress(trio.RunFinishedError):
                self._trio.run_sync_soon(self._scope.cancel)

    async def _main(self) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        with self._scope:
            if self._is_leaving:
                return
            async with self._opening as client, trio.open_nursery() as nursery:
                made = AsyncioClient(client, nursery, self._loop)
                self._loop.call_soon_threadsafe(_set_result, self.opened, made)
                await trio.sleep_forever()


@contextmanager
def _telling(
    loop: asyncio.AbstractEventLoop, whom: "asyncio.Future[T]", kinds: type[BaseException] = OSError
) -> Iterator[None]:
    """What goes wrong in trio is told in asyncio: of these kinds, lateness, and that the node has ended."""
    try:
        yield
    except trio.TooSlowError:
        loop.call_soon_threadsafe(_set_error, whom, TimeoutError("the agent does not answer in time"))
    except trio.Cancelled:
        loop.call_soon_threadsafe(_set_error, whom, ConnectionAbortedError("the node has ended"))
        raise
    except kinds as error:
        loop.call_soon_threadsafe(_set_error, whom, error)


def _set_result(whom: "asyncio.Future[T]", result: T) -> None:
    if not whom.done():  # nobody may wait any more
        whom.set_result(result)


def _set_error(whom: "asyncio.Future[T]", error: BaseException) -> None:
    if not whom.done():
        whom.set_exception(error)


@asynccontextmanager
async def connect_asyncio(
    url: str, token: str, agent: str, *, is_direct: bool = True, timeout_seconds: float = DIAL_SECONDS
) -> AsyncIterator[AsyncioClient]:
    """Reach the agent that a user calls so, as `tailnet.connect` does, which says what is raised; TimeoutError when it
    is not there in time."""
    node = _Node(connect(url, token, agent, is_direct=is_direct, timeout_seconds=timeout_seconds))
    Thread(target=node.run, name="tailnet", daemon=True).start()
    try:
        either: set[asyncio.Future[Any]] = {node.opened, node.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if node.opened.done():
            yield node.opened.result()
    finally:
        node.leave()
        await asyncio.wait({node.ended})
        failure = node.ended.exception()
    if failure is not None:
        raise failure
