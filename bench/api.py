"""The HTTP API: an agent read back beside the same handlers on uvicorn, followers, and logs beside the fan-out.

    python bench/api.py                    # some six minutes
    python bench/api.py --quick            # one short round of each, to see that it works: the numbers mean nothing
    python bench/api.py --only requests --only memory

Rows have their baseline in the same run, interleaved, and ratios are taken within a round; the median round counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.api_load import follower_bytes, idle_bytes, warm_up
from tests.support.gobuild import COORDINATOR_LOAD, build
from tests.support.seeds import peer_id, user_token
from tests.support.tailnet_servers import Seed, Server, running_server

ROOT = Path(__file__).resolve().parent.parent
GENERATORS, BASELINE = ROOT / "bench" / "api_generators.py", ROOT / "bench" / "api_baseline.py"
PATIENCE_SECONDS = 240.0
# Trio and Hypercorn against uvicorn's own h11: what a call costs there, it may cost here, and a fifth.
TARGET_REQUESTS, TARGET_P99 = 0.8, 1.25
TARGET_FOLLOWER_BYTES = 30 * 1024
FOLLOWERS = 1_000
LINES_PER_SECOND = 10_000
TARGET_FAN_OUT = 1.1
LOADED_AGENTS, UPDATES_PER_SECOND = 200, 2_000


class Report:
    """Rows as they come, and whether all targets are met."""

    def __init__(self) -> None:
        self.is_met = True

    def row(self, title: str, text: str, is_met: bool | None = None) -> None:
        verdict = "" if is_met is None else "met" if is_met else "MISSED"
        click.echo(f"{title:44}{text:70}{verdict}")
        self.is_met = self.is_met and is_met is not False


def generate(what: str, url: str, *more: str) -> Any:
    """What a generator found."""
    command = [sys.executable, str(GENERATORS), what, url, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if done.returncode:
        raise click.ClickException(f"{what}: {done.stderr}")
    return json.loads(done.stdout)


@contextmanager
def served(seed: Seed) -> Iterator[Server]:
    """Our coordinator.  It logs as always; what a user may ask in a minute is not what is measured."""
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder:
        unlimited = {"TAILNET_API_RATE_LIMIT": "0", "TAILNET_MAX_REPORTS": "1000000"}
        with running_server(
            "ours", Path(folder), seed, environment={**unlimited, "TAILNET_MAX_REPORT_BYTES": str(1 << 32)}
        ) as server:
            warm_up(server.url)
            yield server


@contextmanager
def baseline() -> Iterator[str]:
    """The same app on uvicorn: its URL."""
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder:
        command = [sys.executable, str(BASELINE), f"sqlite:///{folder}/store.db"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().strip()
            finally:
                process.terminate()


def measure_requests(report: Report, seconds: float, rounds: int) -> None:
    seed = Seed()
    user = seed.add_user("alice")
    ours_path = f"/api/v2/workspaceagents/{seed.add_agent(user).id}"
    theirs_path = f"/api/v2/workspaceagents/{peer_id('main')}"
    ours, theirs = [], []
    with served(seed) as server, baseline() as url:
        for _ in range(rounds):
            ours.append(generate("requests", server.url, ours_path, user.token, str(seconds)))
            theirs.append(generate("requests", url, theirs_path, user_token("alice"), str(seconds)))
    for name, found in (("ours", ours), ("uvicorn", theirs)):
        shown = {key: statistics.median(each[key] for each in found) for key in found[0]}
        text = f"{shown['per_second']:,.0f}/s   p50 {shown['p50_ms']:.2f} ms   p99 {shown['p99_ms']:.2f} ms"
        report.row(f"GET an agent, {name}", text)
    many = statistics.median(mine["per_second"] / other["per_second"] for mine, other in zip(ours, theirs, strict=True))
    late = statistics.median(mine["p99_ms"] / other["p99_ms"] for mine, other in zip(ours, theirs, strict=True))
    report.row("  requests, ours to uvicorn's", f"{many:.2f}, at least {TARGET_REQUESTS}", many >= TARGET_REQUESTS)
    report.row("  p99, ours to uvicorn's", f"{late:.2f}, at most {TARGET_P99}", late <= TARGET_P99)


def measure_memory(report: Report, seconds: float, rounds: int) -> None:
    seed = Seed()
    user = seed.add_user("alice")
    path = f"/api/v2/workspaceagents/{seed.add_agent(user).id}/watch-metadata"
    with served(seed) as server:
        size = follower_bytes(server.url, server.pid, path, user.token, FOLLOWERS)
    with served(seed) as server:
        idle = idle_bytes(server.url, server.pid, FOLLOWERS)
    report.row("an idle connection of the API", f"{idle / 1024:.1f} KiB")
    text = f"{size / 1024:.1f} KiB, at most {TARGET_FOLLOWER_BYTES / 1024:.0f}"
    report.row("a follower by server-sent events", text, size <= TARGET_FOLLOWER_BYTES)


def measure_followers(report: Report, seconds: float, rounds: int) -> None:
    seed = Seed()
    user = seed.add_user("alice")
    agent = seed.add_agent(user)
    path = f"/api/v2/workspaceagents/{agent.id}/logs?follow&no_compression"
    with served(seed) as server:
        found = generate("follow", server.url, path, user.token, str(FOLLOWERS), agent.token)
    behind = f"{found['behind_seconds']:.1f} s behind the last report"
    text = f"{found['lost']} lines lost, {found['disordered']} out of order, {behind}"
    report.row(f"{FOLLOWERS:,} follow an agent's logs", text, not found["lost"] and not found["disordered"])


def measure_logs(report: Report, seconds: float, rounds: int) -> None:
    """The fan-out's p99 alone and beside agents that print, in turn."""
    seed = Seed()
    owner = seed.add_user("load")
    for _ in range(LOADED_AGENTS):
        seed.add_agent(owner)
    printing = [seed.add_agent(owner) for _ in range(100)]
    ratios, alone, beside, rates = [], [], [], []
    for _ in range(rounds):
        with served(seed) as server, tempfile.TemporaryDirectory() as scratch:
            tokens, loaded = Path(scratch) / "tokens", Path(scratch) / "seed.json"
            tokens.write_text("\n".join(each.token for each in printing))
            document = json.loads(seed.text())
            document["agents"] = document["agents"][:LOADED_AGENTS]
            loaded.write_text(json.dumps(document))
            alone.append(fan_out(server, loaded, seconds))
            command = [sys.executable, str(GENERATORS), "write", server.url, str(tokens), str(LINES_PER_SECOND)]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as writer:
                assert writer.stderr is not None
                if writer.stderr.readline().strip() != "running":
                    raise click.ClickException(writer.stderr.read())
                beside.append(fan_out(server, loaded, seconds))
                printed, errors = writer.communicate()
            if writer.returncode:
                raise click.ClickException(errors)
            rates.append(json.loads(printed)["per_second"])
            ratios.append(beside[-1] / alone[-1])
    rate = statistics.median(rates)
    report.row(f"{LINES_PER_SECOND:,} lines of logs/s into SQLite", f"{rate:,.0f}/s", rate >= 0.98 * LINES_PER_SECOND)
    ratio = statistics.median(ratios)
    times = f"{statistics.median(alone):,.0f} us alone, {statistics.median(beside):,.0f} us beside"
    text = f"{times}: {ratio:.2f}, at most {TARGET_FAN_OUT}"
    report.row(f"  p99 of {UPDATES_PER_SECOND:,} updates/s beside them", text, ratio <= TARGET_FAN_OUT)


