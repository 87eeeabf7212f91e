"""Sockets that go from one process to another beside a message; here both ends are ours."""

import socket

import trio

from derp.transport.descriptors import receive_with_socket, send_with_socket


async def test_a_socket_arrives_with_its_own_message() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = socket.socketpair()
    with ours, theirs, one:
        await ours.send(b"nothing with it")
        with other:
            await send_with_socket(ours, b"this one", other)
        await ours.send(b"nothing again")
        ours.shutdown(socket.SHUT_WR)

        assert await receive_with_socket(theirs, 100) == (b"nothing with it", None)
        message, came = await receive_with_socket(theirs, 100)
        assert message == b"this one"
        assert came is not None
        assert await receive_with_socket(theirs, 100) == (b"nothing again", None)
        assert await receive_with_socket(theirs, 100) == (b"", None)

        with came:
            came.sendall(b"it is the other end")
            assert one.recv(100) == b"it is the other end"
