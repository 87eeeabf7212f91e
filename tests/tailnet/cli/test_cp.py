"""`tailnet cp`: which files it means, and what scp is told."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tailnet.agent import ssh
from tailnet.agent.context import Context
from tailnet.agent.ports import Service, serve_ports
from tailnet.cli.cp import Place, check_places, parse_place, scp_word
from tailnet.cli.root import cli
from tailnet.cli.ssh import SSH_PORT
from tailnet.errors import ConfigError
from tailnet.node.membership import open_agent
from tailnet.server.server import CoordinatorServer
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS
from tests.support.seeds import agent_token, peer_id, user_token
from tests.tailnet.client.test_rpc import url_of


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("notes.txt", Place("", "notes.txt"), "./notes.txt"),
        ("-r", Place("", "-r"), "./-r"),
        (".", Place("", "."), "./."),
        ("./a:b", Place("", "./a:b"), "./a:b"),
        ("../a:b", Place("", "../a:b"), "../a:b"),
        ("/tmp/a:b", Place("", "/tmp/a:b"), "/tmp/a:b"),
        ("~a:b", Place("", "~a:b"), "./~a:b"),
        ("dev.main:", Place("dev.main", ""), "tailnet.dev.main:"),
        ("dev.main:a:b", Place("dev.main", "a:b"), "tailnet.dev.main:a:b"),
        ("alice/dev.main:/etc/hosts", Place("alice/dev.main", "/etc/hosts"), "tailnet.alice-dev.main:/etc/hosts"),
    ],
)
def test_places(text: str, place: Place, word: str) -> None:
    assert parse_place(text) == place
    assert scp_word(place) == word


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["a"], "then where to"),
        (["a", "b"], "is AGENT:PATH"),
        (["a", ""], "a path is empty"),
        (["a", ":b"], "which agent"),
        (["one:a", "two:b", "."], "in two steps"),
        (["one:a", "b", "."], "in two steps"),
        (["one:a", "two:b"], "in two steps"),
        (["a", "one:b", "one:c"], "in two steps"),
    ],
)
def test_places_that_make_no_sense(texts: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_places([parse_place(text) for text in texts])


def test_the_agent_is_where_they_go_or_come_from() -> None:
    assert check_places([Place("", "a"), Place("", "b"), Place("one", "")]) == "one"
    assert check_places([Place("one", "a"), Place("one", "b"), Place("", ".")]) == "one"


@asynccontextmanager
async def agent_at(server: CoordinatorServer) -> AsyncIterator[dict[str, str]]:
    """`main` with its SSH server, and how a process comes to it."""
    url = url_of(server)
    async with open_agent(url, agent_token("main"), peer_id("main")) as agent, trio.open_nursery() as nursery:
        context = Context(nursery, url, agent_token("main"))
        nursery.start_soon(serve_ports, agent.engine, context, {SSH_PORT: Service("ssh", ssh.serve)})
        yield ENVIRONMENT | {"CODER_URL": url, "CODER_SESSION_TOKEN": user_token("alice")}
        nursery.cancel_scope.cancel()


async def copy(environ: dict[str, str], *words: str) -> tuple[int, str]:
    """The status and what was said of errors."""
    command = [sys.executable, "-m", "tailnet", "cp", *words]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environ)
    return done.returncode, done.stderr.decode()


@pytest.mark.skipif(not shutil.which("scp"), reason="needs OpenSSH's scp (Debian's openssh-client)")
async def test_there_and_back(server: CoordinatorServer, tmp_path: Path) -> None:
    here, home, back = (tmp_path / name for name in ("here", "home", "back"))
    data = os.urandom(300_000)
    (here / "inner").mkdir(parents=True)
    (here / "inner" / "a: b").write_bytes(data)
    (here / "program").write_text("#!/bin/sh\n")
    (here / "program").chmod(0o755)
    home.mkdir()
    with trio.fail_after(2 * PATIENCE_SECONDS):
        async with agent_at(server) as environ:
            assert await copy(environ, "-rpq", str(here), f"dev.main:{home}/there") == (0, "")
            assert (home / "there" / "inner" / "a: b").read_bytes() == data
            assert (home / "there" / "program").stat().st_mode & 0o777 == 0o755
            assert await copy(environ, "-r", f"dev.main:{home}/there", str(back)) == (0, "")
            assert (back / "inner" / "a: b").read_bytes() == data
            status, said = await copy(environ, f"dev.main:{home}/nothing", str(back))
            assert (status, "No such file" in said) == (1, True)


async def test_what_scp_is_told(tmp_path: Path) -> None:
    stand_in = tmp_path / "scp"
    stand_in.write_text(f"#!{sys.executable}\nimport os, sys\nprint(*sys.argv, os.environ['CODER_URL'], sep='\\n')\n")
    stand_in.chmod(0o755)
    words = ["cp", "--url=http://127.0.0.1:9", "--token=x", "-rp", "--relay-only", "a", "dev.main:b"]
    environ = ENVIRONMENT | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with trio.fail_after(PATIENCE_SECONDS):
        command = [sys.executable, "-m", "tailnet", *words]
        done = await trio.run_process(command, capture_stdout=True, env=environ)
    lines = done.stdout.decode().splitlines()
    assert lines[1:3] == ["-r", "-p"]
    assert lines[4].startswith("ProxyCommand=")
    assert lines[4].endswith("ssh --stdio --wait 30 --port 1 --relay-only --insecure-http -- dev.main")
    assert lines[-4:] == ["--", "./a", "tailnet.dev.main:b", "http://127.0.0.1:9"]


def test_without_openssh(tmp_path: Path) -> None:
    words = ["cp", "--url=https://a.example", "--token=x", "a", "dev.main:"]
    said = CliRunner(env={"PATH": str(tmp_path)}).invoke(cli, words)
    assert "there is no `scp` on this machine: install OpenSSH's client" in str(said.exception)
