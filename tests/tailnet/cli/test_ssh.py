"""`tailnet ssh`: bytes of a ProxyCommand through a real tunnel, and OpenSSH's command line."""

import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tailnet.cli.root import cli
from tailnet.cli.ssh import SSH_PORT, host_alias, ssh_environment, ssh_options
from tailnet.client.agents import Login
from tailnet.errors import ConfigError
from tailnet.node.membership import open_agent
from tailnet.server.server import CoordinatorServer
from tests.support.command import ENVIRONMENT
from tests.support.seeds import agent_token, peer_id, user_token
from tests.tailnet.client.test_rpc import url_of

PATIENCE_SECONDS = 60
VANISHES_PORT = 5


async def backwards(stream: trio.abc.HalfCloseableStream) -> None:
    """Says what it got, backwards, once it has all."""
    async with stream:
        received = b""
        async for part in stream:
            received += part
        await stream.send_all(received[::-1])


async def vanish(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.receive_some()
    stream.abort()  # type: ignore[attr-defined]  # they are TunnelStreams


@pytest.fixture
async def environ(server: CoordinatorServer) -> AsyncIterator[dict[str, str]]:
    """How a process comes to a coordinator with the agent `main`."""
    async with (
        open_agent(url_of(server), agent_token("main"), peer_id("main")) as agent,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(trio.serve_listeners, backwards, [agent.engine.listen(SSH_PORT)])
        nursery.start_soon(trio.serve_listeners, vanish, [agent.engine.listen(VANISHES_PORT)])
        yield ENVIRONMENT | {"CODER_URL": url_of(server), "CODER_SESSION_TOKEN": user_token("alice")}
        nursery.cancel_scope.cancel()


async def stdio(environ: dict[str, str], stdin: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(PATIENCE_SECONDS):
        return await trio.run_process(
            [sys.executable, "-m", "tailnet", "ssh", "--stdio", *words],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environ,
        )


async def test_bytes_both_ways(environ: dict[str, str]) -> None:
    data = os.urandom(300_000)
    done = await stdio(environ, data, "--host-prefix=tailnet.", "tailnet.dev.main")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data[::-1]


async def test_a_connection_that_breaks(environ: dict[str, str]) -> None:
    done = await stdio(environ, b"x", "--port", str(VANISHES_PORT), "main")
    assert done.returncode == 1
    assert b"the connection broke: " in done.stderr
    assert b"Traceback" not in done.stderr


async def test_an_agent_without_ssh(environ: dict[str, str]) -> None:
    done = await stdio(environ, b"", "--port", "22", "main")
    assert (done.returncode, done.stderr) == (1, b"tailnet: dev.main serves nothing on port 22\n")


async def test_files_are_no_pipes(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        done = await trio.run_process(
            [sys.executable, "-m", "tailnet", "ssh", "--stdio", "main"],
            stdin=file,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environ,
        )
    assert done.returncode == 2
    assert b"wants pipes or sockets" in done.stderr


@pytest.mark.parametrize("status", [0, 7])
async def test_a_command_through_ssh(environ: dict[str, str], tmp_path: Path, status: int) -> None:
    """A stand-in for OpenSSH: it runs the ProxyCommand by a shell, as ssh does, and leaves with a status of its own."""
    stand_in = tmp_path / "ssh"
    stand_in.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\n"
        "proxy = next(each for each in sys.argv if each.startswith('ProxyCommand=')).partition('=')[2]\n"
        "said = subprocess.run(['sh', '-c', proxy.replace('%%', '%')], input=b'olleh', capture_output=True)\n"
        "print(said.stdout, said.stderr, *sys.argv[-4:], flush=True)\n"
        f"sys.exit({status})\n"
    )
    stand_in.chmod(0o755)
    with trio.fail_after(PATIENCE_SECONDS):
        done = await trio.run_process(
            [sys.executable, "-m", "tailnet", "ssh", "main", "ls", "--json", "-la"],
            capture_stdout=True,
            check=False,
            env=environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
    assert done.returncode == status
    assert done.stdout == b"b'hello' b'' tailnet.main ls --json -la\n"


def test_its_command_line() -> None:
    words = ssh_options(Login("https://a.example", "x"), "alice/dev.main 50%", 1, False, 5.0)
    assert words[0] == "-o"
    proxy = words[1].removeprefix("ProxyCommand=")
    assert shlex.split(proxy)[-7:] == ["--stdio", "--wait", "5", "--port", "1", "--", "alice/dev.main 50%%"]
    assert host_alias("alice/dev.main 50%") == "tailnet.alice-dev.main-50-"


def test_the_token_is_on_no_command_line() -> None:
    login = Login("https://a.example", "secret-token")
    assert ssh_environment(login, {"HOME": "/x", "CODER_URL": "https://b.example"}) == {
        "HOME": "/x",
        "CODER_URL": "https://a.example",
        "CODER_SESSION_TOKEN": "secret-token",
    }


def test_what_does_not_go_together(tmp_path: Path) -> None:
    login = ["ssh", "--url=https://a.example", "--token=x"]
    said = CliRunner().invoke(cli, [*login, "--stdio", "main", "ls"])
    assert isinstance(said.exception, ConfigError)
    said = CliRunner(env={"PATH": str(tmp_path)}).invoke(cli, [*login, "main"])
    assert "install OpenSSH's client" in str(said.exception)
