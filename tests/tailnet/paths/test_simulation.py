"""Pairs of nodes behind every kind of NAT: a path is found where there is one, and its end is no gap."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailnet.paths.core import ALL_PINGS_PER_SECOND, PathChanged
from tailnet.paths.endpoint import Endpoint
from tests.tailnet.paths.world import Node, World

# The bound on a gap in a ping loop when a path is cut.
GAP_SECONDS = 7.0

REACHABLE = [
    *(("open", kind) for kind in ("open", "easy", "hard")),
    ("easy", "easy"),
    ("easy", "open"),
    ("hard", "open"),
]
BY_RELAY = [("easy", "hard"), ("hard", "hard"), ("open", "blocked"), ("blocked", "blocked"), ("blocked", "easy")]


def talk(world: World, start: float, end: float) -> None:
    for _ in world.talk(start, end):
        pass


def widest_gap(node: Node, since: float = 0.0) -> float:
    times = [at for at, _, _ in node.inbox if at >= since]
    return max(after - before for before, after in pairwise(times))


def lost(sender: Node, receiver: Node, before: float) -> int:
    """Packets that never came, of those sent up to then, ten a second."""
    return sum((sender.number, number) not in receiver.seen for number in range(1, round(before * 10)))


@pytest.mark.parametrize(("one", "other"), REACHABLE)
def test_a_direct_path_is_found_where_there_is_one(one: str, other: str) -> None:
    world = World(one, other)
    a, b = world.nodes
    talk(world, 0, 20)
    for node, peer in ((a, b), (b, a)):
        assert node.inbox[0][2] is False, "the relay carries the first packet"
        assert node.inbox[-1][2] is True, "and UDP the last"
        assert lost(peer, node, 19) == 0
        assert widest_gap(node) < 0.2
        assert isinstance(node.events[0], PathChanged)
    first = min(at for at, _, by_udp in a.inbox if by_udp)
    assert first < (0.3 if one == other == "open" else 7)


@pytest.mark.parametrize(("one", "other"), BY_RELAY)
def test_where_there_is_none_the_relay_carries_everything(one: str, other: str) -> None:
    world = World(one, other)
    a, b = world.nodes
    talk(world, 0, 60)
    assert not any(by_udp for _, _, by_udp in (*a.inbox, *b.inbox))
    assert lost(a, b, 59) == lost(b, a, 59) == 0
    # Tried every 5 s by each side, and as often because the other calls.
    assert a.paths.counters.pings_sent <= 2 * 60 / 5 * len(b.endpoints()) + 5


def test_two_in_one_house_use_the_short_way() -> None:
    world = World("easy", "easy", lan=True)
    a, b = world.nodes
    talk(world, 0, 20)
    assert a.peer(b).best == b.inside
    assert b.peer(a).best == a.inside


@pytest.mark.parametrize(("one", "other"), REACHABLE)
def test_a_path_that_is_cut_is_left_without_a_stall(one: str, other: str) -> None:
    world = World(one, other)
    a, b = world.nodes
    talk(world, 0, 20)
    world.cut |= {(1, 2), (2, 1)}
    talk(world, 20, 60)
    for node in (a, b):
        assert widest_gap(node) < 4.5 < GAP_SECONDS
        assert node.inbox[-1][2] is False
        assert node.events[-1] == PathChanged(node.peer(b if node is a else a), None)
    world.cut.clear()
    talk(world, 60, 90)
    assert all(node.inbox[-1][2] for node in (a, b)), "and found again"
    assert widest_gap(a, 40) < 0.2


def test_only_one_direction_is_cut() -> None:
    """What A sends gets lost, what B sends arrives: no pong comes to either, so both leave the path."""
    world = World("open", "open")
    a, b = world.nodes
    talk(world, 0, 20)
    world.cut.add((1, 2))
    talk(world, 20, 50)
    assert widest_gap(b) < 4.5
    assert widest_gap(a) < 0.2
    assert lost(b, a, 49) == 0


def test_a_peer_roams() -> None:
    """A's router restarts: other outside address and ports, and nobody tells A."""
    world = World("easy", "open")
    a, b = world.nodes
    talk(world, 0, 20)
    a.outside, a.mappings, a.allowed = "198.51.100.77", {None: 5555}, {}
    talk(world, 20, 60)
    assert widest_gap(a) < 4.5
    assert widest_gap(b) < 4.5
    assert b.peer(a).best == Endpoint("198.51.100.77", 5555)
    assert b.inbox[-1][2]
    assert a.inbox[-1][2]


