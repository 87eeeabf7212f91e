"""How commands reach an agent."""

import os
import signal

import pytest
import trio

from tailnet.cli.reach import open_reached, run_interruptible
from tailnet.client.agents import Login, find_agent
from tailnet.errors import TransportError
from tailnet.node.membership import open_agent
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import agent_token, peer_id, user_token
from tests.tailnet.client.test_rpc import url_of


async def test_the_patience_is_that_of_the_way_there(server: CoordinatorServer) -> None:
    login = Login(url_of(server), user_token("alice"))
    agent = await find_agent(login, "dev.main")
    with trio.fail_after(60):
        with pytest.raises(TransportError, match=r"dev\.main cannot be reached"):
            async with open_reached(login, agent, relay_only=True, wait_seconds=0.3):
                pass
        async with open_agent(login.url, agent_token("main"), peer_id("main")):
            with pytest.raises(trio.TooSlowError):
                async with open_reached(login, agent, relay_only=True, wait_seconds=30):
                    raise trio.TooSlowError


def test_what_comes_of_it() -> None:
    async def work() -> int:
        return 7

    assert run_interruptible(work) == 7


@pytest.mark.parametrize(
    ("number", "is_ignored"), [(signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGHUP, True)]
)
def test_who_is_told_to_go_goes_in_order(number: signal.Signals, is_ignored: bool) -> None:
    """Under `nohup` a hangup is none."""
    before = signal.signal(number, signal.SIG_IGN) if is_ignored else signal.getsignal(number)
    left: list[str] = []

    async def work() -> str:
        try:
            os.kill(os.getpid(), number)
            with trio.move_on_after(30 if not is_ignored else 0.1):
                await trio.sleep_forever()
            return "stayed"
        finally:
            left.append("in order")

    try:
        if is_ignored:
            assert run_interruptible(work) == "stayed"
        else:
            with pytest.raises(SystemExit) as caught:
                run_interruptible(work)
            assert caught.value.code == 128 + number
    finally:
        signal.signal(number, before)
    assert left == ["in order"]
