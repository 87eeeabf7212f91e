"""Connections to the ports of an agent: each in a task of its own, bounded, and with an end that is counted."""

import sys
from dataclasses import replace

import pytest
import trio
import trio.testing

from tailnet.agent.context import Context
from tailnet.agent.ports import Service, own_services, serve_ports
from tailnet.node.streams import TunnelStream
from tests.support.agents import AGENT, two_engines

PORT = 77


async def test_each_connection_has_its_task_and_its_end() -> None:
    seen: list[Context] = []
    waiting = trio.Event()

    async def serve(stream: TunnelStream, context: Context) -> None:
        seen.append(context)
        word = await stream.receive_some()
        if word == b"fail":
            raise ValueError("as asked")
        if word == b"wait":
            waiting.set()
            await stream.receive_some()
        await stream.send_all(word)

    with trio.fail_after(60):
        async with two_engines() as (agent, user), trio.open_nursery() as nursery:
            context = Context(nursery, "https://tailnet.example.org", "token")
            nursery.start_soon(serve_ports, agent, context, {PORT: Service("parrot", serve, max_connections=2)})
            await trio.testing.wait_all_tasks_blocked()
            failing, working = await user.dial(AGENT, PORT), await user.dial(AGENT, PORT)
            third = await user.dial(AGENT, PORT)
            with pytest.raises(trio.BrokenResourceError):
                await third.receive_some()
            assert context.counters.refused["parrot"] == 1
            await failing.send_all(b"fail")
            with pytest.raises(trio.BrokenResourceError):
                await failing.receive_some()
            assert context.counters.failed["parrot"] == 1
            await working.send_all(b"word")
            assert await working.receive_some() == b"word"
            assert await working.receive_some() == b""
            again = await user.dial(AGENT, PORT)
            await again.send_all(b"wait")
            await waiting.wait()
            again.abort()
            while context.counters.connections["parrot"]:  # nobody tells
                await trio.lowlevel.checkpoint()
            assert context.counters.served["parrot"] == 3
            assert context.counters.failed["parrot"] == 1, "who goes away is no fault"
            assert seen == [context] * 3
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("port", "minutes"), [(1, 15), (2, 4.2), (22, 15)])
async def test_the_connection_of_a_user_who_vanished_ends(
    port: int, minutes: float, quick_clock: trio.testing.MockClock
) -> None:
    """A terminal is there for whoever comes back; a session of SSH is not, and waits for a notebook that sleeps."""

    began, ended = trio.Event(), trio.Event()

    async def serve(stream: TunnelStream, context: Context) -> None:
        began.set()
        try:
            await stream.receive_some()
        finally:
            ended.set()

    async with two_engines() as (agent, user), trio.open_nursery() as nursery:
        context = Context(nursery, "https://tailnet.example.org", "token")
        service = replace(own_services()[port], serve=serve)
        nursery.start_soon(serve_ports, agent, context, {port: service})
        await trio.testing.wait_all_tasks_blocked()
        await user.dial(AGENT, port)
        await began.wait()
        peer = user.core.device.owner_of(AGENT)
        assert peer is not None
        user.core.remove(peer.public)
        vanished_at = trio.current_time()
        with trio.fail_after(7200):
            await ended.wait()
        assert trio.current_time() - vanished_at == pytest.approx(60 * minutes, abs=4)
        nursery.cancel_scope.cancel()


def test_the_table() -> None:
    """Port and service, as clients know them; each agent has its own."""
    assert {port: service.name for port, service in own_services().items()} == {
        1: "ssh",
        2: "pty",
        3: "speedtest",
        4: "http",
        22: "ssh",
    }
    assert own_services()[2].serve != own_services()[2].serve


def test_without_the_library_of_ssh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    for name in ("ssh", "ssh_connection"):
        monkeypatch.delitem(sys.modules, f"tailnet.agent.{name}", raising=False)
    assert sorted(own_services()) == [2, 3, 4]
    assert "`asyncssh` is missing for SSH: install tailnet-derp[agent]" in caplog.text
