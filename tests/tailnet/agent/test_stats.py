"""Stats are of real connections, since the last report, at the interval that the coordinator wants."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from derp.keys import NodePrivate
from tailnet.agent.context import Context
from tailnet.agent.counters import Counters, Kind
from tailnet.agent.stats import Stats
from tailnet.agent.udp_forwarding import forward_udp
from tailnet.errors import RpcError, Unimplemented
from tailnet.node.engine import open_engine
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import AGENT, TOKEN, URL, FakeRpc, two_engines
from tests.tailnet.agent.test_udp_forwarding import name_server, resolve

PORT = 77


@pytest.mark.parametrize("minor", [4, 11])
async def test_what_a_connection_carried(minor: int) -> None:
    with trio.fail_after(60):
        async with two_engines() as (engine, user), trio.open_nursery() as nursery:
            counters = Counters()
            stats = Stats(Context(nursery, URL, TOKEN, counters=counters), engine, FakeRpc().control(minor))
            assert (await stats.read()).connection_median_latency_ms == -1
            listener = engine.listen(PORT)
            stream = await user.dial(AGENT, PORT)
            accepted = await listener.accept()
            with counters.connection("ssh", accepted), counters.session(Kind.VSCODE, accepted):
                await stream.send_all(b"12345")
                assert await accepted.receive_some() == b"12345"
                await accepted.send_all(b"123")
                assert await stream.receive_some() == b"123"
                found = await stats.read()
                assert (found.rx_bytes, found.tx_bytes) == (5, 3)
                assert found.rx_packets >= 2
                assert found.tx_packets >= 2
                assert (found.connection_count, dict(found.connections_by_proto)) == (1, {"TCP": 1})
                assert 0 < found.connection_median_latency_ms < 60_000
                if minor == 11:
                    assert found.session_counts["vscode"] == 1
                    assert found.session_count_vscode == 0
                else:
                    assert (found.session_count_vscode, found.session_count_ssh) == (1, 0)
                    assert not found.session_counts
                await accepted.send_all(b"4567")
            found = await stats.read()
            assert (found.rx_bytes, found.tx_bytes, found.connection_count) == (0, 4, 0)
            nursery.cancel_scope.cancel()


async def test_what_flows_of_datagrams_carried() -> None:
    with trio.fail_after(60):
        async with (
            two_engines() as (engine, user),
            trio.open_nursery() as nursery,
            name_server() as port,
        ):
            counters = Counters()
            stats = Stats(Context(nursery, URL, TOKEN, counters=counters), engine, FakeRpc().control())
            nursery.start_soon(forward_udp, engine, counters, lambda asked: asked == port)
            assert await resolve(user.dial_udp(AGENT, port), 1, b"one.example") == b"1 192.0.2.1"
            found = await stats.read()
            assert (found.rx_bytes, found.tx_bytes) == (13, 11)
            assert (found.connection_count, dict(found.connections_by_proto)) == (1, {"TCP": 0, "UDP": 1})
            assert 0 < found.connection_median_latency_ms < 60_000
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def alone(rpc: FakeRpc) -> AsyncIterator[Stats]:
    """Of an agent whom nobody reaches."""
    async with (
        trio.open_nursery() as nursery,
        open_engine(NodePrivate.generate(), [AGENT], {}, None, is_direct=False) as engine,
    ):
        yield Stats(Context(nursery, URL, TOKEN), engine, rpc.control())


@pytest.mark.parametrize(("answered", "seconds"), [(7.0, 7.0), (0.0, 300.0), (-1.0, 300.0), (0.001, 1.0)])
async def test_the_interval_is_the_coordinator_s(
    answered: float, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    rpc = FakeRpc(UpdateStats=agent.UpdateStatsResponse(report_interval=convert.duration(answered)))
    async with alone(rpc) as stats, trio.open_nursery() as nursery:
        nursery.start_soon(stats.run)
        (first,) = await rpc.wait_said("UpdateStats")
        assert not first.HasField("stats"), "the first asks for the interval alone"
        began = trio.current_time()
        _, second = await rpc.wait_said("UpdateStats", 2)
        assert trio.current_time() - began == pytest.approx(seconds)
        assert second.HasField("stats")
        nursery.cancel_scope.cancel()


async def test_one_that_wants_no_stats_gets_none() -> None:
    rpc = FakeRpc(UpdateStats=Unimplemented())
    async with alone(rpc) as stats:
        await stats.run()
    assert len(rpc.calls) == 1


async def test_a_refusal_is_the_last_of_nothing(autojump_clock: trio.testing.MockClock) -> None:
    rpc = FakeRpc(UpdateStats=RpcError("this agent reports much more than it may"))
    async with alone(rpc) as stats, trio.open_nursery() as nursery:
        nursery.start_soon(stats.run)
        await rpc.wait_said("UpdateStats", 2)
        nursery.cancel_scope.cancel()
