"""A user's whole way: OpenSSH, `tailnet ssh` as its ProxyCommand, a coordinator, an agent's node, its SSH server."""

import os
import shlex
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from tailnet.agent.context import Context
from tailnet.agent.ports import Service, serve_ports
from tailnet.agent.ssh import serve
from tailnet.node.membership import open_agent
from tailnet.server.server import CoordinatorServer
from tests.support.command import ENVIRONMENT
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.ssh import OPTIONS, PATIENCE_SECONDS, Done, run
from tests.tailnet.client.test_rpc import url_of


@dataclass
class Way:
    """To the agent `main`, for commands of its user's."""

    context: Context
    environ: dict[str, str]

    async def tailnet_ssh(self, *words: str, stdin: bytes = b"") -> Done:
        return await run([sys.executable, "-m", "tailnet", "ssh", *words], stdin, self.environ)

    def openssh(self, program: str) -> list[str]:
        proxy = shlex.join([sys.executable, "-m", "tailnet", "ssh", "--stdio", "dev.main"])
        settings = {**OPTIONS, "ProxyCommand": proxy}
        return [program, "-F/dev/null", *(f"-o{name}={value}" for name, value in settings.items())]


@pytest.fixture
async def way(server: CoordinatorServer, tmp_path: Path) -> AsyncIterator[Way]:
    service = Service("ssh", serve)
    async with (
        open_agent(url_of(server), agent_token("main"), peer_id("main")) as agent,
        trio.open_nursery() as nursery,
    ):
        context = Context(
            nursery, url_of(server), agent_token("main"), wanted_directory=str(tmp_path), shell="/bin/bash"
        )
        nursery.start_soon(serve_ports, agent.engine, context, {1: service, 22: service})
        yield Way(context, ENVIRONMENT | {"CODER_URL": url_of(server), "CODER_SESSION_TOKEN": user_token("alice")})
        nursery.cancel_scope.cancel()


async def test_a_command_and_its_status(way: Way) -> None:
    done = await way.tailnet_ssh("main", "cat; pwd; exit 7", stdin=b"given\n")
    assert done.stdout.decode().splitlines() == ["given", way.context.directory]
    assert done.status == 7
    assert (await way.tailnet_ssh("--port", "22", "main", "echo $SSH_CONNECTION")).stdout.endswith(b" 22\n")


async def test_a_shell(way: Way) -> None:
    done = await way.tailnet_ssh("main", stdin=b"echo $((6 * 7)); exit 4\n")
    assert b"42" in done.stdout
    assert done.status == 4


async def test_files_both_ways(way: Way, tmp_path: Path) -> None:
    source, there, back = (str(tmp_path / name) for name in ("source", "there", "back"))
    data = os.urandom(20_000_000)
    await trio.Path(source).write_bytes(data)
    for words in ([source, f"user@agent:{there}"], [f"user@agent:{there}", back]):
        done = await run([*way.openssh("scp"), *words], None, way.environ)
        assert done.status == 0, done.stderr
    assert sha256(await trio.Path(back).read_bytes()).digest() == sha256(data).digest()
    done = await run([*way.openssh("sftp"), "-b-", "user@agent"], b"pwd\n", way.environ)
    assert done.status == 0, done.stderr


async def test_a_client_that_is_killed(way: Way) -> None:
    """Its program hears it at once: the last thing that ssh does is to tell its ProxyCommand."""
    words = [*way.openssh("ssh"), "user@agent", "trap 'echo hup > said; exit' HUP; echo > ready; sleep 1000 & wait"]
    directory = trio.Path(way.context.directory)

    async def wait_file(name: str) -> None:
        while not await (directory / name).exists():  # noqa: ASYNC110  # another process makes it
            await trio.sleep(0.05)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, words, None, way.environ)
            await wait_file("ready")
            nursery.cancel_scope.cancel()
        await wait_file("said")
        while way.context.counters.connections["ssh"]:  # noqa: ASYNC110  # nobody tells
            await trio.sleep(0.05)
    assert not any(way.context.counters.sessions.values())
