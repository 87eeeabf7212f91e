"""What terminals of SSH and of the reconnecting PTY have in common: their groups, and how they are hung up."""

import os
import signal
import subprocess

import pytest
import trio

from tailnet.agent import processes
from tailnet.agent.processes import signal_groups
from tailnet.agent.terminals import groups_of, hang_up, set_size
from tests.support.terminals import is_running


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo $$; exec sleep 1000", -signal.SIGHUP),
        ("trap '' HUP; echo $$; exec sleep 1000", -signal.SIGKILL),
        ("trap 'exit 3' HUP; (trap '' HUP; exec sleep 1000) & echo $!; wait", 3),
    ],
)
async def test_a_group_is_hung_up_and_then_killed(script: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: also who outlives the one that obeyed."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        async with process.stdout:
            last = int(await process.stdout.receive_some())
        await hang_up(groups_of(process.pid, None), process.wait)
        assert await process.wait() == status
        while is_running(last):  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(0.01)


def test_groups_that_are_none() -> None:
    """A terminal in front of which nothing stands names group 0: that would be our own."""
    ours, theirs = os.openpty()
    try:
        assert groups_of(None, ours) == set()
        assert groups_of(5, None) == {5}
        set_size(ours, 1 << 20, 7)
        assert os.get_terminal_size(theirs) == (7, 65535)
    finally:
        os.close(ours)
        os.close(theirs)
    signal_groups({1 << 22}, signal.SIGTERM)  # nobody's
