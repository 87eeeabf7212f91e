"""Packets for clients on the way from a leaving relay to another one: kept within bounds, then forwarded, once."""

import pytest

from derp.metrics import routed_totals
from derp.protocol.messages import ForwardPacket, Message, PeerGone, PeerPresent, Pong, RecvPacket, WatchConns, encode
from derp.relay.clients import Client
from derp.relay.counters import DropReason
from derp.relay.forward import forward_again
from derp.relay.mailbox import MAILBOX_BYTES, MAILBOX_SECONDS, MAILBOXES_BYTES
from tests.derp.relay.world import World, key


def leaving() -> World:
    world = World()
    world.router.is_leaving = True
    return world


def expire(world: World) -> None:
    world.now += MAILBOX_SECONDS
    for mailbox in world.router.mailboxes.handle_timeout(world.now):
        world.router.close_mailbox(mailbox)


def watch(world: World) -> Client:
    watcher = world.connect("watcher", is_mesh_peer=True)
    world.receive(watcher, encode(WatchConns()))
    world.take(watcher)
    return watcher


def test_packets_wait_for_a_key_and_follow_it_in_order() -> None:
    world = leaving()
    a, b, watcher = world.connect("a"), world.connect("b"), watch(world)
    world.packet(b, "a", b"answered")
    world.packet(a, "b", b"an answer")
    world.take(a), world.take(b)
    world.router.send_off(a, world.now)
    assert [each.key for each in world.router.clients.values()] == [b.key, watcher.key]
    for number in range(3):
        world.packet(b, "a", bytes([number]) * (number * 100))
    link = world.mesh("other")
    link.handle_message(PeerPresent(a.key))
    world.packet(b, "a", b"newer")
    expected = [ForwardPacket(b.key, a.key, bytes([number]) * (number * 100)) for number in range(3)]
    assert forwards(world, link) == [*expected, ForwardPacket(b.key, a.key, b"newer")]
    assert world.take(b) == [], "nobody is told that it has gone"
    assert world.take(watcher) == [], "nor is another relay, whose packets are passed on"
    assert (len(world.router.mailboxes), world.router.mailboxes.held_bytes) == (0, 0)
    counters = world.router.counters
    assert (counters.packets_forwarded_out, counters.bytes_forwarded_out) == (4, 300 + len(b"newer"))
    assert sum(counters.packets_dropped) == 0


def forwards(world: World, link: object) -> list[Message]:
    world.flush()
    frames = bytes(world.sent.pop(link))  # type: ignore[call-overload]
    found: list[Message] = []
    while frames:
        end = 5 + int.from_bytes(frames[1:5], "big")
        assert frames[0] == 0x0A
        found.append(ForwardPacket(frames[5:37], frames[37:69], frames[69:end]))
        frames = frames[end:]
    return found


def test_packets_that_other_relays_still_send_here_are_passed_on_behind_the_others() -> None:
    world = leaving()
    a, b, other = world.connect("a"), world.connect("b"), world.connect("other", is_mesh_peer=True)
    world.router.send_off(a, world.now)
    world.packet(b, "a", b"one")
    world.receive(other, encode(ForwardPacket(key("far"), a.key, b"two")))
    link = world.mesh("next", "a")
    world.receive(other, encode(ForwardPacket(key("far"), a.key, b"three")))
    assert forwards(world, link) == [
        ForwardPacket(b.key, a.key, b"one"),
        ForwardPacket(key("far"), a.key, b"two"),
        ForwardPacket(key("far"), a.key, b"three"),
    ]
    world.receive(other, encode(ForwardPacket(key("far"), key("nobody"), b"four")))
    assert world.router.counters.dropped(DropReason.UNKNOWN_DEST_ON_FWD) == 1


def test_what_a_link_did_not_take_before_it_ended_goes_where_its_clients_are() -> None:
    world = World()
    old, new = world.mesh("old", "a", "b", "c"), world.mesh("new", "a")
    d = world.connect("d")
    sent = [ForwardPacket(d.key, key(name), name.encode()) for name in "abc"]
    for name in "abc":
        world.packet(d, name, name.encode())
    taken = bytes(world.sent.pop(old))
    assert taken == b"".join(map(encode, sent))
    b = world.connect("b")
    forward_again(encode(Pong(b"8 bytes.")) + taken, old, world.router)
    assert forwards(world, new) == [sent[0]]
    assert world.take(b) == [RecvPacket(d.key, b"b")]
    assert world.router.counters.dropped(DropReason.WRITE_ERROR) == 1
    assert routed_totals(world.router, 0, 0) == (1, 1), "the one that reached a client"


