"""The debug page's answers."""

import pytest

from tailnet.coordinator.explain import explain, explain_peer, last_node, node_key, peers_with_key, snapshot
from tailnet.coordinator.messages import Request
from tailnet.types import PeerID
from tests.tailnet.coordinator.playbook import Playbook, make_node, peer_id

A, B, C, D, X = (peer_id(name) for name in "ABCDX")


def why(script: str, one: PeerID, other: PeerID, at: float = 100) -> str:
    """The sentences, ids by their letters."""
    book = Playbook()
    book.run(script)
    text = "\n".join(explain(book.core, one, other, at))
    for letter in "ABCDX":
        text = text.replace(str(peer_id(letter)), letter)
    return text


CASES = {
    "all is well": (
        "connect a A agent\na: node a1\nconnect c C client A\nc: add A",
        """C is connected as client since 97 s.
A is connected as agent since 99 s.
C has a tunnel to A.
So C has been told A's node of 98 s ago.
If they still do not speak, look at the data path: A's home is relay region 1; can C reach it?""",
    ),
    "no tunnel": (
        "connect a A agent\na: node a1\nconnect c C client A",
        """C is connected as client since 97 s.
A is connected as agent since 99 s.
No tunnel joins the two: the client of them has to open one (agents cannot).
So C does not know A: nodes flow only along tunnels.""",
    ),
    "an agent that never dialled": (
        "connect c C client A\nc: add A",
        """C is connected as client since 99 s.
A is not connected here.
It is not among the last 0 that left either: has it ever dialled this server?
C has a tunnel to A.
So C does not know A: nobody of that id is connected here; \
it will be told when that peer returns and sends its node.""",
    ),
    "an agent that left": (
        "connect c C client A\nc: add A\nconnect a A agent\ndrop a",
        """C is connected as client since 99 s.
A is not connected here.
It left 96 s ago: lost.
C has a tunnel to A.
So C does not know A: nobody of that id is connected here; \
it will be told when that peer returns and sends its node.""",
    ),
    "an agent that was refused": (
        "connect c C client A\nconnect a A agent\na: add B",
        """C is connected as client since 99 s.
A is not connected here.
It left 97 s ago: authorization: agents cannot open tunnels.
No tunnel joins the two: the client of them has to open one (agents cannot).
So C does not know A: nobody of that id is connected here.""",
    ),
    "an agent that said goodbye": (
        "connect a A agent\na: disconnect\nconnect c C client A",
        """C is connected as client since 97 s.
A is not connected here.
It said goodbye 98 s ago: graceful disconnect.
No tunnel joins the two: the client of them has to open one (agents cannot).
So C does not know A: nobody of that id is connected here.""",
    ),
    "an agent without a node": (
        "connect a A agent\nconnect c C client A\nc: add A",
        """C is connected as client since 98 s.
A is connected as agent since 99 s.
C has a tunnel to A.
So C does not know A: it has sent no node in the 99 s of its connection.
Look at A's own log: it sends a node once it has a DERP map and its network engine is up.""",
    ),
    "an agent taken over": (
        "connect a A agent\na: node a1\nconnect c C client A\nc: add A\nconnect a2 A agent",
        """C is connected as client since 97 s.
A is connected as agent since 95 s.
Its id was taken over 1 times since it first came: if that goes on, two machines use the same token.
C has a tunnel to A.
So C knows the node of A's earlier connection; the present one has sent none in 95 s.
Look at A's own log: it sends a node once it has a DERP map and its network engine is up.""",
    ),
    "itself": ("connect c C many", "C is asked about itself: a peer is never told its own node."),
}


@pytest.mark.parametrize("name", CASES)
def test_a_client_asks_about_its_agent(name: str) -> None:
    script, expected = CASES[name]
    assert why(script, C, C if name == "itself" else A) == expected


def test_seen_from_the_agent() -> None:
    text = why("connect a A agent\nconnect c C client A\nc: node c1; add A", A, C)
    assert "C has a tunnel to A.\nSo A has been told C's node of 97 s ago." in text


def test_whoever_is_absent_was_told_nothing() -> None:
    text = why("connect c C client A\nc: node c1; add A", A, C)
    assert text.endswith("So A has been told nothing: it has no connection here.")


def test_tunnels_both_ways() -> None:
    text = why("connect b B many\nconnect d D many\nb: add D\nd: add B", B, D)
    assert "Each has a tunnel to the other." in text


def test_a_node_without_a_home() -> None:
    book = Playbook()
    book.run("connect a A agent\na: node a1\nconnect c C client A\nc: add A")
    node = book.core.node_of(A)
    assert node is not None
    homeless = make_node("a2", node.addresses, preferred_derp=0)
    book.core.handle_request("a", Request(node=homeless), 50)
    text = "\n".join(explain(book.core, C, A, 60))
    assert "names no home relay (preferred_derp 0), so" in text
    assert "node of 10 s ago" in text


def test_the_snapshot_is_the_whole_truth() -> None:
    book = Playbook()
    book.run("connect a A agent\na: node a1\nconnect c C many\nc: add A\nc: add B\nconnect x X many\ndrop x")
    page = snapshot(book.core, 10)
    a, c, b = page.peers
    assert (a.peer_id, a.connected, a.policy, a.preferred_derp, a.node_bytes) == (A, True, "agent", 1, 2)
    assert (a.connected_seconds, a.updated_seconds) == (9, 8)
    assert (a.tunnels_to, a.tunnels_from, a.told) == ((), (C,), (C,))
    assert (c.policy, c.tunnels_to, c.told, c.updated_seconds) == ("client of many", (A, B), (), None)
    assert (b.peer_id, b.connected, b.policy, b.connected_seconds) == (B, False, "", None)
    assert [left.peer_id for left in page.departures] == [X]


def test_the_last_node_is_that_which_peers_were_told() -> None:
    book = Playbook()
    book.run("connect a A agent\na: node a1\na: node a2\nconnect c C client A\nc: add X")
    assert last_node(book.core, A) == make_node("a2").raw
    assert [last_node(book.core, each) for each in (C, X, D)] == [None] * 3


def test_one_peer() -> None:
    book = Playbook()
    book.run("connect a A agent\na: node a1\nconnect c C client A\nc: add A\nconnect d D many")
    assert explain_peer(book.core, A, 100) == [
        f"{A} is connected as agent since 99 s.",
        "It has 0 tunnels to others, 1 have one to it.",
        "It sent its node 98 s ago, with relay region 1 as its home; 1 peers have been told.",
    ]
    assert explain_peer(book.core, D, 100)[1:] == [
        "It has 0 tunnels to others, 0 have one to it.",
        "It has sent no node yet, so nobody is told of it.",
    ]
    assert explain_peer(book.core, X, 100)[0] == f"{X} is not connected here."


def test_keys_of_peers() -> None:
    book = Playbook()
    book.run("connect a A agent\na: node a1\nconnect c C client A")
    key = node_key(book.core, A)
    assert key is not None
    assert key == make_node("a1").key[2:]
    assert [node_key(book.core, each) for each in (C, X)] == [None, None]
    assert peers_with_key(book.core, key.hex()) == peers_with_key(book.core, key.hex()[:8]) == [A]
    assert peers_with_key(book.core, "f" * 64) == []
