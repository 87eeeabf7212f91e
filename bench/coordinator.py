"""Our coordinator beside a Go one on the genuine layers, interleaved in one run, every row with its target.

    python bench/coordinator.py                 five rounds, some twenty minutes
    python bench/coordinator.py --quick         one short round, to see that it works: the numbers mean nothing
    python bench/coordinator.py --only closed200 --only relay

Each run has a fresh server; in each round each row runs on both in turn, so that what else the machine does hits both
alike.  Ratios are taken within a round; the median round counts.  Writes JSON and an SVG to bench/out.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.chart import Bar, draw
from bench.compare import machine
from bench.coordinator_cases import BASE_CASE, OWN_METRICS, UNITS, Case, Goal, Result, chosen, number
from bench.generator import RunFailed, generate
from tests.support.api_load import growth_bytes, idle_bytes, warm_up
from tests.support.gobuild import COORDINATOR_LOAD, build
from tests.support.tailnet_servers import Seed, Server, ServerFailed, ServerKind, running_server

OUT = Path(__file__).resolve().parent / "out"
SERVERS: tuple[ServerKind, ...] = ("ours", "go-baseline")
# Above connecting 5,000 peers on a slow machine; below what a person waits for.
TIMEOUT_SECONDS = 240.0
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of traffic before the measured window, and of the window."""

    warmup: float
    measure: float

    def arguments(self) -> list[str]:
        return ["-warmup", f"{self.warmup}s", "-measure", f"{self.measure}s"]


def process_cpu(pid: int) -> float:
    """User and system time of a process in seconds, from its CPU clock (clock_getcpuclockid's arithmetic)."""
    return time.clock_gettime((~pid << 3) | 2)


def command(server: Server, folder: Path, case: Case, more: list[str]) -> list[str]:
    where = ["-url", server.url, "-pid", str(server.pid), "-seed", str(folder / "seed.json")]
    return [str(build(COORDINATOR_LOAD)), *where, *case.arguments, *more]


def run_case(kind: ServerKind, case: Case, clock: Clock) -> Result:
    """One case on a fresh server.  Raises RunFailed."""
    seed = Seed()
    owner = seed.add_user("load")
    for _ in range(case.agents):
        seed.add_agent(owner)
    with tempfile.TemporaryDirectory(prefix=f"bench-{kind}-") as scratch:
        folder = Path(scratch)
        try:
            with running_server(kind, folder, seed) as server:
                if case.api:
                    return api_memory(server) if kind == "ours" else {}  # the Go one has no such page
                if case.relay:
                    return beside_the_relay(server, folder, case, clock)
                return run_generator(command(server, folder, case, clock.arguments()))
        except ServerFailed as failed:
            raise RunFailed(str(failed)) from failed


def run_generator(words: list[str]) -> Result:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"no result in {TIMEOUT_SECONDS:.0f} s: {' '.join(words)}") from None
    if done.returncode != 0:
        raise RunFailed(f"{done.stderr.strip()} ({' '.join(words)})")
    result: Result = json.loads(done.stdout)
    return result


def api_memory(server: Server) -> Result:
    """What a connection takes that asked the API once and stays, and what 1,000 leave behind that came and went."""
    warm_up(server.url)
    growth = growth_bytes(server.url, server.pid, 1000)
    return {"api": {"growth_bytes": growth, "idle_bytes": idle_bytes(server.url, server.pid, 1000)}}


