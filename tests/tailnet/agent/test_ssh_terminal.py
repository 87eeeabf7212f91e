"""Terminals of sessions: size, modes, what stands in the foreground."""

import os
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tailnet.agent.ssh_connection import Size
from tailnet.agent.ssh_terminal import open_terminal, set_size
from tests.support.ssh import SshServer, open_ssh_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


def test_modes_and_size() -> None:
    ours, theirs = open_terminal(
        Size(101, 37), {53: 0, 51: 1, 36: 1, 72: 0, 3: 0x7F, 1: 255, 42: 1, 129: 38400, 17: 5, 200: 1}
    )
    try:
        assert termios.tcgetwinsize(theirs) == (37, 101)
        input_modes, output_modes, _, local_modes, _, _, codes = termios.tcgetattr(theirs)
        assert local_modes & termios.ECHO == 0
        assert local_modes & termios.ICANON
        assert input_modes & termios.ICRNL
        assert input_modes & 0x4000, "IUTF8"
        assert output_modes & termios.ONLCR == 0
        assert codes[termios.VERASE] == b"\x7f"
        assert codes[termios.VINTR] == b"\0", "none"
        set_size(ours, Size(1 << 31, 5))
        assert termios.tcgetwinsize(theirs) == (5, 65535)
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_terminal_is_the_controlling_one(server: SshServer) -> None:
    """So that ^C reaches what stands in the foreground, and shells have jobs."""
    done = await server.ssh(
        "-tt", "echo to the terminal > /dev/tty; ps -o tpgid=,pgid=,tty= -p $$; stty size; echo $SSH_TTY"
    )
    to, ids, size, name = done.stdout.decode().splitlines()
    assert to == "to the terminal"
    foreground, group, tty = ids.split()
    assert foreground == group
    assert f"/dev/{tty}" == name
    assert size == "0 0", "the test has none itself"


async def test_interrupts_by_the_terminal(server: SshServer) -> None:
    command = "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.01; done"
    async with server.client("-tt", command) as client:
        await client.lines(1)
        await client.type(b"\x03")
        assert (await client.lines(1))[0].endswith("interrupted")
        assert await client.wait() == 4


async def test_the_last_words_of_a_terminal(server: SshServer) -> None:
    """All of them, and without waiting for what stays in the background and holds the terminal."""
    done = await server.ssh("-tt", "trap '' HUP; sleep 1000 & seq 1 100000")
    assert done.stdout.split()[-1] == b"100000"
