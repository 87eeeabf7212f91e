"""Runs `derp` as a process beside relays of this process, with none of the caller's own settings."""

import os
import sys
from dataclasses import dataclass

import trio

# A cold start of the interpreter on a busy machine takes seconds.
PATIENCE_SECONDS = 60.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ENVIRONMENT = {
    name: text for name, text in os.environ.items() if not name.startswith("DERP_") and name.lower() not in _PROXIES
} | {"NO_COLOR": ""}


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it."""

    status: int
    out: str
    err: str


async def run_derp(*arguments: str, stdin: bytes = b"") -> Ran:
    """`derp ARGUMENTS` to its end."""
    with trio.fail_after(PATIENCE_SECONDS):
        done = await trio.run_process(
            [sys.executable, "-m", "derp", *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=ENVIRONMENT,
        )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
