"""Ours beside the genuine derper and the floor, interleaved in one run, every row of the table, with its target.

    python bench/compare.py                      five rounds, plaintext and TLS, about an hour
    python bench/compare.py --quick              one short round, to see that it works: the numbers mean nothing
    python bench/compare.py --only pairs10 --only latency500 --carrier plain

In each round each row runs on each relay in turn (A B C, next row A B C, ...), so that what else the machine does hits
all of them alike.  Ratios are taken within a round; the median round counts.  Writes JSON and an SVG to bench/out.
"""

import json
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import (
    BASE_CASE,
    CARRIERS,
    CEILING_CASE,
    CEILING_LOSS,
    CEILING_SHARE,
    CEILING_STEPS,
    LARGER_IS_BETTER,
    UNITS,
    WORDS,
    Carrier,
    Case,
    Goal,
    Result,
    chosen,
    met,
    number,
)
from bench.chart import Bar, draw
from bench.generator import RunFailed, generate
from bench.servers import SERVERS, Server, serve

OUT = Path(__file__).resolve().parent / "out"


@dataclass(slots=True)
class Round:
    """Results of one round by (carrier, case, server)."""

    results: dict[tuple[Carrier, str, str], Result] = field(default_factory=dict)

    def value(self, carrier: Carrier, case: Case, goal: Goal, server: str) -> float | None:
        result = self.results.get((carrier, case.name, server))
        if result is None:
            return None
        return number(goal.metric, result, self.results.get((carrier, BASE_CASE, server)))


@dataclass(frozen=True, slots=True)
class Row:
    """One judged number.  `ratio` is ours to the genuine relay's (of `growth`: ours alone); None: not measured."""

    case: str
    title: str
    carrier: Carrier
    metric: str
    unit: str
    ours: float | None
    derper: float | None
    floor: float | None
    ratio: float | None
    lowest: float | None
    highest: float | None
    floor_ratio: float | None
    target: float
    met: bool | None
    loss_percent: dict[str, float]
    generator_cores: dict[str, float]


