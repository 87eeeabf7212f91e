"""Every program of examples/ runs as its first lines say, and README there names them all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
import trio

from tailnet.node.membership import open_agent
from tailnet.types import PeerID
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_program_is_in_the_readme_and_here() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    assert {name for name in programs if f"| `{name}` |" in (EXAMPLES / "README.md").read_text()} == programs
    assert {name for name in programs if f'"{name}"' in Path(__file__).read_text()} == programs


def test_a_relay_in_process() -> None:
    assert run_example("relay_in_process.py").splitlines() == ["bob got b'hello bob'", "alice got b'hello alice'"]


def test_an_echo() -> None:
    assert "came back: b'is anybody there?'" in run_example("relay_echo.py")


@contextmanager
def dev_coordinator() -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a coordinator, and the logins that it has made."""
    command = [sys.executable, "-m", "tailnet", "serve", "--dev", "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            said: dict[str, dict[str, str]] = {}
            while "serving" not in said:
                line = server.stdout.readline()
                if not line:
                    pytest.fail("the coordinator ended before it served")
                event = json.loads(line)
                said.setdefault(event["event"], event)
            login, place = said["demo"], said["listening"]
            yield f"http://{place['host']}:{place['port']}", login
        finally:
            server.terminate()


def test_a_meeting() -> None:
    with dev_coordinator() as (url, login):
        printed = run_example("meet.py", url, login["agent_id"], login["agent_token"], login["user_token"])
    assert [line.rpartition(" ")[0] for line in printed.splitlines()] == ["the client heard of", "the agent heard of"]


@pytest.mark.parametrize("program", ["reach_agent.py", "reach_agent_asyncio.py"])
async def test_an_agent_s_page(program: str) -> None:
    async def answer(stream: trio.abc.HalfCloseableStream) -> None:
        async with stream:
            assert await stream.receive_some() == b"GET / HTTP/1.0\r\n\r\n"
            await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\nit is me")

    with dev_coordinator() as (url, login):
        agent_id = PeerID.parse(login["agent_id"])
        async with open_agent(url, login["agent_token"], agent_id) as agent, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [agent.engine.listen(8080)])
            words = url, login["user_token"], login["agent_id"], "8080"
            printed = await trio.to_thread.run_sync(lambda: run_example(program, *words))
            nursery.cancel_scope.cancel()
    assert printed.splitlines()[-1] == "it is me"
