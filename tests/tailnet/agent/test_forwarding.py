"""What none of an agent's services has leads to loopback, and whoever dials learns at once what is there."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tailnet.agent import forwarding
from tailnet.agent.context import CLIENT_KEEP_ALIVE, Context
from tailnet.agent.forwarding import FORWARDED, Ports, forward_ports, parse_ports
from tailnet.errors import ConfigError
from tailnet.node.engine import Engine
from tailnet.node.streams import TunnelStream
from tests.support.agents import AGENT, two_engines


@asynccontextmanager
async def forwarded(ports: Ports = Ports(), **bounds: int) -> AsyncIterator[tuple[Engine, Context]]:  # noqa: B008
    """A user's engine, towards an agent that forwards."""
    with trio.fail_after(60):
        async with two_engines() as (agent, user), trio.open_nursery() as nursery:
            context = Context(nursery, "https://tailnet.example.org", "token")
            nursery.start_soon(lambda: forward_ports(agent, context, ports, **bounds))
            await trio.testing.wait_all_tasks_blocked()
            yield user, context
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[trio.SocketListener, int]]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener, listener.socket.getsockname()[1]


async def test_bytes_and_ends_go_both_ways() -> None:
    data = os.urandom(200_000)
    async with forwarded() as (user, context), listening() as (listener, port):
        async with trio.open_nursery() as nursery:

            async def echo() -> None:
                async with await listener.accept() as local:
                    received = b"".join([part async for part in local])
                    await local.send_all(received)

            nursery.start_soon(echo)
            async with await user.dial(AGENT, port) as stream:
                await stream.send_all(data)
                await stream.send_eof()
                assert b"".join([part async for part in stream]) == data
        await settled(context)
        assert context.counters.served[FORWARDED] == 1


async def settled(context: Context) -> None:
    while context.counters.connections[FORWARDED]:
        await trio.lowlevel.checkpoint()


async def test_nothing_listens_there() -> None:
    async with forwarded() as (user, context):
        async with listening() as (_, port):
            pass
        with pytest.raises(ConnectionRefusedError):
            await user.dial(AGENT, port)
        assert context.counters.served[FORWARDED] == 0
        await settled(context)


async def test_a_reset_passes_in_both_directions() -> None:
    async with forwarded() as (user, context), listening() as (listener, port):
        stream = await user.dial(AGENT, port)
        async with await listener.accept() as local:
            stream.abort()
            with pytest.raises(trio.BrokenResourceError):
                await local.receive_some()
        other = await user.dial(AGENT, port)
        local = await listener.accept()
        forwarding.reset_on_close(local)
        await local.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await settled(context)


@pytest.mark.parametrize("port", [5, 8, 4000])
async def test_ports_that_lead_nowhere(port: int) -> None:
    async with forwarded(parse_ports("4001-4002")) as (user, context):
        with pytest.raises(ConnectionRefusedError):
            await user.dial(AGENT, port)
        assert context.counters.refused[FORWARDED] == 1


async def test_there_is_room_for_so_many() -> None:
    async with forwarded(max_connections=1) as (user, context), listening() as (_, port):
        one = await user.dial(AGENT, port)
        with pytest.raises(ConnectionRefusedError):
            await user.dial(AGENT, port)
        assert context.counters.refused[FORWARDED] == 1
        one.abort()
        await settled(context)
        await user.dial(AGENT, port)


async def test_a_program_that_takes_nobody_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "DIAL_SECONDS", 0.2)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        async with forwarded() as (user, _):
            with pytest.raises(ConnectionRefusedError):
                await user.dial(AGENT, full.getsockname()[1])


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[Engine, Engine, TunnelStream, trio.SocketStream]]:
    """An agent, a user, and the ends of a connection on which nobody says anything; in virtual time."""
    with trio.fail_after(7200):
        async with two_engines() as (agent, user), listening() as (listener, port), trio.open_nursery() as nursery:
            context = Context(nursery, "https://tailnet.example.org", "token")
            nursery.start_soon(forward_ports, agent, context, Ports())
            await trio.testing.wait_all_tasks_blocked()
            stream = await user.dial(AGENT, port)
            async with await listener.accept() as local:
                yield agent, user, stream, local
            await settled(context)
            nursery.cancel_scope.cancel()


async def test_a_user_who_vanished_holds_the_local_connection_for_minutes(quick_clock: trio.testing.MockClock) -> None:
    async with silent() as (agent, user, _, local):
        began = trio.current_time()
        peer = user.core.device.owner_of(AGENT)
        assert peer is not None
        user.core.remove(peer.public)  # what the agent sends comes to nobody
        with pytest.raises(trio.BrokenResourceError):
            await local.receive_some()
        keep_alive = CLIENT_KEEP_ALIVE
        assert keep_alive.idle <= 72
        expected = keep_alive.idle + keep_alive.interval * keep_alive.probes
        assert trio.current_time() - began == pytest.approx(expected, abs=2)
        assert agent.core.stack.counters.timed_out == 1


async def test_a_user_who_lives_and_is_silent_stays(quick_clock: trio.testing.MockClock) -> None:
    async with silent() as (agent, _, stream, local):
        await trio.sleep(3600)
        await local.send_all(b"still here?")
        assert await stream.receive_some() == b"still here?"
        assert agent.core.stack.counters.keep_alives == 3600 // CLIENT_KEEP_ALIVE.idle
        stream.abort()


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("8080", [8080], [8081, 9]), ("9-11, 65535", [9, 11, 65535], [8, 12]), ("", [], [80, 9, 1])],
)
def test_ports_of_a_list(text: str, inside: list[int], outside: list[int]) -> None:
    ports = parse_ports(text)
    assert all(port in ports for port in inside)
    assert not any(port in ports for port in outside)


@pytest.mark.parametrize("text", ["x", "8", "8-20", "65536", "20-10", "1-2-3", "-5", "80 81", "٣٠٠٠"])
def test_lists_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="must look like"):
        parse_ports(text)
