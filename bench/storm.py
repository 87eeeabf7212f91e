"""A fleet loses its connections at one moment and dials anew at once: what do clients feel that stayed inside?

    python bench/storm.py                               3,000 plain and websocket, 1,000 TLS; ours, derper and a
                                                        coordinator with its relay (plain) in turn
    python bench/storm.py --only tls --rounds 5

Four genuine pairs exchange 1,000 packets a second (bench/load).  A row has their p50, p99 and longest from the moment
in which the fleet goes to its last login, how long that took, and how many dials of the fleet failed.  The fleet runs
at a lower priority, as its CPU would be on other machines.  Writes bench/out/storm.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import Carrier, Result
from bench.compare import write_rows
from bench.floods import started
from bench.generator import RunFailed
from tests.support.gobuild import LOAD, build

SERVERS = ("ours", "derper", "coordinator")
# What a coordinator's relay bounds by default and this does not ask: strangers, and how many may come within a second.
COORDINATOR = {
    "TAILNET_RELAY_OPEN": "true",
    "TAILNET_ACCEPT_CONNECTION_LIMIT": "inf",
}
INNOCENTS = ("-pairs", "4", "-frames", "1", "-rate", "1000", "-warmup", "1s", "-by-lines")
PARALLEL = 32  # the fleet's first arrival, which is no storm
NICENESS = 10


@dataclass(frozen=True, slots=True)
class Storm:
    """Who comes back, and by what carrier."""

    name: str
    count: int
    carrier: Carrier
    websocket: bool = False


STORMS = (Storm("plain", 3000, "plain"), Storm("websocket", 3000, "plain", websocket=True), Storm("tls", 1000, "tls"))


@dataclass(frozen=True, slots=True)
class Row:
    """One storm at one server.  Milliseconds, and seconds until the last was back."""

    storm: str
    server: str
    p50_ms: float
    p99_ms: float
    longest_ms: float
    seconds: float
    failed: int
    lost: int


class Generator:
    """A running load generator, which is told by lines what to do next."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._told: IO[str] = process.stdin
        self._said: IO[str] = process.stdout

    def expect(self, word: str) -> None:
        """Wait until it says so.  Raises RunFailed."""
        line = self._said.readline()
        if line.strip() != word:
            raise self._failed(f"it said {line!r} instead of {word!r}")

    def go(self) -> None:
        """The next thing begins."""
        self._told.write("\n")
        self._told.flush()

    def result(self) -> Result:
        """What it prints at its end.  Raises RunFailed."""
        said = self._said.read()
        if not said:
            raise self._failed("it ended without a result")
        answer: Result = json.loads(said)
        return answer

    def _failed(self, what: str) -> RunFailed:
        assert self._process.stderr is not None
        return RunFailed(f"{what}: {self._process.stderr.read().strip()}")


@contextmanager
def generator(*arguments: str, niceness: int = 0) -> Iterator[Generator]:
    """Started, and ended with the block."""
    process = subprocess.Popen(
        [str(build(LOAD)), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
    try:
        yield Generator(process)
    finally:
        process.kill()
        process.communicate()


def run(server: str, storm: Storm, count: int) -> Row:
    """One storm at a relay that was just started.  Raises RunFailed."""
    with started(server, storm.carrier, COORDINATOR) as relay:
        url = relay.url(websocket=storm.websocket)
        fleet_arguments = ("-scenario", "storm", "-idle", str(count), "-parallel", str(PARALLEL))
        with (
            generator("-url", url, "-pid", str(relay.pid), *INNOCENTS) as inside,
            generator("-url", url, *fleet_arguments, niceness=NICENESS) as fleet,
        ):
            inside.expect("warm")
            fleet.expect("connected")
            time.sleep(1.0)  # what the first arrival left to do is done
            inside.go()
            fleet.go()
            fleet.expect("back")
            inside.go()
            traffic = inside.result()["traffic"]
            fleet.go()
            came = fleet.result()["storm"]
        latency = traffic["latency_us"]
        return Row(
            storm.name,
            server,
            latency["p50"] / 1e3,
            latency["p99"] / 1e3,
            latency["max"] / 1e3,
            came["seconds"],
            came["failed"],
            traffic["lost"],
        )


def line(row: Row) -> str:
    return (
        f"{row.storm:<12}{row.server:>12}{row.p50_ms:>10.2f}{row.p99_ms:>10.2f}{row.longest_ms:>10.2f}"
        f"{row.seconds:>10.2f}{row.failed:>8}{row.lost:>8}"
    )


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--only", multiple=True, type=click.Choice([each.name for each in STORMS]), help="these storms")
@click.option("--server", "servers", multiple=True, type=click.Choice(SERVERS), help="these relays")
@click.option("--rounds", default=3, help="each storm at each relay so often, interleaved")
@click.option("--count", default=0, help="how many come back, of every storm")
def main(only: tuple[str, ...], servers: tuple[str, ...], rounds: int, count: int) -> None:
    click.echo(f"{'':<12}{'':>12}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'back s':>10}{'failed':>8}{'lost':>8}")
    rows: list[Row] = []
    for _ in range(rounds):
        for storm in STORMS:
            if only and storm.name not in only:
                continue
            for server in servers or SERVERS:
                if server == "coordinator" and storm.carrier == "tls":
                    continue  # it is started without a certificate
                try:
                    rows.append(run(server, storm, count or storm.count))
                except RunFailed as failed:
                    raise click.ClickException(f"{storm.name}, {server}: {failed}") from None
                click.echo(line(rows[-1]))
    click.echo("medians")
    for storm in STORMS:
        for server in SERVERS:
            same = [row for row in rows if (row.storm, row.server) == (storm.name, server)]
            if same:
                numbers = [
                    statistics.median(getattr(row, name) for row in same)
                    for name in ("p50_ms", "p99_ms", "longest_ms", "seconds")
                ]
                click.echo(
                    line(Row(storm.name, server, *numbers, sum(r.failed for r in same), sum(r.lost for r in same)))
                )
    write_rows("storm", [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
