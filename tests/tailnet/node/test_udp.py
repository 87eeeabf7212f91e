"""UDP ports of two real engines: question and answer, ports that nobody has bound, and their end."""

import pytest
import trio
import trio.testing

from tailnet.errors import LocalProtocolError
from tests.tailnet.node.test_streams import ADDRESSES, two_engines

PATIENCE_SECONDS = 60


async def test_a_question_and_its_answer() -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with two_engines() as (one, other):
            server, client = other.open_udp(53), one.dial_udp(ADDRESSES[1], 53)
            await client.send(b"question")
            heard = await server.receive()
            assert (heard.source, heard.destination, heard.port) == (ADDRESSES[0], ADDRESSES[1], 53)
            assert heard.payload == b"question"
            other.open_udp().send(heard.source, heard.source_port, b"from another port")
            server.send(heard.source, heard.source_port, b"answer")
            assert await client.receive() == b"answer", "and nothing of others"


async def test_ports_that_nobody_has_bound() -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with two_engines() as (one, other):
            rest, bound = other.open_udp(None), other.open_udp(1000)
            assert (rest.port, bound.port) == (None, 1000)
            for port in (1000, 1001, 65535):
                await one.dial_udp(ADDRESSES[1], port).send(b"%d" % port)
            assert (await bound.receive()).payload == b"1000"
            assert [(await rest.receive()).port for _ in range(2)] == [1001, 65535]


async def test_it_ends() -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with two_engines() as (one, _):
            port, waiting = one.open_udp(53), one.open_udp()
            with pytest.raises(LocalProtocolError):
                one.open_udp(53)
            with pytest.raises(LocalProtocolError, match="at most 1232"):
                port.send(ADDRESSES[1], 53, bytes(1233))
            port.close()
            port.close()
            with pytest.raises(trio.ClosedResourceError):
                port.send(ADDRESSES[1], 53, b"question")
            one.open_udp(53)
            ended = trio.Event()

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await waiting.receive()
                ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                one.close()
                await ended.wait()
