"""Links as trio streams: trio's own laws over plain and TLS links on real sockets, and what a reactor hands over."""

import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from derp.transport.framing import RECEIVE_BYTES
from derp.transport.links import Link, TlsLink
from derp.transport.linkstream import LinkStream, take_over
from derp.transport.websocket import WebSocketStream
from tests.support.certificates import client_context, issue, server_context

AUTHORITY = issue("authority", is_authority=True)
SERVER_CONTEXT = server_context(issue("relay.test", issuer=AUTHORITY))
SERVER_CONTEXT.num_tickets = 0  # as the relay's: tickets that nobody reads turn a close into a reset
CLIENT_CONTEXT = client_context(AUTHORITY)
ADDRESS = ("127.0.0.1", 1)

Pair = tuple[LinkStream, LinkStream]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # fixed, so that a kernel that is full stays full: left alone it makes more room while nobody looks
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    return one, other


async def plain_pair() -> Pair:
    one, other = socket_pair()
    return LinkStream(Link(one, ADDRESS), b""), LinkStream(Link(other, ADDRESS), b"")


async def serve_tls(link: TlsLink) -> LinkStream:
    """The server's side, as the reactor drives it, up to the end of the handshake."""
    view, scratch = memoryview(bytearray(RECEIVE_BYTES + 32768)), memoryview(bytearray(RECEIVE_BYTES))
    end = 0
    while not link.is_open:
        await trio.lowlevel.wait_readable(link.fd)
        end = link.receive(view, 0, scratch, scratch)
    return LinkStream(link, bytes(view[:end]))


async def tls_pair() -> Pair:
    one, other = socket_pair()
    client = LinkStream(TlsLink(one, ADDRESS, CLIENT_CONTEXT, "relay.test"), b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.start_tls)
        server = await serve_tls(TlsLink(other, ADDRESS, SERVER_CONTEXT))
    return client, server


async def taken_plain_pair() -> Pair:
    """The client's side was trio's before."""
    one, other = socket_pair()
    client = take_over(trio.SocketStream(trio.socket.from_stdlib_socket(one)))
    assert isinstance(client, LinkStream)
    return client, LinkStream(Link(other, ADDRESS), b"")


async def taken_tls_pair() -> Pair:
    one, other = socket_pair()
    tcp = trio.SocketStream(trio.socket.from_stdlib_socket(one))
    tls = trio.SSLStream(tcp, CLIENT_CONTEXT, server_hostname="relay.test", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.do_handshake)
        server = await serve_tls(TlsLink(other, ADDRESS, SERVER_CONTEXT))
    client = take_over(tls)
    assert isinstance(client, LinkStream)
    return client, server


def clogged(make: Callable[[], Awaitable[Pair]]) -> Callable[[], Awaitable[Pair]]:
    """The same, with more on the way in both directions than the kernels hold."""

    async def make_clogged() -> Pair:
        pair = await make()
        for stream in pair:
            stream._link.send_raw(bytes(1_000_000))
            assert stream._link.blocked
        return pair

    return make_clogged


MAKERS = pytest.mark.parametrize("make", [plain_pair, tls_pair, taken_plain_pair, taken_tls_pair])


@MAKERS
async def test_the_laws_of_streams(make: Callable[[], Awaitable[Pair]]) -> None:
    await trio.testing.check_two_way_stream(make, clogged(make))


@MAKERS
async def test_much_data_arrives_whole(make: Callable[[], Awaitable[Pair]]) -> None:
    one, other = await make()
    data = bytes(range(256)) * 20_000
    async with one, other, trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, data)
        received = bytearray()
        while len(received) < len(data):
            received += await other.receive_some(100_000)
        assert received == data


@MAKERS
async def test_a_link_that_asks_for_more_than_a_stream_has_room_for(make: Callable[[], Awaitable[Pair]]) -> None:
    sender, receiver = await make()
    receiver._link.appetite = RECEIVE_BYTES  # as after a receive that was full
    await sender.send_all(b"data")
    with trio.fail_after(60):
        assert await receiver.receive_some() == b"data"
    await sender.aclose()
    await receiver.aclose()


@MAKERS
async def test_what_is_sent_now_and_does_not_fit_leaves_with_the_next_send(
    make: Callable[[], Awaitable[Pair]],
) -> None:
    one, other = await make()
    pieces = [b"small", bytes(range(256)) * 4000, b"last"]
    async with one, other, trio.open_nursery() as nursery:
        assert one.send_at_once(pieces[0])
        assert not one.send_at_once(pieces[1])
        assert not one.send_at_once(pieces[2])
        nursery.start_soon(one.send_all, b"")
        received = bytearray()
        while len(received) < sum(map(len, pieces)):
            received += await other.receive_some()
        assert received == b"".join(pieces)
        await trio.testing.wait_all_tasks_blocked()
        assert one.send_at_once(b"room again")


