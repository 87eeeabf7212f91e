"""What genuine clients lose while both relays of a region are replaced, one after the other: two of ours, two derpers.

    python bench/replacement.py                                   # 100 clients, SIGTERM beside derper, then SIGUSR2:
                                                                  # who dials anew, and who goes with his connection
    python bench/replacement.py --clients 5000 --period 2s        # needs some minutes

The clients are in pairs, one at each relay; each sends its partner a packet every period.  A silence is the longest
time between two packets that one of them received, of which a period is none of the relays' doing.  Meanwhile a genuine
netcheck looks every two seconds whether the home should be in another region, of one relay that nobody touches.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.gobuild import DERPROLLING, build
from tests.support.regions import Region, open_region
from tests.support.relay_command import RelayKind
from tests.support.relays import open_relay
from tests.support.rolling import roll

ROWS: Final[tuple[tuple[RelayKind, str], ...]] = (
    ("ours", "SIGTERM"),
    ("genuine", "SIGTERM"),
    ("ours", "SIGUSR2"),
    ("ours", "moved"),
)
COUNTS: Final = ("sent", "lost", "refused", "twice", "late", "gone", "home_moves", "reports")
# A genuine relay dials a lost one after 5 s; before that the region is not whole, and the next one is not touched.
SETTLED_SECONDS: Final = {"ours": 1.0, "genuine": 6.0}


async def replace(region: Region, number: int, kind: RelayKind, way: str) -> None:
    if way in ("SIGUSR2", "moved"):
        await region.hand_over(number)
    else:
        await region.stop(number)
        await region.start(number, kind)
    await trio.sleep(SETTLED_SECONDS[kind])


async def measure(kind: RelayKind, way: str, clients: int, period: str) -> str:
    records = ("--tls-records=own",) if way == "moved" else ()
    async with (
        open_region(kind, kind, extra=("--accept-connection-limit=100000", *records)) as region,
        open_relay(kind, tls=True, stun=True) as elsewhere,
    ):
        await trio.sleep(SETTLED_SECONDS[kind])
        turn = partial(replace, region, kind=kind, way=way)
        home = (region.stun_ports, (elsewhere.port, elsewhere.stun_port))
        found = await roll(build(DERPROLLING), region.ports, turn, clients=clients, period=period, home=home)
    silence = found["silence_ms"]
    counts = "".join(f"{found[name]:11,}" for name in COUNTS)
    return f"{kind:9}{way:9}{counts}{silence['p50']:11.0f}{silence['p99']:11.0f}{silence['max']:11.0f}"


@click.command()
@click.option("--clients", default=100, show_default=True)
@click.option("--period", default="100ms", show_default=True, help="between two packets of a client")
@click.option("--only", default="", help="one row: ours-SIGTERM, genuine-SIGTERM, ours-SIGUSR2 or ours-moved")
def main(clients: int, period: str, only: str) -> None:
    """Print a row for each kind of relay and way."""
    names = (*COUNTS, "p50 ms", "p99 ms", "max ms")
    click.echo("relays   by       " + "".join(f"{name:>11}" for name in names))
    for kind, way in ROWS:
        if not only or only == f"{kind}-{way}":
            click.echo(trio.run(measure, kind, way, clients, period))


if __name__ == "__main__":
    main()
