"""What not every system has: used where it is there, left out where it is not."""

import os
import resource
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from derp.transport import platform
from tests.support.certificates import issue

TCP = socket.IPPROTO_TCP


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as made:
        yield made


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.delattr(socket, name, raising=False)


def test_options_are_set_where_they_are(sock: socket.socket) -> None:
    platform.limit_unsent(sock, 32768)
    platform.limit_unacknowledged(sock, 15.5)
    platform.keep_alive(sock, 600.0)
    assert sock.getsockopt(TCP, 25) == 32768
    assert sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 15500
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert [sock.getsockopt(TCP, option) for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)] == [600, 600]
    platform.keep_alive(sock, 0.0)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert 0 < platform.rtt_microseconds(sock) < 1_000_000


def test_a_mac_has_other_words_or_none(sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "TCP_USER_TIMEOUT", "TCP_INFO", "TCP_NOTSENT_LOWAT", "TCP_KEEPIDLE", "TCP_KEEPINTVL")
    monkeypatch.setattr(platform.sys, "platform", "freebsd14")
    platform.limit_unsent(sock, 32768)
    platform.limit_unacknowledged(sock, 15.0)
    platform.keep_alive(sock, 600.0)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    with pytest.raises(OSError, match="does not tell"):
        platform.rtt_microseconds(sock)
    # Darwin's word for the first; the number is that of the option which Linux calls so
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 4, raising=False)
    platform.keep_alive(sock, 500.0)
    assert sock.getsockopt(TCP, 4) == 500


def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is."""


def no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")


def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: not str(self).startswith("/proc"))


@pytest.mark.parametrize("lack", [in_memory, no_memfd, no_proc])
def test_a_file_with_a_name(lack: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    lack(monkeypatch)
    made = issue("relay.test", is_authority=True)
    before = len(os.listdir("/proc/self/fd"))
    with platform.named_file(made.pem) as chain, platform.named_file(made.key_pem) as key:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
        assert stat.S_IMODE(os.stat(key).st_mode) & 0o077 == 0 or key.startswith("/proc/self/fd")
    assert not os.path.exists(key)
    assert len(os.listdir("/proc/self/fd")) == before


def test_counts_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.count_open_files() == len(os.listdir("/proc/self/fd"))
    platform.boot_time.cache_clear()
    assert 0 < platform.boot_time() < time.time()
    monkeypatch.setattr(os, "listdir", _absent)
    monkeypatch.setattr("builtins.open", _absent)
    platform.boot_time.cache_clear()
    assert (platform.count_open_files(), platform.boot_time()) == (0, 0)
    platform.boot_time.cache_clear()


def _absent(*arguments: object) -> None:
    raise FileNotFoundError("no such place")


def test_open_files_are_raised_as_far_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def refuse_infinity(what: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        if limits[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse_infinity)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    platform.raise_open_files()
    assert asked == [(4096, 4096)]
    asked.clear()
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, resource.RLIM_INFINITY))
    platform.raise_open_files()
    assert asked == [(resource.RLIM_INFINITY, resource.RLIM_INFINITY), (10_240, resource.RLIM_INFINITY)]
