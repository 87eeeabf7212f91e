"""Our engine against a whole genuine node: magicsock, wireguard-go and gVisor's stack by wgengine, at our relay."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256

import pytest
import trio

from tailnet.agent.counters import Counters
from tailnet.agent.udp_forwarding import forward_udp
from tailnet.node.streams import TunnelListener, TunnelStream
from tests.support.gobuild import WHOLENODE
from tests.support.peers import require
from tests.support.relays import open_relay
from tests.support.whole_node import (
    ECHO,
    PATIENCE_SECONDS,
    SINK,
    SOURCE,
    Pair,
    open_pair,
    receive_all,
    send_hashed,
)
from tests.support.wireguard_peer import THERE

pytestmark = pytest.mark.interop

MIB = 1 << 20
Service = Callable[[TunnelStream], Awaitable[None]]

# Each side trusts a path for 6.5 s after its last sign of life; losses meanwhile may have TCP wait as long again.
FOUND_OUT_SECONDS = 25.0
OUR_ECHO, OUR_SINK, OUR_SOURCE, NOBODYS = 1007, 1009, 1019, 1021


@asynccontextmanager
async def joined(*, is_direct: bool = True) -> AsyncIterator[Pair]:
    binary = require(WHOLENODE)
    async with open_relay("ours", tls=True) as relay:
        assert relay.certificate is not None
        async with open_pair(binary, relay.port, relay.certificate, is_direct=is_direct) as pair:
            with trio.fail_after(PATIENCE_SECONDS):
                yield pair


async def echoed(pair: Pair, data: bytes) -> None:
    """Send and receive at once; our end is sent first, and the rest comes all the same."""
    stream = await pair.dial(ECHO)
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        assert sha256(await receive_all(stream)).digest() == sha256(data).digest()


@asynccontextmanager
async def ours_served(pair: Pair) -> AsyncIterator[None]:
    """The services of ours that the genuine node dials."""

    async def echo(stream: TunnelStream) -> None:
        while piece := await stream.receive_some():
            await stream.send_all(piece)
        await stream.send_eof()

    async def sink(stream: TunnelStream) -> None:
        await stream.send_all(sha256(await receive_all(stream)).hexdigest().encode())

    async def source(stream: TunnelStream) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += await stream.receive_some()
        await send_hashed(stream, os.urandom(int(line)))

    async with trio.open_nursery() as nursery:

        async def answer(stream: TunnelStream, service: Service) -> None:
            async with stream:
                await service(stream)

        async def serve(listener: TunnelListener, service: Service) -> None:
            while True:
                nursery.start_soon(answer, await listener.accept(), service)

        for port, service in ((OUR_ECHO, echo), (OUR_SINK, sink), (OUR_SOURCE, source)):
            nursery.start_soon(serve, pair.engine.listen(port), service)
        yield
        nursery.cancel_scope.cancel()


async def both_ways(pair: Pair) -> None:
    """A MiB each way, dialled by each side; hashes are compared by whoever receives."""
    await echoed(pair, os.urandom(MIB))
    async with ours_served(pair):
        await pair.peer.ask("echo", OUR_ECHO, MIB)
        await pair.peer.ask("put", OUR_SINK, MIB)
        await pair.peer.ask("get", OUR_SOURCE, MIB)


async def test_by_the_relay() -> None:
    """Whoever dials, a MiB goes and comes whole, and an end in one direction ends that direction alone."""
    async with joined(is_direct=False) as pair:
        assert (await pair.peer.ask("ping", "disco"))["text"] == "derp-900"
        await both_ways(pair)
        data = os.urandom(MIB)
        async with await pair.dial(SINK) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            assert await receive_all(stream) == sha256(data).hexdigest().encode()
        async with await pair.dial(SOURCE) as stream:
            await stream.send_all(b"%d\n" % MIB)
            came = await receive_all(stream)
            assert sha256(came[:MIB]).hexdigest().encode() == came[MIB:]


async def test_a_port_where_nobody_listens_is_refused_on_either_side() -> None:
    async with joined(is_direct=False) as pair:
        with pytest.raises(ConnectionRefusedError):
            await pair.dial(NOBODYS)
        await pair.peer.ask("refused", NOBODYS)


async def test_datagrams_either_way() -> None:
    """To programs of the machine that the other runs on: the genuine node forwards what it does not serve, as ours."""

    async def say_back(sock: trio.socket.SocketType) -> None:
        while True:
            await sock.sendto(*await sock.recvfrom(2000))

    async with joined(is_direct=False) as pair, trio.open_nursery() as nursery:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as program:
            await program.bind(("127.0.0.1", 0))
            port = program.getsockname()[1]
            nursery.start_soon(say_back, program)
            nursery.start_soon(forward_udp, pair.engine, Counters(), lambda asked: asked == port)
            for size in (1, 1232):
                await pair.peer.ask("udp", port, size)
                data, ours = os.urandom(size), pair.engine.dial_udp(THERE, port)
                await ours.send(data)
                assert await ours.receive() == data
            nursery.cancel_scope.cancel()


async def test_pings_are_answered_on_either_side() -> None:
    """Of either kind: through the tunnel (TSMP), and between the paths (disco)."""
    async with joined(is_direct=False) as pair:
        assert await pair.engine.ping(THERE) > 0
        await pair.peer.ask("ping", "TSMP")
        ponged = await pair.engine.disco_ping(pair.peer.public)
        assert ponged.endpoint is None
        assert (await pair.peer.ask("ping", "disco"))["text"] == "derp-900"


async def test_directly_when_a_path_is_found() -> None:
    """Neither is told where the other is."""
    async with joined() as pair:
        await pair.wait_way(True)
        before = pair.sockets.sent_count, pair.sockets.received_count
        await both_ways(pair)
        # 6 MiB in packets of 1,280 bytes, of which those before both trusted the path may have gone by the relay.
        assert pair.sockets.sent_count - before[0] > 2000
        assert pair.sockets.received_count - before[1] > 2000
        assert (await pair.peer.ask("ping", "disco"))["text"].startswith(("127.", "10.", "172.", "192.168.", "["))


async def test_a_stream_outlives_its_path() -> None:
    """It begins at the relay, goes on directly, and goes on by the relay when no datagram passes any more."""
    async with joined() as pair:
        stream = await pair.dial(ECHO)
        async with stream:

            async def exchange(data: bytes) -> None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, data)
                    came = b""
                    while len(came) < len(data):
                        came += await stream.receive_some()
                assert came == data

            await exchange(os.urandom(MIB))
            await pair.wait_way(True)
            await exchange(os.urandom(MIB))
            pair.sockets.is_cut = True
            with trio.fail_after(FOUND_OUT_SECONDS):
                await exchange(os.urandom(MIB))
                await pair.wait_way(False)
            assert (await pair.peer.ask("ping", "disco"))["text"] == "derp-900"
            await exchange(os.urandom(MIB))
            pair.sockets.is_cut = False
            await pair.wait_way(True)
            await exchange(os.urandom(MIB))
            await stream.send_eof()
            assert await stream.receive_some() == b""