def beside_the_relay(server: Server, folder: Path, case: Case, clock: Clock) -> Result:
    """What a relayed packet costs alone, and beside peers that update, the updates' own cost taken off."""

    def relayed() -> Result:
        traffic: Result = generate(f"{server.url}/derp", server.pid, clock.arguments())["traffic"]
        return traffic

    relayed()  # the first traffic of a process is dearer: neither side gets it
    alone = relayed()
    with subprocess.Popen(
        command(server, folder, case, ["-measure", "0s"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdin is not None
        assert load.stderr is not None
        try:
            first = load.stderr.readline()
            if first.strip() != "running":
                raise RunFailed(f"{first}{load.stderr.read()}")
            time.sleep(clock.warmup)
            before, began = process_cpu(server.pid), time.monotonic()
            time.sleep(clock.measure)
            updating_cores = (process_cpu(server.pid) - before) / (time.monotonic() - began)
            beside = relayed()
        finally:
            load.stdin.close()
            load.wait(START_SECONDS)
        if load.returncode != 0:
            raise RunFailed(load.stderr.read())
    gross = float(beside["server_cpu_us_per_packet"])
    return {
        "relay": {
            "alone_us": alone["server_cpu_us_per_packet"],
            "beside_us": gross - 1e6 * updating_cores / float(beside["packets_per_second"]),
            "beside_gross_us": gross,
            "updating_cores": updating_cores,
            "loss": beside["loss"],
        }
    }


@dataclass(frozen=True, slots=True)
class Row:
    """One judged number.  `ratio` is ours to Go's (of own metrics: ours alone); None: not measured."""

    case: str
    title: str
    metric: str
    unit: str
    ours: float | None
    go: float | None
    ratio: float | None
    lowest: float | None
    highest: float | None
    target: float
    met: bool | None
    generator_cores: float | None


Round = dict[tuple[str, ServerKind], Result]


def judge(case: Case, goal: Goal, rounds: list[Round]) -> Row:
    def values(kind: ServerKind) -> list[float | None]:
        results = [(each.get((case.name, kind)), each.get((BASE_CASE, kind))) for each in rounds]
        return [number(goal.metric, here, base) if here is not None else None for here, base in results]

    ours, go = values("ours"), values("go-baseline")
    against = [1.0] * len(rounds) if goal.metric in OWN_METRICS else go
    ratios = [mine / theirs for mine, theirs in zip(ours, against, strict=True) if mine is not None and theirs]
    ratio = median(ratios)
    runs = [result for each in rounds for (name, _), result in each.items() if name == case.name]
    cores = [result["traffic"]["generator_cores"] for result in runs if result.get("traffic")]
    return Row(
        case=case.name,
        title=case.title,
        metric=goal.metric,
        unit=UNITS[goal.metric],
        ours=median([v for v in ours if v is not None]),
        go=median([v for v in go if v is not None]),
        ratio=ratio,
        lowest=min(ratios, default=None),
        highest=max(ratios, default=None),
        target=goal.target,
        met=None if ratio is None else ratio <= goal.target,
        generator_cores=median(cores),
    )


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def table(rows: list[Row]) -> str:
    """The report for a terminal."""
    head = f"{'unit':14}{'ours':>10}{'go':>10}{'ratio':>8}{'target':>8}{'':>8}{'rounds':>14}{'gen cores':>11}"
    lines = [f"{'':49}{head}"]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: "-"}[row.met]
        spread = f"{text(row.lowest)}-{text(row.highest)}" if row.ratio is not None else "-"
        lines.append(
            f"{row.title:36}{row.metric:13}{row.unit:14}{text(row.ours):>10}{text(row.go):>10}{text(row.ratio):>8}"
            f"{'<=' + text(row.target):>8}{verdict:>8}{spread:>14}{text(row.generator_cores):>11}"
        )
    return "\n".join(lines)


def text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def write(out: Path, where: dict[str, object], rounds: list[Round], rows: list[Row], failures: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": where,
        "rows": [asdict(row) for row in rows],
        "failures": failures,
        "rounds": [[{"case": c, "server": s, **result} for (c, s), result in each.items()] for each in rounds],
    }
    (out / "coordinator.json").write_text(json.dumps(report, indent=1) + "\n")
    bars = [
        Bar(f"{row.title}: {row.metric}", row.ratio, row.lowest, row.highest, row.target, row.met)
        for row in rows
        if row.ratio is not None and row.lowest is not None and row.highest is not None and row.met is not None
    ]
    if bars:
        subtitle = f"{len(rounds)} rounds, interleaved; {where['cores']} cores, {where['cpu']}"
        drawn = draw("our coordinator divided by a Go one on the genuine layers", subtitle, bars)
        (out / "coordinator.svg").write_text(drawn)


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--rounds", default=5, help="how often the whole table is run")
@click.option("--seconds", default=3.0, help="measured window of each run")
@click.option("--warmup", default=1.0, help="seconds of updates before it")
@click.option("--quick", is_flag=True, help="one round of half-second runs, without 5,000 peers")
@click.option("--only", multiple=True, help="names of rows (see coordinator_cases.py)")
@click.option("--server", "servers", multiple=True, type=click.Choice(SERVERS), help="default: both")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=OUT, help="folder for JSON and SVG")
def main(
    rounds: int,
    seconds: float,
    warmup: float,
    quick: bool,
    only: tuple[str, ...],
    servers: tuple[ServerKind, ...],
    out: Path,
) -> None:
    if quick:
        rounds, seconds, warmup = 1, 0.5, 0.3
    cases = chosen(only, quick=quick)
    unknown = set(only) - {case.name for case in cases}
    if unknown:
        raise click.ClickException(f"no row is named {', '.join(sorted(unknown))}; see bench/coordinator_cases.py")
    # 5,000 peers are 5,000 descriptors here and there; children inherit the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    where = machine()
    kinds = servers or SERVERS
    done: list[Round] = []
    failures: list[str] = []
    for index in range(rounds):
        done.append({})
        for case in cases:
            # Each round starts with the other server, so that none always follows the same one.
            turn = index % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                try:
                    done[-1][case.name, kind] = run_case(kind, case, Clock(warmup, seconds))
                except RunFailed as failed:
                    failures.append(f"round {index + 1}, {case.title}, {kind}: {failed}")
                click.echo(f"round {index + 1}  {case.title:36}  {kind}", err=True)
    rows = [judge(case, goal, done) for case in cases for goal in case.goals]
    write(out, where, done, rows, failures)
    click.echo(table(rows))
    for failure in failures:
        click.echo(f"failed: {failure}")
    click.echo(f"\nwritten: {out / 'coordinator.json'} and coordinator.svg")


if __name__ == "__main__":
    main()
