"""Datagrams to an agent come to programs of its machine, and answers go back to whoever asked."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tailnet.agent.counters import UDP, Counters
from tailnet.agent.udp_forwarding import forward_udp
from tailnet.node.udp import ConnectedUdp
from tests.tailnet.node.test_streams import ADDRESSES, two_engines

PATIENCE_SECONDS = 60
NAMES = {b"one.example": b"192.0.2.1", b"two.example": b"192.0.2.2", b"long.example": bytes(1300)}


@asynccontextmanager
async def name_server(port: int = 0) -> AsyncIterator[int]:
    """A program of the agent's machine, which answers questions like a name server's; its port."""

    async def serve(sock: trio.socket.SocketType) -> None:
        while True:
            question, source = await sock.recvfrom(2000)
            number, _, name = question.partition(b" ")
            await sock.sendto(number + b" " + NAMES[name], source)

    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", port))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            yield sock.getsockname()[1]
            nursery.cancel_scope.cancel()


async def resolve(port: ConnectedUdp, number: int, name: bytes) -> bytes:
    await port.send(b"%d %b" % (number, name))
    return await port.receive()


async def test_questions_of_two_programs_of_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with two_engines() as (one, agent), name_server() as port, trio.open_nursery() as nursery:
            counters = Counters()
            nursery.start_soon(forward_udp, agent, counters, lambda asked: asked == port)
            first, second = one.dial_udp(ADDRESSES[1], port), one.dial_udp(ADDRESSES[1], port)
            assert await resolve(first, 1, b"one.example") == b"1 192.0.2.1"
            assert await resolve(second, 2, b"two.example") == b"2 192.0.2.2"
            await first.send(b"3 long.example")
            assert await resolve(first, 4, b"two.example") == b"4 192.0.2.2", "the long answer is lost"
            assert (counters.connections[UDP], counters.peers()) == (2, {ADDRESSES[0]})
            # Questions of 13, 13, 14 and 13 bytes; three answers of 11, and the lost one is none.
            assert counters.carried() == (53, 33)
            nursery.cancel_scope.cancel()
    assert (counters.connections[UDP], counters.served[UDP], counters.peers()) == (0, 2, set())
    assert counters.carried() == (53, 33)
    assert "a datagram of 1302 bytes does not fit" in caplog.text


async def test_a_port_that_is_not_forwarded(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            two_engines() as (one, agent),
            name_server() as port,
            name_server() as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(forward_udp, agent, Counters(), lambda asked: asked == port)
            refused = one.dial_udp(ADDRESSES[1], other)
            await refused.send(b"1 one.example")
            assert await resolve(one.dial_udp(ADDRESSES[1], port), 2, b"one.example") == b"2 192.0.2.1"
            with trio.move_on_after(0.2):
                assert not await refused.receive()
            nursery.cancel_scope.cancel()
    assert f"port {other} is not forwarded" in caplog.text


class Refusal(logging.Handler):
    """Waits for the line that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.said = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "a flow ended: Connection refused" in record.getMessage():
            self.said.set()


async def test_a_port_without_a_program_until_there_is_one(refusal: Refusal) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with trio.fail_after(PATIENCE_SECONDS):
        async with two_engines() as (one, agent), trio.open_nursery() as nursery:
            nursery.start_soon(forward_udp, agent, Counters(), lambda asked: asked == port)
            program = one.dial_udp(ADDRESSES[1], port)
            await program.send(b"1 one.example")
            await refusal.said.wait()
            async with name_server(port):
                assert await resolve(program, 2, b"one.example") == b"2 192.0.2.1"
            nursery.cancel_scope.cancel()


@pytest.fixture
async def refusal() -> AsyncIterator[Refusal]:
    handler = Refusal()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