class Comparison:
    """Runs the rounds; servers live as long as the comparison, except where a case wants a fresh one."""

    def __init__(self, servers: tuple[str, ...], carriers: tuple[Carrier, ...], cases: list[Case], clock: list[str]):
        self.servers = servers
        self.carriers = carriers
        self.cases = cases
        self.clock = clock
        self.rounds: list[Round] = []
        self.failures: list[str] = []
        self.ceilings: dict[Carrier, float] = {}

    def run(self, rounds: int) -> None:
        with ExitStack() as stack:
            running = {(c, s): stack.enter_context(serve(s, c)) for c in self.carriers for s in self.servers}
            for index in range(rounds):
                self.rounds.append(Round())
                for carrier in self.carriers:
                    for case in self.cases:
                        self._case(index, carrier, case, running)

    def _case(self, index: int, carrier: Carrier, case: Case, running: dict[tuple[Carrier, str], Server]) -> None:
        arguments = [*case.arguments, *self.clock]
        if case.ceiling:
            try:
                rate = CEILING_SHARE * self._ceiling(carrier, case, running)
            except RunFailed as failed:
                self.failures.append(f"round {index + 1}, {carrier}, {case.title}: no ceiling: {failed}")
                return
            arguments += ["-rate", f"{rate:.0f}"]
        shown = []
        # Each round starts with another relay, so that none always follows the same one.
        turn = index % len(self.servers)
        for name in self.servers[turn:] + self.servers[:turn]:
            try:
                result = self._one(running[carrier, name], case, arguments)
            except RunFailed as failed:
                self.failures.append(f"round {index + 1}, {carrier}, {case.title}, {name}: {failed}")
                shown.append(f"{name} FAILED")
                continue
            self.rounds[-1].results[carrier, case.name, name] = result
            value = self.rounds[-1].value(carrier, case, case.goals[0], name)
            shown.append(f"{name} {'-' if value is None else f'{value:,.2f}'}")
        click.echo(f"round {index + 1}  {carrier:5}  {case.title:40}  {'  '.join(shown)}", err=True)

    @staticmethod
    def _one(server: Server, case: Case, arguments: list[str]) -> Result:
        with ExitStack() as stack:
            if case.fresh:
                server = stack.enter_context(serve(server.name, server.carrier))
            url = server.url(websocket=case.websocket)
            return generate(url, server.pid, arguments, floor=server.name == "floor")

    def _ceiling(self, carrier: Carrier, case: Case, running: dict[tuple[Carrier, str], Server]) -> float:
        """Packets per second that the genuine relay (or, without it, the first one) takes without loss; found once."""
        if carrier in self.ceilings:
            return self.ceilings[carrier]
        name = "derper" if "derper" in self.servers else self.servers[0]
        closed_loop = self.rounds[-1].results.get((carrier, CEILING_CASE, name))
        if closed_loop is None:
            raise RunFailed(f"{CEILING_CASE} did not run")
        for step in CEILING_STEPS:
            rate = step * float(closed_loop["traffic"]["packets_per_second"])
            arguments = [*case.arguments, *self.clock, "-rate", f"{rate:.0f}"]
            tried = self._one(running[carrier, name], case, arguments)["traffic"]
            if tried["loss"] <= CEILING_LOSS:
                break
        self.ceilings[carrier] = rate
        click.echo(f"{name}'s ceiling, {carrier}: {rate:,.0f} packets/s (loss {100 * tried['loss']:.2f} %)", err=True)
        return rate

    def rows(self) -> list[Row]:
        return [
            self._row(carrier, case, goal) for carrier in self.carriers for case in self.cases for goal in case.goals
        ]

    def _row(self, carrier: Carrier, case: Case, goal: Goal) -> Row:
        values = {s: [r.value(carrier, case, goal, s) for r in self.rounds] for s in SERVERS}
        against = [1.0] * len(self.rounds) if goal.metric == "growth" else values["derper"]
        ratios = _ratios(values["ours"], against)
        ratio = _median(ratios)
        target = goal.target(carrier)
        traffic = {
            s: [r.results[key]["traffic"] for r in self.rounds if "traffic" in r.results.get(key, {})]
            for s in self.servers
            for key in [(carrier, case.name, s)]
        }
        return Row(
            case=case.name,
            title=case.title,
            carrier=carrier,
            metric=goal.metric,
            unit=UNITS[goal.metric],
            ours=_median(values["ours"]),
            derper=_median(values["derper"]),
            floor=_median(values["floor"]),
            ratio=ratio,
            lowest=min(ratios, default=None),
            highest=max(ratios, default=None),
            floor_ratio=_median(_ratios(values["ours"], values["floor"])),
            target=target,
            met=None if ratio is None else met(goal.metric, ratio, target),
            loss_percent={s: 100 * max(t["loss"] for t in all_) for s, all_ in traffic.items() if all_},
            generator_cores={
                s: statistics.median(t["generator_cores"] for t in all_) for s, all_ in traffic.items() if all_
            },
        )


