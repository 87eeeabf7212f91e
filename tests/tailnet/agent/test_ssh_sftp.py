"""SFTP: OpenSSH's client for what it asks, packets by hand for what it does not."""

import io
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailnet.agent.ssh_sftp import MAX_HANDLES, MAX_PACKET_BYTES, Server, serve
from tests.support.ssh import SshServer, open_ssh_server, run


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


async def sftp(server: SshServer, *lines: str) -> list[str]:
    done = await run([*server.words("sftp", "-b-"), "user@127.0.0.1"], "\n".join(lines).encode())
    assert done.status == 0, done.stderr
    return [line for line in done.stdout.decode().splitlines() if not line.startswith("sftp>")]


async def test_what_a_client_does(server: SshServer) -> None:
    home = server.home
    (home / "local").write_bytes(b"text")
    said = await sftp(
        server,
        *(
            "pwd",
            "mkdir d",
            "cd d",
            f"put {home}/local remote",
            "chmod 640 remote",
            "ln -s remote link",
            "ln remote hard",
        ),
        *(
            "rename remote moved",
            "ls -l",
            f"get moved {home}/back",
            "rm hard",
            "df",
            "ls -1 link",
            "cd ..",
            "mkdir e",
            "rmdir e",
        ),
    )
    assert said[0] == f"Remote working directory: {home}"
    assert (home / "back").read_bytes() == b"text"
    assert (home / "d" / "moved").stat().st_mode & 0o777 == 0o640
    assert os.readlink(home / "d" / "link") == "remote"
    assert any(line.startswith("-rw-r-----") and line.endswith("moved") for line in said)
    assert sorted(os.listdir(home / "d")) == ["link", "moved"]
    assert not (home / "e").exists()


async def test_files_keep_their_times(server: SshServer) -> None:
    (server.home / "old").write_text("x")
    os.utime(server.home / "old", (1_000_000_000, 1_100_000_000))
    await sftp(server, f"put -p {server.home}/old new", "ls -l new")
    assert (server.home / "new").stat().st_mtime == 1_100_000_000


async def test_a_large_folder(server: SshServer) -> None:
    many = server.home / "many"
    many.mkdir()
    for number in range(350):
        (many / f"f{number:03}").touch()
    said = await sftp(server, "ls -1 many")
    assert [line.rpartition("/")[2].strip() for line in said] == [f"f{number:03}" for number in range(350)]


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def status(answer: bytes) -> int:
    assert answer[0] == 101
    assert answer[1:5] == number(7)
    return int.from_bytes(answer[5:9], "big")


def ask(server: Server, kind: int, body: bytes) -> bytes:
    return server.answer(bytes([kind]) + number(7) + body)


def open_file(server: Server, path: Path, flags: int) -> bytes:
    answer = ask(server, 3, text(bytes(path)) + number(flags) + number(0))
    assert answer[0] == 102
    return answer[5:]


OK, EOF, NO_SUCH_FILE, DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8


def test_statuses(tmp_path: Path) -> None:
    server = Server()
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    a, b, none = (text(bytes(tmp_path / name)) for name in ("a", "b", "none"))
    assert status(ask(server, 17, none)) == NO_SUCH_FILE
    assert status(ask(server, 18, a + b)) == FAILURE, "a rename of version 3 replaces nothing"
    assert (tmp_path / "b").read_text() == "b"
    assert status(ask(server, 18, a + none)) == OK
    assert status(ask(server, 200, text(b"posix-rename@openssh.com") + none + b)) == OK
    assert (tmp_path / "b").read_text() == "a"
    assert status(ask(server, 99, b"")) == UNSUPPORTED
    assert status(ask(server, 200, text(b"no-such@example.org"))) == UNSUPPORTED
    assert status(ask(server, 17, b"\0\0\0\5ab")) == BAD_MESSAGE
    assert status(ask(server, 17, text(b"a\0b"))) == BAD_MESSAGE
    assert status(ask(server, 5, text(b"none") + bytes(12))) == FAILURE
    assert status(ask(server, 14, text(bytes(tmp_path)) + number(0))) == FAILURE
    handle = open_file(server, tmp_path / "b", 1)
    assert ask(server, 5, handle + bytes(8) + number(100))[5:] == text(b"a")
    assert status(ask(server, 5, handle + struct.pack(">Q", 1) + number(100))) == EOF
    assert status(ask(server, 5, handle + b"\xff" * 8 + number(100))) == FAILURE
    assert status(ask(server, 6, handle + bytes(8) + text(b"x"))) == FAILURE, "it is open for reading"
    assert status(ask(server, 4, handle)) == OK
    assert status(ask(server, 4, handle)) == FAILURE


def test_what_is_written(tmp_path: Path) -> None:
    server, path = Server(), tmp_path / "new"
    handle = open_file(server, path, 2 | 8 | 32)
    assert status(ask(server, 6, handle + struct.pack(">Q", 3) + text(b"abc"))) == OK
    assert path.read_bytes() == b"\0\0\0abc"
    assert status(ask(server, 200, text(b"fsync@openssh.com") + handle)) == OK
    assert status(ask(server, 10, handle + number(1) + struct.pack(">Q", 4))) == OK
    assert path.read_bytes() == b"\0\0\0a"
    appended = open_file(server, path, 2 | 4)
    assert status(ask(server, 6, appended + bytes(8) + text(b"end"))) == OK
    assert path.read_bytes() == b"\0\0\0aend"
    assert status(ask(server, 3, text(bytes(path)) + number(2 | 8 | 32) + number(0))) == FAILURE, "it must be new"


def test_a_read_of_all_that_a_number_can_say(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(1_000_000))
    server = Server()
    answer = ask(server, 5, open_file(server, tmp_path / "big", 1) + bytes(8) + number(0xFFFFFFFF))
    assert 200_000 < len(answer) < MAX_PACKET_BYTES


def test_handles_are_bounded(tmp_path: Path) -> None:
    server, path = Server(), tmp_path / "file"
    path.touch()
    handles = [open_file(server, path, 1) for _ in range(MAX_HANDLES)]
    assert status(ask(server, 3, text(bytes(path)) + number(1) + number(0))) == FAILURE
    assert status(ask(server, 11, text(bytes(tmp_path)))) == FAILURE
    assert status(ask(server, 4, handles[0])) == OK
    open_file(server, path, 1)


@pytest.mark.parametrize("head", [number(0), number(MAX_PACKET_BYTES + 1), number(0xFFFFFFFF)])
def test_a_packet_of_no_size_ends_it(head: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    sink = io.BytesIO()
    assert serve(io.BytesIO(head + bytes(100)), sink) == 1
    assert sink.getvalue() == b""
    assert "the limit is" in capsys.readouterr().err


def test_an_end_in_the_middle() -> None:
    sink = io.BytesIO()
    assert serve(io.BytesIO(text(b"\1" + number(3)) + number(20) + b"cut"), sink) == 1
    assert sink.getvalue()[4:9] == b"\2" + number(3)
    assert serve(io.BytesIO(b""), sink) == 0
    assert serve(io.BytesIO(text(b"\4")), io.BytesIO()) == 0
