"""`tailnet port-forward` on a real coordinator, with a node of ours as the agent."""

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from click.testing import CliRunner

from tailnet.cli import port_forward as commands
from tailnet.cli.port_forward import Forward, Local, open_listeners, parse_forward, serve_forwards
from tailnet.cli.root import cli
from tailnet.client.agents import Login, find_agent
from tailnet.errors import ConfigError, ListenError, TransportError
from tailnet.node.udp import TunnelUdp
from tailnet.server.server import CoordinatorServer
from tests.support.echoing import ECHO_PORT, open_echoing_agent
from tests.support.seeds import user_token
from tests.tailnet.client.test_rpc import url_of

PATIENCE_SECONDS = 60


@asynccontextmanager
async def an_agent(url: str) -> AsyncIterator[None]:
    """`main`, with an echo of TCP, and one of UDP that says each datagram backwards."""

    async def answer_udp(port: TunnelUdp) -> None:
        while True:
            heard = await port.receive()
            port.send(heard.source, heard.source_port, heard.payload[::-1])

    async with open_echoing_agent(url) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(answer_udp, agent.engine.open_udp(ECHO_PORT))
        yield
        nursery.cancel_scope.cancel()


def port_of(local: Local) -> int:
    port: int = (local.socket if isinstance(local, trio.SocketListener) else local).getsockname()[1]
    return port


@asynccontextmanager
async def forwarding(url: str, *forwards: Forward) -> AsyncIterator[list[int]]:
    """The local ports of forwards to `main`."""
    login = Login(url, user_token("alice"))
    known = await find_agent(login, "main")
    async with open_listeners(forwards) as listening, trio.open_nursery() as nursery:
        nursery.start_soon(serve_forwards, login, known, listening, False, 30.0, True)
        yield [port_of(local) for _, opened in listening for local in opened]
        nursery.cancel_scope.cancel()


async def exchange(port: int, data: bytes) -> bytes:
    received = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        async for part in stream:
            received += part
    return received


async def test_connections_through_two_ports(server: CoordinatorServer) -> None:
    data = os.urandom(200_000)
    forwards = Forward("127.0.0.1", 0, ECHO_PORT), Forward("localhost", 0, ECHO_PORT)
    with trio.fail_after(PATIENCE_SECONDS):
        async with an_agent(url_of(server)), forwarding(url_of(server), *forwards) as ports:
            results = {}

            async def one(number: int) -> None:
                results[number] = await exchange(ports[number % 2], data[number:])

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(one, number)
    assert all(results[number] == data[number:] for number in range(6))


async def ask(port: int, *questions: bytes) -> list[bytes]:
    """What a program of its own is told.  It asks until the answer comes: datagrams get lost, as while the agent is
    away."""
    answers = []
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.connect(("127.0.0.1", port))
        for question in questions:
            answer = b""
            while not answer:
                await sock.send(question)
                with trio.move_on_after(0.5):
                    answer = await sock.recv(2000)
            answers.append(answer)
    return answers


async def test_datagrams_of_two_programs(server: CoordinatorServer, caplog: pytest.LogCaptureFixture) -> None:
    longest = os.urandom(1232)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            an_agent(url_of(server)),
            forwarding(url_of(server), Forward("127.0.0.1", 0, ECHO_PORT, "udp")) as (port,),
        ):
            answers = {}

            async def one(number: int) -> None:
                answers[number] = await ask(port, b"%d!" % number, longest[number:])

            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(one, number)
            with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
                await sock.sendto(longest + b"x", ("127.0.0.1", port))
            assert await ask(port, b"after it") == [b"ti retfa"]
    assert answers == {number: [b"!%d" % number, longest[number:][::-1]] for number in range(2)}
    assert "a datagram of 1233 bytes does not fit: at most 1232" in caplog.text


