"""An agent's ports for asyncio: a real agent, a real coordinator, and a loop of asyncio in a thread beside them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio

from derp.errors import ConfigError
from tailnet.node.aio import AsyncioClient, connect_asyncio
from tailnet.server.server import CoordinatorServer
from tests.support.echoing import ECHO_PORT, open_echoing_agent
from tests.support.seeds import user_token
from tests.tailnet.client.test_rpc import url_of

T = TypeVar("T")
HANG_UP_PORT = 8
PATIENCE_SECONDS = 60


def run_in_asyncio(main: Callable[[], Awaitable[T]]) -> T:
    """asyncio.run, whatever loops others want for all of a process: trio-asyncio, under an agent's SSH, is one."""

    async def whole() -> T:
        return await main()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(whole())


async def in_asyncio(server: CoordinatorServer, use: Callable[[AsyncioClient], Awaitable[T]], agent: str = "main") -> T:
    """Run `use` in a loop of asyncio, while an agent is there; what it leaves behind is an error."""
    url = url_of(server)

    async def main() -> T:
        asyncio.get_running_loop().set_debug(True)
        async with connect_asyncio(url, user_token("alice"), agent, timeout_seconds=20) as client:
            return await use(client)

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_echoing_agent(url) as member, trio.open_nursery() as nursery:

            async def hang_up() -> None:
                listener = member.engine.listen(HANG_UP_PORT)
                while True:
                    stream = await listener.accept()
                    await stream.receive_some()
                    stream.abort()

            nursery.start_soon(hang_up)
            result = await trio.to_thread.run_sync(run_in_asyncio, main)
            nursery.cancel_scope.cancel()
    return result


async def test_bytes_there_and_back(server: CoordinatorServer) -> None:
    async def use(client: AsyncioClient) -> bytes:
        assert 0 < await client.ping() < PATIENCE_SECONDS
        reader, writer = await client.open_connection(ECHO_PORT)
        writer.write(bytes(range(256)) * 1000)
        writer.write_eof()
        back = await reader.read()
        writer.close()
        return back

    assert await in_asyncio(server, use) == bytes(range(256)) * 1000


async def test_what_is_refused_and_what_breaks(server: CoordinatorServer) -> None:
    async def use(client: AsyncioClient) -> None:
        with pytest.raises(ConnectionRefusedError):
            await client.open_connection(9)
        reader, writer = await client.open_connection(HANG_UP_PORT)
        writer.write(b"?")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    await in_asyncio(server, use)


async def test_many_at_once_and_one_that_is_cancelled(server: CoordinatorServer) -> None:
    async def use(client: AsyncioClient) -> list[bytes]:
        async def one(number: int) -> bytes:
            reader, writer = await client.open_connection(ECHO_PORT)
            writer.write(b"%d" % number)
            back = await reader.read(10)
            writer.close()
            return back

        async with asyncio.TaskGroup() as group:
            asyncio.ensure_future(client.open_connection(ECHO_PORT)).cancel()
            tasks = [group.create_task(one(number)) for number in range(20)]
        return [task.result() for task in tasks]

    assert await in_asyncio(server, use) == [b"%d" % number for number in range(20)]


async def test_a_node_that_has_ended(server: CoordinatorServer) -> None:
    async def use(client: AsyncioClient) -> AsyncioClient:
        return client

    async def late(client: AsyncioClient) -> None:
        with pytest.raises(ConnectionAbortedError):
            await client.ping()

    client = await in_asyncio(server, use)
    client._loop = asyncio.SelectorEventLoop()
    await trio.to_thread.run_sync(lambda: client._loop.run_until_complete(late(client)))
    client._loop.close()


async def test_an_agent_that_nobody_has(server: CoordinatorServer) -> None:
    async def use(client: AsyncioClient) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match="yours are"):
        await in_asyncio(server, use, agent="nothing")
