"""What a service manager hears, by path and by abstract name; and that nobody has to listen."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from derp.transport.notify import notify_manager


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        yield sock


def test_by_path(manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    manager.bind(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify_manager("READY=1")
    notify_manager("MAINPID=4711", "STATUS=x")
    assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"MAINPID=4711\nSTATUS=x"]


def test_by_abstract_name(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"derp-notify-{os.getpid()}"
    manager.bind("\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    notify_manager("READY=1")
    assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "vsock:2:1"])
def test_nobody_has_to_listen(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_manager("READY=1")


def test_a_manager_that_does_not_read_stops_nobody(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    manager.bind(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    for _ in range(10_000):  # far more than its buffer takes
        notify_manager("READY=1")
    assert manager.recv(100) == b"READY=1"
