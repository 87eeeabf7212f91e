"""A connection through the tunnel keeps trio's laws of streams, and tells its end as trio's errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing
from trio.testing import check_half_closeable_stream

from derp.keys import NodePrivate
from tailnet.netstack.connection import Connection
from tailnet.node.core import PeerNode
from tailnet.node.engine import Engine, open_engine
from tailnet.node.streams import TunnelStream

ADDRESSES = [bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes((number,)) for number in (1, 2)]
PORT = 4000


@asynccontextmanager
async def two_engines() -> AsyncIterator[tuple[Engine, Engine]]:
    """Two nodes that know each other's endpoints, and need no relay."""
    keys = [NodePrivate.generate() for _ in range(2)]
    async with (
        open_engine(keys[0], [ADDRESSES[0]], {}, None) as one,
        open_engine(keys[1], [ADDRESSES[1]], {}, None) as other,
    ):
        for engine, peer, at in ((one, other, 1), (other, one, 0)):
            disco_key, endpoints = peer.core.paths.disco_key, peer.local_endpoints
            known = PeerNode(keys[at].public().raw, (ADDRESSES[at],), disco_key, endpoints)
            engine.core.configure(known, trio.current_time())
        await one.disco_ping(keys[1].public().raw)
        yield one, other


async def test_the_laws_of_half_closeable_streams() -> None:
    with trio.fail_after(120):
        async with two_engines() as (one, other):
            listener = other.listen(PORT)

            async def make() -> tuple[TunnelStream, TunnelStream]:
                dialled: list[TunnelStream] = []

                async def dial() -> None:
                    dialled.append(await one.dial(ADDRESSES[1], PORT))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dial)
                    accepted = await listener.accept()
                return dialled[0], accepted

            await check_half_closeable_stream(make, None)


async def test_ends_are_told() -> None:
    with trio.fail_after(60):
        async with two_engines() as (one, other):
            with pytest.raises(ConnectionRefusedError):
                await one.dial(ADDRESSES[1], PORT)
            listener = other.listen(PORT)
            async with trio.open_nursery() as nursery:
                dialled: list[TunnelStream] = []

                async def dial() -> None:
                    dialled.append(await one.dial(ADDRESSES[1], PORT))

                nursery.start_soon(dial)
                accepted = await listener.accept()
            (stream,) = dialled
            assert accepted.remote_address == (ADDRESSES[0], stream.local_port)
            assert stream.remote_address == (ADDRESSES[1], PORT)
            accepted.abort()
            other.pump()
            with pytest.raises(trio.BrokenResourceError, match="the peer reset it"):
                await stream.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
            await stream.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            await listener.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
            with pytest.raises(ConnectionRefusedError):
                await one.dial(ADDRESSES[1], PORT)


class NarrowConnection:
    """A fake that takes 1,000 bytes and is full; `given` is how many bytes it was handed each time."""

    end = None

    def __init__(self) -> None:
        self.given: list[int] = []
        self.taken = bytearray()

    def send(self, data: bytes) -> int:
        self.given.append(len(data))
        self.taken += data[:1000]
        return min(len(data), 1000)


async def test_of_a_long_buffer_no_more_is_copied_than_may_be_taken() -> None:
    """Copying all that is left for each part would cost the square of its length."""
    connection, data = NarrowConnection(), bytes(range(256)) * 2000
    stream = TunnelStream(cast("Connection", connection), lambda: None)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            while len(connection.taken) < len(data):
                await trio.testing.wait_all_tasks_blocked()
                stream.happened()
    assert bytes(connection.taken) == data
    assert max(connection.given) <= 64 * 1024
