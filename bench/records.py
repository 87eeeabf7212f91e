"""TLS records of our own (--tls-records own) beside OpenSSL's and the genuine relay: CPU a packet, memory a client.

    python bench/records.py                      three rounds, some minutes
    python bench/records.py --rounds 1 --only idle

In each round each row runs on each relay in turn; the median round counts.  Needs what compare.py needs.
"""

import statistics
import sys
from pathlib import Path
from typing import Final

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES, Case, Result
from bench.generator import RunFailed, generate
from bench.servers import serve

# By title: which relay, with what more on its command line.
RELAYS: Final = {"own records": ("ours", "--tls-records=own"), "OpenSSL's": ("ours",), "derper": ("derper",)}
ROWS: Final = {case.name: case for case in CASES if case.name in ("pairs10", "pairs100", "single10", "idle")}


def run(case: Case, relay: str) -> Result:
    """One run on a relay of its own: memory is that of one which served nobody before."""
    name, *options = RELAYS[relay]
    with serve(name, "tls", *options) as server:
        return generate(server.url(websocket=False), server.pid, case.arguments)


def cell(case: Case, result: Result) -> float:
    """KB a client, or us a packet."""
    if case.name == "idle":
        return float(result["connect"]["bytes_per_client"]) / 1e3
    return float(result["traffic"]["server_cpu_us_per_packet"])


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="rows; all of them by default")
def main(rounds: int, only: tuple[str, ...]) -> None:
    for name in only or ROWS:
        case = ROWS[name]
        seen: dict[str, list[float]] = {relay: [] for relay in RELAYS}
        for _ in range(rounds):
            for relay, values in seen.items():
                try:
                    values.append(cell(case, run(case, relay)))
                except RunFailed as failed:
                    raise click.ClickException(f"{case.title}, {relay}: {failed}") from None
        numbers = ", ".join(f"{relay} {statistics.median(values):.2f}" for relay, values in seen.items())
        print(f"{case.title} ({'KB a client' if name == 'idle' else 'us a packet'}): {numbers}", flush=True)


if __name__ == "__main__":
    main()
