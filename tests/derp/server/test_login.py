"""A relay logs in at a relay: what it is told when it is not let in, and that it knows itself."""

import os

import pytest
import trio

from derp.errors import ConnectError, RemoteProtocolError
from derp.keys import NodePrivate
from derp.protocol.connection import ClientConnection
from derp.protocol.states import ClientState
from derp.server.login import OwnRelay, log_in
from derp.server.server import RelayServer
from derp.transport.links import Link
from derp.transport.linkstream import LinkStream
from tests.derp.server.world import HOST, PATIENCE_SECONDS, dial, open_server, port_of, relay_config


async def attempt(server: RelayServer, *, own_key: bytes | None = None) -> ClientConnection:
    """A login with a fresh key; the stream is closed whatever comes of it."""
    dialled = await dial(server)
    stream = LinkStream(Link(dialled.socket._sock.dup(), (HOST, port_of(server))), b"")
    await dialled.aclose()
    connection = ClientConnection(NodePrivate.generate(), random_bytes=os.urandom)
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            await log_in(stream, HOST, connection, own_key=own_key)
    finally:
        await trio.aclose_forcefully(stream)
    return connection


async def test_it_ends_with_server_info() -> None:
    async with open_server() as server:
        connection = await attempt(server)
        assert connection.state is ClientState.OPEN
        assert connection.server_key == server.relay.public_key.raw


async def test_who_is_not_let_in_reads_why_and_does_not_wait() -> None:
    async with open_server(relay_config(allow_keys=frozenset())) as server:
        with pytest.raises(ConnectError, match="it says: this relay does not admit this machine's key"):
            await attempt(server)


async def test_a_relay_knows_itself() -> None:
    async with open_server() as server:
        with pytest.raises(OwnRelay):
            await attempt(server, own_key=server.relay.public_key.raw)
        assert server.relay.router.clients == {}


async def test_what_is_no_relay() -> None:
    async with open_server(relay_config(derp_enabled=False)) as server:
        with pytest.raises(RemoteProtocolError):
            await attempt(server)