def fan_out(server: Server, seed: Path, seconds: float) -> float:
    """The 99th percentile of how long an update takes to its receivers, in microseconds."""
    size = str(LOADED_AGENTS)
    command = [str(build(COORDINATOR_LOAD)), "-url", server.url, "-pid", str(server.pid), "-seed", str(seed)]
    command += ["-agents", size, "-clients", size, "-rate", str(UPDATES_PER_SECOND)]
    command += ["-warmup", "1s", "-measure", f"{seconds}s"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise click.ClickException(done.stderr)
    return float(json.loads(done.stdout)["traffic"]["latency_us"]["p99"])


ROWS: dict[str, Callable[[Report, float, int], None]] = {
    "requests": measure_requests,
    "memory": measure_memory,
    "followers": measure_followers,
    "logs": measure_logs,
}


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--seconds", default=5.0, show_default=True, help="of each measured window")
@click.option("--rounds", default=5, show_default=True, help="of the rows that are compared")
@click.option("--quick", is_flag=True, help="one round of a second")
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="these rows")
def main(seconds: float, rounds: int, quick: bool, only: tuple[str, ...]) -> None:
    """Measure, print, and leave with status 1 when a target is missed."""
    if quick:
        seconds, rounds = 1.0, 1
    report = Report()
    for name, measure in ROWS.items():
        if not only or name in only:
            measure(report, seconds, rounds)
    sys.exit(0 if report.is_met else 1)


if __name__ == "__main__":
    main()
