"""Listening ports, read of a /proc that a test made, and of this machine's."""

import os
import socket
from pathlib import Path

import pytest
import trio

from tailnet.agent import http_ports
from tailnet.agent.http_ports import ListeningPorts, read_ports

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(port: int, inode: int, state: str = "0A") -> str:
    queues = "00000000:00000000 00:00000000 00000000"
    return f"   0: 0100007F:{port:04X} 00000000:0000 {state} {queues}  1000 0 {inode} 1 0 100\n"


def a_proc(folder: Path, tcp: str, tcp6: str | None = None) -> Path:
    (folder / "net").mkdir()
    (folder / "net/tcp").write_text(HEAD + tcp)
    if tcp6 is not None:
        (folder / "net/tcp6").write_text(HEAD + tcp6)
    return folder


def a_process(proc: Path, pid: int, name: str, *inodes: int) -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(name + "\n")
    for number, inode in enumerate(inodes):
        (proc / str(pid) / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


def test_what_is_shown(tmp_path: Path) -> None:
    tcp = line(8080, 1) + line(9, 2) + line(8, 3) + line(5000, 4, "01") + line(7000, 5) + line(6000, 6)
    proc = a_proc(tmp_path, tcp, line(8080, 7))
    a_process(proc, 10, "web", 1, 7)
    a_process(proc, os.getpid(), "agent", 5)
    (proc / "11").mkdir()  # another user's: its descriptors are not to be seen
    assert read_ports(proc) == {9: "", 6000: "", 8080: "web"}


def test_without_ipv6_and_with_nonsense(tmp_path: Path) -> None:
    assert read_ports(a_proc(tmp_path, "\nx y\n" + line(80, 1))) == {80: ""}


def test_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_ports, "MAX_PORTS", 2)
    proc = a_proc(tmp_path, "".join(line(port, port) for port in (50, 40, 30)))
    assert list(read_ports(proc)) == [30, 40]


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(OSError, match="Linux"):
        read_ports()


def test_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert own.getsockname()[1] not in read_ports()


async def test_they_are_looked_up_once_for_all_who_ask(tmp_path: Path, autojump_clock: object) -> None:
    proc = a_proc(tmp_path, line(80, 1))
    ports = ListeningPorts(proc)
    assert await ports.read() == {80: ""}
    (proc / "net/tcp").write_text(HEAD)
    assert await ports.read() == {80: ""}
    await trio.sleep(2)
    assert await ports.read() == {}
