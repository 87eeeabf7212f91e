"""Calls of an agent go over whichever connection there is, and again if one was lost before the answer."""

import pytest
import trio
import trio.testing

from tailnet.agent.control import Control
from tailnet.errors import RpcError, TransportError, Unimplemented
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import FakeRpc

NAME, REQUEST, ANSWER = "UpdateStartup", agent.UpdateStartupRequest(), agent.Startup


async def test_a_call_waits_for_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    control, rpc = Control(), FakeRpc(UpdateStartup=agent.Startup(version="v1"))
    async with trio.open_nursery() as nursery:
        answers: list[agent.Startup] = []

        async def call() -> None:
            answers.append(await control.call(NAME, REQUEST, ANSWER))

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert not answers
        control.attach(rpc)  # type: ignore[arg-type]
    assert answers[0].version == "v1"


@pytest.mark.parametrize("error", [TransportError("it is gone"), RpcError("it is gone")])
async def test_what_was_lost_is_said_again(error: Exception, autojump_clock: trio.testing.MockClock) -> None:
    lost, other = FakeRpc(UpdateStartup=error), FakeRpc()
    lost.is_lost = True
    control = lost.control()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.call, NAME, REQUEST, ANSWER)
        await lost.wait_said(NAME)
        control.detach()
        control.attach(other)  # type: ignore[arg-type]
    assert other.said(NAME)


async def test_a_slow_server_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    rpc = FakeRpc(UpdateStartup=TransportError("no answer within 30 s"))
    control = rpc.control()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.call, NAME, REQUEST, ANSWER)
        await rpc.wait_said(NAME, 2)
        rpc.answers.clear()


async def test_what_a_server_does_not_know_is_asked_once_in_a_connection() -> None:
    rpc = FakeRpc(UpdateStartup=Unimplemented())
    control = rpc.control()
    assert await control.report(NAME, REQUEST, ANSWER) is None
    with pytest.raises(RpcError):
        await control.call(NAME, REQUEST, ANSWER)
    assert len(rpc.said(NAME)) == 1
    control.attach(rpc)  # type: ignore[arg-type]
    await control.report(NAME, REQUEST, ANSWER)
    assert len(rpc.said(NAME)) == 2


async def test_a_refusal() -> None:
    control = FakeRpc(UpdateStartup=RpcError("no such version")).control()
    with pytest.raises(RpcError, match="no such version"):
        await control.call(NAME, REQUEST, ANSWER)
    assert await control.report(NAME, REQUEST, ANSWER) is None
