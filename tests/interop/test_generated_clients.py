"""Clients that strangers' generators make of docs/openapi.json tell a user's story against our server: who am I, which
workspaces and agents are there, and as an agent what is reported, read back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gobuild import API_CLIENT, CLIENT, OAPI_CODEGEN, build
from tests.support.openapi_document import KEPT
from tests.support.peers import require
from tests.support.seeds import definitions, make_id
from tests.support.tailnet_servers import Agent, Seed, Server, User, running_server

pytestmark = pytest.mark.interop

STORY = Path(__file__).parent / "python_client" / "story.py"
SECONDS = 120.0  # a hang guard


@dataclass(frozen=True)
class Place:
    server: Server
    user: User
    agent: Agent

    @property
    def arguments(self) -> list[str]:
        return [self.server.url, self.user.token, str(self.agent.id), self.agent.token, str(make_id("editor of main"))]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    seed = Seed()
    alice = seed.add_user("alice")
    agent = seed.add_agent(alice)
    seed.definitions[agent.id] = definitions()
    with running_server("ours", tmp_path / "server", seed) as server:
        yield Place(server, alice, agent)


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_of_openapi_python_client(place: Place, tmp_path: Path) -> None:
    generate = ["-m", "openapi_python_client", "generate", "--meta", "none", "--output-path", str(tmp_path / "made")]
    # The generator lays its files out with ruff, which stands beside the interpreter.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    said = run([sys.executable, *generate, "--path", str(KEPT)], PATH=path)
    assert "Warning" not in said, "whatever it cannot read it leaves out"
    assert run([sys.executable, str(STORY), *place.arguments], PYTHONPATH=str(tmp_path)) == "the story is told\n"


def test_of_oapi_codegen(place: Place) -> None:
    require(OAPI_CODEGEN)
    made = CLIENT / "api" / "api.go"
    fresh = made.with_suffix(".new")
    run([str(build(OAPI_CODEGEN)), "-generate", "types,client", "-package", "api", "-o", str(fresh), str(KEPT)])
    if not made.exists() or made.read_bytes() != fresh.read_bytes():
        fresh.replace(made)  # otherwise nothing is built anew
    fresh.unlink(missing_ok=True)
    assert run([str(build(API_CLIENT)), *place.arguments]) == "the story is told\n"
