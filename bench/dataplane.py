"""What one stream through a tunnel carries and costs, by a relay and directly, beside two genuine nodes.

    python bench/dataplane.py            # five rounds, some two minutes
    python bench/dataplane.py --quick --only "relay download"

Whoever dials is measured, and the other end is a genuine node in every row: ours is an Engine in a process of its own,
the baseline one more genuine node (tests/interop/go_tailscaled/cmd/wholenode).  The relay is ours.  Rounds interleave
the two, and ratios are taken within a round.  CPU is that of the process that dials, per megabyte of the stream.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import trio

from bench.servers import Server, serve
from derp.keys import NodePrivate
from tests.support.gobuild import WHOLENODE, build
from tests.support.relay_command import HOST
from tests.support.whole_node import COUNT, PLAIN, open_pair, open_whole_node
from tests.support.wireguard_peer import HERE, THERE

MEGABYTE = 1_000_000
ROUNDS = 5
CHUNK = bytes(256 * 1024)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    is_direct: bool
    is_download: bool
    target: float
    """Of the rate, beside the genuine node's."""
    queue_depth: int = 512
    """Of the relay: ours by default, or the genuine one's."""


CASES = (
    Case("relay download", False, True, 1.2),
    Case("relay upload", False, False, 1.0),
    Case("queue of 32, download", False, True, 1.2, 32),
    Case("queue of 32, upload", False, False, 1.0, 32),
    Case("direct download", True, True, 1.0),
    Case("direct upload", True, False, 0.8),
)


@dataclass(frozen=True, slots=True)
class Result:
    """Mbit/s, and milliseconds of CPU a megabyte."""

    rate: float
    cpu: float


def result(size: int, seconds: float, cpu: float) -> Result:
    return Result(size * 8 / seconds / 1e6, cpu * 1000 / (size / MEGABYTE))


# --- ours, in a process of its own ---


async def run_ours(case: Case, size: int, port: int, certificate: Path) -> None:
    async with open_pair(build(WHOLENODE), port, certificate, is_direct=case.is_direct) as pair:
        await pair.wait_way(case.is_direct)

        async def transfer(size: int) -> None:
            async with await pair.dial(PLAIN if case.is_download else COUNT) as stream:
                came = 0
                if case.is_download:
                    await stream.send_all(b"%d\n" % size)
                    while piece := await stream.receive_some():
                        came += len(piece)
                    assert came == size, f"{came} bytes came, not {size}"
                    return
                for at in range(0, size, len(CHUNK)):
                    await stream.send_all(CHUNK[: size - at])
                await stream.send_eof()
                text = await stream.receive_some()
                assert text == b"%d" % size, f"{text!r} came there, not {size}"

        await transfer(MEGABYTE)
        began, used = time.monotonic(), time.process_time()
        await transfer(size)
        print(json.dumps([size, time.monotonic() - began, time.process_time() - used]))


def ours(case: Case, size: int, server: Server) -> Result:
    command = [sys.executable, __file__, "--child", case.name, "--bytes", str(size), "--port", str(server.port)]
    done = subprocess.run([*command, "--certificate", str(certificate_of(server))], stdout=subprocess.PIPE, check=True)
    return result(*json.loads(done.stdout))


def certificate_of(server: Server) -> Path:
    return server.output.parent / "certs" / f"{HOST}.crt"


# --- two genuine nodes ---


async def run_genuine(case: Case, size: int, server: Server) -> Result:
    binary, keys = build(WHOLENODE), (NodePrivate.generate(), NodePrivate.generate())
    publics = [key.public().raw for key in keys]
    async with (
        open_whole_node(
            binary, keys[0], publics[1], server.port, here=HERE, there=THERE, is_direct=case.is_direct
        ) as one,
        open_whole_node(binary, keys[1], publics[0], server.port, is_direct=case.is_direct) as other,
    ):
        for node, peer in ((one, other), (other, one)):
            await node.meet(peer.disco, await peer.endpoints() if case.is_direct else "")
        order = ("get", PLAIN) if case.is_download else ("put", COUNT)
        async with trio.open_nursery() as nursery:  # each is heard once the other is at its relay
            nursery.start_soon(one.reach)
            nursery.start_soon(other.reach)
        await one.ask(*order, MEGABYTE)
        for node in (one, other):
            await node.reach(case.is_direct)
        used = float((await one.ask("usage"))["text"])
        said = await one.ask(*order, size)
        used = float((await one.ask("usage"))["text"]) - used
        return result(size, said["seconds"], used)


# --- rounds ---


def measure(cases: list[Case], rounds: int, size: int) -> list[dict[str, Any]]:
    build(WHOLENODE)
    rows = []
    for case in cases:
        pairs = []
        with serve("ours", "tls", f"--queue-depth={case.queue_depth}") as server:
            for number in range(rounds):
                pairs.append((ours(case, size, server), trio.run(run_genuine, case, size, server)))
                mine, theirs = pairs[-1]
                print(
                    f"{case.name}, round {number + 1}: ours {mine.rate:.0f} Mbit/s, {mine.cpu:.2f} ms/MB; "
                    f"genuine {theirs.rate:.0f} Mbit/s, {theirs.cpu:.2f} ms/MB",
                    file=sys.stderr,
                )
        rows.append(
            {
                "case": case.name,
                "ours": statistics.median(mine.rate for mine, _ in pairs),
                "genuine": statistics.median(theirs.rate for _, theirs in pairs),
                "ratio": statistics.median(mine.rate / theirs.rate for mine, theirs in pairs),
                "target": case.target,
                "ours_cpu": statistics.median(mine.cpu for mine, _ in pairs),
                "genuine_cpu": statistics.median(theirs.cpu for _, theirs in pairs),
                "cpu_ratio": statistics.median(mine.cpu / theirs.cpu for mine, theirs in pairs),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], size: int) -> None:
    print(f"one stream of {size // MEGABYTE} MB; load before: {os.getloadavg()[0]:.1f}; CPU of whoever dials")
    print("| case | ours Mbit/s | genuine | ratio | target | ours ms of CPU a MB | genuine | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        met = "met" if row["ratio"] >= row["target"] else "missed"
        print(
            f"| {row['case']} | {row['ours']:.0f} | {row['genuine']:.0f} | {row['ratio']:.2f} "
            f"| >= {row['target']}, {met} | {row['ours_cpu']:.2f} | {row['genuine_cpu']:.2f} | {row['cpu_ratio']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 10 MB: does it work?")
    parser.add_argument("--only", action="append", choices=[case.name for case in CASES], help="this row alone")
    parser.add_argument("--bytes", type=int, default=60 * MEGABYTE, help="of a stream")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--certificate", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        case = next(each for each in CASES if each.name == arguments.child)
        trio.run(run_ours, case, arguments.bytes, arguments.port, arguments.certificate)
        return
    size, rounds = (10 * MEGABYTE, 1) if arguments.quick else (arguments.bytes, arguments.rounds)
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    show(measure(cases, rounds, size), size)


if __name__ == "__main__":
    main()
