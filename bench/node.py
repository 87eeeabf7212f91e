"""What a node does besides moving a stream: many connections, first words, many nodes, a way that is cut, hours.

    python bench/node.py                     # some two minutes
    python bench/node.py --only "50 nodes"
    python bench/node.py --soak 30           # minutes of traffic across rekeys, of which a row is printed each minute

The other end is a genuine node (tests/interop/go_tailscaled/cmd/wholenode), the relay is ours with TLS and its queue of
512.  Targets are absolute here: bounds that a user would notice, far above what an idle machine shows.
"""

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools

import trio

from bench.dataplane import certificate_of
from bench.servers import Server, serve
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.map import DERPNode, DERPRegion
from tailnet.node.core import PeerNode
from tailnet.node.engine import Engine, open_engine
from tests.support.gobuild import WHOLENODE, build
from tests.support.relay_command import HOST
from tests.support.whole_node import PLAIN, REGION, Pair, open_pair
from tests.support.wireguard_peer import THERE

CONNECTIONS = 200
ASKED_BYTES = 4096
TIMES = 40
NODES = 50
IDLE_SECONDS = 20.0
PING_SECONDS = 0.1
SOAK_CHUNK = 1_000_000


def say(what: str, found: str, target: str, met: bool) -> None:
    print(f"| {what} | {found} | {target}, {'met' if met else 'missed'} |", flush=True)


async def fetch(engine: Engine, size: int) -> None:
    async with await engine.dial(THERE, PLAIN) as stream:
        await stream.send_all(b"%d\n" % size)
        came = 0
        while piece := await stream.receive_some():
            came += len(piece)
        assert came == size, f"{came} bytes came, not {size}"


# --- many connections ---


async def run_connections(pair: Pair) -> None:
    """All are dialled at once, and each is answered."""
    took: list[float] = []

    async def one() -> None:
        began = trio.current_time()
        await fetch(pair.engine, ASKED_BYTES)
        took.append(trio.current_time() - began)

    used = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(one)
    used = time.process_time() - used
    p99 = statistics.quantiles(took, n=100)[98]
    found = f"{len(took)} answered, p99 {p99 * 1000:.0f} ms, {used / CONNECTIONS * 1e6:.0f} us of CPU each"
    say(f"{CONNECTIONS} connections at once", found, "p99 < 1 s", len(took) == CONNECTIONS and p99 < 1)


# --- first words ---


async def run_first_words(pair: Pair) -> None:
    """A session anew with its first round trip, and a dial over one that is there."""
    engine, peer = pair.engine, PeerNode(pair.peer.public, (THERE,), None, (), REGION)
    handshakes, dials = [], []
    for _ in range(TIMES):
        began = trio.current_time()
        async with await engine.dial(THERE, PLAIN):
            dials.append(trio.current_time() - began)
    for _ in range(TIMES):
        engine.core.remove(peer.node_key)
        engine.core.configure(peer, trio.current_time())
        began = trio.current_time()
        await engine.ping(THERE)
        handshakes.append(trio.current_time() - began)
        await trio.sleep(0.05)  # a genuine node takes no initiation within 20 ms of the last
    for what, times, target in (("handshake and a round trip", handshakes, 5), ("dial", dials, 2)):
        median = statistics.median(times) * 1000
        say(
            f"{what}, by the relay",
            f"median {median:.1f} ms, worst {max(times) * 1000:.1f}",
            f"< {target} ms",
            median < target,
        )


# --- many nodes ---


async def run_nodes(server: Server) -> None:
    """Each at the relay, with a session to another one, and nothing to say.  Without TLS, whose state of a connection
    (50 KiB) is OpenSSL's."""
    address = DERPNode(
        name="1", region_id=REGION, host_name=HOST, ipv4=HOST, ipv6="none", derp_port=server.port, stun_port=-1,
        force_http=True,
    )  # fmt: skip
    regions = {REGION: DERPRegion(REGION, "bench", "Bench", nodes=(address,))}
    keys = [NodePrivate.generate() for _ in range(NODES + 2)]
    addresses = [bytes.fromhex("fd7a115ca1e0") + bytes(8) + number.to_bytes(2, "big") for number in range(NODES + 2)]
    async with AsyncExitStack() as stack:
        engines: list[Engine] = []

        async def add(count: int) -> None:
            first = len(engines)
            for number in range(first, first + count):
                opened = open_engine(
                    keys[number], [addresses[number]], regions, REGION, options=DialOptions(environment=None)
                )
                engines.append(await stack.enter_async_context(opened))
            for number in range(first, first + count):
                await engines[number].relays.wait_connected(REGION)
                other = number ^ 1
                disco, endpoints = engines[other].core.paths.disco_key, engines[other].local_endpoints
                known = PeerNode(keys[other].public().raw, (addresses[other],), disco, endpoints, REGION)
                engines[number].core.configure(known, trio.current_time())
            for number in range(first, first + count):
                await engines[number].ping(addresses[number ^ 1])

        await add(2)  # what the first one imports and caches is the process's
        before = resident_bytes()
        await add(NODES)
        each = (resident_bytes() - before) / NODES / 1024
        await trio.sleep(10)  # heartbeats of what was just used end
        used, began = time.process_time(), time.monotonic()
        await trio.sleep(IDLE_SECONDS)
        share = (time.process_time() - used) / (time.monotonic() - began) * 100
        say(f"memory of one of {NODES} nodes", f"{each:.0f} KiB", "< 64 KiB", each < 64)
        say(f"{NODES} idle nodes", f"{share:.2f} % of a core", "< 0.5 %", share < 0.5)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- a way that is cut ---


