"""The bench of two meshed relays measures what it says: packets that cross from one to the other, none lost."""

import pytest
import trio

from bench.generator import generate
from bench.mesh import KINDS, serve_two
from tests.support.gobuild import DERPER, LOAD
from tests.support.peers import require
from tests.support.relay_command import RelayKind

pytestmark = pytest.mark.interop

SHORT = ("-warmup", "50ms", "-measure", "200ms", "-settle", "200ms", "-pairs", "3", "-senders", "2")


@pytest.mark.parametrize(("name", "kind"), KINDS)
async def test_packets_cross_and_both_relays_are_counted(name: str, kind: RelayKind) -> None:
    require(LOAD)
    require(DERPER)

    def run() -> tuple[float, float]:
        with serve_two(name, kind) as ((near, near_pid), (far, far_pid)):
            far_arguments = [*SHORT, "-far-url", far]
            for scenario in ("pairs", "fanin"):
                both = generate(near, near_pid, [*far_arguments, "-far-pid", str(far_pid), "-scenario", scenario])
                assert both["traffic"]["delivered"] > 300
                assert both["traffic"]["lost"] == 0
            alone = generate(near, near_pid, [*far_arguments, "-scenario", "fanin"])
            cost: tuple[float, float] = (
                both["traffic"]["server_cpu_us_per_packet"],
                alone["traffic"]["server_cpu_us_per_packet"],
            )
            return cost

    both, alone = await trio.to_thread.run_sync(run)
    assert both > alone > 0
