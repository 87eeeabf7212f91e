"""The reconnecting PTY on port 2 of an agent: attach, leave, come again, several at one; and clients that misbehave."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from tailnet.agent import pty
from tailnet.agent.containers import NO_ENGINE
from tailnet.agent.counters import Kind
from tailnet.agent.ports import Service
from tailnet.agent.pty import MAX_ATTACHED, ReconnectingPty
from tests.support.agents import Served, served
from tests.support.terminals import TerminalClient, request_bytes, wish_bytes

PTY_PORT = 2


@asynccontextmanager
async def terminals(
    *, idle_seconds: float = 60.0, shell: str = "/bin/sh", directory: str = "/"
) -> AsyncIterator[Served]:
    service = Service("pty", ReconnectingPty(idle_seconds=idle_seconds).serve)
    async with served(
        PTY_PORT, service, shell=shell, wanted_directory=directory, variables={"WHO": "the manifest"}
    ) as agent:
        yield agent


async def attach(agent: Served, terminal_id: UUID, command: str = "", **more: object) -> TerminalClient:
    stream = await agent.dial()
    await stream.send_all(wish_bytes(terminal_id, command=command, **more))
    return TerminalClient(stream)


async def test_a_shell(tmp_path: Path) -> None:
    """A login shell where the manifest says, with the agent's environment and the size that was asked for."""
    async with terminals(directory=str(tmp_path)) as agent:
        client = await attach(agent, uuid4(), Height=30, Width=100)
        await client.type("pwd; stty size; echo $TERM $CODER $WHO; echo x$0x\r")
        await client.wait_shown(str(tmp_path).encode())
        await client.wait_shown(b"30 100")
        await client.wait_shown(b"xterm-256color true the manifest")
        await client.type(height=31, width=101)
        await client.type("stty size\r")
        await client.wait_shown(b"31 101")
        assert agent.context.counters.sessions[Kind.RECONNECTING_PTY] == 1
        await client.type("exit\r")
        await client.wait_end()
        while agent.context.counters.sessions[Kind.RECONNECTING_PTY]:  # nobody tells
            await trio.lowlevel.checkpoint()


async def test_who_comes_again_sees_what_was_said_and_goes_on() -> None:
    async with terminals() as agent:
        terminal_id = uuid4()
        first = await attach(agent, terminal_id)
        await first.type("value=kept; echo before-$value\r")
        await first.wait_shown(b"before-kept")
        await first.stream.aclose()
        again = await attach(agent, terminal_id)
        await again.wait_shown(b"before-kept")
        await again.type("echo after-$value\r")
        await again.wait_shown(b"after-kept")
        other = await attach(agent, uuid4())
        await other.type("echo other-$value-\r")
        await other.wait_shown(b"other--")


async def test_two_at_one_terminal() -> None:
    async with terminals() as agent:
        terminal_id = uuid4()
        one, two = await attach(agent, terminal_id), await attach(agent, terminal_id)
        await one.type("echo by-$((1))\r")
        await two.wait_shown(b"by-1")
        await two.type("echo by-$((2)); exit\r")
        assert b"by-2" in await one.wait_end()
        assert b"by-2" in await two.wait_end()
        after = await attach(agent, terminal_id, "echo another")
        assert b"another" in await after.wait_end()


async def test_a_terminal_that_everybody_left_ends(tmp_path: Path) -> None:
    async with terminals(idle_seconds=0.05) as agent:
        terminal_id, ended = uuid4(), tmp_path / "ended"
        client = await attach(
            agent, terminal_id, f"trap 'touch {ended}; exit' HUP; echo ready; while :; do sleep 0.02; done"
        )
        await client.wait_shown(b"ready")
        client.stream.abort()  # it vanishes
        while not ended.exists():  # noqa: ASYNC110  # another process
            await trio.sleep(0.02)
        again = await attach(agent, terminal_id, "echo new")
        assert b"ready" not in await again.wait_end()
        assert agent.context.counters.failed["pty"] == 0, "who vanishes is no fault"