def test_our_network_changes() -> None:
    """The system tells: no packet goes the old way any more."""
    world = World("open", "open")
    a, b = world.nodes
    talk(world, 0, 20)
    a.inside, a.outside = Endpoint("198.51.100.88", 41641), "198.51.100.88"
    a.paths.network_changed(world.now)
    a.refresh()
    world.tell(a)
    a.flush()
    talk(world, 20, 40)
    assert lost(a, b, 39) == 0
    assert widest_gap(b) < 0.2
    assert widest_gap(a) < 4.5, "B does not know before its heartbeat is not answered"
    assert b.peer(a).best == a.inside


def test_a_home_region_goes_down() -> None:
    """B moves to another region; what A heard there leads it on before coordination does."""
    world = World("blocked", "blocked")
    a, b = world.nodes
    talk(world, 0, 5)
    a.paths.region_up(2)
    world.regions.discard(1)
    for node in (a, b):
        node.paths.region_down(1)
    b.region = 2
    b.paths.region_up(2)
    b.paths.configure(a.key, a.disco_key, [], 2, world.now)
    a.region = 2
    b.paths.ping(b.peer(a), world.now)
    b.flush()
    talk(world, 5, 10)
    assert a.paths.region_of(a.peer(b)) == 2
    assert widest_gap(b) < 0.25


ACTIONS = ("cut", "heal", "one way", "router restarts", "pause")


@settings(max_examples=25)
@given(
    kinds=st.sampled_from(REACHABLE),
    script=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(5, 200)), max_size=6),
)
def test_whatever_happens_to_the_path(kinds: tuple[str, str], script: list[tuple[str, int]]) -> None:
    """The relay works all the time: no gap is longer than the bound, and in the end the path is direct again."""
    world = World(*kinds)
    a, b = world.nodes
    now = 0.0
    for number, (action, tenths) in enumerate(script):
        match action:
            case "cut":
                world.cut |= {(1, 2), (2, 1)}
            case "heal":
                world.cut.clear()
            case "one way":
                world.cut.add((1, 2))
            case "router restarts" if a.kind != "open":
                a.outside, a.mappings, a.allowed = f"198.51.100.{100 + number}", {}, {}
            case "pause":
                now += tenths
                world.run(now)
                for node in (a, b):
                    node.inbox.clear()  # a pause is no gap
        talk(world, now, now + tenths / 10)
        now += tenths / 10
        for node in (a, b):
            if len(node.inbox) > 1:
                assert widest_gap(node) < GAP_SECONDS
    world.cut.clear()
    talk(world, now, now + 30)
    for node in (a, b):
        assert widest_gap(node) < GAP_SECONDS
        assert node.inbox[-1][2], "by UDP"


def test_idle_nodes_say_nothing() -> None:
    world = World("easy", "open")
    a, b = world.nodes
    talk(world, 0, 20)
    world.run(70)
    count = len(a.disco_sent) + len(b.disco_sent)
    assert a.paths.next_timeout() is b.paths.next_timeout() is None
    world.run(3600)
    assert len(a.disco_sent) + len(b.disco_sent) == count


def test_many_nodes_start_at_once() -> None:
    world = World(*["open"] * 20)
    for node in world.nodes:
        for other in world.nodes:
            if node is not other:
                node.send(other)
    world.run(4)
    assert all(node.peer(other).best for node in world.nodes for other in world.nodes if node is not other)
    assert all(node.paths.counters.pings_sent < ALL_PINGS_PER_SECOND for node in world.nodes)
