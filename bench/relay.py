"""Drives one DERP relay, whoever wrote it: one scenario, or every row of the table.

    python bench/relay.py --url http://127.0.0.1:3340/derp --pid 4711 --pairs 10 --frames 8
    python bench/relay.py --url https://127.0.0.1:4443/derp --pid 4711 --table --json out.json

Prints a table, and with --json the raw results.  Without --pid nothing is told about the relay's CPU and memory.
The generator's own CPU stands beside the relay's: where it comes near a whole core, it is what you measured.
"""

import json
import sys
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES, CEILING_CASE, CEILING_SHARE, Case, Result
from bench.generator import RunFailed, generate

COLUMNS = (
    ("packets/s", 10),
    ("MB/s", 7),
    ("loss %", 7),
    ("p50 us", 8),
    ("p99 us", 8),
    ("p99.9 us", 9),
    ("cpu us/p", 9),
    ("gen us/p", 9),
    ("conn/s", 7),
    ("us/conn", 8),
    ("B/client", 9),
)
TITLE_WIDTH = 40


def header() -> str:
    return "".ljust(TITLE_WIDTH) + "".join(name.rjust(width) for name, width in COLUMNS)


def line(title: str, result: Result) -> str:
    """One row of the table."""
    cells = [""] * len(COLUMNS)
    traffic, connect = result.get("traffic"), result.get("connect")
    if traffic:
        cells[:3] = [
            f"{traffic['packets_per_second']:,.0f}",
            f"{traffic['megabytes_per_second']:,.0f}",
            f"{100 * traffic['loss']:.2f}",
        ]
        if traffic["latency_us"]:
            cells[3:6] = [f"{traffic['latency_us'][name]:,.0f}" for name in ("p50", "p99", "p999")]
        cells[6:8] = [f"{traffic['server_cpu_us_per_packet']:.2f}", f"{traffic['generator_cpu_us_per_packet']:.2f}"]
    if connect:
        cells[8:] = [
            f"{connect['per_second']:,.0f}",
            f"{connect['server_cpu_us']:,.0f}",
            f"{connect['bytes_per_client']:,.0f}",
        ]
    return title.ljust(TITLE_WIDTH) + "".join(
        cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)
    )


def run_table(url: str, pid: int, window: list[str], *, aside: bool) -> list[tuple[str, Result]]:
    """Every row against one relay; rows that need another scheme change the URL's.

    The row at 70 % of a ceiling takes this relay's own, from the closed loop with one frame a write.
    """
    rows: list[tuple[str, Result]] = []
    ceiling = 0.0
    for case in CASES:
        arguments = [*case.arguments, *window]
        if case.ceiling:
            arguments += ["-rate", f"{CEILING_SHARE * ceiling:.0f}"]
        try:
            result = generate(_scheme(url, case), pid, arguments)
        except RunFailed as failed:
            click.echo(f"{case.title.ljust(TITLE_WIDTH)}  failed: {failed}", err=True)
            continue
        if case.name == CEILING_CASE:
            ceiling = result["traffic"]["packets_per_second"]
        rows.append((case.name, result))
        click.echo(line(case.title, result), err=aside)
    return rows


def _scheme(url: str, case: Case) -> str:
    scheme, _, rest = url.partition("://")
    secure = scheme in ("https", "wss")
    return f"{('wss' if secure else 'ws') if case.websocket else ('https' if secure else 'http')}://{rest}"


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--url", required=True, help="http, https, ws or wss; the path is usually /derp")
@click.option("--pid", default=0, help="the relay's process, children included")
@click.option("--table", is_flag=True, help="every row of the comparison instead of one scenario")
@click.option("--scenario", type=click.Choice(["pairs", "fanin", "alltoall", "idle"]), default="pairs")
@click.option("--pairs", default=10, help="pairs; groups of a fan-in; nodes of all-to-all")
@click.option("--senders", default=8, help="senders of each fan-in group")
@click.option("--size", default=1280, help="bytes of a packet, 32 to 65536")
@click.option("--frames", default=8, help="frames in one write")
@click.option(
    "--window", default=0, help="closed loop: packets in flight per sender; 0: what derper's queue of 32 takes"
)
@click.option("--rate", default=0.0, help="open loop: packets per second over all senders; 0: closed loop")
@click.option("--idle", default=0, help="clients that connect first and stay silent")
@click.option("--seconds", default=3.0, help="the measured window")
@click.option("--warmup", default=1.0, help="seconds of traffic before it")
@click.option(
    "--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="where raw results go; - for stdout"
)
def main(
    url: str,
    pid: int,
    table: bool,
    scenario: str,
    pairs: int,
    senders: int,
    size: int,
    frames: int,
    window: int,
    rate: float,
    idle: int,
    seconds: float,
    warmup: float,
    out: Path | None,
) -> None:
    clock = ["-measure", f"{seconds}s", "-warmup", f"{warmup}s"]
    aside = str(out) == "-"  # JSON on stdout must be all there is on it
    click.echo(header(), err=aside)
    if table:
        rows = run_table(url, pid, clock, aside=aside)
    else:
        arguments = ["-scenario", scenario, "-pairs", str(pairs), "-senders", str(senders), "-size", str(size)]
        arguments += ["-frames", str(frames), "-window", str(window), "-rate", str(rate), "-idle", str(idle)]
        try:
            result = generate(url, pid, arguments + clock)
        except RunFailed as failed:
            raise click.ClickException(str(failed)) from None
        rows = [(scenario, result)]
        click.echo(line(scenario, result), err=aside)
    if out is not None:
        text = json.dumps([{"case": name, **result} for name, result in rows], indent=1)
        if aside:
            click.echo(text)
        else:
            out.write_text(text + "\n")


if __name__ == "__main__":
    main()
