"""The operator's command: what it is given, and that every way to fail is one sentence."""

import os
import shlex
import sys
from pathlib import Path

import pytest
import trio

from derp.transport.hook import HookError, run_hook

PATIENCE_SECONDS = 60.0
SHELL = ("/bin/sh", "-c")


async def test_it_gets_the_arguments_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    await run_hook((*SHELL, f'printf "%s|" "$@" > {out}', "x y"), "add", "_acme-challenge.r.example", "va'l $HOME ue")
    assert out.read_text() == "add|_acme-challenge.r.example|va'l $HOME ue|"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "ended with status 3 and said nothing"),
        ("echo first; echo 'zone not found' >&2; exit 1", "ended with status 1: zone not found"),
        ("kill -KILL $$", "ended with signal 9 and said nothing"),
        ("printf 'a\\033[31mb'; exit 1", "ended with status 1: a\\x1b[31mb"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", "ended with status 1: " + "x" * 300 + "..."),
    ],
)
async def test_a_failure_tells_what_it_said_last(script: str, says: str) -> None:
    with pytest.raises(HookError) as caught:
        await run_hook((*SHELL, script), "add", timeout=PATIENCE_SECONDS)
    assert str(caught.value).endswith(says)
    assert "\n" not in str(caught.value)


async def test_one_that_is_not_there_is_named() -> None:
    with pytest.raises(HookError, match="the hook /nonexistent/hook add cannot be run: No such file or directory"):
        await run_hook(("/nonexistent/hook",), "add")


async def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    with pytest.raises(HookError, match=r"was ended: it took longer than 3 s"):
        await run_hook((sys.executable, "-S", "-c", script), timeout=3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with trio.fail_after(PATIENCE_SECONDS):
        await run_hook((*SHELL, f"sleep 1000 & echo $! > {shlex.quote(str(pid))}"))
    os.kill(int(pid.read_text()), 9)  # it was still there