def _median(values: list[float] | list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _ratios(mine: list[float | None], others: list[float | None] | list[float]) -> list[float]:
    return [m / o for m, o in zip(mine, others, strict=True) if m is not None and o]


def table(rows: list[Row]) -> str:
    """The report for a terminal."""
    lines = []
    for carrier in dict.fromkeys(row.carrier for row in rows):
        lines.append(
            f"\n{carrier.upper():41}{'':13}{'ours':>10}{'derper':>10}{'floor':>10}{'ratio':>8}{'target':>8}{'':>8}"
            f"{'rounds':>14}{'x floor':>9}{'gen cores':>10}  loss %"
        )
        for row in rows:
            if row.carrier != carrier:
                continue
            verdict = {True: "met", False: "MISSED", None: "-"}[row.met]
            sign = ">=" if row.metric in LARGER_IS_BETTER else "<="
            spread = f"{_text(row.lowest)}-{_text(row.highest)}" if row.ratio is not None else "-"
            loss = " ".join(f"{s} {v:.2f}" for s, v in row.loss_percent.items() if v > 0.005)
            generator = row.generator_cores.get("ours")
            lines.append(
                f"{row.title:41}{row.metric:13}{_text(row.ours):>10}{_text(row.derper):>10}{_text(row.floor):>10}"
                f"{_text(row.ratio):>8}{sign + _text(row.target):>8}{verdict:>8}{spread:>14}"
                f"{_text(row.floor_ratio):>9}{_text(generator):>10}  {loss}"
            )
    return "\n".join(lines)


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def bars(rows: list[Row], carrier: Carrier) -> list[Bar]:
    return [
        Bar(f"{row.title}: {WORDS[row.metric]}", row.ratio, row.lowest, row.highest, row.target, row.met)
        for row in rows
        if row.carrier == carrier
        and row.ratio is not None
        and row.lowest is not None
        and row.highest is not None
        and row.met is not None
    ]


def machine() -> dict[str, object]:
    models = [
        text.partition(":")[2].strip()
        for text in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in text
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }


def write_rows(name: str, rows: list[dict[str, object]]) -> None:
    """What a bench of several runs found, into bench/out/NAME.json."""
    OUT.mkdir(exist_ok=True)
    result = {"machine": machine(), "at": time.strftime("%Y-%m-%d"), "rows": rows}
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=1))


def write(out: Path, where: dict[str, object], comparison: Comparison, rows: list[Row]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": where,
        "rows": [{name: getattr(row, name) for name in Row.__slots__} for row in rows],
        "ceilings_packets_per_second": comparison.ceilings,
        "failures": comparison.failures,
        "rounds": [
            [{"carrier": c, "case": n, "server": s, **result} for (c, n, s), result in one.results.items()]
            for one in comparison.rounds
        ],
    }
    (out / "compare.json").write_text(json.dumps(report, indent=1) + "\n")
    for carrier in comparison.carriers:
        drawn = bars(rows, carrier)
        if drawn:
            subtitle = f"{len(comparison.rounds)} rounds, interleaved; {where['cores']} cores, {where['cpu']}"
            title = f"ours divided by the genuine derper, {carrier}"
            (out / f"compare-{carrier}.svg").write_text(draw(title, subtitle, drawn))


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--rounds", default=5, help="how often the whole table is run")
@click.option("--seconds", default=3.0, help="measured window of each run")
@click.option("--warmup", default=1.0, help="seconds of traffic before it")
@click.option("--quick", is_flag=True, help="one round of half-second runs, without 10,000 clients")
@click.option("--only", multiple=True, help="names of rows (see cases.py); those they need are added")
@click.option("--carrier", "carriers", multiple=True, type=click.Choice(CARRIERS), help="default: both")
@click.option("--server", "servers", multiple=True, type=click.Choice(SERVERS), help="default: all three")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=OUT, help="folder for JSON and SVG")
def main(
    rounds: int,
    seconds: float,
    warmup: float,
    quick: bool,
    only: tuple[str, ...],
    carriers: tuple[Carrier, ...],
    servers: tuple[str, ...],
    out: Path,
) -> None:
    if quick:
        rounds, seconds, warmup = 1, 0.5, 0.3
    cases = list(chosen(only, quick=quick))
    unknown = set(only) - {case.name for case in cases}
    if unknown:
        raise click.ClickException(f"no row is named {', '.join(sorted(unknown))}; see bench/cases.py")
    clock = ["-measure", f"{seconds}s", "-warmup", f"{warmup}s"]
    where = machine()
    comparison = Comparison(servers or SERVERS, carriers or CARRIERS, cases, clock)
    comparison.run(rounds)
    rows = comparison.rows()
    write(out, where, comparison, rows)
    click.echo(table(rows))
    for failure in comparison.failures:
        click.echo(f"failed: {failure}")
    click.echo(f"\nwritten: {out / 'compare.json'} and compare-*.svg")


if __name__ == "__main__":
    main()
