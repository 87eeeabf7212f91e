"""Who gets what: duplicates, watchers, notices, gauges, routes through other relays; and random histories of it all."""

import gc
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from derp.close_reason import CloseReason
from derp.protocol.frames import PeerGoneReason, PeerPresentFlags
from derp.protocol.messages import PeerGone, PeerPresent, Pong, RecvPacket, encode
from derp.relay.clients import NOT_HERE_BURST, Client, Member
from derp.relay.counters import DropReason
from derp.relay.queue import MAX_MESH_NOTICE_BYTES, MAX_NOTICE_BYTES
from derp.server.debug import consistency
from tests.derp.relay.world import OWN_KEY, World, disco, key

LEFT, NOT_HERE = PeerGoneReason.DISCONNECTED, PeerGoneReason.NOT_HERE


def check(world: World) -> None:
    """The registry's own idea of being in order, as the operator's page shows it."""
    sessions = SimpleNamespace(admission=SimpleNamespace(problem=""))  # of which the page shows as well how it does
    relay = cast(Any, SimpleNamespace(router=world.router, sessions=sessions, others=()))
    assert consistency(relay) == "derp.Server ConsistencyCheck okay\n"


def frame(world: World, client: Client) -> None:
    """Any frame came from this connection."""
    if client.is_duplicate:
        world.router.note_writer(client)


def active(world: World, name: str) -> object:
    return world.router.routes.get(key(name))


# --- several connections of a key


def test_the_newest_connection_gets_the_packets() -> None:
    world = World()
    a, first = world.connect("a"), world.connect("b")
    world.packet(a, "b", b"1")
    second = world.connect("b")
    world.packet(a, "b", b"2")
    assert world.take(first) == [RecvPacket(key("a"), b"1")]
    assert world.take(second) == [RecvPacket(key("a"), b"2")]
    assert world.router.counters.dup_client_conns_total == 1


def test_whoever_sent_last_is_active() -> None:
    world = World()
    first, second, third = (world.connect("b") for _ in range(3))
    for client in (first, third, second, first):
        frame(world, client)
        assert active(world, "b") is client
    frame(world, first)
    assert active(world, "b") is first


def test_when_the_active_one_leaves_the_most_recently_active_takes_over() -> None:
    world = World()
    first, second, third = (world.connect("b") for _ in range(3))
    frame(world, first)
    frame(world, third)
    world.leave(third)
    assert active(world, "b") is first
    world.leave(first)
    assert active(world, "b") is second
    world.leave(second)
    assert active(world, "b") is None
    check(world)


def test_silent_connections_are_taken_by_age() -> None:
    # The genuine relay falls back to the first of three silent ones; the newest is the likelier one to be alive.
    world = World()
    _, second, third = (world.connect("b") for _ in range(3))
    world.leave(third)
    assert active(world, "b") is second


def test_a_passive_connection_that_leaves_changes_nothing() -> None:
    world = World()
    a, first, second = world.connect("a"), world.connect("b"), world.connect("b")
    world.packet(second, "a")
    world.take(a)
    world.leave(first)
    assert active(world, "b") is second
    assert world.take(a) == []
    assert not second.is_duplicate


def test_duplicate_gauges() -> None:
    world = World()
    router = world.router
    a, b = [world.connect("a")], [world.connect("b")]
    assert router.duplicate_keys == 0
    a += [world.connect("a"), world.connect("a")]
    assert (router.duplicate_keys, [client.is_duplicate for client in a]) == (1, [True] * 3)
    b.append(world.connect("b"))
    assert router.duplicate_keys == 2
    world.leave(a.pop())
    assert (router.duplicate_keys, [client.is_duplicate for client in a]) == (2, [True] * 2)
    world.leave(a.pop())
    assert (router.duplicate_keys, [client.is_duplicate for client in a]) == (1, [False])
    assert router.counters.dup_client_conns_total == 3


def test_leaving_twice_is_leaving_once() -> None:
    world = World()
    client = world.connect("a", is_ideal=False)
    world.leave(client)
    world.leave(client)
    assert (world.router.not_ideal_clients, world.router.clients) == (0, {})


# --- peer gone


