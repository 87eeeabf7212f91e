"""Scripts as real processes: those that work, fail, hang, fork, print without end, or cannot be started."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tailnet.agent import processes
from tailnet.agent.context import Context
from tailnet.agent.processes import FAST_BYTES, NOT_STARTED, Ended, interpreter, run_script
from tests.support.agents import TOKEN, open_context


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    async with open_context() as made:
        yield made


class Output:
    def __init__(self) -> None:
        self.printed = {False: b"", True: b""}
        self.count = 0

    def take(self, piece: bytes, is_error: bool) -> None:
        self.count += len(piece)
        self.printed[is_error] = (self.printed[is_error] + piece)[:100_000]


async def run(text: str, context: Context, timeout_seconds: float = 30.0) -> tuple[Ended, Output]:
    output = Output()
    with trio.fail_after(60):
        return await run_script(text, output.take, context, timeout_seconds=timeout_seconds), output


async def test_a_script_that_works(context: Context, tmp_path: Path) -> None:
    context.wanted_directory = str(tmp_path)
    ended, output = await run('pwd\necho "$CODER $CODER_AGENT_TOKEN" >&2\ncat\nexit 0\n', context)
    assert ended == Ended(0)
    assert output.printed == {False: f"{tmp_path}\n".encode(), True: f"true {TOKEN}\n".encode()}


@pytest.mark.parametrize(("text", "code"), [("exit 3", 3), ("kill -9 $$", -signal.SIGKILL), ("nonsense-of-ours", 127)])
async def test_a_script_that_fails(text: str, code: int, context: Context) -> None:
    ended, _ = await run(text, context)
    assert ended.exit_code == code
    assert not ended.is_good


async def test_an_interpreter_of_its_own(context: Context) -> None:
    ended, output = await run("#!/usr/bin/env python3\nimport sys\nprint(sys.version_info[0])", context)
    assert (ended, output.printed[False]) == (Ended(0), b"3\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo", ["/bin/sh"]),
        ("#!/bin/bash -e\n", ["/bin/bash", "-e"]),
        ("#!/usr/bin/env -S python3 -u\r\n", ["/usr/bin/env", "-S", "python3", "-u"]),
        ("#!", ["/bin/sh"]),
        ("#!/bin/x 'y", ["/bin/x", "'y"]),
    ],
)
def test_the_first_line(text: str, words: list[str]) -> None:
    assert interpreter(text, "/bin/sh") == words


async def test_what_cannot_be_started_says_why(context: Context) -> None:
    ended, _ = await run("#!/not/there\n", context)
    assert ended.exit_code == NOT_STARTED
    assert "No such file" in ended.problem
    context.variables = {"A": "x" * 200_000}
    ended, _ = await run("true", context)
    assert ended.exit_code == NOT_STARTED
    assert "too long" in ended.problem


def is_alive(pid: int) -> bool:
    """A zombie of somebody else is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def wait_dead(pids: list[int]) -> None:
    with trio.fail_after(30):
        while any(map(is_alive, pids)):  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)


HANGS = "trap '' TERM\nsleep 1000 & echo $! $$\nwait\nsleep 1000\n"


async def test_a_script_that_hangs_is_ended_with_its_children(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    ended, output = await run(HANGS, context, timeout_seconds=4.0)
    assert ended.is_timed_out
    pids = [int(each) for each in output.printed[False].split()]
    assert len(pids) == 2
    await wait_dead(pids)


async def test_who_is_cancelled_leaves_nothing_behind(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    output = Output()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            def take(piece: bytes, is_error: bool) -> None:
                output.take(piece, is_error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(lambda: run_script(HANGS, take, context, timeout_seconds=0))
    await wait_dead([int(each) for each in output.printed[False].split()])


async def test_what_stays_in_the_background_lives_and_is_not_heard(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PIPE_SECONDS", 0.2)
    ended, output = await run("sleep 1000 & echo $!", context)
    assert ended == Ended(0, pipes_left_open=True)
    pid = int(output.printed[False])
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_a_script_that_prints_without_end_is_slowed_down(context: Context) -> None:
    ended, output = await run("cat /dev/zero", context, timeout_seconds=2.0)
    assert ended.is_timed_out
    # Six megabytes a second more; a machine that is busy reads less.
    assert output.count < FAST_BYTES + 3 * 6 * 1024 * 1024


async def test_a_script_that_forks_without_end_ends_with_its_group(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    ended, output = await run("i=0; while [ $i -lt 40 ]; do sleep 1000 & echo $!; i=$((i+1)); done; wait", context, 2.0)
    assert ended.is_timed_out
    await wait_dead([int(each) for each in output.printed[False].split()])


async def test_who_outlives_the_first_of_a_script_has_the_same_grace(context: Context) -> None:
    script = "(trap 'sleep 0.2; echo done; exit' TERM; while :; do sleep 0.01; done) &\nexec sleep 1000"
    ended, output = await run(script, context, 2.0)
    assert ended == Ended(-signal.SIGTERM, is_timed_out=True)
    assert output.printed[False] == b"done\n"