async def run_switch(pair: Pair) -> None:
    """Pings through the tunnel while it goes from the relay to a direct way, which is then cut."""
    answered: list[float] = []
    sent = 0

    async def ping() -> None:
        nonlocal sent
        sent += 1
        with trio.move_on_after(30):
            await pair.engine.ping(THERE, timeout_seconds=30)
            answered.append(trio.current_time())

    async with trio.open_nursery() as nursery:

        async def loop() -> None:
            while True:
                nursery.start_soon(ping)
                await trio.sleep(PING_SECONDS)

        pair.sockets.is_cut = True
        async with trio.open_nursery() as pings:
            pings.start_soon(loop)
            await trio.sleep(2)
            pair.sockets.is_cut = False
            await pair.wait_way(True)
            await trio.sleep(2)
            pair.sockets.is_cut = True
            await trio.sleep(15)  # a path is trusted for 6.5 s after its last sign of life
            pings.cancel_scope.cancel()
    gap = max(later - earlier for earlier, later in itertools.pairwise(answered))
    found = f"longest gap {gap:.1f} s, {len(answered)} of {sent} answered"
    say("pings, relay to direct to relay", found, "no gap over 7 s", gap < 7)


# --- hours ---


async def run_soak(pair: Pair, minutes: float) -> None:
    """A megabyte after the other, with new keys each two minutes; how long the slowest took, and what memory did."""
    end = trio.current_time() + minutes * 60
    first, worst, count = 0, 0.0, 0
    while trio.current_time() < end:
        slice_end, slowest = min(trio.current_time() + 60, end), 0.0
        while trio.current_time() < slice_end:
            began = trio.current_time()
            await fetch(pair.engine, SOAK_CHUNK)
            slowest = max(slowest, trio.current_time() - began)
            count += 1
        held = resident_bytes()
        first = first or held
        worst = max(worst, slowest)
        print(
            f"soak: {count} MB, slowest of the last minute {slowest * 1000:.0f} ms, {held / 1e6:.1f} MB held",
            file=sys.stderr,
        )
    growth = (held - first) / 1024
    handshakes = pair.engine.core.device.counters.initiations_sent
    found = f"{count} MB, {handshakes} initiations, slowest MB {worst * 1000:.0f} ms, grown {growth:.0f} KiB"
    say(f"soak of {minutes:g} minutes", found, "no stall over 1 s, < 2 MiB", worst < 1 and growth < 2048)


# --- all ---

ROWS: dict[str, tuple[Callable[[Pair], Awaitable[None]], bool]] = {
    "connections": (run_connections, False),
    "first words": (run_first_words, False),
    "switch": (run_switch, True),
}
"""Each with a pair of its own: whether that may be direct."""
NODES_ROW = f"{NODES} nodes"


async def with_pair(server: Server, run: Callable[[Pair], Awaitable[None]], is_direct: bool) -> None:
    async with open_pair(build(WHOLENODE), server.port, certificate_of(server), is_direct=is_direct) as pair:
        await pair.engine.ping(THERE)
        await run(pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*ROWS, NODES_ROW], help="this row alone")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="traffic for so long, and nothing else")
    parser.add_argument("--child", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        trio.run(run_nodes, Server("ours", "plain", arguments.child, 0, Path()))
        return
    print("| what | found | target |\n|---|---|---|", flush=True)
    if arguments.soak:
        with serve("ours", "tls") as server:
            trio.run(with_pair, server, lambda pair: run_soak(pair, arguments.soak), False)
        return
    wanted = arguments.only or [*ROWS, NODES_ROW]
    with serve("ours", "tls") as server:
        for name in filter(wanted.__contains__, ROWS):
            trio.run(with_pair, server, *ROWS[name])
    if NODES_ROW in wanted:
        with serve("ours", "plain") as server:
            subprocess.run([sys.executable, __file__, "--child", str(server.port)], check=True)


if __name__ == "__main__":
    main()
