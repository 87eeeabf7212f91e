"""A way to an agent by the name that a user has for it, and one stream of two.  Layer L3.

    async with connect(url, token, "dev.main") as client:
        stream = await client.dial(22)
The coordinator may go and come back, and so may the agent, with another key each time: streams to an agent that has
gone end, and new ones reach the next.  `join_streams` couples one with a local connection.  Next hop: membership.py.
"""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from tailnet.client.agents import Login, find_agent
from tailnet.node.engine import DIAL_SECONDS
from tailnet.node.membership import Client, open_client
from tailnet.node.streams import TunnelStream

_LINGER_NOT: Final = struct.pack("ii", 1, 0)


@asynccontextmanager
async def connect(
    url: str, token: str, agent: str, *, is_direct: bool = True, timeout_seconds: float = DIAL_SECONDS
) -> AsyncIterator[Client]:
    """Reach the agent that a user calls so: by its id, its name, or as `workspace.agent`.

    Raises ConfigError when no agent or several are called so, and as `open_client` does.
    """
    known = await find_agent(Login(url.rstrip("/"), token), agent)
    async with open_client(url, token, known.id, is_direct=is_direct, timeout_seconds=timeout_seconds) as client:
        yield client


async def join_streams(local: trio.abc.HalfCloseableStream, remote: TunnelStream) -> tuple[int, int]:
    """Carry bytes both ways until both ends said their last; how many went to the agent, and came from it.

    Raises trio.BrokenResourceError or ClosedResourceError when one of them breaks; then the agent's side is reset, and
    the caller closes the other.
    """
    counts = [0, 0]

    async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, at: int) -> None:
        while part := await source.receive_some():
            await sink.send_all(part)
            counts[at] += len(part)
        await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, local, remote, 0)
            await carry(remote, local, 1)
    except BaseException as error:
        remote.abort()
        found: BaseException = error
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if isinstance(found, trio.BrokenResourceError | trio.ClosedResourceError):
            raise found from None
        raise
    await remote.aclose()
    return counts[0], counts[1]


def reset_on_close(local: trio.SocketStream) -> None:
    """Have the close that follows say that the connection broke: what came may not be all."""
    local.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
