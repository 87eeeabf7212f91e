"""Both commands as systemd runs them: what they say when they begin, read settings again, are replaced and end, that
they serve on sockets which systemd opened, and that SIGHUP names what waits.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.regions import Successor
from tests.support.relays import free_port, stop_process
from tests.support.systemd import Manager, activated

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0
COMMANDS = ("derp", "tailnet")


class Unit:
    """One service: its command, what it logs, and what systemd heard."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self.port, self.stun_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
        self.settings = folder / "settings.toml"
        self.log = folder / "log"
        self.manager = Manager(folder)
        self.command = [sys.executable, "-m", program, "serve", "--config", str(self.settings)]
        self.wanted = [f'listen = "{HOST}:{self.port}"', 'log_format = "text"']
        if program == "derp":
            self.wanted += [f'key_file = "{folder}/key"', f"stun_port = {self.stun_port}"]
        else:
            self.wanted += [f'store = "sqlite:///{folder}/t.db"', f'stun_listen = "{HOST}:{self.stun_port}"']
        self.process: trio.Process | None = None

    def write(self, *more: str) -> None:
        self.settings.write_text("\n".join([*self.wanted, *more]) + "\n")

    async def start(self, sockets: Sequence[socket.socket] = ()) -> None:
        environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("TAILNET_", "DERP_", "LISTEN_"))
        } | {"NOTIFY_SOCKET": self.manager.path}
        command = activated(self.command, sockets) if sockets else self.command
        fds = [sock.fileno() for sock in sockets]
        with open(self.log, "ab") as log:  # noqa: ASYNC230  # a moment
            self.process = await trio.lowlevel.open_process(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=log, pass_fds=fds
            )
        assert await self.manager.hear() == "READY=1"

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def status(self) -> int:
        assert self.process is not None
        return await self.process.wait()

    async def logged(self, text: str) -> None:
        """Until its log has this."""
        while text not in self.log.read_text():  # noqa: ASYNC110  # another process writes it
            await trio.sleep(0.01)

    async def answers(self) -> bool:
        async with await trio.open_tcp_stream(HOST, self.port) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            received = b""
            while data := await stream.receive_some():
                received += data
        return received.startswith(b"HTTP/1.1 200")


@asynccontextmanager
async def installed(program: str, folder: Path) -> AsyncIterator[Unit]:
    """A unit that may be started; stopped at the end."""
    unit = Unit(program, folder)
    await unit.manager.open()
    unit.write()
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            yield unit
    finally:
        if unit.process is not None:
            await stop_process(unit.process)
        unit.manager.close()


@pytest.mark.parametrize("program", COMMANDS)
async def test_it_tells_systemd_how_it_stands(program: str, tmp_path: Path) -> None:
    async with installed(program, tmp_path) as unit:
        await unit.start()
        assert await unit.answers()
        unit.write('hostname = "other.example"')
        unit.signal(signal.SIGHUP)
        assert await unit.manager.hear() == "RELOADING=1 MONOTONIC_USEC"
        assert await unit.manager.hear() == "READY=1 STATUS=waits for a restart: --hostname"
        await unit.logged("! changed, but only from the next start on: --hostname")
        unit.write('hostname = "no name"')
        unit.signal(signal.SIGHUP)
        await unit.logged("! the settings stay as they were: ")
        unit.signal(signal.SIGUSR1)
        await unit.logged("= SIGUSR1: ")
        unit.signal(signal.SIGTERM)
        assert await unit.status() == 0
        assert "STOPPING=1" in await unit.manager.hear_until("STOPPING=1")


@pytest.mark.parametrize("program", COMMANDS)
async def test_a_replacement_is_the_main_process_from_then_on(program: str, tmp_path: Path) -> None:
    async with installed(program, tmp_path) as unit:
        await unit.start()
        unit.signal(signal.SIGUSR2)
        heard = await unit.manager.hear_until("READY=1", "MAINPID=")
        (pid,) = {int(line.removeprefix("MAINPID=")) for line in heard if line.startswith("MAINPID=")}
        successor = Successor(pid)
        try:
            assert await unit.status() == 0
            assert unit.manager.is_silent(), "the service goes on: nobody says that it stops"
            assert await unit.answers()
            successor.send_signal(signal.SIGTERM)
            await successor.wait()
            assert await unit.manager.hear() == "STOPPING=1"
        finally:
            await stop_process(successor)


@pytest.mark.parametrize("program", COMMANDS)
async def test_sockets_that_systemd_opened_are_served_and_handed_on(program: str, tmp_path: Path) -> None:
    async with installed(program, tmp_path) as unit:
        with (
            socket.socket() as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            socket.create_server((HOST, 0)) as odd,
        ):
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((HOST, unit.port))
            tcp.listen()
            udp.bind((HOST, unit.stun_port))
            await unit.start([tcp, udp, odd])  # their ports are taken: without these it would not start
            unnamed = odd.getsockname()[1]
        assert await unit.answers()
        await unit.logged(f"! systemd gave a tcp socket at {HOST}:{unnamed}, which no setting names: nobody serves it")
        unit.signal(signal.SIGUSR2)
        heard = await unit.manager.hear_until("READY=1", "MAINPID=")
        (pid,) = {int(line.removeprefix("MAINPID=")) for line in heard if line.startswith("MAINPID=")}
        successor = Successor(pid)
        try:
            assert await unit.status() == 0
            assert await unit.answers()
        finally:
            assert await stop_process(successor)


async def test_a_demo_cannot_be_handed_on_and_goes_on(tmp_path: Path) -> None:
    async with installed("tailnet", tmp_path) as unit:
        unit.wanted = [line for line in unit.wanted if not line.startswith("store")]
        unit.write("dev = true")
        await unit.start()
        unit.signal(signal.SIGUSR2)
        await unit.logged("! cannot hand over: the store of --dev is for this process alone; this process goes on")
        assert await unit.answers()