def test_who_got_packets_hears_that_their_sender_left() -> None:
    world = World()
    a, b, c = (world.connect(name) for name in "abc")
    world.packet(a, "b")
    world.packet(c, "a")
    for client in (a, b, c):
        world.take(client)
    world.leave(a)
    assert world.take(b) == [PeerGone(key("a"), LEFT)]
    assert world.take(c) == [], "who only sent to it hears nothing"
    assert world.router.counters.peer_gone_disconnected_frames == 1


def test_a_sender_that_came_back_and_leaves_again_is_told_again() -> None:
    # The genuine relay tells only the first time.
    world = World()
    b = world.connect("b")
    for _ in range(3):
        a = world.connect("a")
        world.packet(a, "b")
        world.leave(a)
        assert world.take(b) == [RecvPacket(key("a"), b"hello"), PeerGone(key("a"), LEFT)]
    world.connect("a")
    world.leave(cast(Client, active(world, "a")))
    assert world.take(b) == [], "this time it sent nothing"


def test_a_sender_with_another_connection_has_not_left() -> None:
    world = World()
    b = world.connect("b")
    first, second = world.connect("a"), world.connect("a")
    world.packet(first, "b")
    world.packet(second, "b")
    world.leave(second)
    assert [type(message) for message in world.take(b)] == [RecvPacket, RecvPacket]
    world.leave(first)
    assert world.take(b) == [PeerGone(key("a"), LEFT)]


def test_both_connections_that_got_packets_hear_it() -> None:
    world = World()
    a, first = world.connect("a"), world.connect("b")
    world.packet(a, "b")
    second = world.connect("b")
    world.packet(a, "b")
    world.leave(a)
    assert world.take(first) == world.take(second) == [RecvPacket(key("a"), b"hello"), PeerGone(key("a"), LEFT)]


def test_nobody_is_told_twice_and_nobody_who_left() -> None:
    world = World()
    a, b = world.connect("a"), world.connect("b")
    for _ in range(5):
        world.packet(a, "b")
    world.leave(b)
    b = world.connect("b")
    world.leave(a)
    assert world.take(b) == []
    assert world.router.counters.peer_gone_disconnected_frames == 0


def test_who_sends_to_itself_is_not_told_of_itself() -> None:
    world = World()
    a = world.connect("a")
    world.packet(a, "a")
    assert world.take(a) == [RecvPacket(key("a"), b"hello")]
    world.leave(a)
    assert world.take(a) == []


# --- not here


def test_absent_peers_are_told_three_times_and_then_once_a_second() -> None:
    world = World()
    a = world.connect("a")
    told: list[int] = []
    for _ in range(40):
        world.packet(a, "nobody", disco())
        told.append(len(world.take(a)))
        world.now += 0.25
    assert told[:NOT_HERE_BURST] == [1] * NOT_HERE_BURST
    assert sum(told) == NOT_HERE_BURST + 9  # and one for each of the whole seconds since
    world.now += 1000
    for _ in range(10):
        world.packet(a, "nobody", disco())
    assert world.take(a) == [PeerGone(key("nobody"), NOT_HERE)] * NOT_HERE_BURST


def test_each_connection_has_its_own_limit() -> None:
    world = World()
    for client in (world.connect("a"), world.connect("a"), world.connect("b")):
        for _ in range(5):
            world.packet(client, "nobody", disco())
        assert len(world.take(client)) == NOT_HERE_BURST


@pytest.mark.parametrize("packet", [disco(61), b"x" * 62, b"", b"TS\xf0\x9f\x92" + b"x" * 100])
def test_other_packets_to_nobody_are_dropped_in_silence(packet: bytes) -> None:
    world = World()
    a = world.connect("a")
    world.packet(a, "nobody", packet)
    assert world.take(a) == []
    assert world.router.counters.dropped(DropReason.UNKNOWN_DEST) == 1


# --- watchers


