"""What a packet costs when sender and receiver are clients of different relays: two of ours beside two derpers.

    python bench/mesh.py                    # three rounds, some three minutes
    python bench/mesh.py --rounds 1 --seconds 0.5

Each number is the CPU of both relays together, per packet, over TLS from client to client (relays mesh over nothing
else).  Rounds alternate between ours and derper; the median ratio is what counts.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.generator import RunFailed, generate, window
from bench.servers import OURS_UNLIMITED, free_port, stop, wait_listening
from tests.support.gobuild import ROOT
from tests.support.manual_certificates import write_certificate
from tests.support.relay_command import RelayKind, command_line

NAME = "localhost"  # derper meshes with names, not with addresses
MESH_KEY = "5f" * 32
# The first relay finds the second one absent; a genuine relay tries again after 5 s.
MESHED_SECONDS = 6.0
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("10 pairs, 8 frames a write", ()),
    ("10 pairs, 1 frame a write", ("-frames", "1")),
    ("10 pairs, 64 B", ("-size", "64")),
    ("10 pairs, 8 KiB", ("-size", "8192")),
    ("fan-in 8 to 1", ("-scenario", "fanin", "-pairs", "1")),
)
KINDS: tuple[tuple[str, RelayKind], ...] = (("ours", "ours"), ("derper", "genuine"))


@contextmanager
def serve_two(name: str, kind: RelayKind) -> Iterator[list[tuple[str, int]]]:
    """Two meshed relays; (url, pid) of each."""
    with tempfile.TemporaryDirectory(prefix=f"bench-mesh-{name}-") as scratch, ExitStack() as stack:
        ports = [free_port(), free_port()]
        folders = [Path(scratch, str(number)) for number in range(2)]
        for folder in folders:
            folder.mkdir()
        roots = write_certificate(folders[0], NAME)  # one for both: each is the other's root
        for folder in folders:
            (folder / "certs").mkdir()
            for suffix in (".crt", ".key"):
                shutil.copy(roots.with_suffix(suffix), folder / "certs")
        found = []
        for folder, port in zip(folders, ports, strict=True):
            command = command_line(kind, folder, port, tls=True, hostname=NAME, mesh_key=MESH_KEY)
            command.append("--mesh-with=" + ",".join(f"{NAME}:{each}" for each in ports))
            with (folder / "output").open("wb") as output:
                process = subprocess.Popen(
                    [*command, *(OURS_UNLIMITED if kind == "ours" else ())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=os.environ | {"SSL_CERT_FILE": str(roots)},
                )
            stack.callback(stop, process)
            wait_listening(process, name, port, folder)
            found.append((f"https://{NAME}:{port}/derp", process.pid))
        time.sleep(MESHED_SECONDS)
        yield found


def measure(kind_name: str, kind: RelayKind, clock: list[str]) -> dict[str, float]:
    """CPU in microseconds per packet of both relays, by row."""
    costs: dict[str, float] = {}
    with serve_two(kind_name, kind) as ((near, near_pid), (far, far_pid)):
        for title, arguments in ROWS:
            result = generate(near, near_pid, [*arguments, "-far-url", far, "-far-pid", str(far_pid), *clock])
            traffic = result["traffic"]
            if not traffic["delivered"]:
                raise RunFailed(f"{kind_name}: nothing came through, the relays are not meshed")
            costs[title] = float(traffic["server_cpu_us_per_packet"])
            click.echo(
                f"  {kind_name:8}{title:30}{costs[title]:8.2f} us/packet"
                f" {traffic['packets_per_second']:10,.0f} packets/s  {100 * traffic['loss']:.2f} % lost",
                err=True,
            )
    return costs


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--rounds", default=3, help="how often each kind is started and measured")
@click.option("--seconds", default=3.0, help="the measured window of each row")
def main(rounds: int, seconds: float) -> None:
    clock = window(seconds)
    costs: dict[str, list[dict[str, float]]] = {name: [] for name, _ in KINDS}
    try:
        for _ in range(rounds):
            for name, kind in KINDS:
                costs[name].append(measure(name, kind, clock))
    except RunFailed as failed:
        raise click.ClickException(str(failed)) from None
    click.echo("CPU of both relays, us/packet".ljust(32) + "ours".rjust(8) + "derper".rjust(8) + "ratio".rjust(8))
    for title, _ in ROWS:
        ours, derper = ([one[title] for one in costs[name]] for name in ("ours", "derper"))
        ratio = statistics.median(a / b for a, b in zip(ours, derper, strict=True))
        click.echo(f"{title:32}{statistics.median(ours):8.2f}{statistics.median(derper):8.2f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
