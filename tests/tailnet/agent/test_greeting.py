"""What a shell begins with."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailnet.agent.context import Context
from tailnet.agent.greeting import MAX_MOTD_BYTES, read_greeting
from tests.support.agents import open_context


@pytest.fixture
async def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Context]:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with open_context() as made:
        yield made


async def test_banners_and_the_message_of_the_day(context: Context, tmp_path: Path) -> None:
    assert await read_greeting(context) == b""
    context.banners = ("Maintenance\non \x1b[31mSunday", "And more")
    (tmp_path / "motd").write_bytes(b"Welcome\r\n\x1b[1mhere")
    context.motd_path = str(tmp_path / "motd")
    expected = b"Maintenance\r\non \\x1b[31mSunday\r\nAnd more\r\nWelcome\r\n\x1b[1mhere\r\n"
    assert await read_greeting(context) == expected, "the workspace's own file may have colours"
    (tmp_path / ".hushlogin").touch()
    assert await read_greeting(context) == b""


async def test_files_that_are_no_message(context: Context, tmp_path: Path) -> None:
    context.banners = ("hello",)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing", "nul\0"):
        context.motd_path = str(path)
        assert await read_greeting(context) == b"hello\r\n"
    (tmp_path / "long").write_bytes(b"x" * (MAX_MOTD_BYTES + 1))
    context.motd_path = str(tmp_path / "long")
    assert len(await read_greeting(context)) == MAX_MOTD_BYTES + len(b"hello\r\n\r\n")