def test_a_watcher_hears_who_is_here_and_who_comes_and_goes() -> None:
    world = World()
    world.connect("a", address="192.0.2.1", port=1234)
    world.connect("b", address="2001:db8::1", port=5, is_prober=True)
    watcher = world.connect("peer", is_mesh_peer=True, is_ideal=False, address="127.0.0.1", port=9)
    world.router.handle_watch_conns(watcher)
    mesh_flags = PeerPresentFlags.MESH_PEER | PeerPresentFlags.NOT_IDEAL
    assert world.take(watcher) == [
        PeerPresent(key("a"), ip_address("192.0.2.1"), 1234, PeerPresentFlags.REGULAR),
        PeerPresent(key("b"), ip_address("2001:db8::1"), 5, PeerPresentFlags.PROBER),
        PeerPresent(key("peer"), ip_address("127.0.0.1"), 9, mesh_flags),
    ]
    first = world.connect("c")
    second = world.connect("c", is_ideal=False)
    present = PeerPresent(key("c"), None, 0, PeerPresentFlags.REGULAR)
    assert world.take(watcher) == [present, PeerPresent(key("c"), None, 0, PeerPresentFlags.NOT_IDEAL)]
    world.leave(first)
    assert world.take(watcher) == []
    world.leave(second)
    assert world.take(watcher) == [PeerGone(key("c"), LEFT)]


def test_a_watcher_hears_each_key_once_by_its_active_connection() -> None:
    world = World()
    first = world.connect("a", port=1)
    world.connect("a", port=2)
    frame(world, first)
    watcher = world.connect("peer", is_mesh_peer=True)
    world.mesh("other", "far")
    world.router.handle_watch_conns(watcher)
    ports = {message.key: message.port for message in cast(Sequence[PeerPresent], world.take(watcher))}
    assert ports == {key("a"): 1, key("peer"): 0}, "or it was told of keys of other relays"


def test_watching_twice_and_watching_oneself() -> None:
    world = World()
    watcher = world.connect("peer", is_mesh_peer=True)
    world.router.handle_watch_conns(watcher)
    assert len(world.take(watcher)) == 1
    world.router.handle_watch_conns(watcher)
    assert world.take(watcher) == []
    own = Client(OWN_KEY, world.router.next_number(), None, 0.0, is_mesh_peer=True)
    world.router.register(own)
    world.router.handle_watch_conns(own)
    assert (world.take(own), own.is_watcher, len(world.router.watchers)) == ([], False, 1)


def test_every_watcher_hears_the_same() -> None:
    world = World()
    world.connect("a", address="192.0.2.1", port=1234, is_prober=True)
    watchers = [world.connect(name, is_mesh_peer=True) for name in ("one", "two")]
    lists = []
    for watcher in watchers:
        world.router.handle_watch_conns(watcher)
        lists.append(world.take(watcher))
    assert PeerPresent(key("a"), ip_address("192.0.2.1"), 1234, PeerPresentFlags.PROBER) in lists[0]
    assert lists[0] == lists[1]


def test_a_watcher_that_left_is_told_nothing() -> None:
    world = World()
    watcher = world.connect("peer", is_mesh_peer=True)
    world.router.handle_watch_conns(watcher)
    world.take(watcher)
    world.leave(watcher)
    world.connect("a")
    assert (world.take(watcher), len(world.router.watchers)) == ([], 0)


def test_a_slow_watcher_gets_all_announcements_or_is_closed() -> None:
    world = World()
    watcher = world.connect("peer", is_mesh_peer=True)
    plain = world.connect("plain")
    world.router.handle_watch_conns(watcher)
    world.take(watcher)
    watcher.queue, plain.queue = world.router.new_queue(watcher), world.router.new_queue(plain)
    many = 2 * MAX_NOTICE_BYTES // 56  # more than an ordinary client may have waiting
    for number in range(many):
        world.connect(f"client {number}")
    world.flush()
    assert world.closed == []
    assert watcher.queue.notice_bytes == many * 56
    filler = b"\x14" + (MAX_MESH_NOTICE_BYTES - watcher.queue.notice_bytes - 5).to_bytes(4, "big")
    watcher.queue.push_notice(filler + bytes(MAX_MESH_NOTICE_BYTES - watcher.queue.notice_bytes - 5))
    world.connect("one too many")
    world.flush()
    assert world.closed == [(watcher, CloseReason.TOO_SLOW)]


