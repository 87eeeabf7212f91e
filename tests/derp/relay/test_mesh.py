"""What a relay believes of another: keys come and go, breaks void them, and nothing makes a loop or grows for ever."""

import pytest

from derp.protocol.frames import PeerGoneReason
from derp.protocol.messages import Health, KeepAlive, Message, PeerGone, PeerPresent, Pong, RecvPacket, Restarting
from tests.derp.relay.world import OWN_KEY, World, disco, key


def test_keys_come_and_go() -> None:
    world = World()
    link = world.mesh("other")
    for name in ("a", "b", "a"):
        link.handle_message(PeerPresent(key(name)))
    assert link.keys == {key("a"), key("b")} == set(world.router.routes)
    for reason in (0, 1):
        link.handle_message(PeerGone(key("a"), reason))
        assert link.keys == {key("b")} == set(world.router.routes)
    assert world.router.counters.packet_forwarder_delete_other_value == 0


def test_packets_go_there_as_forwards() -> None:
    world = World()
    a = world.connect("a")
    link = world.mesh("other")
    link.handle_message(PeerPresent(key("far")))
    world.packet(a, "far", b"one")
    world.packet(a, "far", disco())
    sent = bytes(world.sent[link])
    assert sent[:5] == b"\x0a" + (67).to_bytes(4, "big")
    assert sent[5:72] == key("a") + key("far") + b"one"
    assert sent[72 + 5 :] == key("a") + key("far") + disco()
    assert (link.packets_out, link.bytes_out) == (2, 65)
    counters = world.router.counters
    assert (counters.packets_forwarded_out, counters.bytes_forwarded_out) == (2, 65)


def test_neither_relay_itself_is_a_destination() -> None:
    # Our own watching connection is announced to us, and the other relay's connection to us is in its own list.
    world = World()
    link = world.mesh("other")
    link.handle_message(PeerPresent(OWN_KEY))
    link.handle_message(PeerPresent(key("other")))
    assert (link.keys, world.router.routes) == (set(), {})


@pytest.mark.parametrize(
    "message",
    [KeepAlive(), Pong(b"12345678"), Health("sick"), Restarting(1, 2), RecvPacket(key("a"), b"x"), PeerGone(key("x"))],
)
def test_everything_else_is_of_no_concern(message: Message) -> None:
    world = World()
    link = world.mesh("other", "a")
    link.handle_message(message)
    assert link.keys == {key("a")}
    assert world.router.counters.packet_forwarder_delete_other_value == 0
    assert (link.pending, world.router.dirty) == ([], [])


def test_what_it_takes_back_without_having_announced_it_is_counted() -> None:
    world = World()
    link = world.mesh("other")
    here = world.connect("here")
    link.handle_message(PeerGone(key("here")))
    assert world.router.counters.packet_forwarder_delete_other_value == 1
    assert world.router.routes == {key("here"): here}


def test_a_break_voids_everything_learnt() -> None:
    world = World()
    a, b = world.connect("a"), world.connect("b")
    link, other = world.mesh("other", "far", "both"), world.mesh("another", "both")
    for name in ("far", "both"):
        member = world.router.members[key(name)]
        member.remember(b)
    world.packet(a, "far")
    link.pending.append(b"half of a frame")
    link.pending_bytes = 15
    link.handle_break()
    assert (link.keys, link.pending, link.pending_bytes) == (set(), [], 0)
    assert world.router.routes[key("both")] is other
    assert key("far") not in world.router.routes
    assert world.take(b) == [PeerGone(key("far"), PeerGoneReason.DISCONNECTED)]
    link.handle_break()
    world.packet(a, "far")
    assert not any(world.router.counters.packets_dropped[2:])


def test_a_large_relay_is_forgotten_in_parts() -> None:
    world = World()
    a = world.connect("a")
    names = [f"far{number}" for number in range(5)]
    link = world.mesh("other", *names)
    assert [link.forget_some(2), len(link.keys)] == [True, 3]
    assert len(world.router.routes) == 4
    assert [link.forget_some(2), link.forget_some(2), link.forget_some(2)] == [True, False, False]
    assert world.router.routes == {key("a"): a}


def test_what_it_may_announce_is_bounded() -> None:
    world = World()
    link = world.mesh("other", max_keys=3)
    verdicts = []
    for name in ("a", "b", "c", "a", "d"):
        link.handle_message(PeerPresent(key(name)))
        verdicts.append(link.too_many)
    assert verdicts == [False, False, False, False, True], "the same again is no more"
    assert len(link.keys) == len(world.router.members) == 3


def test_a_key_that_left_makes_room() -> None:
    world = World()
    link = world.mesh("other", max_keys=1)
    for number in range(10):
        link.handle_message(PeerPresent(key(f"client {number}")))
        link.handle_message(PeerGone(key(f"client {number}")))
    assert not link.too_many
    assert world.router.members == {}
