"""The replicas' rules, one script each (see playbook): the twelve numbered ones are what two owe each other."""

import textwrap

import pytest

from tailnet.coordinator.explain import explain
from tailnet.coordinator.nodes import Limits
from tailnet.errors import LocalProtocolError
from tailnet.replica.cluster_time import ClusterTime
from tailnet.replica.core import SharedCoordinator
from tailnet.replica.messages import MAX_NODE_BYTES
from tests.tailnet.coordinator.playbook import peer_id
from tests.tailnet.replica.playbook import Replicas, replica_id

MEET2 = """
2 connect a A agent
  2 announces A
  2 -> 1 CAME A
2 a: node a1
1 connect c C client A
  1 announces C
  1 -> 2 CAME C
1 c: node c1
1 c: add A
  1 asks A
  1 -> 2 WHO A
  2 -> 1 CAME A
  1 -> 2 OPEN C A c1
  2: a <- NODE C c1 "node update"
  2 -> 1 NODE A a1
  1: c <- NODE A a1 "node update"
"""
MEET3 = """
2 connect a A agent
  2 announces A
  2 -> 1 CAME A
  2 -> 3 CAME A
2 a: node a1
1 connect c C client A
  1 announces C
  1 -> 2 CAME C
  1 -> 3 CAME C
1 c: node c1
1 c: add A
  1 asks A
  1 -> 2 WHO A
  1 -> 3 WHO A
  2 -> 1 CAME A
  1 -> 2 OPEN C A c1
  2: a <- NODE C c1 "node update"
  2 -> 1 NODE A a1
  1: c <- NODE A a1 "node update"
"""
# What several rules begin with.
MOVED = (
    MEET2
    + """
1 connect b A agent
  1: b <- NODE C c1 "init"
  1 announces A
  1 -> 2 CAME A
  2: a <- error "peer ID overwritten by new connection"
  2: a ends "peer ID overwritten by new connection"
  2 -> 1 GONE A is not here
"""
)
COMES = (
    MEET2
    + """
2 connect d C client A
  2: d <- NODE A a1 "init"
  2 announces C
  2 -> 1 CAME C
  1: c <- error "peer ID overwritten by new connection"
  1: c ends "peer ID overwritten by new connection"
  1 -> 2 GONE C is not here
"""
)
APART = (
    MEET2
    + """
cut 1 2
1 silent 2
  1: c <- LOST A "lost"
  1 asks A
2 silent 1
  2: a <- LOST C "lost"
"""
)
MOVED_UNSEEN = (
    MEET3
    + """
cut 1 3
3 connect b A agent
  3 announces A
  3 -> 2 CAME A
  2: a <- error "peer ID overwritten by new connection"
  2: a ends "peer ID overwritten by new connection"
  2 -> 1 GONE A is not here
  1 asks A
  1 -> 2 WHO A
3 b: node a2
1 connect d D client A
  1 announces D
  1 -> 2 CAME D
1 d: add A
  1: d <- NODE A a1 "add tunnel"
  1 -> 2 OPEN D A -
  2 -> 1 GONE A is not here
  1 asks A
  1 -> 2 WHO A
"""
)
CLIENT_MOVED = (
    MEET3
    + """
3 connect d C client A
  3 announces C
  3 -> 1 CAME C
  1: c <- error "peer ID overwritten by new connection"
  1: c ends "peer ID overwritten by new connection"
  3 -> 2 CAME C
  1 -> 2 GONE C is not here
"""
)
WAITING = """
1 connect c C client A
  1 announces C
  1 -> 2 CAME C
1 c: node c1; add A
  1 asks A
  1 -> 2 WHO A
"""

