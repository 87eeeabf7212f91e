"""Hostile and unlucky clients: what each costs, and that nothing of it stays."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import trio
import trio.testing

from tailnet.agent import ssh_connection
from tailnet.agent.ssh_connection import Connection
from tests.support.processes import children
from tests.support.ssh import PATIENCE_SECONDS, SshServer, open_ssh_server, run
from tests.support.ssh_hostile import Session, hostile_client


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


async def read_all(stream: trio.SocketStream) -> bytes:
    """To the end, of whatever kind it is."""
    data = b""
    with trio.fail_after(PATIENCE_SECONDS):
        try:
            while part := await stream.receive_some():
                data += part
        except trio.BrokenResourceError:
            pass
    return data


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-" + b"x" * 100_000,
        b"\0" * 100_000,
        b"SSH-2.0-x\r\n" + b"\xff" * 1000,
        b"SSH-2.0-x\r\n" + (1 << 18).to_bytes(4, "big") + bytes(1000),
        b"SSH-2.0-x\r\n" + bytes.fromhex("0000000c0a140000000000000000000000000000"),
        b"SSH-2.0-x\xff\xfe\r\n",
    ],
    ids=["http", "ssh1", "long", "zeros", "huge packet", "larger packet", "broken kexinit", "no text"],
)
async def test_garbage_is_sent_away(server: SshServer, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of what might be the beginning of something the rest is waited for.
    monkeypatch.setattr(ssh_connection, "HANDSHAKE_SECONDS", 0.5)
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream:
        await stream.send_all(said)
        assert (await read_all(stream)).startswith(b"SSH-2.0-tailnet\r\n")
    await server.wait_ended(1)
    assert server.ended == [None]
    monkeypatch.undo()
    assert (await server.ssh("echo still here")).stdout == b"still here\n"


async def test_a_silent_client_is_sent_away(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connection, "HANDSHAKE_SECONDS", 0.3)
    for said in (b"", b"SSH-2.0-x\r\n"):
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(said)
            assert (await read_all(stream)).startswith(b"SSH-2.0-tailnet\r\n")
    await server.wait_ended(2)
    assert server.ended == [None, None]


async def test_a_client_that_does_not_answer_is_gone(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connection, "KEEPALIVE_SECONDS", 1.0)
    monkeypatch.setattr(ssh_connection, "KEEPALIVES", 2)
    async with hostile_client(server.port) as client:
        await client.call(client.connection.create_session, Session, "exec sleep 1000", encoding=None)
        client.stop_reading()
        await server.wait_ended(1)
    assert not any(server.context.counters.sessions.values())


@pytest.mark.parametrize("count", [0, 10, 21, 30, 1000, 1700, 2000, 2300, 2600, 3000, 100_000, 2_000_000])
async def test_a_client_that_vanishes_after_so_many_bytes(server: SshServer, count: int) -> None:
    """In its greeting, a key exchange, between requests, in the middle of its data: nothing of it is left."""

    async def cut(client: trio.SocketStream) -> None:
        left = count
        async with (
            client,
            await trio.open_tcp_stream("127.0.0.1", server.port) as there,
            trio.open_nursery() as nursery,
        ):

            async def answer() -> None:
                with suppress(trio.BrokenResourceError):
                    while part := await there.receive_some():
                        await client.send_all(part)

            nursery.start_soon(answer)
            while left > 0 and (part := await client.receive_some(left)):
                await there.send_all(part)
                left -= len(part)
            nursery.cancel_scope.cancel()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, cut, listeners)
        port = listeners[0].socket.getsockname()[1]
        words = ["ssh", *server.words("ssh")[1:], f"-oPort={port}", "user@127.0.0.1", "cat > there; sleep 1000"]
        words[words.index("-p") + 1] = str(port)
        done = await run(words, bytes(4_000_000))
        nursery.cancel_scope.cancel()
    assert done.status == 255
    await server.wait_ended(1)
    assert server.ended == [None]
    assert not any(server.context.counters.sessions.values())
    assert children() == []


def the_connection() -> Connection:
    """Of the one client that is there."""
    found = [each for each in gc.get_objects() if isinstance(each, Connection) and each._protocol._channels]
    assert len(found) == 1
    return found[0]


def unsent_bytes(connection: Connection) -> int:
    """What is held for a client that does not read."""
    protocol = connection._protocol
    held_back = sum(len(b"".join(packet)) for _, packet in protocol._deferred_packets)
    return (
        len(connection._transport.waiting)
        + held_back
        + sum(channel.get_write_buffer_size() for channel in protocol._channels.values())
    )


# A packet of the last write may come on top of each bound.
UNSENT_BYTES = 256 * 1024 + 2 * 40 * 1024


async def test_a_program_waits_for_a_client_that_does_not_read(server: SshServer) -> None:
    """Whatever window it has given; and it gets everything when it reads on."""
    command = "head -c 50000000 /dev/zero"
    async with hostile_client(server.port) as client:
        open_session = client.connection.create_session
        _, session = await client.call(open_session, Session, command, encoding=None, window=(1 << 31) - 1)
        client.stop_reading()
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.testing.wait_all_tasks_blocked(0.3)
        assert 0 < unsent_bytes(the_connection()) < UNSENT_BYTES
        client.read_on()
        with trio.fail_after(PATIENCE_SECONDS):
            await session.is_over.wait()
    assert session.text == bytes(50_000_000)


async def test_a_program_waits_for_a_key_exchange(server: SshServer) -> None:
    """Which a client begins and does not end, while it reads; the library would hold all packets back."""
    async with hostile_client(server.port) as client:
        open_session = client.connection.create_session
        await client.call(open_session, Session, "cat /dev/zero", encoding=None, window=(1 << 31) - 1)
        client.begin_key_exchange()
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.testing.wait_all_tasks_blocked(0.3)
        connection = the_connection()
        assert connection._protocol._deferred_packets
        assert unsent_bytes(connection) < UNSENT_BYTES


async def test_a_program_waits_for_a_window(server: SshServer) -> None:
    async with hostile_client(server.port) as client:
        open_session = client.connection.create_session
        channel, _ = await client.call(open_session, Session, "cat /dev/zero", encoding=None, window=1000)
        channel.pause_reading()
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.testing.wait_all_tasks_blocked(0.3)
        assert 0 < unsent_bytes(the_connection()) <= 32 * 1024


class Steps(trio.abc.Instrument):
    """How many packets the server sends in one step of a task, at most."""

    def __init__(self) -> None:
        self.packets = self.most = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.most = max(self.most, self.packets)
        self.packets = 0


async def test_packets_of_one_byte_hold_up_nobody(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()
    send = ssh_connection._Protocol.send_packet

    def counted(self: Any, *args: Any, **how: Any) -> None:
        steps.packets += 1
        send(self, *args, **how)

    monkeypatch.setattr(ssh_connection._Protocol, "send_packet", counted)
    async with hostile_client(server.port) as client:
        trio.lowlevel.add_instrument(steps)
        open_session = client.connection.create_session
        _, session = await client.call(open_session, Session, "head -c 10000 /dev/zero", encoding=None, max_pktsize=1)
        with trio.fail_after(PATIENCE_SECONDS):
            await session.is_over.wait()
        trio.lowlevel.remove_instrument(steps)
    assert session.text == bytes(10_000)
    assert steps.most < 200, "64 of a turn, each with one that hides its length, and some of requests"


async def test_small_packets_take_no_more_than_their_bytes(server: SshServer) -> None:
    async with hostile_client(server.port) as client:
        open_session = client.connection.create_session
        channel, _ = await client.call(open_session, Session, "exec sleep 1000", encoding=None)
        for _ in range(200):
            for _ in range(100):
                channel.write(b"0123456789")
            await trio.lowlevel.checkpoint()
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.testing.wait_all_tasks_blocked(0.3)
        (wire,) = the_connection()._protocol._channels.values()
        waiting = wire._recv_buf
        assert sum(len(data) for data, _ in waiting) > 10_000, "a pipe and the stream have their parts"
        assert len(waiting) == 1


async def test_more_than_the_window(server: SshServer) -> None:
    async with hostile_client(server.port) as client:
        open_session = client.connection.create_session
        channel, _ = await client.call(open_session, Session, "exec sleep 1000", encoding=None)
        channel._send_window = 1 << 30
        channel.write(bytes(2_000_000))
        await server.wait_ended(1)
    assert server.ended == [None]


async def test_channels_are_counted(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connection, "MAX_CHANNELS", 5)
    monkeypatch.setattr(ssh_connection, "MAX_SESSIONS", 2)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with hostile_client(server.port) as client:
        connection = client.connection
        sessions = [
            await client.call(connection.create_session, Session, "exec sleep 1000", encoding=None) for _ in range(2)
        ]
        with pytest.raises(asyncssh.ChannelOpenError, match="too many"):
            await client.call(connection.create_session, Session, "true", encoding=None)
        for _ in range(3):
            await client.call(connection.create_connection, asyncssh.SSHTCPSession, "127.0.0.1", port)
        for _ in range(1000):
            with pytest.raises(asyncssh.ChannelOpenError, match="too many"):
                await client.call(connection.create_connection, asyncssh.SSHTCPSession, "127.0.0.1", port)
        with pytest.raises(asyncssh.ChannelOpenError, match="too many"):
            await client.call(connection.create_unix_connection, asyncssh.SSHUNIXSession, "/not/there")
        channel, session = sessions[0]
        channel.abort()
        await session.is_over.wait()
        await client.call(connection.create_session, Session, "true", encoding=None)
    await listeners[0].aclose()


async def test_listeners_are_counted(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connection, "MAX_LISTENERS", 2)
    async with hostile_client(server.port) as client:
        listen = client.connection.forward_remote_port
        held = [await client.call(listen, "127.0.0.1", 0, "127.0.0.1", 9) for _ in range(2)]
        with pytest.raises(asyncssh.ChannelListenError):
            await client.call(listen, "127.0.0.1", 0, "127.0.0.1", 9)
        held[0].close()
        await client.call(held[0].wait_closed)
        await client.call(listen, "127.0.0.1", 0, "127.0.0.1", 9)


async def test_an_environment_is_bounded(server: SshServer) -> None:
    many = {f"MANY_{number}": "x" for number in range(1000)}
    large = {f"LARGE_{number}": "x" * 10_000 for number in range(20)}
    async with hostile_client(server.port) as client:
        for given, name, most in ((many, "MANY", 128), (large, "LARGE", 6)):
            _, session = await client.call(
                client.connection.create_session, Session, f"env | grep -c ^{name}", encoding=None, env=given
            )
            await session.is_over.wait()
            assert int(session.text) == most


@pytest.mark.parametrize("username", ["", "user", "\u00fcser"])
async def test_whoever_a_client_says_that_it_is(server: SshServer, username: str) -> None:
    """SDKs say nothing at all: the tunnel has proved who is calling."""
    async with hostile_client(server.port, username):
        pass


async def test_signals_that_nobody_takes(server: SshServer) -> None:
    """Of all names there are, before a program is there to take them."""
    async with hostile_client(server.port) as client:
        opening = asyncssh.channel.SSHClientChannel(
            client.connection, asyncio.get_running_loop(), "strict", None, "strict", 1 << 20, 1 << 15
        )
        await client.call(opening._open, b"session")
        for number in range(1000):
            opening.send_signal(f"NAME{number}")
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.testing.wait_all_tasks_blocked(0.1)
        (wire,) = the_connection()._protocol._channels.values()
        assert len(wire._session.signals) == ssh_connection.MAX_SIGNALS
