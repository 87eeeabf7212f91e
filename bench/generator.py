"""Runs the load generator (bench/load) once and reads its answer."""

import json
import subprocess
from collections.abc import Sequence

from bench.cases import Result
from tests.support.gobuild import LOAD, build

# Above connecting 10,000 TLS clients on a slow machine; below what a person waits for.
TIMEOUT_SECONDS = 180.0


class RunFailed(Exception):
    """The generator gave up; the text says why."""


def window(seconds: float) -> list[str]:
    """What the generator is told of a measured window: it warms up as long, and a second at most."""
    return ["-measure", f"{seconds}s", "-warmup", f"{min(seconds, 1.0)}s"]


def generate(url: str, pid: int, arguments: Sequence[str], *, floor: bool = False) -> Result:
    """One run against the relay at `url` with process `pid` (0: do not read its CPU).  Raises RunFailed."""
    command = [str(build(LOAD)), "-url", url, "-pid", str(pid), *arguments, *(["-floor"] if floor else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"no result in {TIMEOUT_SECONDS:.0f} s: {' '.join(command)}") from None
    if done.returncode != 0:
        raise RunFailed(f"{done.stderr.strip()} ({' '.join(command)})")
    result: Result = json.loads(done.stdout)
    return result
