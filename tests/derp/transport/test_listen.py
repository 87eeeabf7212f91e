"""Listening sockets: what accepted connections really have, and errors that name the address."""

import socket
from collections.abc import Callable

import pytest

from derp.errors import ConfigError, ListenError
from derp.relay.pace import FIRST_UNSENT_BYTES
from derp.transport.listen import (
    DESTINATION_BYTES,
    open_listener,
    open_udp,
    sent_from,
    tell_destinations,
)

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
            assert server.getsockopt(TCP, 25) == FIRST_UNSENT_BYTES == 32768
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_an_unspecified_address_is_both_families_too(host: str) -> None:
    """As derper's flag means it: `-a [::]:443` and `-a 0.0.0.0:443` leave nobody out."""
    with open_listener(host, 0) as listener:
        for caller in ("127.0.0.1", "::1"):
            client, server = accepted(listener, caller)
            client.close()
            server.close()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_udp_of_both_families(host: str) -> None:
    with open_udp(host, 0) as udp:
        udp.setblocking(True)
        for family, caller in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"hello", (caller, udp.getsockname()[1]))
                assert udp.recv(10) == b"hello"


def only_ipv4() -> socket.socket:
    """What `open_udp` makes where the kernel has no IPv6."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", 0))
    return sock


@pytest.mark.parametrize("make", [lambda: open_udp("", 0), only_ipv4], ids=["both", "IPv4"])
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", "127.9.9.9"])
def test_an_answer_leaves_by_the_address_that_was_asked(make: Callable[[], socket.socket], asked: str) -> None:
    with make() as udp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        assert tell_destinations(udp)
        client.bind(("127.0.0.1", 0))
        client.connect((asked, udp.getsockname()[1]))  # takes nothing from anybody else
        client.settimeout(10)
        client.send(b"who are you?")
        udp.setblocking(True)
        _, ancillary, _, source = udp.recvmsg(100, DESTINATION_BYTES)
        udp.sendmsg([b"whom you asked"], sent_from(ancillary), 0, source)
        assert client.recv(100) == b"whom you asked"


def test_one_address_need_not_be_told() -> None:
    with open_udp("127.0.0.1", 0) as udp:
        assert not tell_destinations(udp)
    assert sent_from([]) == []


def test_nobody_answers_from_a_group() -> None:
    group = socket.inet_pton(socket.AF_INET6, "ff02::1") + bytes(4)
    assert sent_from([(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, group)]) == []


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
        with pytest.raises(ListenError, match="cannot listen on UDP"):
            open_udp(host, port)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on TCP 192\.0\.2\.1:0: "):
        open_listener("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on TCP no\.such\.name\.invalid:0: "):
        open_listener("no.such.name.invalid", 0)
