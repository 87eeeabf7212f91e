"""Whom a coordinator told of, for how long, and what of a node is taken."""

import os
from typing import Any

import pytest

from derp.keys import NodePrivate
from tailnet.node.core import NodeCore
from tailnet.node.roster import KEEP_SECONDS, KEEP_UNMET_SECONDS, PeerUpdate, Roster, peer_node
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.sodium import public_of
from tests.support.seeds import peer_id

NOW = 1000.0
ONE, OTHER = peer_id("one"), peer_id("other")
OWN = NodePrivate.generate()


def a_node(**changes: Any) -> tailnet.Node:
    private = NodePrivate.generate()
    return tailnet.Node(
        **{
            "key": convert.node_key_bytes(private.public()),
            "disco": "discokey:" + "ab" * 32,
            "preferred_derp": 7,
            "addresses": ["fd7a:115c:a1e0::1/128"],
            "endpoints": ["192.0.2.1:5"],
            **changes,
        }
    )


@pytest.mark.parametrize("changes", [{"preferred_derp": 0}, {"key": b""}, {"key": b"np" + b"x" * 31}])
def test_nodes_of_no_use_are_ignored(changes: dict[str, Any]) -> None:
    assert peer_node(a_node(**changes)) is None


@pytest.mark.parametrize(
    ("changes", "attribute", "expected"),
    [
        ({}, "disco_key", b"\xab" * 32),
        ({"disco": "discokey:zz" + "ab" * 31}, "disco_key", None),
        ({"disco": ""}, "disco_key", None),
        ({"endpoints": ["192.0.2.1:5", "nonsense", "127.3.3.40:1", "[2001:db8::1]:6"]}, "endpoints", 2),
        ({"addresses": ["fd7a:115c:a1e0::/48", "::/0", "10.0.0.1/32", "x", "fd7a:115c:a1e0::2"]}, "addresses", 1),
    ],
)
def test_what_is_taken_of_a_node(changes: dict[str, Any], attribute: str, expected: object) -> None:
    node = peer_node(a_node(**changes))
    assert node is not None
    taken = getattr(node, attribute)
    assert (len(taken) if isinstance(expected, int) else taken) == expected


@pytest.fixture
def core() -> NodeCore:
    return NodeCore(OWN, bytes(31) + b"\1", [], random=os.urandom, now=NOW, unix_seconds=NOW)


@pytest.fixture
def roster(core: NodeCore) -> Roster:
    return Roster(core)


def a_sound_node(**changes: Any) -> tailnet.Node:
    return a_node(disco=f"discokey:{public_of(os.urandom(32)).hex()}", **changes)


def key_in(node: tailnet.Node) -> bytes:
    return bytes(node.key[2:])


@pytest.mark.parametrize("node_first", [False, True])
def test_a_peer_comes_says_that_it_knows_us_and_goes(core: NodeCore, roster: Roster, node_first: bool) -> None:
    node = a_sound_node()
    coming = [(PeerUpdate.NODE, node), (PeerUpdate.READY_FOR_HANDSHAKE, None)]
    for kind, said in coming if node_first else reversed(coming):
        assert not (roster.key_of(ONE) and roster.is_ready(ONE))
        assert roster.update(PeerUpdate(id=ONE, kind=kind, node=said), NOW) == (kind == PeerUpdate.NODE)
    assert (roster.key_of(ONE), roster.is_ready(ONE)) == (key_in(node), True)
    assert core.device.find(key_in(node)) is not None
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.DISCONNECTED), NOW)
    assert (roster.key_of(ONE), roster.is_ready(ONE), core.device.find(key_in(node))) == (None, False, None)


def test_another_key_is_another_peer_that_has_to_say_so(core: NodeCore, roster: Roster) -> None:
    before, after = a_sound_node(), a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=before), NOW)
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.READY_FOR_HANDSHAKE), NOW)
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.LOST), NOW)
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=after), NOW)
    assert (roster.key_of(ONE), roster.is_ready(ONE)) == (key_in(after), False)
    assert core.device.find(key_in(before)) is None


def test_a_node_said_again_leaves_the_peer_as_it_is(core: NodeCore, roster: Roster) -> None:
    node = a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.READY_FOR_HANDSHAKE), NOW)
    known = core.device.find(key_in(node))
    node.endpoints.append("192.0.2.9:9")
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    assert core.device.find(key_in(node)) is known
    assert roster.is_ready(ONE)


@pytest.mark.parametrize("by_all", [False, True], ids=["one is lost", "the coordinator is lost"])
@pytest.mark.parametrize("handshake_at", [None, NOW - 100])
def test_a_lost_peer_stays_for_a_while(
    core: NodeCore, roster: Roster, by_all: bool, handshake_at: float | None
) -> None:
    node = a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    known = core.device.find(key_in(node))
    assert known is not None
    known.last_handshake_at = handshake_at
    assert roster.next_timeout() is None
    if by_all:
        roster.lose_all(NOW)
    else:
        roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.LOST), NOW)
    ends_at = NOW + KEEP_UNMET_SECONDS if handshake_at is None else handshake_at + KEEP_SECONDS
    assert roster.next_timeout() == ends_at
    roster.lose_all(NOW + 1)
    assert roster.next_timeout() == ends_at, "lost is lost once"
    assert roster.handle_timeout(ends_at - 1) == []
    assert roster.key_of(ONE) == key_in(node)
    assert roster.handle_timeout(ends_at) == [ONE]
    assert (roster.key_of(ONE), core.device.find(key_in(node)), roster.next_timeout()) == (None, None, None)


def test_a_lost_peer_with_which_we_speak_stays(core: NodeCore, roster: Roster) -> None:
    node = a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    known = core.device.find(key_in(node))
    assert known is not None
    known.last_handshake_at = NOW
    roster.lose_all(NOW)
    known.last_handshake_at = NOW + 600
    assert roster.handle_timeout(NOW + KEEP_SECONDS) == []
    assert roster.next_timeout() == NOW + 600 + KEEP_SECONDS


def test_a_lost_peer_that_is_told_of_again_is_not_lost(core: NodeCore, roster: Roster) -> None:
    node = a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    roster.lose_all(NOW)
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW + 5)
    assert roster.next_timeout() is None
    assert roster.handle_timeout(NOW + 10 * KEEP_SECONDS) == []


def test_who_comes_back_under_another_id_has_its_session(core: NodeCore, roster: Roster) -> None:
    node = a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    known = core.device.find(key_in(node))
    roster.lose_all(NOW)
    roster.update(PeerUpdate(id=OTHER, kind=PeerUpdate.NODE, node=node), NOW + 5)
    assert (roster.key_of(ONE), roster.key_of(OTHER)) == (None, key_in(node))
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.DISCONNECTED), NOW + 6)
    assert core.device.find(key_in(node)) is known
    assert roster.next_timeout() is None


@pytest.mark.parametrize("changes", [{"preferred_derp": 0}, {"key": convert.node_key_bytes(OWN.public())}])
def test_nodes_that_make_no_sense_are_counted(roster: Roster, changes: dict[str, Any]) -> None:
    assert not roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=a_sound_node(**changes)), NOW)
    assert (roster.refused_count, roster.key_of(ONE)) == (1, None)


def test_a_handshake_says_that_a_peer_knows_us(core: NodeCore, roster: Roster) -> None:
    node = a_sound_node()
    roster.update(PeerUpdate(id=ONE, kind=PeerUpdate.NODE, node=node), NOW)
    assert not roster.is_ready(ONE)
    known = core.device.find(key_in(node))
    assert known is not None
    known.last_handshake_at = NOW
    assert roster.is_ready(ONE)
