"""Terminals of sessions: size, modes, what stands in the foreground."""

import os
import termios
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tailnet.agent.ssh_connection import Size
from tailnet.agent.ssh_terminal import open_terminal
from tailnet.agent.terminals import on_terminal, set_size
from tests.support.ssh import PATIENCE_SECONDS, SshServer, open_ssh_server


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
        set_size(ours, 5, 1 << 31)
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
        await client.line()
        await client.type(b"\x03")
        assert (await client.line()).endswith("interrupted")
        assert await client.wait() == 4


async def test_the_last_words_of_a_terminal(server: SshServer) -> None:
    """All of them, and without waiting for what stays in the background and holds the terminal."""
    done = await server.ssh("-tt", "trap '' HUP; sleep 1000 & seq 1 100000")
    assert done.stdout.split()[-1] == b"100000"


async def test_a_new_size(server: SshServer) -> None:
    """Told by a client that stands on a terminal itself: its size, and what kind it is."""
    ours, theirs = open_terminal(Size(80, 24), {})
    command = "trap 'stty size' WINCH; echo $TERM; stty size; while :; do sleep 0.01; done"
    words = [*server.words("ssh"), "-tt", "user@127.0.0.1", command]
    async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(ours) as terminal:
        # The terminal is the client's own, so that the kernel tells it.
        start = partial(trio.run_process, stdin=theirs, stdout=theirs, check=False, start_new_session=True)
        await nursery.start(partial(start, env={**os.environ, "TERM": "vt220"}), on_terminal(theirs, words))
        os.close(theirs)
        text = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while b"24 80" not in text:
                text += await terminal.receive_some()
            assert b"vt220" in text
            set_size(terminal.fileno(), 37, 101)
            while b"37 101" not in text:
                text += await terminal.receive_some()
        nursery.cancel_scope.cancel()
