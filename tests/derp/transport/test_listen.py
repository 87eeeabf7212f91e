"""Listening sockets: what accepted connections really have, and errors that name the address."""

import socket

import pytest

from derp.errors import ConfigError
from derp.transport.listen import NOTSENT_LOWAT_BYTES, TCP_NOTSENT_LOWAT, open_listener, open_udp

TCP = socket.IPPROTO_TCP


def accepted(listener: socket.socket, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection((host, listener.getsockname()[1]), timeout=10)
    listener.setblocking(True)
    return client, listener.accept()[0]


def test_accepted_connections_have_every_option() -> None:
    with open_listener("127.0.0.1", 0, user_timeout_seconds=15.0, keepalive_seconds=600.0) as listener:
        client, server = accepted(listener)
        with client, server:
            assert server.getsockopt(TCP, socket.TCP_NODELAY) == 1
            assert server.getsockopt(TCP, TCP_NOTSENT_LOWAT) == NOTSENT_LOWAT_BYTES == 32768
            assert server.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 15_000
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert server.getsockopt(TCP, socket.TCP_KEEPIDLE) == 600
            assert server.getsockopt(TCP, socket.TCP_KEEPINTVL) == 600


def test_zero_leaves_the_kernel_s_own_deadlines() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        client, server = accepted(listener)
        with client, server:
            assert server.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_it_does_not_block() -> None:
    with open_listener("127.0.0.1", 0) as listener, pytest.raises(BlockingIOError):
        listener.accept()
    with open_udp("127.0.0.1", 0) as udp, pytest.raises(BlockingIOError):
        udp.recv(1)


def test_no_host_is_both_families_and_a_host_is_one() -> None:
    with open_listener("", 0) as listener:
        for host in ("127.0.0.1", "::1"):
            client, server = accepted(listener, host)
            client.close()
            server.close()
    with open_listener("::1", 0) as six:
        port = six.getsockname()[1]
        with open_listener("127.0.0.1", port):  # beside it: an IPv6 address does not take IPv4's port
            pass


def test_udp_of_both_families() -> None:
    with open_udp("", 0) as udp:
        udp.setblocking(True)
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"hello", (host, udp.getsockname()[1]))
                assert udp.recv(10) == b"hello"


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_a_port_in_use_is_named(host: str, shown: str) -> None:
    with open_listener(host, 0) as first:
        port = first.getsockname()[1]
        expected = f"cannot listen on TCP {shown}:{port}: Address already in use; choose another address or port"
        with pytest.raises(ConfigError) as caught:
            open_listener(host, port)
        assert str(caught.value) == expected
    with open_udp(host, 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match="cannot listen on UDP"):
            open_udp(host, port)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on TCP 192\.0\.2\.1:0: "):
        open_listener("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on TCP no\.such\.name\.invalid:0: "):
        open_listener("no.such.name.invalid", 0)
