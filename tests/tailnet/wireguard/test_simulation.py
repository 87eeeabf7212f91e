"""Devices over bad links, for hours of virtual time: nothing twice, no old keys, and no stall once the link is well."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tailnet.wireguard.counters import Drop
from tailnet.wireguard.timers import REJECT_AFTER_SECONDS, REKEY_AFTER_SECONDS
from tests.tailnet.wireguard.world import START, Fate, Node, World

# After a link has become well: silence is noticed after at most 15.4 s, and the first initiation may have to wait for
# 5 s since the last handshake message; another 5.4 s if that one crossed the peer's own of the same moment.
STALL_SECONDS = 26.0


def bad_link(seed: int, loss: float, reorder: float, duplicate: float, delay: float) -> Fate:
    random = Random(seed)

    def fate(*_: object) -> list[float]:
        copies = 1 + (random.random() < duplicate)
        return [
            delay + (random.random() * 3 if random.random() < reorder else 0.0)
            for _ in range(copies)
            if random.random() >= loss
        ]

    return fate


def talk(world: World, start: int, seconds: int, says: Random) -> list[tuple[float, Node, Node, bytes]]:
    """Each node sends to each about once a second.  Returns what was sent."""
    said: list[tuple[float, Node, Node, bytes]] = []
    for second in range(start, start + seconds):
        world.run(second + says.random())
        for node in world.nodes:
            for other in world.nodes:
                if node is not other and says.random() < 0.9:
                    body = b"%d from %d" % (start, len(said))
                    said.append((world.now, node, other, body))
                    node.send(other, body)
    return said


def used_keys(world: World) -> dict[tuple[str, str], list[tuple[float, int]]]:
    """When each direction changed to which session."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for (at, _, kind), (sender, receiver, datagram) in zip(world.trace, world.wire, strict=True):
        if kind in ("data", "keepalive"):
            index = int.from_bytes(datagram[4:8], "little")
            changes = found.setdefault((sender.name, receiver.name), [])
            if index not in (each for _, each in changes):
                changes.append((at, index))
    return found


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    loss=st.floats(0, 0.6),
    reorder=st.floats(0, 0.5),
    duplicate=st.floats(0, 0.5),
    delay=st.floats(0, 0.5),
)
@example(seed=1, loss=0.0, reorder=0.0, duplicate=1.0, delay=0.01)
@example(seed=2, loss=0.0, reorder=0.0, duplicate=0.0, delay=0.5)
@example(seed=2, loss=0.9, reorder=0.0, duplicate=0.0, delay=0.01)
def test_bad_links_that_become_well(seed: int, loss: float, reorder: float, duplicate: float, delay: float) -> None:
    world, says = World("AB", bad_link(seed, loss, reorder, duplicate, delay)), Random(seed)
    said = talk(world, 0, 300, says)
    world.fate = lambda *_: [delay]
    well = world.now
    said += talk(world, 300, 300, says)
    world.run(610)
    for node in world.nodes:
        assert len(node.bodies) == len(set(node.bodies)), "nothing is accepted twice"
        for _, _, _, body in (each for each in said if each[2] is node and each[0] > well + STALL_SECONDS):
            assert body in node.bodies, "no stall, and no loss on a link that is well"
        drops = node.device.counters.drops
        assert drops[Drop.FORGED_PACKET] == drops[Drop.FORGED_HANDSHAKE] == 0
        assert drops[Drop.FOREIGN_SOURCE] == drops[Drop.NOT_IPV6] == drops[Drop.MALFORMED] == 0
    for changes in used_keys(world).values():
        late = [each for each in changes if each[0] > well + STALL_SECONDS - START]
        gaps = [after - before for (before, _), (after, _) in pairwise(late)]
        assert all(gap < REKEY_AFTER_SECONDS + 15 for gap in gaps), "keys change in time"


@pytest.mark.parametrize("seed", range(3))
def test_many_nodes_over_a_bad_link(seed: int) -> None:
    world = World("ABCDE", bad_link(seed, 0.1, 0.2, 0.2, 0.02))
    said = talk(world, 0, 250, Random(seed))
    world.run(260)
    heard = sum(len(node.inbox) for node in world.nodes)
    assert sum(len(set(node.bodies)) for node in world.nodes) == heard
    assert heard > 0.8 * len(said)


def test_no_session_outlives_its_time() -> None:
    """Handshakes stop getting through; data goes on with the old keys until they are over, and no longer."""
    world = World("AB")
    a, b = world.nodes
    a.send(b, b"first")
    world.settle()
    world.fate = lambda sender, receiver, datagram: [] if datagram[0] in (1, 2) else [0.0]
    for second in range(1, 300):
        world.run(second)
        a.send(b, b"%d" % second)
        b.send(a, b"%d" % second)
    world.run(300)
    last = int(REJECT_AFTER_SECONDS)
    assert b.bodies[-1] == b"%d" % (last - 1)
    world.fate = lambda *_: [0.0]
    world.run(310)
    assert a.bodies[-1] == b.bodies[-1] == b"299", "what waited comes then"
