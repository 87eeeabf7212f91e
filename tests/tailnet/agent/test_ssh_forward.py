"""Forwards of OpenSSH's client through an agent: from it, to it, by TCP and by Unix sockets."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
import trio
import trio.testing

from tailnet.agent.ssh_forward import dial, listen
from tests.support.ssh import PATIENCE_SECONDS, SshServer, open_ssh_server, run
from tests.support.ssh_hostile import hostile_client


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


async def upper(stream: trio.SocketStream) -> None:
    """A service that has read all before it answers: both ends of a forward have to be told."""
    data = b""
    while part := await stream.receive_some():
        data += part
    await stream.send_all(data.upper())
    await stream.aclose()


@asynccontextmanager
async def upper_service() -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, upper, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def ask(stream: trio.SocketStream, text: bytes) -> bytes:
    answer = b""
    with trio.fail_after(PATIENCE_SECONDS):
        async with stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(text)
                await stream.send_eof()

            nursery.start_soon(send)
            while part := await stream.receive_some():
                answer += part
    return answer


async def free_port() -> int:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


async def wait_tcp(port: int) -> trio.SocketStream:
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)  # another process listens, and tells nobody


async def wait_unix(path: Path) -> trio.SocketStream:
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                return await trio.open_unix_socket(path)
            except OSError:
                await trio.sleep(0.05)


@asynccontextmanager
async def forwarding(server: SshServer, *options: str) -> AsyncIterator[None]:
    """OpenSSH with these forwards and no session."""
    async with trio.open_nursery() as nursery:
        words = [*server.words("ssh", *options, ExitOnForwardFailure="yes"), "-N", "user@127.0.0.1"]
        nursery.start_soon(trio.run_process, words)
        yield
        nursery.cancel_scope.cancel()


TEXT = os.urandom(2_000_000).hex().encode()


async def test_to_a_port_of_the_agent(server: SshServer) -> None:
    port = await free_port()
    async with upper_service() as service, forwarding(server, f"-L{port}:localhost:{service}"):
        assert await ask(await wait_tcp(port), TEXT) == TEXT.upper()
        assert await ask(await wait_tcp(port), b"again") == b"AGAIN"


async def test_to_where_nobody_listens(server: SshServer) -> None:
    for where in (f"127.0.0.1:{await free_port()}", "no.such.host.invalid:80"):
        done = await run([*server.words("ssh", LogLevel="VERBOSE"), f"-W{where}", "user@127.0.0.1"])
        assert done.status == 255
        assert b"open failed: connect failed: " in done.stderr


async def test_to_a_unix_socket_of_the_agent(server: SshServer) -> None:
    theirs, ours = server.home / "theirs", server.home / "ours"
    listening = await listen(str(theirs))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, upper, listening.listeners)
        async with forwarding(server, f"-L{ours}:{theirs}"):
            assert await ask(await wait_unix(ours), TEXT) == TEXT.upper()
        nursery.cancel_scope.cancel()


async def test_from_a_port_of_the_agent(server: SshServer) -> None:
    port = await free_port()
    async with upper_service() as service:
        async with forwarding(server, f"-R{port}:localhost:{service}"):
            assert await ask(await wait_tcp(port), TEXT) == TEXT.upper()
        await server.wait_ended(1)
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_from_any_port_of_the_agent(server: SshServer) -> None:
    async with upper_service() as service:
        command = [*server.words("ssh", f"-R0:localhost:{service}", LogLevel="INFO"), "user@127.0.0.1"]
        done = await run([*command, 'read line; exec 3<>"/dev/tcp/127.0.0.1/$line"; echo hi >&3; echo $line'], b"0\n")
        assert b"Allocated port " in done.stderr


async def test_from_a_unix_socket_of_the_agent(server: SshServer) -> None:
    path = server.home / "socket"
    async with upper_service() as service:
        async with forwarding(server, f"-R{path}:localhost:{service}"):
            assert await ask(await wait_unix(path), TEXT) == TEXT.upper()
            assert path.stat().st_mode & 0o777 == 0o600
        await server.wait_ended(1)
        assert not path.exists()


async def test_a_port_that_is_taken(server: SshServer) -> None:
    async with upper_service() as taken:
        done = await run(
            [*server.words("ssh", ExitOnForwardFailure="yes"), f"-R{taken}:localhost:1", "user@127.0.0.1", "true"]
        )
        assert done.status == 255
        assert b"remote port forwarding failed" in done.stderr


async def test_a_forward_is_taken_back(server: SshServer) -> None:
    """By a second client of the same connection; it can be asked for again then."""
    control, port = server.home / "control", await free_port()
    path = server.home / "socket"
    master = server.words("ssh", ControlPath=str(control), ControlMaster="yes")
    async with upper_service() as service, trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, [*master, "-N", "user@127.0.0.1"])
        await (await wait_unix(control)).aclose()
        for _ in range(2):
            for spec in (f"-R{port}:localhost:{service}", f"-R{path}:localhost:{service}"):
                asked = await run(["ssh", f"-oControlPath={control}", "-Oforward", spec, "user@127.0.0.1"])
                assert asked.status == 0, asked.stderr
            assert await ask(await wait_tcp(port), b"one") == b"ONE"
            assert await ask(await wait_unix(path), b"two") == b"TWO"
            stays = await wait_tcp(port)
            await stays.send_all(b"before and ")
            for spec in (f"-R{port}:localhost:{service}", f"-R{path}:localhost:{service}"):
                asked = await run(["ssh", f"-oControlPath={control}", "-Ocancel", spec, "user@127.0.0.1"])
                assert asked.status == 0, asked.stderr
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", port)
            assert not path.exists()
            assert await ask(stays, b"after") == b"BEFORE AND AFTER", "it outlives the forward that brought it"
        nursery.cancel_scope.cancel()


async def test_a_socket_that_a_dead_program_left(tmp_path: Path) -> None:
    path = tmp_path / "left"
    made = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await made.bind(str(path))
    made.close()
    listening = await listen(str(path))
    with pytest.raises(OSError):
        await listen(str(path))
    listening.close()
    assert not path.exists()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError):
        await listen(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 70000), ("a\0b", 1), ("x" * 300, 1), "/not/there", "x" * 300, "a\0b"]
)
async def test_no_such_address(address: tuple[str, int] | str) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        with pytest.raises(OSError):
            await dial(address)
        with pytest.raises(OSError):
            await listen(address)


async def test_all_addresses() -> None:
    for host in ("", "*", "localhost"):
        listening = await listen((host, 0))
        async with await dial(("127.0.0.1", listening.get_port())):
            listening.close()


async def test_what_a_client_sent_before_it_went(server: SshServer) -> None:
    """Is taken by whoever it was for, also when that reads later; most of it waits in the library then."""
    text, took = os.urandom(500_000), b""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        async with hostile_client(server.port) as client:
            listener.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            port = listener.socket.getsockname()[1]
            connection = client.connection
            channel, _ = await client.call(connection.create_connection, asyncssh.SSHTCPSession, "127.0.0.1", port)
            stream = await listener.accept()
            channel.write(text)
            channel.write_eof()
            await trio.testing.wait_all_tasks_blocked(0.1)
        await trio.testing.wait_all_tasks_blocked(0.1)
        async with stream:
            while part := await stream.receive_some():
                took += part
    assert took == text
