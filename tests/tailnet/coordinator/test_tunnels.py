"""The graph alone, and that its own check can fail."""

import pytest

from tailnet.coordinator.policy import ManyAgentsPolicy
from tailnet.coordinator.tunnels import IN, OUT, TOLD, Peer, Tunnels
from tests.tailnet.coordinator.playbook import make_node, peer_id


@pytest.fixture
def graph() -> Tunnels[str]:
    return Tunnels()


def seat(graph: Tunnels[str], name: str) -> Peer[str]:
    peer = graph.seat(peer_id(name))
    peer.connection, peer.policy = name.lower(), ManyAgentsPolicy()
    return peer


def test_a_tunnel_has_a_direction(graph: Tunnels[str]) -> None:
    a, b = seat(graph, "A"), seat(graph, "B")
    graph.open(a, b)
    graph.open(a, b)
    assert (a.links[b], b.links[a], graph.count, a.opened_count) == (OUT, IN, 1, 1)
    assert graph.has_tunnel(a, b.id)
    assert not graph.has_tunnel(b, a.id)
    assert graph.shared(b, bytes(a.id)) is a
    graph.check()


def test_two_directions_are_two_tunnels(graph: Tunnels[str]) -> None:
    a, b = seat(graph, "A"), seat(graph, "B")
    graph.open(a, b)
    graph.open(b, a)
    assert graph.count == 2
    assert graph.close(a, b) is False  # the other one still joins them
    assert (a.links[b], b.links[a]) == (IN, OUT)
    assert graph.close(a, b) is False
    assert graph.close(b, a) is True
    assert (graph.count, a.links, b.links) == (0, {}, {})
    graph.check()


def test_strangers_share_nothing(graph: Tunnels[str]) -> None:
    a, b = seat(graph, "A"), seat(graph, "B")
    assert graph.shared(a, b.id) is None
    assert graph.shared(a, peer_id("C")) is None
    assert graph.close(a, b) is False


def test_a_peer_is_kept_while_somebody_needs_it(graph: Tunnels[str]) -> None:
    a, b = seat(graph, "A"), graph.seat(peer_id("B"))
    graph.open(a, b)
    graph.release(b)
    assert graph.seat(peer_id("B")) is b
    graph.close(a, b)
    graph.release(b)
    graph.release(a)
    assert list(graph.peers.values()) == [a]


def test_the_audience_follows_the_graph(graph: Tunnels[str]) -> None:
    a, b, c, absent = seat(graph, "A"), seat(graph, "B"), seat(graph, "C"), graph.seat(peer_id("D"))
    assert graph.audience(a) == ()
    for other in (b, absent):
        graph.open(a, other)
    graph.open(c, a)
    assert set(graph.audience(a)) == {"b", "c"}
    assert graph.audience(a) is graph.audience(a)
    graph.close(c, a)
    assert graph.audience(a) == ("b",)
    graph.check()


def test_clearing_cuts_every_link(graph: Tunnels[str]) -> None:
    a, b = seat(graph, "A"), seat(graph, "B")
    graph.open(a, b)
    graph.clear()
    assert (a.links, b.links, graph.peers, graph.count) == ({}, {}, {}, 0)


def test_check_sees_each_contradiction(graph: Tunnels[str]) -> None:
    a, b = seat(graph, "A"), seat(graph, "B")
    graph.open(a, b)
    graph.audience(a)
    graph.check()

    def broken(text: str | None) -> None:
        with pytest.raises(AssertionError, match=text):
            graph.check()

    a.node = make_node("a")
    broken("a connected peer was not told")
    a.links[b] |= TOLD
    graph.check()
    a.audience = ("b", "b")
    broken("stale audience")
    a.audience = None
    b.connection = None
    broken("an absent peer counts as told")
    b.connection = "b"
    b.links[a] = 0
    broken("denies the tunnel")
    b.links[a] = IN
    a.node = None
    broken("never was")
    a.links[b] = OUT
    a.opened_count = 2
    broken(None)
    a.opened_count = 1
    graph.count = 3
    broken(None)
    graph.count = 1
    graph.check()
    a.connection = a.policy = None
    a.node = make_node("a")
    broken("an absent peer has a node")
