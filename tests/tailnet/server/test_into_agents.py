"""What the server does inside a whole agent of ours: a shell that is left and found again, ports, containers."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tailnet.server.server import CoordinatorServer
from tailnet.services import own_node
from tests.support.seeds import user_token
from tests.support.tailnet_driver import RefusedUpgrade, dial, wait_for
from tests.tailnet.agent.test_agent import an_agent
from tests.tailnet.api.test_containers_watch import TARGET as WATCH
from tests.tailnet.api.test_pty import MAIN, browser, target
from tests.tailnet.client.test_rpc import url_of

LISTEN = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""
ALICE = user_token("alice")


async def get(server: CoordinatorServer, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url_of(server), headers={"Coder-Session-Token": ALICE}) as client:
        return await client.get(f"/api/v2/workspaceagents/{MAIN}/{path}", timeout=60)


async def test_a_shell_is_left_and_found_again(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    monkeypatch.setenv("HOME", str(tmp_path))
    at = target(height=33, width=111, backend_type="buffered")
    async with an_agent(server):
        async with browser(server, at) as user:
            await user.press("echo in-$CODER-$(stty size | tr ' ' x)\r")
            await user.until(b"in-true-33x111")
            await user.press("LEFT=behind\r")
        await wait_for(lambda: not server.own_node.stream_count)
        async with browser(server, at) as user:
            await user.until(b"in-true-33x111")
            await user.press("echo was-$LEFT\r")
            await user.until(b"was-behind")
            await user.press("exit\r")
            assert await user.end() == (1000, "the terminal ended")


def _has_left(server: CoordinatorServer) -> bool:
    """Whether the store says so: it is written behind."""
    row = server.store.callers.get_agent(MAIN)
    return row is not None and row.disconnected_at is not None


async def test_an_agent_that_leaves_ends_its_terminals(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_node, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(own_node, "LOST_SECONDS", 1.0)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def live(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                async with an_agent(server):
                    task_status.started()
                    await trio.sleep_forever()

        await nursery.start(live)
        async with browser(server, target(command="cat")) as user:
            await user.press("here\r")
            await user.until(b"here")
            scope.cancel()
            code, _ = await user.end()
            assert code in (1000, 1011), "it closed the terminal, or was lost"
        await wait_for(lambda: not server.presence.is_here(MAIN) and _has_left(server))
        async with browser(server) as user:
            code, reason = await user.end()
            assert (code, reason[:38]) == (1011, 'dial workspace agent: Agent state is "')


@asynccontextmanager
async def a_program() -> AsyncIterator[int]:
    """A process that listens: its port."""
    process = await trio.lowlevel.open_process([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(await process.stdout.receive_some())
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def test_its_ports_and_containers(server: CoordinatorServer) -> None:
    async with an_agent(server), a_program() as port:
        ports = (await get(server, "listening-ports")).json()["ports"]
        assert {"process_name": "python", "network": "tcp", "port": port} in ports
        answer = await get(server, "containers")
        assert answer.status_code in (200, 403)
        if answer.status_code == 403:  # no container engine is here
            with pytest.raises(RefusedUpgrade) as refused:
                await dial(server, WATCH, ALICE)
            assert refused.value.answer.json() == answer.json()
        async with httpx.AsyncClient(base_url=url_of(server), headers={"Coder-Session-Token": ALICE}) as client:
            path = f"/api/v2/workspaceagents/{MAIN}/containers/devcontainers/{MAIN}/recreate"
            assert (await client.post(path, timeout=60)).status_code in (403, 404)