RULES = {
    "1 an agent and a client meet": MEET2,
    "2 whoever waits is told when the other comes": WAITING
    + """
2 connect a A agent
  2 announces A
  2 -> 1 CAME A
  1 -> 2 OPEN C A c1
  2: a <- NODE C c1 "node update"
  2 -> 1 NODE A -
2 a: node a1
  2 -> 1 NODE A a1
  1: c <- NODE A a1 "node update"
""",
    "3 a node crosses once, and the same node not at all": MEET2
    + """
2 a: node a2
  2 -> 1 NODE A a2
  1: c <- NODE A a2 "node update"
2 a: node a2
""",
    "4 ready_for_handshake crosses; a stranger is answered at home": MEET2
    + """
2 a: ready C D
  2: a <- error "ready for handshake error: you do not share a tunnel with "D""
  2 -> 1 READY A C
  1: c <- READY_FOR_HANDSHAKE A
""",
    "5 a removed tunnel is worked out by each side": MEET2
    + """
1 c: remove A
  1: c <- DISCONNECTED A "tunnel removed"
  1 -> 2 SHUT C A
  2: a <- DISCONNECTED C "tunnel removed"
2 a: node a2
""",
    "6 goodbye crosses as goodbye": MEET2
    + """
2 a: disconnect
  2: a ends "graceful disconnect"
  2 -> 1 GONE A DISCONNECTED
  1: c <- DISCONNECTED A "graceful disconnect"
  1 asks A
  1 -> 2 WHO A
2 connect b A agent
  2 announces A
  2 -> 1 CAME A
  1 -> 2 OPEN C A c1
  2: b <- NODE C c1 "node update"
  2 -> 1 NODE A -
2 b: node a2
  2 -> 1 NODE A a2
  1: c <- NODE A a2 "node update"
""",
    "6 a broken stream crosses as lost": MEET2
    + """
2 drop a
  2 -> 1 GONE A LOST
  1: c <- LOST A "lost"
  1 asks A
  1 -> 2 WHO A
""",
    "7 a peer that moves is lost to nobody": MOVED
    + """
1 b: node a1
1 b: node a3
  1: c <- NODE A a3 "node update"
pass 40
""",
    "8 a smaller claim is answered by the owner": MOVED
    + """
say 2 1 CAME A 5
  2 -> 1 CAME A
  1 -> 2 CAME A
""",
    "9 what was missed in a short cut": MEET2
    + """
cut 1 2
2 a: node a2
2 a: node a3
up 1 2
  1 -> 2 SYNC C A
  1 -> 2 SYNC last
  2 -> 1 SYNC known C
  2 -> 1 SYNC last
  2 -> 1 NODE A a3
  1: c <- NODE A a3 "node update"
  2 -> 1 SYNCED
  1 -> 2 NODE C -
  1 -> 2 SYNCED
""",
    "10 a client that left in a long cut": APART
    + """
1 drop c
up 1 2
  1 -> 2 SYNC last
  2 -> 1 SYNC last
  2 -> 1 SYNCED
  1 -> 2 SYNCED
""",
    "10 a client that left in a short cut is swept": MEET2
    + """
cut 1 2
1 drop c
up 1 2
  1 -> 2 SYNC last
  2: a <- LOST C "lost"
  2 -> 1 SYNC known C
  2 -> 1 SYNC last
  2 -> 1 SYNCED
  1 -> 2 GONE C is not here
  1 -> 2 SYNCED
""",
    "11 an agent that came in a cut": WAITING
    + """
cut 1 2
2 connect a A agent
  2 announces A
2 a: node a1
up 1 2
  1 -> 2 SYNC last
  1 -> 2 WHO A
  2 -> 1 CAME A
  2 -> 1 SYNC last
  2 -> 1 SYNCED
  2 -> 1 CAME A
  1 -> 2 OPEN C A c1
  2: a <- NODE C c1 "node update"
  1 -> 2 SYNCED
  2 -> 1 NODE A a1
  1: c <- NODE A a1 "node update"
""",
    "12 silence is LOST, never DISCONNECTED, and ends no connection": APART
    + """
pass 40
  1 asks A
""",
    "a client that waits in two places": """
1 connect c C client A
  1 announces C
  1 -> 2 CAME C
  1 -> 3 CAME C
1 c: add A
  1 asks A
  1 -> 2 WHO A
  1 -> 3 WHO A
2 connect d D client A
  2 announces D
  2 -> 1 CAME D
  2 -> 3 CAME D
2 d: add A
  2 asks A
  2 -> 1 WHO A
  2 -> 3 WHO A
3 connect a A agent
  3 announces A
  3 -> 1 CAME A
  3 -> 2 CAME A
  1 -> 3 OPEN C A -
  2 -> 3 OPEN D A -
  3 -> 1 NODE A -
  3 -> 2 NODE A -
3 a: node a1
  3 -> 1 NODE A a1
  1: c <- NODE A a1 "node update"
  3 -> 2 NODE A a1
  2: d <- NODE A a1 "node update"
""",
    "an agent that moves to a third replica": MEET3
    + """
3 connect b A agent
  3 announces A
  3 -> 1 CAME A
  3 -> 2 CAME A
  2: a <- error "peer ID overwritten by new connection"
  2: a ends "peer ID overwritten by new connection"
  1 -> 3 OPEN C A c1
  3: b <- NODE C c1 "node update"
  2 -> 1 GONE A is not here
  3 -> 1 NODE A -
3 b: node a1
  3 -> 1 NODE A a1
3 b: node a2
  3 -> 1 NODE A a2
  1: c <- NODE A a2 "node update"
""",
    "a client that moves opens its tunnels again": CLIENT_MOVED
    + """
3 d: node c2; add A
  3 asks A
  3 -> 1 WHO A
  3 -> 2 WHO A
  2 -> 3 CAME A
  3 -> 2 OPEN C A c2
  2: a <- NODE C c2 "node update"
  2 -> 3 NODE A a1
  3: d <- NODE A a1 "node update"
pass 40
""",
    "a client that moves and does not open them": CLIENT_MOVED
    + """
3 d: node c2
pass 40
  2: a <- LOST C "lost"
""",
    "a client that comes where its tunnel leads, and opens it": COMES
    + """
2 d: node c2; add A
  2: a <- NODE C c2 "node update"
pass 40
""",
    "a client that comes where its tunnel leads, and does not open it": COMES
    + """
2 d: node c2
  2: a <- NODE C c2 "node update"
pass 40
  2: a <- LOST C "lost"
  2: d <- LOST A "lost"
""",
    "a tunnel that was not named goes as LOST where its end has moved to": COMES
    + """
2 d: node c2
  2: a <- NODE C c2 "node update"
1 connect b A agent
  1 announces A
  1 -> 2 CAME A
  2: a <- error "peer ID overwritten by new connection"
  2: a ends "peer ID overwritten by new connection"
  2 -> 1 OPEN C A c2
  1: b <- NODE C c2 "node update"
  1 -> 2 NODE A -
1 b: node a2
  1 -> 2 NODE A a2
  2: d <- NODE A a2 "node update"
pass 40
  2: d <- LOST A "lost"
  2 -> 1 SHUT C A LOST
  1: b <- LOST C "lost"
""",
    "a client that moves and says goodbye before it opens them": CLIENT_MOVED
    + """
3 d: disconnect
  3 withdraws C
  3: d ends "graceful disconnect"
  3 -> 1 GONE C DISCONNECTED
  3 -> 2 GONE C DISCONNECTED
  2: a <- DISCONNECTED C "graceful disconnect"
""",
    "a client that comes back at home": MEET2
    + """
1 connect d C client A
  1: c <- error "peer ID overwritten by new connection"
  1: c ends "peer ID overwritten by new connection"
  1: d <- NODE A a1 "init"
  1 announces C
  1 -> 2 CAME C
  1 -> 2 OPEN C A -
  2 -> 1 NODE A a1
1 d: node c1
  1 -> 2 NODE C c1
1 d: add A
1 d: node c2
  1 -> 2 NODE C c2
  2: a <- NODE C c2 "node update"
""",
    "a peer that is not where it was, and is claimed in time": MOVED_UNSEEN
    + """
up 1 3
  1 -> 3 CAME D
  1 -> 3 SYNC last
  1 -> 3 WHO A
  3 -> 1 CAME A
  3 -> 1 SYNC last
  3 -> 1 SYNCED
  3 -> 1 CAME A
  1 -> 3 OPEN C A c1
  3: b <- NODE C c1 "node update"
  1 -> 3 OPEN D A -
  1 -> 3 SYNCED
  3 -> 1 NODE A a2
  1: c, d <- NODE A a2 "node update"
  3 -> 1 NODE A a2
""",
    "a peer that is not where it was, and is claimed by nobody": MOVED_UNSEEN
    + """
pass 7
  1: c, d <- LOST A "lost"
  1 asks A
  1 -> 2 WHO A
""",
    "two owners after a partition": APART
    + """
1 connect b A agent
  1: b <- NODE C c1 "init"
  1 announces A
1 b: node a9
  1: c <- NODE A a9 "node update"
up 1 2
  1 -> 2 CAME A
  2: a <- error "peer ID overwritten by new connection"
  2: a ends "peer ID overwritten by new connection"
  1 -> 2 SYNC last
  2 -> 1 SYNC last
  2 -> 1 SYNCED
  1 -> 2 SYNCED
""",
    "the end of a replica is told to its own alone": MEET2
    + """
2 close
  2: a <- LOST C "coordinator close"
  2: a ends "coordinator close"
""",
    "whom a replica that leaves sends away is lost to nobody": MEET3
    + """
2 connect d D client A
  2 announces D
  2 -> 1 CAME D
  2 -> 3 CAME D
2 d: node d1
2 d: add A
  2: a <- NODE D d1 "add tunnel"
  2: d <- NODE A a1 "add tunnel"
2 move a
3 connect b A agent
  3 announces A
  3 -> 1 CAME A
  3 -> 2 CAME A
  1 -> 3 OPEN C A c1
  3: b <- NODE C c1 "node update"
  2 -> 3 OPEN D A d1
  3: b <- NODE D d1 "node update"
  3 -> 1 NODE A -
  3 -> 2 NODE A -
3 b: node a2
  3 -> 1 NODE A a2
  1: c <- NODE A a2 "node update"
  3 -> 2 NODE A a2
  2: d <- NODE A a2 "node update"
2 move d
3 connect e D client A
  3: e <- NODE A a2 "init"
  3 announces D
  3 -> 1 CAME D
  3 -> 2 CAME D
3 e: node d2
  3: b <- NODE D d2 "node update"
3 e: add A
1 silent 2
pass 100
""",
    "who comes back to the one that leaves was never away": MEET2
    + """
2 move a
2 connect b A agent
  2 announces A
  2 -> 1 CAME A
  1 -> 2 OPEN C A c1
  2: b <- NODE C c1 "node update"
  2 -> 1 NODE A -
2 b: node a2
  2 -> 1 NODE A a2
  1: c <- NODE A a2 "node update"
pass 10
""",
    "who is sent away and comes nowhere is lost after a while": MEET2
    + """
2 connect d D client A
  2 announces D
  2 -> 1 CAME D
2 d: add A
  2: d <- NODE A a1 "add tunnel"
2 move a
pass 7
  2: d <- LOST A "lost"
  2 asks A
  2 -> 1 WHO A
1 silent 2
  1: c <- LOST A "lost"
  1 asks A
  1 -> 2 WHO A
""",
    "a tunnel that came over, and is not named again, stays until somebody is met who may have heard of its end": """
1 connect a A agent
  1 announces A
  1 -> 2 CAME A
1 a: node a1
1 connect c C client A
  1 announces C
  1 -> 2 CAME C
1 c: add A
  1: c <- NODE A a1 "add tunnel"
1 connect d C client A
  1: c <- error "peer ID overwritten by new connection"
  1: c ends "peer ID overwritten by new connection"
  1: d <- NODE A a1 "init"
  1 announces C
  1 -> 2 CAME C
pass 100
up 1 2
  1 -> 2 CAME A C
  1 -> 2 SYNC last
  2 -> 1 SYNC last
  2 -> 1 SYNCED
  1 -> 2 SYNCED
pass 40
  1: d <- LOST A "lost"
""",
    "and ends though those who may have heard of its end are silent": MEET2
    + """
1 connect b A agent
  1: b <- NODE C c1 "init"
  1 announces A
  1 -> 2 CAME A
  2: a <- error "peer ID overwritten by new connection"
  2: a ends "peer ID overwritten by new connection"
  2 -> 1 GONE A is not here
1 b: node a2
  1: c <- NODE A a2 "node update"
1 silent 2
1 connect d C client A
  1: c <- error "peer ID overwritten by new connection"
  1: c ends "peer ID overwritten by new connection"
  1: d <- NODE A a2 "init"
  1 announces C
  1 -> 2 CAME C
pass 40
  1: b <- LOST C "lost"
  1: d <- LOST A "lost"
""",
    "who is revoked is disconnected everywhere": MEET2
    + """
1 revoke c
  1: c <- error "authorization: authorization withdrawn"
  1: c ends "authorization withdrawn"
  1 -> 2 GONE C DISCONNECTED
  2: a <- DISCONNECTED C "authorization withdrawn"
""",
    "a tunnel that may not be any more": MEET2
    + """
1 untie c A
  1: c <- DISCONNECTED A "authorization withdrawn"
  1 -> 2 SHUT C A
  2: a <- DISCONNECTED C "tunnel removed"
""",
    "whoever is waited for is asked for again": """
1 connect c C client A
  1 announces C
  1 -> 2 CAME C
1 c: add A
  1 asks A
  1 -> 2 WHO A
1 c: add A
pass 60
  1 asks A
  1 -> 2 WHO A
  1 asks A
  1 -> 2 WHO A
""",
    "what older connections are said to do": MEET3
    + """
say 2 1 NODE A 5
  2 -> 1 NODE A old
say 2 1 GONE A 5
  2 -> 1 GONE A LOST
say 3 1 GONE A 0
  3 -> 1 GONE A is not here
""",
    "stamps made anew are told, and the tunnels stay": MEET2
    + """
2 jump 5
  2 announces A
  2 -> 1 CAME A
  2 -> 1 SYNC known C
  2 -> 1 SYNC last
  1 -> 2 OPEN C A c1
  1 -> 2 NODE C -
  1 -> 2 SYNCED
  2 -> 1 NODE A a1
2 a: node a2
  2 -> 1 NODE A a2
  1: c <- NODE A a2 "node update"
1 c: node c2
  1 -> 2 NODE C c2
  2: a <- NODE C c2 "node update"
pass 40
""",
    "compared again, nothing was wrong": MEET2
    + """
sync 1 2
  1 -> 2 SYNC C A
  1 -> 2 SYNC last
  2 -> 1 NODE A -
  2 -> 1 SYNCED
""",
}


