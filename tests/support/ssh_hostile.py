"""An SSH client that does what no client should: stops reading or answering, and asks for what makes no sense.

    async with hostile_client(port) as client:
        client.is_reading = False
It is AsyncSSH's own client on a socket that we read for it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import asyncssh
import trio
import trio_asyncio

from tests.support.ssh import PATIENCE_SECONDS


class _Transport(asyncio.Transport):
    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__({"remote_peername": stream.socket.getpeername(), "peername": stream.socket.getpeername()})
        self.waiting = bytearray()
        self.changed = trio.lowlevel.ParkingLot()
        self.stream = stream

    def write(self, data: Any) -> None:
        self.waiting += data
        self.changed.unpark_all()

    def abort(self) -> None:
        self.stream.socket.close()

    def close(self) -> None:
        self.abort()

    async def send(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                while not self.waiting:
                    await self.changed.park()
                data, self.waiting = self.waiting, bytearray()
                await self.stream.send_all(data)


class _Connection(asyncssh.SSHClientConnection):
    is_answering_key_exchange = True

    async def _process_kexinit(self, *of: Any) -> None:
        if self.is_answering_key_exchange:
            await super()._process_kexinit(*of)

    _packet_handlers: ClassVar = {**asyncssh.SSHClientConnection._packet_handlers, 20: _process_kexinit}


class HostileClient:
    """Connected and let in."""

    def __init__(self, connection: _Connection, transport: _Transport) -> None:
        self.connection = connection
        self.transport = transport
        self.is_reading = True
        self.reason = ""
        self._changed = trio.lowlevel.ParkingLot()
        self._reading = trio.CancelScope()

    async def call(self, function: Callable[..., Awaitable[Any]], *args: Any, **how: Any) -> Any:
        """One of AsyncSSH's, from trio."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await trio_asyncio.aio_as_trio(function)(*args, **how)

    def stop_reading(self) -> None:
        self.is_reading = False
        self._reading.cancel()

    def read_on(self) -> None:
        self.is_reading = True
        self._changed.unpark_all()

    def begin_key_exchange(self) -> None:
        """And never end it."""
        self.connection.is_answering_key_exchange = False
        self.connection._send_kexinit()
        self.connection._kexinit_sent = True

    async def receive(self) -> None:
        data = b"begin"
        while data:
            while not self.is_reading:
                await self._changed.park()
            with trio.CancelScope() as self._reading:
                try:
                    data = bytes(await self.transport.stream.receive_some(65536))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                self.connection.data_received(data)
        self.connection.eof_received()


class Session(asyncssh.SSHClientSession[bytes]):
    """What a session has said."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.is_over = trio.Event()

    def data_received(self, data: bytes, datatype: Any) -> None:
        self.text += data

    def connection_lost(self, exc: Any) -> None:
        self.is_over.set()


@asynccontextmanager
async def hostile_client(port: int, username: str = "user") -> AsyncIterator[HostileClient]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio_asyncio.open_loop() as loop, stream, trio.open_nursery() as nursery:
        options = asyncssh.SSHClientConnectionOptions(
            config=None, known_hosts=None, client_keys=None, agent_path=None, username=username, gss_host=None
        )
        transport = _Transport(stream)
        waiter = options.waiter = loop.create_future()
        connection = _Connection(loop, options, wait="auth")
        client = HostileClient(connection, transport)
        connection.connection_made(transport)
        nursery.start_soon(transport.send)
        nursery.start_soon(client.receive)
        with trio.fail_after(PATIENCE_SECONDS):
            await trio_asyncio.run_aio_future(waiter)
        yield client
        nursery.cancel_scope.cancel()
