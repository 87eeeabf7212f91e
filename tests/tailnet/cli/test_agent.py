"""`tailnet agent` as a process: what it is told wrongly, its signals, and what systemd hears."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import trio

from tailnet.agent.forwarding import FORWARDED
from tailnet.server.server import CoordinatorServer
from tailnet.store.rows import LifecycleState
from tests.support.command import ENVIRONMENT
from tests.support.seeds import agent_token, user_token
from tests.tailnet.agent.test_agent import a_script, an_agent, an_echo, define, lifecycle_of, wait_for
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve

COMMAND = [sys.executable, "-m", "tailnet", "agent"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "which coordinator?"),
        ("--url https://tailnet.example.org", "as which agent?"),
        ("--url ftp://tailnet.example.org --token x", "must look like"),
        ("--url http://tailnet.example.org --token x", "in the clear"),
        ("--url https://tailnet.example.org --token-file /not/there", "cannot be read"),
        ("--url https://tailnet.example.org --token x --ports 80-", "must look like 8080"),
    ],
)
def test_asked_wrongly(words: str, said: str) -> None:
    done = subprocess.run([*COMMAND, *words.split()], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_coordinator_that_is_not_there_is_said() -> None:
    """Nothing listens at port 9: it tries on, so it is stopped."""
    command = [*COMMAND, "--url", "http://127.0.0.1:9", "--token", "x"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(30) == 0
    assert "no connection to the coordinator" in line


async def test_its_life_as_a_service(filled_url: str, serve: Serve, tmp_path: Path) -> None:
    define(filled_url, a_script("stop", f"echo stopped > {tmp_path}/said", run_on_stop=True))
    server: CoordinatorServer = await serve()
    (tmp_path / "token").write_text(agent_token("main") + "\n")
    with trio.fail_after(90), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        environment = {**ENVIRONMENT, "NOTIFY_SOCKET": str(tmp_path / "notify"), "CODER_AGENT_URL": url_of(server)}
        command = [*COMMAND, "--token-file", str(tmp_path / "token")]
        process = await trio.lowlevel.open_process(command, env=environment)
        assert await trio.to_thread.run_sync(manager.recv, 100, abandon_on_cancel=True) == b"READY=1"
        await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.READY)
        process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(manager.recv, 100, abandon_on_cancel=True) == b"STOPPING=1"
        assert await process.wait() == 0
    assert (tmp_path / "said").read_text() == "stopped\n"
    await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.OFF)


async def test_the_second_signal_ends_it_at_once(filled_url: str, serve: Serve, tmp_path: Path) -> None:
    define(filled_url, a_script("stop", f"echo $$ > {tmp_path}/pid; sleep 1000", run_on_stop=True, timeout=0))
    server: CoordinatorServer = await serve()
    with trio.fail_after(90):
        environment = {**ENVIRONMENT, "CODER_AGENT_TOKEN": agent_token("main")}
        process = await trio.lowlevel.open_process([*COMMAND, "--url", url_of(server)], env=environment)
        await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.READY)
        process.send_signal(signal.SIGTERM)
        await wait_for(server, lambda store: lifecycle_of(store) is LifecycleState.SHUTTING_DOWN)
        while not os.path.exists(tmp_path / "pid"):  # noqa: ASYNC110, ASYNC240  # another process tells nobody
            await trio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_who_is_refused_ends_with_a_sentence(server: CoordinatorServer) -> None:
    command = [*COMMAND, "--url", url_of(server), "--token", "nonsense"]
    done = await trio.run_process(command, env=ENVIRONMENT, capture_stderr=True, check=False)
    assert done.returncode == 1
    assert b"401" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_a_user_who_hangs_up_leaves_no_stream_behind(server: CoordinatorServer) -> None:
    """As ssh ends its ProxyCommand: the agent would go on with such streams until they are silent for minutes."""
    async with an_echo() as port, an_agent(server) as agent:
        words = ["--url", url_of(server), "--token", user_token("alice"), "--stdio", "--port", str(port), "main"]
        command = [sys.executable, "-m", "tailnet", "ssh", *words]
        process = await trio.lowlevel.open_process(command, env=ENVIRONMENT, stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        async with process.stdin, process.stdout:
            await process.stdin.send_all(b"hello")
            assert await process.stdout.receive_some() == b"hello"
            assert agent.context.counters.connections[FORWARDED] == 1
            process.send_signal(signal.SIGHUP)
            assert await process.wait() == 128 + signal.SIGHUP
        while agent.context.counters.connections[FORWARDED]:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.02)
