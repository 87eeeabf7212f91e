"""Direct links over real sockets: who gets one, and what arrives on it."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from derp.errors import ConnectError, TransportError
from tailnet.bus import links
from tailnet.bus.contract import Address
from tailnet.bus.links import Link, Links, Use
from tailnet.errors import RemoteProtocolError
from tailnet.replica.codec import MAX_FRAME_BYTES
from tailnet.replica.messages import ReplicaID
from tailnet.replica.proof import ClusterKey
from tests.support.tailnet_driver import wait_for

A, B = ReplicaID(b"A" * 8), ReplicaID(b"B" * 8)
KEY = ClusterKey("home", bytes(32))


async def nobody(link: Link) -> None:
    raise AssertionError("nobody proved himself")


async def serve(nursery: trio.Nursery, own: Links) -> Address:
    """Where it listens."""
    listeners = await nursery.start(partial(trio.serve_tcp, own.accept, 0, host="127.0.0.1"))
    return "127.0.0.1", int(listeners[0].socket.getsockname()[1])


@asynccontextmanager
async def opened(nursery: trio.Nursery, use: Use = Use.FRAMES) -> AsyncIterator[tuple[Link, Link]]:
    """Both ends of a link."""
    send, receive = trio.open_memory_channel[Link](1)

    async def keep(link: Link) -> None:
        await send.send(link)
        await link.ended.wait()

    address = await serve(nursery, Links(B, KEY, keep))
    with trio.fail_after(60):
        dialled = await Links(A, KEY, nobody).dial(address, use)
        accepted = await receive.receive()
    try:
        with trio.fail_after(60):
            yield dialled, accepted
    finally:
        accepted.ended.set()
        await trio.aclose_forcefully(dialled.stream)
        await trio.aclose_forcefully(accepted.stream)


async def receive(link: Link, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        some = await link.receive()
        assert some
        frames += some
    return frames


@pytest.mark.parametrize("use", Use)
async def test_both_ends_know_each_other_and_what_the_link_is_for(nursery: trio.Nursery, use: Use) -> None:
    async with opened(nursery, use) as (dialled, accepted):
        assert (dialled.use, accepted.use) == (use, use)
        assert (dialled.other, dialled.is_dialled) == (B, True)
        assert (accepted.other, accepted.is_dialled) == (A, False)
        assert dialled.binding == accepted.binding
        assert len(dialled.binding) == 32


async def test_frames_arrive_whole_and_in_order(nursery: trio.Nursery) -> None:
    frames = [b"", b"one", bytes(MAX_FRAME_BYTES), b"two"]
    async with opened(nursery) as (dialled, accepted):
        for sender, receiver in ((dialled, accepted), (accepted, dialled)):
            async with trio.open_nursery() as sending:
                sending.start_soon(sender.send, frames)
                assert await receive(receiver, len(frames)) == frames
        await trio.aclose_forcefully(dialled.stream)
        assert await accepted.receive() == []


async def test_a_frame_that_is_too_long_is_not_waited_for(nursery: trio.Nursery) -> None:
    async with opened(nursery) as (dialled, accepted):
        await dialled.stream.send_all((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(RemoteProtocolError, match="a frame of 65,537 bytes"):
            await accepted.receive()


async def test_a_flood_is_read_more_slowly(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_BYTES_PER_SECOND", 1)
    waits: list[float] = []

    async def note(deadline: float) -> None:
        waits.append(deadline)

    async with opened(nursery) as (dialled, accepted):
        monkeypatch.setattr(trio, "sleep_until", note)
        await dialled.send([b"frame"])
        assert await receive(accepted, 1) == [b"frame"]
        assert waits


@pytest.mark.parametrize("key", [ClusterKey("home", b"x" * 32), ClusterKey("away", bytes(32))])
async def test_another_key_or_name_gets_no_link(nursery: trio.Nursery, key: ClusterKey) -> None:
    listening = Links(B, KEY, nobody)
    address = await serve(nursery, listening)
    with pytest.raises(ConnectError, match="it has another cluster's key or name"):
        await Links(A, key, nobody).dial(address)
    await wait_for(lambda: listening.refused_count)


async def test_who_sits_in_between_gets_no_link(nursery: trio.Nursery) -> None:
    """He ends the TLS of both sides and passes on what they say, word for word."""
    listening = Links(B, KEY, nobody)
    address = await serve(nursery, listening)
    middle = Links(ReplicaID(b"M" * 8), ClusterKey("m", b"m" * 32), nobody)

    async def pass_on(tcp: trio.SocketStream) -> None:
        inward = trio.SSLStream(tcp, middle._server, server_side=True)
        outward = trio.SSLStream(await trio.open_tcp_stream(*address), middle._client, server_hostname="x")

        async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
            try:
                while data := await source.receive_some(65536):
                    await sink.send_all(data)
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(sink)

        async with trio.open_nursery() as both:
            both.start_soon(copy, inward, outward)
            both.start_soon(copy, outward, inward)

    listeners = await nursery.start(partial(trio.serve_tcp, pass_on, 0, host="127.0.0.1"))
    with pytest.raises(ConnectError, match="it has another cluster's key or name"):
        await Links(A, KEY, nobody).dial(("127.0.0.1", listeners[0].socket.getsockname()[1]))


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\n\r\n" * 4, Use.FRAMES.value + A + bytes(16) + bytes(32)])
async def test_a_stranger_is_refused(nursery: trio.Nursery, says: bytes) -> None:
    listening = Links(B, KEY, nobody)
    address = await serve(nursery, listening)
    with trio.fail_after(60):
        stream = trio.SSLStream(
            await trio.open_tcp_stream(*address), listening._client, server_hostname="x", https_compatible=True
        )
        await stream.do_handshake()
        if says:
            await stream.send_all(says)
        else:
            await trio.aclose_forcefully(stream)
        await wait_for(lambda: listening.refused_count)
        await trio.aclose_forcefully(stream)


async def test_strangers_that_say_nothing_are_few(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "MAX_UNPROVED", 2)
    listening = Links(B, KEY, nobody)
    address = await serve(nursery, listening)
    with trio.fail_after(60):
        strangers = [await trio.open_tcp_stream(*address) for _ in range(3)]
        await wait_for(lambda: listening.refused_count)
        assert "somebody did not prove to be a replica of ours: 2 others are about to" in caplog.text
        await first_end(strangers)
        for each in strangers:
            await each.aclose()


async def first_end(streams: list[trio.SocketStream]) -> None:
    """Wait until one of them is closed by the other side."""

    async def wait(number: int, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            await streams[number].receive_some(1)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(len(streams)):
            nursery.start_soon(wait, number, nursery.cancel_scope)


async def test_nobody_there() -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]
    await listener[0].aclose()
    with pytest.raises(TransportError):
        await Links(A, KEY, nobody).dial(("127.0.0.1", port))


async def test_who_resets_the_connection_at_once_costs_nothing(nursery: trio.Nursery) -> None:
    listening = Links(B, KEY, nobody)
    address = await serve(nursery, listening)
    for _ in range(20):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.connect(address)
    await wait_for(lambda: listening.refused_count)
    with pytest.raises(ConnectError, match="another cluster's key"):
        await Links(A, ClusterKey("home", b"x" * 32), nobody).dial(address)