def test_a_watchers_first_list_that_does_not_fit_closes_it() -> None:
    world = World()
    watcher = world.connect("peer", is_mesh_peer=True)
    for number in range(100):
        world.connect(f"client {number}")
    watcher.queue = world.router.new_queue(watcher)
    watcher.queue.push_notice(bytes(MAX_MESH_NOTICE_BYTES - 100 * 56))
    world.router.handle_watch_conns(watcher)
    world.flush()
    assert world.closed == [(watcher, CloseReason.TOO_SLOW)]


def test_a_slow_client_that_misses_a_notice_stays() -> None:
    world = World()
    b = world.connect("b")
    b.queue = world.router.new_queue(b)
    for number in range(MAX_NOTICE_BYTES // 38 + 10):
        source = world.connect(f"client {number}")
        world.packet(source, "b")
        world.leave(source)
    assert world.closed == []
    assert b.queue.notice_bytes <= MAX_NOTICE_BYTES
    assert world.router.counters.notices_dropped > 0


# --- other frames


def test_pings_are_answered_with_their_first_bytes() -> None:
    world = World()
    a = world.connect("a")
    world.router.handle_ping(a, b"12345678 and more")
    world.router.handle_ping(a, b"abcdefgh")
    world.flush()
    assert world.sent[a] == encode(Pong(b"12345678")) + encode(Pong(b"abcdefgh"))
    assert (world.router.counters.got_ping, world.router.counters.sent_pong) == (2, 2)


def test_a_client_that_does_not_read_gets_one_pong() -> None:
    world = World()
    a = world.connect("a")
    a.queue = world.router.new_queue(a)
    for _ in range(200):
        world.router.handle_ping(a, b"12345678")
    assert a.queue.notice_bytes == 13
    assert (world.router.counters.got_ping, world.router.counters.sent_pong) == (200, 1)


def test_homes_are_counted_and_moves_once_settled() -> None:
    world = World()
    router, counters = world.router, world.router.counters
    a, b = world.connect("a"), world.connect("b")

    def note(client: Client, preferred: bool) -> tuple[int, int, int]:
        router.handle_note_preferred(client, preferred, world.now)
        return router.home_clients, counters.home_moves_in, counters.home_moves_out

    assert note(a, True) == (1, 0, 0)
    assert note(a, True) == (1, 0, 0)
    assert note(b, False) == (1, 0, 0)
    assert note(a, False) == (0, 0, 0)
    world.now += 5.0
    assert note(a, True) == (1, 0, 0), "five seconds are not more than five seconds"
    world.now += 0.1
    assert note(b, True) == (2, 1, 0)
    assert note(a, False) == (1, 1, 1)
    assert note(a, False) == (1, 1, 1)
    world.leave(b)
    assert (router.home_clients, counters.home_moves_out) == (0, 1)


def test_not_ideal_clients_are_counted() -> None:
    world = World()
    a = world.connect("a", is_ideal=False)
    world.connect("b")
    assert world.router.not_ideal_clients == 1
    world.leave(a)
    assert world.router.not_ideal_clients == 0


def test_close_peer_closes_every_connection_of_the_key() -> None:
    world = World()
    doomed = [world.connect("a") for _ in range(3)]
    b = world.connect("b")
    world.router.handle_close_peer(key("a"))
    world.router.handle_close_peer(key("nobody"))
    world.mesh("other", "far")
    world.router.handle_close_peer(key("far"))
    world.flush()
    assert Counter(world.closed) == {(client, CloseReason.CLOSED_BY_MESH): 1 for client in doomed}
    assert list(world.router.clients.values()) == [b]


# --- keys behind other relays


def test_a_client_here_wins_over_other_relays() -> None:
    world = World()
    a = world.connect("a")
    link = world.mesh("other", "b")
    assert active(world, "b") is link
    b = world.connect("b")
    world.packet(a, "b")
    assert world.take(b) == [RecvPacket(key("a"), b"hello")]
    world.leave(b)
    assert active(world, "b") is link
    assert world.router.counters.peer_gone_disconnected_frames == 0
    check(world)


def test_a_relay_that_announces_a_client_of_ours_is_kept_for_later() -> None:
    world = World()
    b = world.connect("b")
    link = world.mesh("other", "b")
    assert active(world, "b") is b
    world.leave(b)
    assert active(world, "b") is link


def test_a_client_here_wins_whatever_else_of_its_key_goes() -> None:
    world = World()
    first, second = world.mesh("one", "b"), world.mesh("two", "b")
    passive, b = world.connect("b"), world.connect("b")
    world.leave(passive)
    assert active(world, "b") is b
    world.router.remove_forwarder(key("b"), first)
    assert active(world, "b") is b
    world.leave(b)
    assert active(world, "b") is second


def test_the_first_relay_that_announced_a_key_is_preferred() -> None:
    world = World()
    counters = world.router.counters
    first, second, third = (world.mesh(f"relay {number}", "b") for number in range(3))
    assert (counters.multiforwarder_created, counters.multiforwarder_deleted) == (1, 0)
    assert active(world, "b") is first
    world.router.remove_forwarder(key("b"), second)
    assert (active(world, "b"), counters.multiforwarder_deleted) == (first, 0)
    world.router.remove_forwarder(key("b"), first)
    assert (active(world, "b"), counters.multiforwarder_deleted) == (third, 1)
    world.router.remove_forwarder(key("b"), third)
    assert (active(world, "b"), counters.multiforwarder_deleted) == (None, 1)
    assert world.router.members == {}


def test_announcing_twice_is_announcing_once() -> None:
    world = World()
    link = world.mesh("other", "b")
    world.router.add_forwarder(key("b"), link)
    world.router.remove_forwarder(key("b"), link)
    assert (active(world, "b"), world.router.counters.multiforwarder_created) == (None, 0)


def test_taking_back_what_was_not_announced_is_counted() -> None:
    world = World()
    link, other = world.mesh("other", "b"), world.mesh("another")
    world.router.remove_forwarder(key("b"), other)
    world.router.remove_forwarder(key("nobody"), other)
    assert world.router.counters.packet_forwarder_delete_other_value == 1
    assert active(world, "b") is link
    # where several relays claim the key the genuine relay does not count it either
    world.router.add_forwarder(key("b"), world.mesh("third"))
    world.router.remove_forwarder(key("b"), other)
    assert world.router.counters.packet_forwarder_delete_other_value == 1


def test_when_the_last_way_to_a_key_is_gone_its_receivers_hear_it() -> None:
    world = World()
    a, b = world.connect("a"), world.connect("b")
    link = world.mesh("other", "a")
    world.packet(a, "b")
    world.leave(a)
    assert [type(message) for message in world.take(b)] == [RecvPacket], "it may only have moved"
    world.router.remove_forwarder(key("a"), link)
    assert world.take(b) == [PeerGone(key("a"), LEFT)]


def test_mesh_routes_are_the_links_in_use() -> None:
    world = World()
    first, second = world.mesh("one", "a", "b"), world.mesh("two", "b")
    world.mesh("three")
    assert world.router.mesh_routes() == {first, second}


# --- nothing is left behind


def objects_of(*kinds: type) -> int:
    gc.collect()
    return sum(type(one) in kinds for one in gc.get_objects())


def test_churn_leaves_nothing_behind() -> None:
    before = objects_of(Client, Member)
    world = World()
    stays = world.connect("stays")
    for number in range(300):
        client, twin = world.connect(f"client {number % 7}"), world.connect(f"client {number % 7}")
        world.packet(client, "stays")
        world.packet(stays, f"client {number % 7}")
        world.packet(twin, f"client {number % 7}")
        link = world.mesh("other", f"client {number % 5}", "far")
        world.packet(client, "far")
        world.leave(client)
        world.leave(twin)
        link.handle_break()
    del client, twin, link
    world.sent.clear()
    assert set(world.router.members) == set(world.router.routes) == {key("stays")}
    assert (stays.heard_from, len(world.router.clients)) == (set(), 1)
    assert objects_of(Client, Member) == before + 2
    world.leave(stays)
    del stays
    world.flush()
    world.sent.clear()
    assert (world.router.members, world.router.routes, world.router.clients) == ({}, {}, {})
    assert objects_of(Client, Member) == before
