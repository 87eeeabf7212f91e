"""Connections that an SSH client forwards: to a host or a socket of the agent's machine, and from there.  Layer L3.

Next hop: ssh_connection.py.
"""

import os
import socket
from typing import Final

import trio

from tailnet.agent.ssh_connection import Address, Channel, Listening

# Names are asked for and addresses tried one after the other; a client that waits longer has given up.
DIAL_SECONDS: Final = 30
# What a client sent before it went, at most a window, has so long to be taken.
LINGER_SECONDS: Final = 30
_BACKLOG: Final = 64
_MAX_PORT: Final = 65535
# Of a host; paths of sockets are shorter, which the system says.
_MAX_NAME: Final = 253


async def dial(address: Address) -> trio.SocketStream:
    """A connection to a host and port, or to a Unix socket.  Raises OSError."""
    _check(address)
    try:
        with trio.fail_after(DIAL_SECONDS):
            if isinstance(address, str):
                return await trio.open_unix_socket(address)
            return await trio.open_tcp_stream(*address)
    except trio.TooSlowError:
        raise OSError("it did not answer") from None


def _check(address: Address) -> None:
    """Raises OSError for what no system has; the system's own functions raise all kinds of things."""
    text, port = (address, 0) if isinstance(address, str) else address
    if "\0" in text or port > _MAX_PORT or len(text) > _MAX_NAME:
        raise OSError("there is no such address")


async def listen(address: Address) -> Listening:
    """Listen where a client asks for: a port 0 is any, a host "" or "*" all.  Raises OSError."""
    _check(address)
    if isinstance(address, str):
        return Listening([await _listen_unix(address)], address)
    host, port = address
    if host in ("", "*"):
        return Listening(await trio.open_tcp_listeners(port))
    listeners = await trio.open_tcp_listeners(port, host=host)
    if port == 0:
        # Each family has got a port of its own, and the client can be told of one.
        for each in listeners[1:]:
            each.socket.close()
        del listeners[1:]
    return Listening(listeners)


async def _listen_unix(path: str) -> trio.SocketListener:
    await _remove_dead_socket(path)
    made = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await made.bind(path)
        # The user's own, whatever the agent's umask is.
        os.chmod(path, 0o600)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return trio.SocketListener(made)


async def _remove_dead_socket(path: str) -> None:
    """What a program that has been killed left there would be in the way of all later ones."""
    if await trio.Path(path).is_socket():
        try:
            alive = await trio.open_unix_socket(path)
            await alive.aclose()
        except ConnectionRefusedError:
            os.unlink(path)


async def join(channel: Channel, local: trio.SocketStream) -> None:
    """Carry bytes both ways until both ends said their last, or one of them is gone."""
    reading = trio.CancelScope()

    async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream) -> None:
        while part := await source.receive_some():
            await sink.send_all(part)
        await sink.send_eof()

    async def carry_to_client() -> None:
        with reading:
            await carry(local, channel)

    async def watch(nursery: trio.Nursery) -> None:
        await channel.wait_gone()
        reading.cancel()
        # What it sent before is still the other end's.
        nursery.cancel_scope.deadline = trio.current_time() + LINGER_SECONDS

    async with channel, local:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery)
                async with trio.open_nursery() as both:
                    both.start_soon(carry_to_client)
                    both.start_soon(carry, channel, local)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one of them is gone, and so is the other by now
