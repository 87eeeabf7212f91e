"""How a server begins, is asked things by signals, and ends; what systemd hears meanwhile."""

import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from derp.config import Rate, RelayConfig
from derp.config.settings import SETTINGS
from derp.errors import ConfigError
from derp.server.door import FrontDoor, Route, every_path
from derp.server.life import SIGNALS, Server, obey
from tests.derp.server.test_door import last_get
from tests.derp.server.world import HOST, PATIENCE_SECONDS, drained, relay_config
from tests.support.systemd import Manager

SUCCEEDS = [
    sys.executable,
    "-c",
    f"import os, sys; sys.path[:0] = {sys.path!r}\n"
    "from derp.server.handover import Inherited; Inherited.from_environment(os.environ).finish()",
]
FAILS = [sys.executable, "-c", "raise SystemExit(1)"]
HANGS = [sys.executable, "-c", "import time; time.sleep(1000)"]


class Small(Server[RelayConfig]):
    """The smallest there is: one port, one page, no clients; it takes its leave when the test lets it."""

    name = kind = "toy"
    table = SETTINGS

    def __init__(self, *, obstacle: str | None = None, wrong_port: bool = False) -> None:
        listen = ((HOST, 0), ("203.0.113.1", 1)) if wrong_port else ((HOST, 0),)
        config = relay_config(listen=listen)
        super().__init__(config, config.private_key.public(), reread=self._read)
        self.door = FrontDoor(self.lobby, [Route(every_path, lambda visit, request: visit.answer(200, (), b"here"))])
        self.plain_door = self.door
        self.obstacle = obstacle
        self.settings = self.config  # as their sources say them now
        self.mistake = ""
        self.applied: list[str] = []
        self.looks = 0
        self.leaving = trio.Event()
        self.may_end = trio.Event()
        self.was_cut_off = False

    def stun_places(self) -> Sequence[tuple[str, int]]:
        return ()

    async def start(self, nursery: trio.Nursery) -> None:
        pass

    def _read(self) -> RelayConfig:
        if self.mistake:
            raise ConfigError(self.mistake)
        return self.settings

    def apply(self, changed: Sequence[str]) -> None:
        self.applied += changed

    def look_at_files(self) -> None:
        self.looks += 1

    async def send_away(self) -> None:
        self.leaving.set()
        try:
            await self.may_end.wait()
        except trio.Cancelled:
            self.was_cut_off = True
            raise

    def describe(self) -> str:
        return "all quiet"

    def cannot_hand_over(self) -> str | None:
        return self.obstacle

    @property
    def port(self) -> int:
        return self.ports.listening[0].port

    async def answers(self) -> bool:
        """Whether somebody who comes now gets the page."""
        try:
            async with await trio.open_tcp_stream(HOST, self.port) as stream:
                await stream.send_all(last_get(b"/"))
                return (await drained(stream)).endswith(b"here")
        except OSError:
            return False


@asynccontextmanager
async def living(server: Small) -> AsyncIterator[trio.MemorySendChannel[int]]:
    """The server, run as a command runs it, to which signals can be sent; the block ends when it does."""
    say, signals = trio.open_memory_channel[int](10)
    server.open()
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run)

                async def live() -> None:
                    await obey(signals, server)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(live)
                yield say
    finally:
        server.close()


async def test_it_serves_until_it_has_drained() -> None:
    server = Small()
    async with living(server) as say:
        assert await server.answers()
        assert server.problem() is None
        await say.send(signal.SIGTERM)
        await server.leaving.wait()
        assert server.problem() == "draining: this toy is about to stop"
        assert not await server.answers()
        server.may_end.set()
    assert server.drained.is_set()
    assert not server.was_cut_off


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_leaves_at_once(first: signal.Signals) -> None:
    server = Small()
    async with living(server) as say:
        await say.send(first)
        await server.leaving.wait()
        await say.send(signal.SIGINT)
    assert server.was_cut_off


async def test_draining_twice_is_waiting_twice() -> None:
    server = Small()
    async with living(server), trio.open_nursery() as nursery:
        nursery.start_soon(server.drain)
        nursery.start_soon(server.drain)
        await server.leaving.wait()
        server.may_end.set()
    assert server.drained.is_set()


async def test_reading_again_applies_what_can_be_applied_and_names_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = Small()
    before, rates = server.config, {b"k" * 32: Rate(7, 8)}
    server.settings = replace(
        before, listen=((HOST, 443),), hostname="other.example", rate_by_key=rates, given={"rate_keys": "given"}
    )
    async with living(server) as say:
        await say.send(signal.SIGHUP)
        await say.send(signal.SIGTERM)
        await server.leaving.wait()
        server.may_end.set()
    assert (server.applied, server.looks) == (["--rate-keys"], 1)
    assert server.config.rate_by_key == rates
    assert server.config.listen == before.listen, "what waits is not what is told of"
    assert "= changed: --rate-keys" in caplog.messages
    assert "! changed, but only from the next start on: --listen, --hostname" in caplog.messages


