"""A device alone and two over a virtual link: the genuine traces, hostile peers, and bounds."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from derp.keys import NodePrivate
from tailnet.errors import LocalProtocolError
from tailnet.wireguard.admission import COOKIE_REPLIES_PER_SECOND, FREE_BURST
from tailnet.wireguard.counters import Drop
from tailnet.wireguard.device import (
    MAX_STAGED_BYTES,
    Device,
    GaveUp,
    KeysForgotten,
    SessionBegun,
)
from tailnet.wireguard.messages import INITIATION_BYTES
from tailnet.wireguard.peer import MAX_STAGED
from tests.tailnet.wireguard.world import START, UNIX, Node, World, address, packet
from tests.vectors.wireguard import VECTORS

TRACES = VECTORS["timer_traces"]
JITTER = 0.334


def pair(fate: Callable[..., list[float]] = lambda *_: [0.0]) -> tuple[World, Node, Node]:
    world = World("AB", fate)
    return world, *world.nodes  # type: ignore[return-value]


def up() -> tuple[World, Node, Node]:
    """A session with A as initiator, and a packet each way."""
    world, a, b = pair()
    a.send(b, b"one")
    world.settle()
    b.send(a, b"two")
    world.settle()
    return world, a, b


def dropped(node: Node) -> dict[Drop, int]:
    return {reason: count for reason, count in node.device.counters.drops.items() if count}


def spoken(world: World, *, data: bool = False) -> list[str]:
    """The trace in the form of the vectors."""
    return [f"{at:.3f} {who} {what}" for at, who, what in world.trace if data or what != "data"]


# --- the genuine traces ---


def test_both_send_each_second() -> None:
    world, a, b = pair()
    for second in range(400):
        world.run(second)
        a.send(b, b"a%d" % second)
        world.settle()
        b.send(a, b"b%d" % second)
    world.settle()
    assert spoken(world) == TRACES["both_send_each_second_400s"]["trace"]
    assert (len(a.inbox), len(b.inbox)) == (400, 400)


@pytest.mark.parametrize("name", ["initiator_sends_each_second_400s", "responder_sends_each_second_400s"])
def test_one_sends_each_second(name: str) -> None:
    world, a, b = pair()
    for second in range(400):
        # Data and a timer in one moment: the genuine devices took the timer first in one run, data in the other.
        world.run(second if name.startswith("initiator") else second - 0.001)
        world.now = START + second
        if second == 0 or name.startswith("initiator"):
            a.send(b, b"a")
        else:
            b.send(a, b"b")
    world.run(399.9)
    ours, genuine = spoken(world), TRACES[name]["trace"]
    assert [line.split(maxsplit=1)[1] for line in ours] == [line.split(maxsplit=1)[1] for line in genuine]
    # A keepalive that is due in the moment of a handshake: the genuine device's timer may or may not be stopped by it,
    # and is once in three rekeys, which moves the later ones by a second.
    assert all(
        abs(float(one.split()[0]) - float(other.split()[0])) <= 1 for one, other in zip(ours, genuine, strict=True)
    )
    assert ours[:40] == genuine[:40]


def test_a_dead_peer_is_given_up() -> None:
    world, a, b = pair(lambda *_: [])
    a.send(b, b"one")
    world.run(400)
    genuine = [float(line.split()[0]) for line in TRACES["dead_peer_one_packet"]["trace"]]
    ours = [at for at, _, what in world.trace if what == "initiation"]
    assert len(ours) == len(genuine) == 20
    for times in (ours, genuine):
        gaps = [after - before for before, after in pairwise(times)]
        assert all(5 <= round(gap, 3) <= 5 + JITTER for gap in gaps)
    assert a.events == [GaveUp(a.peer(b))]
    assert dropped(a) == {Drop.STAGED: 1}
    a.send(b, b"two")
    assert world.trace[-1] == (400.0, "A", "initiation"), "new data begins anew"


def test_a_vanished_peer_is_noticed_after_fifteen_seconds() -> None:
    world, a, b = up()
    world.run(20)
    world.fate = lambda sender, *_: [] if sender is a else [0.0]
    world.run(30)
    a.send(b, b"lost")
    world.run(90)
    genuine = TRACES["peer_vanishes_after_session"]["trace"]
    ours = spoken(world, data=True)
    assert [line.split(maxsplit=1)[1] for line in ours] == [line.split(maxsplit=1)[1] for line in genuine]
    for one, other in zip(ours, genuine, strict=True):
        assert abs(float(one.split()[0]) - float(other.split()[0])) < 10 * JITTER


def test_keys_are_forgotten_after_nine_minutes() -> None:
    world, a, b = up()
    world.run(539)
    assert spoken(world, data=True) == TRACES["one_way_request_then_silence"]["trace"]
    assert a.peer(b).current is not None
    world.run(541)
    assert a.peer(b).current is None
    assert a.events[-1] == KeysForgotten(a.peer(b))
    assert not a.device._pairs
    assert not a.device._initiators


def test_a_packet_after_a_long_pause_costs_one_handshake() -> None:
    world, a, b = up()
    world.run(190)
    a.send(b, b"three")
    world.settle()
    assert spoken(world, data=True) == TRACES["packet_after_190s_idle"]["trace"]
    assert b.bodies == [b"one", b"three"]


def test_a_responder_sends_as_long_as_the_keys_last() -> None:
    world, a, b = up()
    world.run(130)
    b.send(a, b"three")
    world.run(181)
    b.send(a, b"four")
    world.run(200)
    assert spoken(world, data=True) == TRACES["responder_packet_after_130s_idle"]["trace"]


def test_a_flood_of_right_initiations() -> None:
    """As the genuine device answers them; here the same initiator begins anew each time."""
    world, a, b = pair()
    answered = []
    for at in (0.0, 0.010, 0.035, 0.060):
        world.run(at)
        a.peer(b).timers.handshake_sent_at = float("-inf")
        before = b.device.counters.responses_sent
        a.device._initiate(a.peer(b), world.now)
        a.flush()
        world.settle()
        answered.append(b.device.counters.responses_sent > before)
    assert answered == [line.endswith("true") for line in TRACES["flood_of_initiations"]["result"]]


def test_two_that_begin_at_once_need_no_retry() -> None:
    """Genuine devices need 5.2 s."""
    world, a, b = pair(lambda *_: [0.01])
    a.send(b, b"from A")
    b.send(a, b"from B")
    world.run(0.05)
    assert (a.bodies, b.bodies) == ([b"from B"], [b"from A"])
    assert [what for _, _, what in world.trace].count("initiation") == 2
    for second in range(1, 300):
        world.run(second)
        a.send(b, b"%d" % second)
        b.send(a, b"%d" % second)
    world.run(300)
    assert len(a.inbox) == len(b.inbox) == 300, "not one is lost while keys change"
    assert [what for _, _, what in world.trace].count("initiation") <= 5, "later only one of them begins"


# --- handshakes ---


def test_a_session_is_told_on_both_sides() -> None:
    world, a, b = up()
    assert a.events == [SessionBegun(a.peer(b), True)]
    assert b.events == [SessionBegun(b.peer(a), False)]
    assert a.peer(b).last_handshake_at == b.peer(a).last_handshake_at == START
    world.run(5)
    a.device.begin_session(a.peer(b), world.now)
    assert a.device.datagrams_to_send() == [], "there is one"


def test_it_can_be_asked_for() -> None:
    world, a, b = pair()
    a.device.begin_session(a.peer(b), START)
    a.flush()
    world.settle()
    assert spoken(world) == ["0.000 A initiation", "0.000 B response", "0.000 A keepalive"]


def test_the_answer_tells_where_it_should_go() -> None:
    _, a, b = pair()
    a.device.seal(a.peer(b), [packet(0, 1)], START)
    (asked,) = a.device.datagrams_to_send()
    assert (asked.peer, asked.source) == (a.peer(b), None)
    b.device.open([asked.datagram], b"its address", START)
    (answer,) = b.device.datagrams_to_send()
    assert (answer.peer, answer.source) == (b.peer(a), b"its address")


def test_a_lost_response_is_asked_for_again_by_either_side() -> None:
    """B has answered and has data; the answer is lost, and so is every initiation of A."""
    world, a, b = pair(lambda sender, receiver, datagram: [] if datagram[0] == 2 else [0.0])
    a.send(b, b"a")
    world.run(1)
    b.send(a, b"b")
    world.fate = lambda sender, *_: [] if sender is a and datagram_is_initiation(world) else [0.0]
    world.run(5.5)
    assert (a.bodies, b.bodies) == ([b"b"], [b"a"])


def datagram_is_initiation(world: World) -> bool:
    return len(world.wire[-1][2]) == INITIATION_BYTES


def test_the_newest_packets_are_sent_when_the_session_comes() -> None:
    world, a, b = pair()
    peer = a.peer(b)
    a.device.seal(peer, [packet(0, 1, b"%d" % number) for number in range(MAX_STAGED + 3)], START)
    a.flush()
    world.settle()
    assert b.bodies == [b"%d" % number for number in range(3, MAX_STAGED + 3)]
    assert dropped(a) == {Drop.STAGED: 3}
    assert a.device._staged_bytes == 0


def test_what_waits_is_bounded_in_all() -> None:
    random = Random(5)
    device = Device(NodePrivate(random.randbytes(32)), random=random.randbytes, now=0.0, unix_seconds=UNIX)
    count = MAX_STAGED_BYTES // (MAX_STAGED * 1280) + 5
    for number in range(count):
        public = Device(NodePrivate(random.randbytes(32)), random=random.randbytes, now=0.0, unix_seconds=0.0).public
        peer = device.configure(public, [address(number)], 0.0)
        device.seal(peer, [bytes(1280)] * MAX_STAGED, 0.0)
    held = sum(len(each) for peer in device.peers for each in peer.staged)
    assert held == device._staged_bytes <= MAX_STAGED_BYTES
    assert held + 1280 * device.counters.drops[Drop.STAGED] == count * MAX_STAGED * 1280
    for peer in list(device.peers):
        device.remove(peer.public)
    assert device._staged_bytes == 0
    assert device.next_timeout() is None


# --- who is known ---


def test_addresses_change_under_a_session() -> None:
    world, a, b = up()
    b.device.configure(a.device.public, [address(7)], world.now)
    a.send(b, b"with the old address")
    world.settle()
    assert dropped(b) == {Drop.FOREIGN_SOURCE: 1}
    assert b.device.owner_of(address(0)) is None
    assert b.device.owner_of(address(7)) is b.peer(a)
    assert [what for _, _, what in world.trace].count("initiation") == 1


def test_an_address_is_of_the_last_who_was_given_it() -> None:
    world = World("ABC")
    a, b, c = world.nodes
    a.device.configure(c.device.public, [address(1), address(2)], START)
    b.send(a, b"from B")
    world.settle()
    assert dropped(a) == {Drop.FOREIGN_SOURCE: 1}
    a.device.configure(b.device.public, [address(1)], START)
    a.device.configure(c.device.public, [address(2)], START)
    assert a.device.owner_of(address(1)) is a.peer(b), (
        "that of B is B's again, and C's giving it up takes it from nobody"
    )


def test_another_preshared_key_ends_the_session() -> None:
    world, a, b = up()
    for one, other in ((a, b), (b, a)):
        one.device.configure(other.device.public, [address(other.number)], world.now, preshared=b"k" * 32)
    assert a.device._pairs == {}
    world.run(6)
    a.send(b, b"three")
    world.settle()
    assert b.bodies[-1] == b"three"


def test_a_removed_peer_is_forgotten() -> None:
    world, a, b = up()
    a.device.remove(b.device.public)
    a.device.remove(b.device.public)
    assert a.device.find(b.device.public) is None
    assert a.device.owner_of(address(1)) is None
    assert (a.device._pairs, a.device.next_timeout()) == ({}, None)
    b.send(a, b"three")
    world.settle()
    assert dropped(a) == {Drop.UNKNOWN_INDEX: 1}


def test_keys_that_are_none_are_refused_with_a_reason() -> None:
    _, a, _ = pair()
    for public, why in ((a.device.public, "own key"), (bytes(32), "not a usable"), (b"short", "not a usable")):
        with pytest.raises(LocalProtocolError, match=why):
            a.device.configure(public, [], START)
    assert len(list(a.device.peers)) == 1


def test_a_persistent_keepalive_keeps_a_session_without_data() -> None:
    world, a, b = pair()
    a.device.configure(b.device.public, [address(1)], START, persistent_keepalive_seconds=25.0)
    world.run(400)
    times = [at for at, who, _ in world.trace if who == "A"]
    assert max(after - before for before, after in pairwise(times)) <= 25.0
    assert b.peer(a).current is not None
    a.device.configure(b.device.public, [address(1)], world.now)
    count = len(world.trace)
    world.run(900)
    assert len(world.trace) - count <= 3


def test_an_initiator_that_hears_only_keepalives_asks_in_time() -> None:
    """It sends nothing itself, which would have it ask at 120 s; the old keys would end at 180 s."""
    world, a, b = pair()
    b.device.configure(a.device.public, [address(0)], START, persistent_keepalive_seconds=17.0)
    a.device.begin_session(a.peer(b), START)
    a.flush()
    world.run(179)
    initiations = [(at, who) for at, who, what in world.trace if what == "initiation"]
    assert [who for _, who in initiations] == ["A", "A"]
    assert 165 < initiations[1][0] < 180


def test_several_devices_share_a_socket() -> None:
    world = World("ABC")
    a, b, c = world.nodes
    a.send(b, b"one")
    world.settle()
    for _, receiver, datagram in world.wire[:3]:
        assert [node.device.owns(datagram) for node in (a, b, c)] == [node is receiver for node in (a, b, c)] or (
            datagram[0] == 2 and not any(node.device.owns(datagram) for node in (b, c))
        )
    assert not a.device.owns(b"short")


# --- hostile ---


def hostile(world: World, datagram: bytes, count: int, seconds: float) -> dict[Drop, int]:
    """So many copies within so many seconds to B."""
    b = world.nodes[1]
    before = dict(b.device.counters.drops)
    for number in range(count):
        world.now += seconds / count
        b.device.open([datagram], b"mallory%d" % number, world.now)
    return {reason: n - before[reason] for reason, n in b.device.counters.drops.items() if n > before[reason]}


def test_everything_that_was_ever_sent_is_worthless_again() -> None:
    world, a, b = up()
    world.run(30)
    before = len(b.inbox), len(a.inbox)
    for sender, receiver, datagram in list(world.wire):
        receiver.receive(datagram, source=sender.source)
    assert (len(b.inbox), len(a.inbox)) == before
    assert dropped(b) == {Drop.OLD_INITIATION: 1, Drop.REPLAYED: 2}
    assert dropped(a) == {Drop.UNEXPECTED_RESPONSE: 1, Drop.REPLAYED: 1}
    a.send(b, b"three")
    world.settle()
    assert b.bodies[-1] == b"three", "and nothing is broken by it"


def test_sessions_expire_for_what_is_held_back() -> None:
    world, a, b = up()
    (late,) = a.device.seal(a.peer(b), [packet(0, 1, b"late")], world.now)
    world.run(180.1)
    b.receive(late, source=a.source)
    assert dropped(b) == {Drop.EXPIRED: 1}


def test_garbage_of_every_length_and_type() -> None:
    _, _, b = pair()
    random = Random(7)
    for length in range(200):
        for kind in range(7):
            b.device.open([bytes((kind, 0, 0, 0))[:length] + random.randbytes(max(length - 4, 0))], b"x", START)
    counted = dropped(b)
    assert set(counted) == {Drop.MALFORMED, Drop.WRONG_MAC1, Drop.UNKNOWN_INDEX}
    assert counted[Drop.WRONG_MAC1] == 2
    assert b.device.datagrams_to_send() == []


def stranger_initiation(b: Node, seed: int = 99) -> bytes:
    """A right initiation of a node that B does not know."""
    random = Random(seed)
    private = NodePrivate(random.randbytes(32))
    stranger = Device(private, random=random.randbytes, now=START, unix_seconds=UNIX)
    peer = stranger.configure(b.device.public, [], START)
    stranger.begin_session(peer, START)
    return stranger.datagrams_to_send()[0].datagram


def test_a_flood_of_initiations_costs_a_bounded_number_of_computations() -> None:
    world, _, b = pair()
    counted = hostile(world, stranger_initiation(b), 20_000, 1.0)
    computed = counted[Drop.UNKNOWN_PEER]
    assert FREE_BURST <= computed <= 2 * FREE_BURST
    assert counted[Drop.UNDER_LOAD] == 20_000 - computed
    assert b.device.counters.cookie_replies_sent <= 2 * COOKIE_REPLIES_PER_SECOND < 20_000
    assert b.device.is_under_load(world.now)
    replies = b.device.datagrams_to_send()
    assert all(reply.peer is None and len(reply.datagram) < INITIATION_BYTES for reply in replies)


def test_known_peers_get_through_a_flood() -> None:
    world, a, b = pair()
    flood = stranger_initiation(b)
    hostile(world, flood, 1000, 0.1)
    b.device.datagrams_to_send()
    a.send(b, b"one")
    world.settle()
    assert b.bodies == []
    assert a.device.counters.cookie_replies_received == 1
    end = world.now + 6
    while world.now < end:
        hostile(world, flood, 1000, 0.1)
        b.device.datagrams_to_send()
        world.run(world.now - START)
    assert b.bodies == [b"one"], "with the cookie, at the first retry"
    assert b.device.is_under_load(world.now)


def test_a_forged_response_does_not_end_the_handshake() -> None:
    world, a, b = pair()
    a.device.seal(a.peer(b), [packet(0, 1, b"one")], START)
    (asked,) = a.device.datagrams_to_send()
    b.device.open([asked.datagram], a.source, START)
    (answer,) = b.device.datagrams_to_send()
    forged = bytearray(answer.datagram[:60])
    forged[20] ^= 1
    sealed = b.peer(a).cookies.add_macs(bytes(forged), START)  # whoever knows A's public key makes a right mac1
    a.receive(sealed, source=b"mallory")
    assert dropped(a) == {Drop.FORGED_HANDSHAKE: 1}
    a.receive(answer.datagram, source=b.source)
    world.settle()
    assert b.bodies == [b"one"]


def test_cookies_of_others_are_not_taken() -> None:
    world, a, b = pair(lambda *_: [])
    a.send(b, b"one")
    asked = world.wire[0][2]
    reply = b.device._admission.cookies.make_reply(asked, int.from_bytes(asked[4:8], "little"), b"x", START)
    a.receive(reply[:-1] + bytes((reply[-1] ^ 1,)), source=b.source)
    a.receive(reply[:4] + b"\0\0\0\0" + reply[8:], source=b.source)
    assert dropped(a) == {Drop.WRONG_COOKIE: 1, Drop.UNKNOWN_INDEX: 1}
    a.receive(reply, source=b.source)
    assert a.device.counters.cookie_replies_received == 1


def test_nothing_of_a_key_is_shown() -> None:
    _, a, b = up()
    shown = repr([a.device, a.peer(b), a.peer(b).current, a.events, vars(a.device.counters.__class__)])
    for secret in (a.peer(b).remote.static_static, b.device.public):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


# --- idle ---


def test_an_idle_device_is_not_woken() -> None:
    world, a, _ = up()
    woken = 0
    while (at := a.device.next_timeout()) is not None and at < START + 3600:
        world.now = at
        a.device.handle_timeout(at)
        a.device.datagrams_to_send()
        woken += 1
    assert woken <= 30, "of which 20 are the attempts to reach B"
