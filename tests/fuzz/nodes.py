"""Play histories of two whole nodes for as long as you like: `python -m tests.fuzz.nodes --seed 1 --count 10000`.

A history follows from its number: NATs, what the ways lose, repeat, reorder and hold, what happens to them meanwhile,
two streams, and often a long silence with a ping a second.  The number of one that breaks a law is printed; `--count 1`
plays it again, and it belongs into test_nodes.py then.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from random import Random
from typing import Final

from tailnet.netstack.connection import Connection
from tailnet.netstack.stack import Event, PongReceived
from tests.support.netsim import Stream
from tests.support.nodesim import Faults, WholeWorld
from tests.tailnet.paths.world import START

KINDS: Final = ("open", "easy", "hard", "blocked")
ACTIONS: Final = ("cut", "heal", "one way", "router restarts")
PORT: Final = 80
# A path is trusted for 6.5 s after its last sign of life; by then TCP's next try may be 8 s away, and be lost.
STALL_SECONDS: Final = 30.0
# Sent again beyond what was lost, as a share of all segments, and what a path that was cut makes of a window of them.
SPURIOUS_SHARE: Final = 0.2
SPURIOUS_SEGMENTS: Final = 60
SECONDS: Final = 300.0
_STEP_SECONDS: Final = 0.25
_REFRESH_SECONDS: Final = 20.0
# WireGuard's least time between two initiations.
_INITIATION_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it."""

    world: WholeWorld
    streams: tuple[Stream, Stream]
    sent_segments: int
    retransmissions: int


def play(seed: int) -> Played:
    """One history; AssertionError when it breaks a law."""
    random = Random(f"history {seed}")
    faults = Faults(
        loss=random.choice((0.0, 0.0, 0.01, 0.05)),
        duplication=random.choice((0.0, 0.02, 0.2)),
        jitter=random.choice((0.0, 0.002, 0.02)),
        rate=random.choice((20_000.0, 50_000.0, 100_000.0)),
        queue=random.choice((16, 32, 512)),
        replay=random.choice((0.0, 0.02)),
        damage=random.choice((0.0, 0.1)),
    )
    world = WholeWorld(random.choice(KINDS), random.choice(KINDS), seed=seed, faults=faults)
    script = sorted((random.uniform(0, 20), random.choice(ACTIONS)) for _ in range(random.randrange(4)))
    here, there = _connect(world)
    data = [random.randbytes(random.randrange(1, 600_000)) for _ in range(2)]
    streams = Stream(world, here, there, data[0]), Stream(world, there, here, data[1])
    for node in world.nodes:
        node.flush()
    until = world.now + SECONDS
    began = refreshed_at = world.now
    while not all(stream.is_done for stream in streams):
        assert world.now < until, "the streams do not come to their end"
        world.run(world.now - START + _STEP_SECONDS)
        while script and script[0][0] <= world.now - began:
            act(world, script.pop(0)[1])
        if world.now - refreshed_at >= _REFRESH_SECONDS:
            refreshed_at = world.now
            for node in world.nodes:
                node.refresh()
                world.tell(node)
    for stream in streams:
        assert stream.got == stream.data
        assert stream.longest_stall < STALL_SECONDS
    counters = [node.core.stack.counters for node in world.whole]
    played = Played(
        world, streams, sum(each.segments_sent for each in counters), sum(each.retransmissions for each in counters)
    )
    assert played.retransmissions <= world.lost + SPURIOUS_SHARE * played.sent_segments + SPURIOUS_SEGMENTS
    if random.randrange(4) == 0:
        be_silent(world)
    for node in world.whole:
        initiations = node.core.device.counters.initiations_sent
        assert initiations <= 2 + (world.now - START) / _INITIATION_SECONDS
    return played


def _connect(world: WholeWorld) -> tuple[Connection, Connection]:
    a, b = world.whole
    listener = b.core.stack.listen(PORT)
    here = a.core.stack.connect(b.address, PORT)
    a.flush()
    while (there := listener.accept()) is None:
        assert world.now - START < 60, "no connection comes about"
        world.run(world.now - START + _STEP_SECONDS)
    return here, there


def act(world: WholeWorld, action: str) -> None:
    """Something happens to the ways; the relay's stays."""
    match action:
        case "cut":
            world.cut |= {(1, 2), (2, 1)}
        case "heal":
            world.cut.clear()
        case "one way":
            world.cut.add((1, 2))
        case "router restarts" if world.nodes[0].kind != "open":
            node = world.nodes[0]
            node.outside, node.mappings, node.allowed = f"198.51.100.{100 + int(world.now - START)}", {}, {}


def be_silent(world: WholeWorld, seconds: int = 400) -> None:
    """A ping a second is all that goes: keys are rotated, and of the answers so many come as the ways let through."""
    a, b = world.whole
    came: set[bytes] = set()

    def take(_: int, event: Event) -> None:
        if isinstance(event, PongReceived):
            came.add(event.token)

    world.users.append(take)
    before = len(a.key_since), len(b.key_since)
    for second in range(seconds):
        a.core.stack.send_ping(b.address, second.to_bytes(8, "big"))
        a.flush()
        world.run(world.now - START + 1)
    world.run(world.now - START + 1)
    for node, count in zip((a, b), before, strict=True):
        assert len(node.key_since) - count >= seconds // 180, "the key is the old one"
    # A lost initiation or a cut path costs some seconds' pings each.
    assert len(came) > seconds * (1 - 3 * world.faults.loss) - 40


def main() -> None:
    parser = argparse.ArgumentParser(description="Play histories of two whole nodes.")
    parser.add_argument("--seed", type=int, default=1, help="the first one's number")
    parser.add_argument("--count", type=int, default=1000)
    chosen = parser.parse_args()
    began, stall = time.monotonic(), 0.0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        try:
            played = play(seed)
        except BaseException:
            print(f"--seed {seed} --count 1", file=sys.stderr)
            raise
        stall = max(stall, *(stream.longest_stall for stream in played.streams))
    print(f"{chosen.count} histories in {time.monotonic() - began:.0f} s; longest stall {stall:.1f} s")


if __name__ == "__main__":
    main()
