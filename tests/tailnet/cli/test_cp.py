"""`tailnet cp`: which files it means, and what scp is told."""

import os
import sys
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tailnet.cli.cp import Place, check_places, parse_place, scp_word
from tailnet.cli.root import cli
from tailnet.errors import ConfigError
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS


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