async def test_what_trio_has_read_of_the_connection_is_taken_over_too() -> None:
    """A second record came along with the one that somebody read before; then the peer left."""
    one, other = socket_pair()
    tcp = trio.SocketStream(trio.socket.from_stdlib_socket(one))
    tls = trio.SSLStream(tcp, CLIENT_CONTEXT, server_hostname="relay.test", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.do_handshake)
        server = await serve_tls(TlsLink(other, ADDRESS, SERVER_CONTEXT))
    server._link._encrypt(b"first")
    server._link._encrypt(b"second")
    server._link._send_encrypted()
    await server.aclose()
    assert await tls.receive_some() == b"first"
    async with take_over(tls) as taken:
        assert await taken.receive_some() == b"second"
        assert await taken.receive_some() == b""


async def test_a_connection_that_was_reset_is_not_taken_over() -> None:
    one, other = socket_pair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(one))
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.close()
    async with stream:
        await trio.lowlevel.wait_readable(stream.socket)
        assert take_over(stream) is stream


async def test_a_stream_without_a_socket_of_ours_is_not_taken_over() -> None:
    near, _ = trio.testing.memory_stream_pair()
    assert take_over(near) is near
    websocket = WebSocketStream(near)
    assert take_over(websocket) is websocket


@MAKERS
async def test_what_was_received_before_comes_first(make: Callable[[], Awaitable[Pair]]) -> None:
    one, other = await make()
    async with one, LinkStream(other._link, b"a request") as late:
        await one.send_all(b", its rest")
        assert await late.receive_some(5) == b"a req"
        assert await late.receive_some() == b"uest"
        assert await late.receive_some() == b", its rest"
        assert late.socket.getpeername() == one.socket.getsockname()


@MAKERS
async def test_last_bytes_and_the_end_of_the_stream_in_one_breath(make: Callable[[], Awaitable[Pair]]) -> None:
    one, other = await make()
    async with other:
        await one.send_all(b"last words")
        await one.aclose()
        assert await other.receive_some() == b"last words"
        assert await other.receive_some() == b""
        assert await other.receive_some() == b""


@MAKERS
async def test_moving_on_takes_what_was_not_given_out(make: Callable[[], Awaitable[Pair]]) -> None:
    one, other = await make()
    async with one:
        await one.send_all(b"some, and more")
        assert await other.receive_some(6) == b"some, "
        assert other.take_received() == b"and more"
        with pytest.raises(trio.ClosedResourceError):
            await other.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await other.send_all(b"x")
        # the link itself lives on, for the reactor
        other._link.send_raw(b"alive")
        assert await one.receive_some() == b"alive"
        other._link.close()


async def test_a_connection_that_breaks_is_broken() -> None:
    one, other = await plain_pair()
    async with other:
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # closes by a reset
        await one.aclose()
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await other.receive_some()


async def test_tls_with_nobody_who_speaks_it() -> None:
    one, other = socket_pair()
    client = LinkStream(TlsLink(one, ADDRESS, CLIENT_CONTEXT, "relay.test"), b"")
    with other:
        other.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        async with client:
            with pytest.raises(trio.BrokenResourceError, match="TLS: "):
                await client.start_tls()


async def test_tls_with_the_wrong_server() -> None:
    one, other = socket_pair()
    client = LinkStream(TlsLink(one, ADDRESS, CLIENT_CONTEXT, "elsewhere.test"), b"")
    server = TlsLink(other, ADDRESS, SERVER_CONTEXT)

    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(serve_tls, server)
        with pytest.raises(trio.BrokenResourceError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.start_tls()
        nursery.cancel_scope.cancel()
    server.close()


async def test_garbage_behind_a_handshake_is_a_broken_stream() -> None:
    one, other = await tls_pair()
    async with other:
        one.socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError, match="TLS: "):
            await other.receive_some()
        await one.aclose()


async def test_it_may_not_be_asked_for_nothing() -> None:
    one, other = await plain_pair()
    async with one, other:
        with pytest.raises(ValueError, match="at least 1"):
            await one.receive_some(0)


@MAKERS
async def test_only_one_task_sends_at_a_time(make: Callable[[], Awaitable[Pair]]) -> None:
    one, other = await make()
    async with one, other, trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked()
        for send in (partial(one.send_all, b"between"), one.wait_send_all_might_not_block):
            with pytest.raises(trio.BusyResourceError):
                await send()
        received = 0
        while received < 1_000_000:
            data = await other.receive_some(100_000)
            assert not data.strip(b"\0")
            received += len(data)
