"""Every program of examples/ runs as its first lines say, and README there names them all."""

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

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


def test_a_meeting() -> None:
    command = [sys.executable, "-m", "tailnet", "serve", "--dev", "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            said = {}
            while "serving" not in said:
                line = server.stdout.readline()
                if not line:
                    pytest.fail("the coordinator ended before it served")
                event = json.loads(line)
                said.setdefault(event["event"], event)
            login, place = said["demo"], said["listening"]
            url = f"http://{place['host']}:{place['port']}"
            printed = run_example("meet.py", url, login["agent_id"], login["agent_token"], login["user_token"])
        finally:
            server.terminate()
    assert [line.rpartition(" ")[0] for line in printed.splitlines()] == ["the client heard of", "the agent heard of"]