async def test_a_port_that_nobody_serves_there(server: CoordinatorServer, caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            an_agent(url_of(server)),
            forwarding(url_of(server), Forward("127.0.0.1", 0, ECHO_PORT + 1)) as (port,),
            await trio.open_tcp_stream("127.0.0.1", port) as stream,
        ):
            with pytest.raises(trio.BrokenResourceError):  # a reset: no end of a stream that had nothing to say
                await stream.receive_some()
    assert "port 8 of the agent: " in caplog.text


async def test_the_agent_goes_and_comes_back(server: CoordinatorServer) -> None:
    url = url_of(server)
    forwards = [Forward("127.0.0.1", 0, ECHO_PORT), Forward("127.0.0.1", 0, ECHO_PORT, "udp")]
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_listeners(forwards) as listening, trio.open_nursery() as nursery:
            port, udp_port = (port_of(opened[0]) for _, opened in listening)
            login = Login(url, user_token("alice"))
            async with an_agent(url):
                known = await find_agent(login, "main")
                nursery.start_soon(serve_forwards, login, known, listening, False, 30.0, True)
                assert await exchange(port, b"before") == b"before"
                assert await ask(udp_port, b"before") == [b"erofeb"]
            async with an_agent(url):  # with another key
                assert await exchange(port, b"after") == b"after"
                assert await ask(udp_port, b"after") == [b"retfa"]
            nursery.cancel_scope.cancel()


async def test_more_connections_than_may_be(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(commands, "MAX_CONNECTIONS", 1)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            an_agent(url_of(server)),
            forwarding(url_of(server), Forward("127.0.0.1", 0, ECHO_PORT)) as (port,),
            await trio.open_tcp_stream("127.0.0.1", port) as first,
        ):
            await first.send_all(b"x")
            assert await first.receive_some() == b"x"
            async with await trio.open_tcp_stream("127.0.0.1", port) as second:
                with pytest.raises(trio.BrokenResourceError):
                    await second.receive_some()
            await first.send_all(b"y")
            assert await first.receive_some() == b"y"
    assert "1 are open already" in caplog.text


async def test_an_agent_that_is_not_there(server: CoordinatorServer) -> None:
    login = Login(url_of(server), user_token("alice"))
    known = await find_agent(login, "main")
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(TransportError, match=r"nothing was heard of it in 0\.3 s"):
        await serve_forwards(login, known, [], False, 0.3, True)


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("80", Forward("127.0.0.1", 80, 80)),
        ("8080:80", Forward("127.0.0.1", 8080, 80)),
        ("0:80", Forward("127.0.0.1", 0, 80)),
        ("0.0.0.0:8080:80", Forward("0.0.0.0", 8080, 80)),
        ("[::1]:8080:80", Forward("::1", 8080, 80)),
        ("localhost:1:65535", Forward("localhost", 1, 65535)),
    ],
)
def test_ports(text: str, forward: Forward) -> None:
    assert parse_forward(text) == forward


@pytest.mark.parametrize(
    "text", ["", "0", "x", "80:0", "80:x", "x:80", "65536", "-1", "::1:8080:80", "[::1]:80", "h::80"]
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="must look like"):
        parse_forward(text)


async def test_a_udp_port_that_is_taken() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"--udp: port {port} of 127.0.0.1 is taken .* as in --udp 0:5"):
            async with open_listeners([Forward("127.0.0.1", 0, 5, "udp"), Forward("127.0.0.1", port, 5, "udp")]):
                pass


def test_nothing_to_forward() -> None:
    said = CliRunner().invoke(cli, ["port-forward", "--url=http://127.0.0.1:9", "--token=x", "main"])
    assert "say --tcp or --udp" in str(said.exception)


async def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port} of 127.0.0.1 is taken by another program"):
            async with open_listeners([Forward("127.0.0.1", 0, 5), Forward("127.0.0.1", port, 5)]):
                pass


def test_a_port_that_is_taken_is_told_before_anybody_is_asked() -> None:
    """No thread: the runner has the standard streams of the whole process for itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked = ["port-forward", "--url=http://127.0.0.1:9", "--token=x", f"--tcp={port}:5", "main"]
        said = CliRunner().invoke(cli, asked)
    assert isinstance(said.exception, ListenError), said


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
