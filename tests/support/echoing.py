"""An agent of ours whose port 7 echoes: for tests of whoever reaches it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio

from tailnet.node.membership import Member, open_agent
from tests.support.seeds import agent_token, peer_id

MAIN: Final = peer_id("main")
ECHO_PORT: Final = 7


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    """Until its end; who breaks it off is not waited for."""
    with suppress(trio.BrokenResourceError):
        async with stream:
            async for part in stream:
                await stream.send_all(part)
            await stream.send_eof()


@asynccontextmanager
async def open_echoing_agent(url: str, **how: Any) -> AsyncIterator[Member]:
    """`main` of the seeds; `how` is open_agent's."""
    async with open_agent(url, agent_token("main"), MAIN, **how) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [agent.engine.listen(ECHO_PORT)])
        yield agent
        nursery.cancel_scope.cancel()
