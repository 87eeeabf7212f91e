"""What becomes of a program when its client sends signals, stops reading, or vanishes."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tailnet.agent import processes
from tests.support.ssh import PATIENCE_SECONDS, SshServer, open_ssh_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def wait_dead(pid: int) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while is_alive(pid):  # noqa: ASYNC110  # not a child of ours
            await trio.sleep(0.02)


@pytest.mark.parametrize("terminal", [["-T"], ["-tt"]])
async def test_a_client_that_vanishes_takes_its_program_along(server: SshServer, terminal: list[str]) -> None:
    """And what that has started; `sleep` in the background is of the same group or a job of the shell's."""
    async with server.client(*terminal, "sleep 1000 & echo $$ $!; wait") as client:
        leader, job = map(int, (await client.line()).split())
        client.process.kill()
        await server.wait_ended(1)
    await wait_dead(leader)
    await wait_dead(job)
    assert server.ended == [None]


async def test_a_program_that_does_not_hear_a_hangup(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    async with server.client("trap '' HUP; echo $$; while :; do sleep 0.01; done") as client:
        leader = int(await client.line())
        client.process.kill()
        await server.wait_ended(1)
    assert not is_alive(leader)


async def test_a_program_is_told_before_it_is_ended(server: SshServer) -> None:
    said = server.home / "said"
    async with server.client(f"trap 'echo hup > {said}; exit' HUP; echo $$; while :; do sleep 0.01; done") as client:
        await client.line()
        client.process.kill()
        await server.wait_ended(1)
    assert said.read_text() == "hup\n"


async def test_what_has_left_the_session_stays(server: SshServer) -> None:
    left = "setsid sh -c 'echo $$; exec sleep 1000 > /dev/null 2>&1' < /dev/null &"
    async with server.client(f"{left} exec sleep 1000") as client:
        stays = int(await client.line())
        client.process.kill()
        await server.wait_ended(1)
    assert is_alive(stays)
    os.kill(stays, signal.SIGKILL)


async def test_output_of_what_stays_in_the_background(server: SshServer) -> None:
    """As with sshd: a session is over when nobody can write to it any more."""
    done = await server.ssh("(sleep 0.3; echo late) & echo now")
    assert done.stdout == b"now\nlate\n"


async def test_a_program_that_wants_no_input(server: SshServer) -> None:
    done = await server.ssh("exec <&-; sleep 0.1; echo done", stdin=bytes(3_000_000))
    assert done.stdout == b"done\n"
    assert done.status == 0


async def test_the_agent_stops(tmp_path: Path) -> None:
    async with open_ssh_server(tmp_path) as server, server.client("echo $$; exec sleep 1000") as client:
        leader = int(await client.line())
        server.context.nursery.cancel_scope.cancel()
    assert not is_alive(leader)
