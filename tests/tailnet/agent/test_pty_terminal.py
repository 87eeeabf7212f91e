"""A process on a terminal of its own: what it is given, what readers see of it, and its end."""

import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tailnet.agent import processes
from tailnet.agent.pty_terminal import LEAD_BYTES, RING_BYTES, Reader, Scrollback, Terminal, open_terminal
from tests.support.terminals import is_running

ENVIRONMENT = {"PATH": os.environ["PATH"], "TERM": "xterm-256color"}


@asynccontextmanager
async def running(script: str, height: int = 0, width: int = 0) -> AsyncIterator[Terminal]:
    with trio.fail_after(60):
        terminal = await open_terminal(["/bin/sh", "-c", script], ENVIRONMENT, "/", height, width)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(terminal.run)
            yield terminal
            nursery.cancel_scope.cancel()


async def read_until(reader: Reader, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        data = await reader.receive()
        assert data, f"it ended, and showed {shown[-500:]!r}"
        shown += data
    return shown


async def read_all(reader: Reader) -> bytes:
    shown = b""
    while data := await reader.receive():
        shown += data
    return shown


def test_the_ring() -> None:
    ring = Scrollback()
    ring.append(b"abc")
    assert (ring.begin, ring.end, ring.read(1, 10), ring.read(0, 2)) == (0, 3, b"bc", b"ab")
    ring.append(bytes(RING_BYTES))
    assert (ring.begin, ring.end) == (3, RING_BYTES + 3)
    ring.append(bytes(RING_BYTES) * 3 + b"x")
    assert (ring.begin, ring.end) == (3 * RING_BYTES + 4, 4 * RING_BYTES + 4)
    assert ring.read(ring.end - 2, 10) == b"\0x"


async def test_it_is_a_terminal_of_its_own() -> None:
    """The shell leads its session and can be interrupted by a key."""
    script = (
        'trap "echo stopped" INT; tty; stty size; [ "$(cut -d" " -f6 /proc/$$/stat)" = $$ ] && echo leads; '
        "while :; do sleep 0.05; done"
    )
    async with running(script, 30, 100) as terminal:
        with terminal.attached() as reader:
            shown = await read_until(reader, b"leads")
            assert b"/dev/pts/" in shown
            assert b"30 100" in shown
            await terminal.send_all(b"\x03")
            await read_until(reader, b"stopped")


async def test_a_new_size_is_told() -> None:
    async with running('trap "stty size" WINCH; echo ready; while :; do sleep 0.05; done') as terminal:
        with terminal.attached() as reader:
            await read_until(reader, b"ready")
            terminal.resize(0, 90)
            terminal.resize(30, 0)
            terminal.resize(31, 101)
            assert b"31 101" in await read_until(reader, b"101")


async def test_bytes_pass_as_they_are() -> None:
    """Also those that are half a character."""
    async with running(
        "stty raw -echo; printf 'ready'; head -c 6 | od -An -tx1; printf '\\303'; printf '\\377\\000'"
    ) as it:
        with it.attached() as reader:
            await read_until(reader, b"ready")
            await it.send_all("ü".encode()[:1])
            await it.send_all("ü".encode()[1:] + b"\xff\x00\x03\x04")
            shown = await read_all(reader)
    assert b"c3 bc ff 00 03 04" in shown
    assert shown.endswith(b"\xc3\xff\x00")


async def test_who_comes_later_sees_the_end_of_what_was_said() -> None:
    async with running("seq 20000; echo over; cat") as terminal:
        with terminal.attached() as reader:
            first = await read_until(reader, b"over")
            with terminal.attached() as later:
                assert await read_until(later, b"over") == first[-RING_BYTES:]


async def test_the_fastest_reader_sets_the_pace_and_loses_nothing() -> None:
    async with running("seq 200000") as terminal:
        with terminal.attached() as fast, terminal.attached() as slow:
            shown = await read_all(fast)
            assert shown == b"".join(b"%d\r\n" % number for number in range(1, 200_001))
            end = await read_all(slow)
            assert shown.endswith(end)
            assert len(end) <= RING_BYTES


async def test_a_process_waits_while_nobody_who_is_attached_reads() -> None:
    async with running("seq 200000; echo over; cat") as terminal:
        with terminal.attached():
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert LEAD_BYTES <= terminal.scrollback.end < RING_BYTES + LEAD_BYTES
        with terminal.attached() as reader:
            await read_until(reader, b"over")


@pytest.mark.parametrize("script", ["cat", "trap '' HUP TERM; echo deaf; while :; do sleep 1; done"])
async def test_it_is_hung_up_and_killed(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    async with running(f"echo $$; {script}") as terminal:
        with terminal.attached() as reader:
            pid = int((await read_until(reader, b"\n")).split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert terminal.is_over


async def test_what_is_in_front_is_hung_up_too() -> None:
    """An interactive shell gives each job a group of its own."""
    with trio.fail_after(60):
        terminal = await open_terminal(["/bin/sh", "-i"], ENVIRONMENT, "/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(terminal.run)
            with terminal.attached() as reader:
                await terminal.send_all(b"sh -c 'echo pid=$$=; exec sleep 1000'\r")
                shown = b""
                while (found := re.search(rb"pid=(\d+)=", shown)) is None:
                    shown += await reader.receive()
            nursery.cancel_scope.cancel()
        while is_running(int(found[1])):  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)


async def test_its_end_comes_with_the_process_though_a_child_lives_on() -> None:
    async with running("sleep 1000 & echo $!; echo over") as terminal:
        with terminal.attached() as reader:
            shown = await read_all(reader)
            assert b"over" in shown
            with pytest.raises(trio.BrokenResourceError):
                await terminal.send_all(b"x")
        os.kill(int(shown.split()[0]), signal.SIGKILL)


async def test_nobody_there_for_long() -> None:
    async with running("cat") as terminal, trio.open_nursery() as nursery:
        left = trio.Event()

        async def watch() -> None:
            await terminal.wait_left(0.05)
            left.set()

        with terminal.attached():
            nursery.start_soon(watch)
            with trio.move_on_after(0.2):
                await left.wait()
            assert not left.is_set()
        await left.wait()


async def test_what_cannot_be_started() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError):
        await open_terminal(["/bin/sh"], ENVIRONMENT, "/no/such/directory")
    assert len(os.listdir("/proc/self/fd")) == len(before)