async def test_settings_with_a_mistake_stay_as_they_were_and_files_are_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Small()
    server.settings = replace(server.config, hostname="other.example")
    server.mistake = "relay.toml: home: is not that"
    async with living(server):
        server.reload()
        assert caplog.messages == ["! the settings stay as they were: relay.toml: home: is not that"]
        assert (server.applied, server.looks) == ([], 1)
        server.may_end.set()
        await server.drain()


async def test_it_tells_the_log_how_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with living(Small()) as say:
        await say.send(signal.SIGUSR1)
        await say.send(signal.SIGTERM)
        await say.send(signal.SIGTERM)
    assert "= SIGUSR1: all quiet" in caplog.messages


def test_every_signal_that_has_a_meaning_is_received() -> None:
    names = "SIGTERM SIGINT SIGHUP SIGUSR1 SIGUSR2"
    assert " ".join(number.name for number in SIGNALS) == names


# --- another process in our place


async def test_a_successor_takes_over_and_we_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *SUCCEEDS[1:]])
    server = Small()
    async with living(server) as say:
        await say.send(signal.SIGUSR2)
        await server.leaving.wait()
        assert server.is_replaced
        assert server.problem() is None, "who asks hears about the other process"
        assert not await server.hand_over(SUCCEEDS), "there is nothing left to hand over"
        await say.send(signal.SIGTERM)  # which is on its way already
        server.may_end.set()
    assert server.drained.is_set()
    assert not server.was_cut_off
    assert server.successor is not None
    await server.successor.wait()


@pytest.mark.parametrize(
    ("command", "obstacle", "says"),
    [
        (FAILS, None, "nobody to hand over to: the new process ended"),
        (SUCCEEDS, "it is a toy", "cannot hand over: it is"),
    ],
)
async def test_without_a_successor_we_go_on(
    command: list[str], obstacle: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Small(obstacle=obstacle)
    async with living(server):
        assert not await server.hand_over(command)
        assert says in caplog.text
        assert server.problem() is None
        assert await server.answers()
        server.may_end.set()
        await server.drain()


async def test_who_is_asked_to_end_while_handing_over_ends_and_leaves_no_other(tmp_path: Path) -> None:
    started = tmp_path / "started"
    slow = [
        sys.executable,
        "-c",
        f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(1000)",
    ]
    server = Small()
    server.may_end.set()
    async with living(server), trio.open_nursery() as nursery:
        nursery.start_soon(server.hand_over, slow)
        while not started.exists() or not started.read_text():  # noqa: ASYNC110  # another process tells by a file
            await trio.sleep(0.01)
        assert not await server.hand_over(HANGS), "one at a time"
        await server.drain()
    assert server.successor is None
    assert not process_exists(int(started.read_text()))


def process_exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_port_that_cannot_be_bound_leaves_nothing_open() -> None:
    server = Small(wrong_port=True)
    with pytest.raises(ConfigError, match=r"cannot listen on TCP 203\.0\.113\.1:1"):
        server.open()
    with pytest.raises(OSError), socket.create_connection((HOST, server.port), 1):
        pass
    server.reactor._poller.close()


# --- systemd


@pytest.fixture
async def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Manager]:
    made = await Manager(tmp_path).open()
    monkeypatch.setenv("NOTIFY_SOCKET", made.path)
    yield made
    made.close()


async def test_systemd_hears_of_reading_again_and_of_the_end(manager: Manager) -> None:
    server = Small()
    async with living(server):
        before = server.config
        server.settings = replace(before, listen=((HOST, 443),))
        server.reload()
        assert await manager.hear() == "RELOADING=1 MONOTONIC_USEC"
        assert await manager.hear() == "READY=1 STATUS=waits for a restart: --listen"
        server.settings = before
        server.reload()
        assert await manager.hear() == "RELOADING=1 MONOTONIC_USEC"
        assert await manager.hear() == "READY=1 STATUS="
        server.may_end.set()
        await server.drain()
    assert await manager.hear() == "STOPPING=1"


async def test_systemd_hears_of_a_successor_and_not_that_the_service_stops(manager: Manager) -> None:
    server = Small()
    server.may_end.set()
    async with living(server):
        assert await server.hand_over(SUCCEEDS)
    assert server.successor is not None
    await server.successor.wait()
    assert await manager.hear() == f"MAINPID={server.successor.pid}"
    assert manager.is_silent()
