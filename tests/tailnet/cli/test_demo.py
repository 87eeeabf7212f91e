"""`tailnet demo` run as a stranger runs it: everything arrives, and nothing is left running."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tailnet.cli.demo import PACKETS
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS

README = Path(__file__).resolve().parents[3] / "README.md"


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tailnet", "demo", *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,
        check=False,
    )


def test_packets_arrive_both_ways_and_nothing_is_left() -> None:
    # Settings of the caller's own servers are not for those of the demo.
    ran = run_demo("--json", TAILNET_LISTEN="nonsense", DERP_LISTEN="nonsense")
    assert (ran.returncode, ran.stderr) == (0, "")
    steps = [json.loads(line) for line in ran.stdout.splitlines()]
    ways = {step["step"]: step["arrived"] for step in steps if "arrived" in step}
    assert ways == {"client -> agent": PACKETS, "agent -> client": PACKETS}
    ports = [int(port) for step in steps[:2] for port in re.findall(r"127\.0\.0\.1:(\d+)", step["text"])]
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(("127.0.0.1", port))


def test_the_readme_shows_what_is_printed() -> None:
    printed = [line[:18] for line in run_demo().stdout.splitlines()]
    assert printed[0].startswith("relay")
    shown = re.search(r"    make demo\n.*?\n\n(.*?)\n\n", README.read_text(), re.DOTALL)
    assert shown is not None
    assert [line[4:22] for line in shown[1].splitlines()] == printed
