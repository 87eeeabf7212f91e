"""What a relay does when more comes for a client than it takes: delay, loss, fairness, and what that costs.

    python bench/queues.py                      three rounds beside the genuine relay, some eight minutes
    python bench/queues.py --rounds 1 --seconds 2 --only ours

A narrow way is a receiver that reads 10 Mbit/s out of a small buffer.  `idle` is the sparse senders alone on it; then
four senders want 2.5 times as much as there is, then all they can.  `overload` sends 2.5 times what the relay carries
in a closed loop over ten pairs; its share is of that.  Rounds alternate between the relays; medians count.
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CARRIERS, Carrier, Result
from bench.generator import RunFailed, generate, window
from bench.servers import Server, serve

NARROW_BYTES = 10_000_000 // 8
# The kernel doubles it; together they are 26 ms of that way, where a home router holds some 100.
NARROW_BUFFER_BYTES = 16 * 1024
SMALL_BUFFER_BYTES = 128 * 1024
PACKET_BYTES = 1280
SENDERS, SPARSE = 4, 50
# Of the narrow way's bytes; a packet has 37 bytes of head.
WANTED = {"4 x 6.25 Mbit/s": 2.5, "4 flat out": 0.0}
OVERLOAD = 2.5


def narrow(server: Server, clock: list[str], *, senders: int, rate: float = 0.0) -> Result:
    """Sparse senders, beside bulk ones if there are any, into the narrow way."""
    arguments = ["-scenario", "slow", "-senders", str(senders), "-sparse", str(SPARSE), "-rate", str(rate)]
    arguments += ["-read-rate", str(NARROW_BYTES), "-read-buffer", str(NARROW_BUFFER_BYTES), "-lag", "5s"]
    frames = "1" if rate else "32"
    result: Result = generate(
        server.url(websocket=False), server.pid, [*arguments, "-frames", frames, "-size", str(PACKET_BYTES), *clock]
    )["slow"]
    return result


def pairs(server: Server, clock: list[str], *, rate: float = 0.0, buffer_bytes: int = 0) -> Result:
    """Ten pairs in a closed loop, or at a rate."""
    arguments = ["-rate", str(rate), "-read-buffer", str(buffer_bytes), "-size", str(PACKET_BYTES)]
    traffic: Result = generate(server.url(websocket=False), server.pid, [*arguments, *clock])["traffic"]
    return traffic


def measure(server: Server, clock: list[str]) -> dict[str, float]:
    """Every row against one relay."""
    rows: dict[str, float] = {}
    idle = narrow(server, clock, senders=1, rate=1.0)["sparse_latency_us"]
    rows["idle: sparse p99, ms"] = idle["p99"] / 1000
    for title, wanted in WANTED.items():
        slow = narrow(server, clock, senders=SENDERS, rate=wanted * NARROW_BYTES / (PACKET_BYTES + 37))
        latency = slow["sparse_latency_us"]
        rows[f"{title}: sparse p99, ms"] = latency["p99"] / 1000 if latency else float("nan")
        rows[f"{title}: sparse lost, %"] = 100 * slow["sparse_lost"] / slow["sparse_sent"]
        rows[f"{title}: bulk p99, ms"] = slow["bulk_latency_us"]["p99"] / 1000
        rows[f"{title}: Jain"] = slow["jain"]
        rows[f"{title}: of the way, %"] = 100 * slow["goodput_bytes_per_second"] / NARROW_BYTES
        rows[f"{title}: user us/packet"] = slow["server_user_us_per_sent"]
    free = pairs(server, clock)
    ceiling = free["packets_per_second"]
    rows["free: packets/s"] = ceiling
    rows["free: user us/packet"] = free["server_user_us_per_sent"]
    for title, buffer_bytes in (("overload", 0), ("overload, 128 KiB", SMALL_BUFFER_BYTES)):
        traffic = pairs(server, clock, rate=OVERLOAD * ceiling, buffer_bytes=buffer_bytes)
        rows[f"{title}: of the ceiling, %"] = 100 * traffic["packets_per_second"] / ceiling
        rows[f"{title}: user us/packet"] = traffic["server_user_us_per_sent"]
    return rows


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--rounds", default=3, help="how often each relay is started and measured")
@click.option("--seconds", default=3.0, help="the measured window of each row")
@click.option("--only", type=click.Choice(["ours", "derper"]), multiple=True, help="these relays; all by default")
@click.option("--carrier", type=click.Choice(CARRIERS), multiple=True, help="these; all by default")
def main(rounds: int, seconds: float, only: tuple[str, ...], carrier: tuple[Carrier, ...]) -> None:
    clock = window(seconds)
    names = only or ("ours", "derper")
    for way in carrier or CARRIERS:
        seen: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
        try:
            for _ in range(rounds):
                for name in names:
                    with serve(name, way) as server:
                        for title, value in measure(server, clock).items():
                            seen[name][title].append(value)
        except RunFailed as failed:
            raise click.ClickException(str(failed)) from None
        click.echo(way.ljust(40) + "".join(name.rjust(12) for name in names))
        for title in seen[names[0]]:
            values = (statistics.median(seen[name][title]) for name in names)
            click.echo(title.ljust(40) + "".join(f"{value:12,.2f}" for value in values))


if __name__ == "__main__":
    main()
