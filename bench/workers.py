"""What a packet costs when its sender is on one worker and its receiver on another, beside the genuine derper; and what
two workers carry beside one.

    python bench/workers.py                 # three rounds, some four minutes
    python bench/workers.py --rounds 1 --seconds 0.5

Each number is the CPU of all processes of a relay, per packet, plain.  Rounds alternate between one worker of ours, two
between which every packet goes, and derper.  With the generator on the same cores packets/s say little: on a machine of
two cores it takes one of them.  So the second table has what follows from the CPU: a relay carries as much as its
busiest worker does with a core of its own, which is one packet per CPU of a packet and that worker's part of it.  What
cores of one machine take from each other, caches and memory, is not in it.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import Result
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
# How clients are spread over two workers, and for each generator of such a run which of the workers it comes to first:
# where its senders and its receivers are, by number; None: where the kernel puts each.
SPREADS: tuple[tuple[str, tuple[tuple[int, int] | None, ...]], ...] = (
    ("pairs within a worker", ((0, 0), (1, 1))),
    ("clients by chance", (None,)),
    ("pairs between workers", ((0, 1), (1, 0))),
)
_PAIRS = 24  # of chance: one worker has more than two thirds of 48 clients once in a hundred runs
_LISTEN = "0A"  # the state in /proc/net/tcp


@contextmanager
def relay(kind: str) -> Iterator[tuple[Server, list[str]]]:
    """A relay, and what the generator is told so that packets go from one worker to the other."""
    if kind == "two workers":
        with two_workers() as (server, (near, far)):
            yield server, way(near, far)
        return
    with serve("derper" if kind == "derper" else "ours", "plain") as server:
        yield server, []


@contextmanager
def two_workers() -> Iterator[tuple[Server, list[int]]]:
    """A relay, and the port that each of its workers has for itself."""
    with serve("ours", "plain", "--workers=2") as server:
        while "public key" not in server.output.read_text():  # its ports are open before its workers serve
            time.sleep(0.05)
        yield server, [own_port(pid, server.port) for pid in children(server.pid)]


def way(near: int, far: int) -> list[str]:
    return ["-url", f"http://{HOST}:{near}/derp", "-far-url", f"http://{HOST}:{far}/derp"]


def own_port(pid: int, shared_port: int) -> int:
    """Where a worker checks itself: the only port of it that it shares with no other."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        port = int(columns[1].rpartition(":")[2], 16)
        if columns[3] == _LISTEN and port != shared_port and f"socket:[{columns[9]}]" in links:
            return port
    raise RunFailed(f"process {pid} has no port of its own")


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process: proc(5), schedstat."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def capacity_of_one(clock: list[str]) -> float:
    with relay("one worker") as (server, _):
        arguments = ["-pairs", str(_PAIRS), *clock]
        traffic = generate(server.url(websocket=False), server.pid, arguments)["traffic"]
    return 1e6 / float(traffic["server_cpu_us_per_packet"])


def capacity_of_two(places: Sequence[tuple[int, int] | None], clock: list[str]) -> float:
    """Packets a second that two workers carry if each has a core."""
    with two_workers() as (server, ports):
        pids = children(server.pid)
        before = [cpu_seconds(pid) for pid in pids]
        url = server.url(websocket=False)

        def run(place: tuple[int, int] | None) -> Result:
            spread = way(*(ports[number] for number in place)) if place is not None else []
            arguments = [*spread, "-pairs", str(_PAIRS // len(places)), *clock]
            result: Result = generate(url, server.pid, arguments)["traffic"]
            return result

        with ThreadPoolExecutor() as threads:
            runs = list(threads.map(run, places))
        used = [cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    # Each generator divided the CPU of all processes by its own packets.
    cpu = statistics.mean(float(one["server_cpu_us_per_packet"]) * float(one["packets_per_second"]) for one in runs)
    per_packet = cpu / sum(float(one["packets_per_second"]) for one in runs)
    return 1e6 / (per_packet * max(used) / sum(used))


def show_capacity(rounds: int, clock: list[str]) -> None:
    found: dict[str, list[float]] = {name: [] for name in ("one worker", *(name for name, _ in SPREADS))}
    for _ in range(rounds):
        found["one worker"].append(capacity_of_one(clock))
        for name, places in SPREADS:
            found[name].append(capacity_of_two(places, clock))
    click.echo(f"\n{'packets/s, a core for each worker':40}{'packets/s':>12}{'over one':>10}")
    for name, carried in found.items():
        ratio = statistics.median(a / b for a, b in zip(carried, found["one worker"], strict=True))
        click.echo(f"{name:40}{statistics.median(carried):12,.0f}{ratio:10.2f}")


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
    try:
        show_capacity(rounds, clock)
    except RunFailed as failed:
        raise click.ClickException(str(failed)) from None


if __name__ == "__main__":
    main()