async def test_one_who_reads_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "SEND_SECONDS", 4.0)
    async with terminals() as agent:
        terminal_id = uuid4()
        _, fast = await attach(agent, terminal_id), await attach(agent, terminal_id)
        await fast.type("seq 2000000 | tail -c 8000000 > /dev/tty; echo ov''er\r")
        await fast.wait_shown(b"over")
        assert len(fast.shown) > 8_000_000
        while agent.context.counters.sessions[Kind.RECONNECTING_PTY] > 1:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.01)
        await fast.type("exit\r")
        await fast.wait_end()
        assert agent.context.counters.failed["pty"] == 0


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x02\x00{}", b"named by a UUID"),
        (b"\x05\x00[1,2]", b"is a JSON object"),
        (b"\x00\x00", b"is no JSON"),
    ],
)
async def test_what_is_no_wish_is_said(sent: bytes, reason: bytes) -> None:
    async with terminals() as agent:
        stream = await agent.dial()
        await stream.send_all(sent)
        assert reason in await TerminalClient(stream).wait_end()


async def test_nonsense_later_ends_the_connection_and_not_the_terminal() -> None:
    async with terminals() as agent:
        terminal_id = uuid4()
        client = await attach(agent, terminal_id)
        await client.type("echo bef''ore\r")
        await client.wait_shown(b"before")
        await client.stream.send_all(b"[]")
        await client.wait_end()
        again = await attach(agent, terminal_id)
        await again.wait_shown(b"before")


async def test_one_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "ATTACH_SECONDS", 0.05)
    async with terminals() as agent:
        stream = await agent.dial()
        await stream.send_all(b"\xff\xff")
        assert b"no terminal came within 0.05 s" in await TerminalClient(stream).wait_end()


async def test_keys_that_nobody_reads_are_no_reason_to_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "SEND_SECONDS", 0.2)
    async with terminals() as agent:
        client = await attach(agent, uuid4(), "stty raw -echo; echo ready; exec sleep 1000")
        await client.wait_shown(b"ready")
        await client.type("x" * 500_000)
        await client.wait_end()


async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "MAX_TERMINALS", 2)
    async with terminals() as agent:
        terminal_id = uuid4()
        clients = [await attach(agent, terminal_id, "echo here; cat") for _ in range(MAX_ATTACHED)]
        for client in clients:
            await client.wait_shown(b"here")
        assert b"attached to this terminal" in await (await attach(agent, terminal_id)).wait_end()
        await (await attach(agent, uuid4(), "echo here; cat")).wait_shown(b"here")
        assert b"2 terminals are open" in await (await attach(agent, uuid4())).wait_end()


async def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with terminals(shell="/no/such/shell", directory="/no/such/directory") as agent:
        client = await attach(agent, uuid4())
        assert b"/no/such/shell" in await client.wait_end()
    monkeypatch.setenv("PATH", str(tmp_path))
    async with terminals() as agent:
        client = await attach(agent, uuid4(), "a\0b")
        assert b"cannot start /bin/sh" in await client.wait_end()
        client = await attach(agent, uuid4(), Container="web")
        assert NO_ENGINE.encode() in await client.wait_end()


async def test_a_shell_in_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that says what it was asked for, and is no engine."""
    engine = tmp_path / "docker"
    engine.write_text('#!/bin/sh\ntest -t 0 && printf "<%s>" "$@"\n')
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with terminals() as agent:
        client = await attach(agent, uuid4(), "ls", Container="web", ContainerUser="me")
        shown = await client.wait_end()
        assert b"<exec><--interactive><--tty><--env><TERM=xterm-256color><--user><me><web>" in shown
        assert shown.endswith(b"<sh><ls>")
        client = await attach(agent, uuid4(), Container="--privileged")
        assert b"is no name of a container" in await client.wait_end()


async def test_terminals_end_with_the_agent() -> None:
    async with terminals() as agent:
        client = await attach(agent, uuid4(), "echo $$; cat")
        await client.wait_shown(b"\n")
        pid = int(client.shown)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_all_in_one_packet() -> None:
    """The wish and the first keys."""
    async with terminals() as agent:
        stream = await agent.dial()
        await stream.send_all(wish_bytes(uuid4()) + request_bytes("echo at-$((1+1)); ") + request_bytes("exit\r"))
        assert b"at-2" in await TerminalClient(stream).wait_end()