def replicas_of(script: str) -> Replicas:
    return Replicas("123" if "-> 3" in script else "12")


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    expected = textwrap.dedent(RULES[name]).strip()
    told = [line for line in expected.splitlines() if line.strip()]
    assert replicas_of(expected).run(expected).splitlines() == told


def test_a_rule_that_is_wrong_is_seen() -> None:
    wrong = RULES["5 a removed tunnel is worked out by each side"].replace("DISCONNECTED C", "LOST C")
    assert replicas_of(wrong).run(wrong).splitlines() != [line for line in wrong.splitlines() if line.strip()]


def test_what_is_known_of_peers_elsewhere() -> None:
    world = Replicas()
    world.run(MEET2)
    one, two = world.cores["1"], world.cores["2"]
    a, c = peer_id("A"), peer_id("C")
    assert (one.owner_of(a), one.owner_of(c), one.owner_of(peer_id("X"))) == (replica_id("2"), replica_id("1"), None)
    assert one.connection_of(a) is None
    assert two.connection_of(a) == "a"
    node = one.node_of(a)
    assert node is not None
    assert node.raw == b"a1"
    assert (one.statistics().connected_peers, one.statistics().absent_peers) == (1, 0)
    world.run("2 drop a")
    assert one.owner_of(a) is None
    assert (one.statistics().connected_peers, one.statistics().absent_peers) == (1, 1)
    assert two.statistics().absent_peers == 0


def test_a_page_explains_a_pair_that_is_apart() -> None:
    world = Replicas()
    world.run(MEET2)
    for core in world.cores.values():
        assert explain(core, peer_id("A"), peer_id("C"), world.now)


def test_nodes_that_fit_into_no_frame_are_refused_at_the_door() -> None:
    time = ClusterTime()
    assert SharedCoordinator[str](replica_id("1"), time, lambda: 0.5).limits.node_bytes == MAX_NODE_BYTES
    with pytest.raises(LocalProtocolError, match="32768 bytes"):
        SharedCoordinator[str](replica_id("1"), time, lambda: 0.5, Limits(node_bytes=MAX_NODE_BYTES + 1))


def test_nothing_is_kept_of_who_left() -> None:
    world = Replicas("123")
    world.run(MEET3)
    world.run("3 connect d C client A\n3 d: add A\n3 drop d\n2 drop a\npass 100")
    for core in world.cores.values():
        assert not core.peers
        assert core.next_timeout() is None
        assert not any(site.peers or site.unconfirmed or site.named for site in core._sites.values())