def test_who_shows_up_nowhere_has_gone_after_a_while() -> None:
    world = leaving()
    a, b, watcher = world.connect("a"), world.connect("b"), watch(world)
    world.packet(a, "b")
    world.take(b)
    world.router.send_off(a, world.now)
    world.packet(b, "a", b"lost")
    world.packet(b, "a", b"lost")
    expire(world)
    assert world.take(b) == [PeerGone(a.key, 0)]
    assert world.take(watcher) == [PeerGone(a.key, 0)]
    assert a.key not in world.router.members
    assert world.router.counters.dropped(DropReason.GONE_DISCONNECTED) == 2
    assert world.router.mailboxes.held_bytes == 0
    world.packet(b, "a", b"to nobody")
    assert world.router.counters.dropped(DropReason.UNKNOWN_DEST) == 1


def test_who_goes_from_where_it_went_has_gone() -> None:
    world = leaving()
    a, b, watcher = world.connect("a"), world.connect("b"), watch(world)
    world.packet(a, "b")
    world.take(b)
    world.router.send_off(a, world.now)
    link = world.mesh("other", "a")
    link.handle_message(PeerGone(a.key, 0))
    assert world.take(b) == [PeerGone(a.key, 0)]
    assert world.take(watcher) == [PeerGone(a.key, 0)]


def test_who_comes_back_here_gets_them() -> None:
    world = leaving()
    a, b = world.connect("a"), world.connect("b")
    world.router.send_off(a, world.now)
    world.packet(b, "a", b"one")
    world.packet(b, "a", b"two")
    again = world.connect("a")
    world.packet(b, "a", b"three")
    assert world.take(again) == [RecvPacket(b.key, text) for text in (b"one", b"two", b"three")]
    expire(world)
    assert world.router.routes[a.key] is again


def test_another_connection_of_the_key_gets_them_at_once() -> None:
    world = leaving()
    first, second, b = world.connect("a"), world.connect("a"), world.connect("b")
    world.router.send_off(second, world.now)
    world.packet(b, "a", b"one")
    assert world.take(first) == [RecvPacket(b.key, b"one")]
    assert len(world.router.mailboxes) == 0


def test_packets_of_the_same_batch_are_kept_too() -> None:
    world = leaving()
    a, b = world.connect("a"), world.connect("b")
    world.router.send_off(a, world.now)
    route = world.router.routes[a.key]
    world.router.push(route, [encode(RecvPacket(b.key, b"in this batch"))])
    again = world.connect("a")
    assert world.take(again) == [RecvPacket(b.key, b"in this batch")]


def test_a_relay_that_has_no_other_keeps_nothing() -> None:
    world = World()
    a, b = world.connect("a"), world.connect("b")
    world.packet(a, "b")
    world.take(b)
    world.router.send_off(a, world.now)
    assert world.take(b) == [PeerGone(a.key, 0)]
    assert a.key not in world.router.members


def test_other_relays_have_no_mailbox() -> None:
    world = leaving()
    watcher = watch(world)
    world.router.send_off(watcher, world.now)
    assert len(world.router.mailboxes) == 0
    assert watcher.key not in world.router.members


def test_a_mailbox_is_bounded_by_whole_packets() -> None:
    world = leaving()
    a, b = world.connect("a"), world.connect("b")
    world.router.send_off(a, world.now)
    size = 37 + 1000
    fits = MAILBOX_BYTES // size
    for _ in range(fits + 5):
        world.packet(b, "a", bytes(1000))
    world.packet(b, "a", b"")  # what still fits is taken
    assert world.router.mailboxes.held_bytes == fits * size + 37
    assert world.router.counters.dropped(DropReason.GONE_DISCONNECTED) == 5


@pytest.mark.parametrize("at_once", [False, True])
def test_all_together_are_bounded(at_once: bool) -> None:
    world = leaving()
    b = world.connect("b")
    clients = [world.connect(f"a{number}") for number in range(MAILBOXES_BYTES // MAILBOX_BYTES + 5)]
    frame = encode(RecvPacket(b.key, bytes(65_000)))
    for client in clients:
        world.router.send_off(client, world.now)
        for _ in range(1 if at_once else 4):
            world.router.push(world.router.routes[client.key], [frame] * (4 if at_once else 1))
            world.flush()
    boxes = world.router.mailboxes
    assert MAILBOXES_BYTES - len(frame) < boxes.held_bytes <= MAILBOXES_BYTES
    expire(world)
    assert (len(boxes), boxes.held_bytes) == (0, 0)
    assert world.router.counters.dropped(DropReason.GONE_DISCONNECTED) == 4 * len(clients)
