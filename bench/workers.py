"""What a packet costs when its sender is on one worker and its receiver on another, beside the genuine derper.

    python bench/workers.py                 # three rounds, some three minutes
    python bench/workers.py --rounds 1 --seconds 0.5

Each number is the CPU of all processes of a relay, per packet, plain.  Rounds alternate between one worker of ours, two
between which every packet goes, and derper.  With the generator on the same cores packets/s say little: on a machine of
two cores it takes one of them.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.generator import RunFailed, generate, window
from bench.servers import Server, serve
from tests.support.processes import children
from tests.support.relay_command import HOST

# title, arguments, and what two workers may cost of derper's CPU.
ROWS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("10 pairs, 8 frames a write", (), 1 / 4),
    ("10 pairs, 1 frame a write", ("-frames", "1"), 1 / 1.7),
    ("1,000 packets/s on one pair", ("-frames", "1", "-rate", "1000", "-pairs", "1"), 1.2),
)
KINDS = ("one worker", "two workers", "derper")
_LISTEN = "0A"  # the state in /proc/net/tcp


@contextmanager
def relay(kind: str) -> Iterator[tuple[Server, list[str]]]:
    """A relay, and what the generator is told so that packets go from one worker to the other."""
    if kind != "two workers":
        with serve("derper" if kind == "derper" else "ours", "plain") as server:
            yield server, []
        return
    with serve("ours", "plain", "--workers=2") as server:
        while "public key" not in server.output.read_text():  # its ports are open before its workers serve
            time.sleep(0.05)
        near, far = (own_port(pid, server.port) for pid in children(server.pid))
        yield server, ["-url", f"http://{HOST}:{near}/derp", "-far-url", f"http://{HOST}:{far}/derp"]


def own_port(pid: int, shared_port: int) -> int:
    """Where a worker checks itself: the only port of it that it shares with no other."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        port = int(columns[1].rpartition(":")[2], 16)
        if columns[3] == _LISTEN and port != shared_port and f"socket:[{columns[9]}]" in links:
            return port
    raise RunFailed(f"process {pid} has no port of its own")


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--rounds", default=3, help="how often each kind is started and measured")
@click.option("--seconds", default=3.0, help="the measured window of each row")
def main(rounds: int, seconds: float) -> None:
    clock = window(seconds)
    costs: dict[tuple[str, str], list[float]] = {(title, kind): [] for title, _, _ in ROWS for kind in KINDS}
    try:
        for _ in range(rounds):
            for kind in KINDS:
                with relay(kind) as (server, way):
                    for title, arguments, _ in ROWS:
                        url = server.url(websocket=False)
                        traffic = generate(url, server.pid, [*way, *arguments, *clock])["traffic"]
                        if not traffic["delivered"]:
                            raise RunFailed(f"{kind}: nothing came through")
                        costs[title, kind].append(float(traffic["server_cpu_us_per_packet"]))
                        shown = (
                            f"{costs[title, kind][-1]:8.2f} us/packet {traffic['packets_per_second']:10,.0f} packets/s"
                        )
                        click.echo(f"  {kind:14}{title:30}{shown}", err=True)
    except RunFailed as failed:
        raise click.ClickException(str(failed)) from None
    click.echo(
        "CPU, us/packet".ljust(30) + "".join(kind.rjust(13) for kind in KINDS) + "ratio".rjust(8) + "goal".rjust(8)
    )
    for title, _, goal in ROWS:
        one, two, derper = (costs[title, kind] for kind in KINDS)
        ratio = statistics.median(a / b for a, b in zip(two, derper, strict=True))
        medians = "".join(f"{statistics.median(each):13.2f}" for each in (one, two, derper))
        click.echo(f"{title:30}{medians}{ratio:8.2f}{goal:8.2f}")


if __name__ == "__main__":
    main()
