"""The lifecycle and users' sessions are told in their order, with the moment when they happened."""

import trio
import trio.testing

from tailnet.agent.control import Control
from tailnet.agent.counters import Counters, Kind, Session
from tailnet.agent.reports import MAX_WAITING, Reports
from tailnet.errors import RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import FakeRpc, a_stream


async def test_what_happened_without_a_connection_is_told_later(autojump_clock: trio.testing.MockClock) -> None:
    control, rpc = Control(), FakeRpc()
    reports = Reports(control)
    counters = Counters(reports.session)
    reports.lifecycle(agent.Lifecycle.STARTING)
    with counters.session(Kind.JETBRAINS, a_stream()) as session:
        session.status_code, session.reason = 5, "it ended"
    reports.lifecycle(agent.Lifecycle.READY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reports.run)
        control.attach(rpc)  # type: ignore[arg-type]
        await reports.wait_sent()
        nursery.cancel_scope.cancel()
    names = [name for name, _ in rpc.calls]
    assert names == ["UpdateLifecycle", "ReportConnection", "ReportConnection", "UpdateLifecycle"]
    states = [each.lifecycle.state for each in rpc.said("UpdateLifecycle")]
    assert states == [agent.Lifecycle.STARTING, agent.Lifecycle.READY]
    came, left = (each.connection for each in rpc.said("ReportConnection"))
    assert (came.action, came.type, came.ip) == (agent.Connection.CONNECT, agent.Connection.JETBRAINS, session.address)
    assert (left.action, left.status_code, left.reason) == (agent.Connection.DISCONNECT, 5, "it ended")
    assert came.id == left.id == session.id
    assert came.timestamp.seconds > 0


async def test_a_refusal_holds_nothing_up_and_so_many_wait(autojump_clock: trio.testing.MockClock) -> None:
    """A state is never pushed out by sessions."""
    rpc = FakeRpc(ReportConnection=RpcError("no"))
    reports = Reports(rpc.control())
    reports.lifecycle(agent.Lifecycle.READY)
    for number in range(MAX_WAITING + 3):
        reports.session(Session(Kind.SSH, "", reason=str(number)), False)
    assert reports.lost_count == 4
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reports.run)
        await reports.wait_sent()
        nursery.cancel_scope.cancel()
    assert len(rpc.calls) == MAX_WAITING
    assert rpc.calls[0][0] == "UpdateLifecycle"
    assert rpc.said("ReportConnection")[0].connection.reason == "4"
