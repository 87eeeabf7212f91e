"""Accepting: options of real accepted sockets, limits, and descriptors that run out."""

import resource
import socket

import pytest
import trio

from derp.config.relay import RelayConfig
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    call,
    dial,
    open_bystanders,
    open_server,
    port_of,
    relay_config,
)


async def test_accepted_sockets_of_a_running_relay_have_the_options() -> None:
    config: RelayConfig = relay_config(tcp_user_timeout_seconds=15.0)
    async with open_server(config) as server:
        caller = await call(server)
        (link,) = server.reactor.wires
        assert link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
        assert link.sock.getsockopt(socket.IPPROTO_TCP, 25) == 32 * 1024  # TCP_NOTSENT_LOWAT
        assert link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert not link.sock.getblocking()
        await caller.aclose()


@pytest.mark.parametrize(("listen", "caller"), [("", HOST), ("", "::1"), ("::1", "::1"), (HOST, HOST)])
async def test_callers_have_the_address_they_know(listen: str, caller: str) -> None:
    async with open_server(relay_config(listen=((listen, 0),))) as server:
        with socket.create_connection((caller, port_of(server)), PATIENCE_SECONDS) as sock:
            server.ports.listeners[0]._accept_ready()  # now, not when its turn comes
            (link,) = server.reactor.wires
            assert link.address == sock.getsockname()[:2]


async def test_without_descriptors_connections_wait_and_those_inside_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async with open_server() as server, open_bystanders(server) as bystanders:
        waiting = [await dial(server)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()  # made before the limit
        highest = max(int(link.fd) for link in server.reactor.wires)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            client.connect((HOST, port_of(server)))
            await bystanders.go_on(3)
            assert "raise the limit of open files" in caplog.text
            assert len(server.reactor.wires) <= 3
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.sendall(b"GET /derp/probe HTTP/1.0\r\n\r\n")
        client.setblocking(False)
        with trio.fail_after(PATIENCE_SECONDS):  # it is let in soon
            await trio.lowlevel.wait_readable(client)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        client.close()
        await waiting[0].aclose()
