"""Rules of the path finder one by one: who is believed, what a pong proves, and what hostile peers cost."""

from itertools import product
from random import Random

import pytest

from tailnet.errors import LocalProtocolError
from tailnet.paths.core import (
    ALL_PINGS_BURST,
    ALL_PINGS_PER_SECOND,
    Outgoing,
    PathChanged,
    Paths,
    Ponged,
    RelaySource,
)
from tailnet.paths.counters import Drop
from tailnet.paths.disco import (
    CallMeMaybe,
    Message,
    Ping,
    Pong,
    encode_call_me_maybe,
    encode_ping,
    encode_pong,
    open_message,
    parse_message,
    seal_message,
)
from tailnet.paths.endpoint import Endpoint
from tailnet.paths.peer import PINGS_BURST, PINGS_PER_SECOND, PONGS_BURST, PathPeer, Route
from tailnet.sodium import agree, public_of
from tests.tailnet.paths.world import START, World

HERE, THERE, ELSEWHERE = (Endpoint(f"203.0.113.{number}", 41641) for number in (1, 2, 3))
OURS, THEIRS = b"o" * 32, b"t" * 32
PRIVATE, THEIR_PRIVATE = b"1" * 32, b"2" * 32
RELAYED = RelaySource(1, THEIRS)


class Pair:
    """Our paths, and a peer that a test speaks for."""

    def __init__(self, *endpoints: Endpoint, is_direct: bool = True) -> None:
        self.random = Random(1)
        self.paths = Paths(OURS, PRIVATE, random=self.random.randbytes, now=0.0, is_direct=is_direct)
        self.paths.region_up(1)
        self.paths.set_local_endpoints([HERE], 0.0)
        self.peer = self.paths.configure(THEIRS, public_of(THEIR_PRIVATE), endpoints, 1, 0.0)

    def sealed(self, message: bytes, private: bytes = THEIR_PRIVATE) -> bytes:
        shared = agree(private, self.paths.disco_key)
        assert shared is not None
        return seal_message(public_of(private), shared, self.random.randbytes(24), message)

    def say(self, message: bytes, source: Endpoint | RelaySource, now: float) -> None:
        self.paths.receive(self.sealed(message), source, now)

    def heard(self) -> list[tuple[Endpoint | int | None, Message]]:
        """What we said since the last call: where to, and what."""
        found: list[tuple[Endpoint | int | None, Message]] = []
        for outgoing in self.paths.datagrams_to_send():
            shared = agree(THEIR_PRIVATE, self.paths.disco_key)
            assert shared is not None
            text = open_message(outgoing.datagram, shared)
            assert text is not None
            parsed = parse_message(text)
            assert parsed is not None
            found.append((outgoing.endpoint or outgoing.region, parsed))
        return found

    def pinged(self) -> dict[Endpoint | int | None, bytes]:
        """The pings since the last call, by where they went."""
        return {where: message.txid for where, message in self.heard() if isinstance(message, Ping)}

    def dropped(self) -> dict[Drop, int]:
        return {reason: count for reason, count in self.paths.counters.drops.items() if count}

    def answer(self, where: Endpoint, now: float) -> None:
        """Pong whatever was pinged there."""
        self.say(encode_pong(self.pinged()[where], HERE), where, now)


def found(now: float = 0.0) -> Pair:
    """A trusted path to THERE, proven at `now` + 10 ms."""
    pair = Pair(THERE)
    assert pair.paths.route(pair.peer, now) == Route(None, 1)
    pair.answer(THERE, now + 0.01)
    return pair


def test_the_first_packet_goes_by_relay_and_discovers() -> None:
    pair = Pair(THERE, ELSEWHERE)
    assert pair.paths.route(pair.peer, 0.0) == Route(None, 1)
    (first, one), (second, two), (third, call) = pair.heard()
    assert {first, second} == {THERE, ELSEWHERE}
    assert isinstance(one, Ping)
    assert isinstance(two, Ping)
    assert one.txid != two.txid
    assert one.node_key == two.node_key == OURS
    assert (third, call) == (1, CallMeMaybe((HERE,)))
    pair.paths.route(pair.peer, 4.9)
    assert pair.heard() == [], "a round each 5 s"
    pair.paths.route(pair.peer, 5.0)
    assert len(pair.heard()) == 3


def test_a_pong_makes_a_path_for_as_long_as_it_is_trusted() -> None:
    pair = found()
    assert pair.paths.take_events() == [PathChanged(pair.peer, THERE)]
    assert pair.peer.best_seconds == pytest.approx(0.01)
    assert pair.paths.route(pair.peer, 6.5) == Route(THERE, None)
    assert pair.paths.route(pair.peer, 6.52) == Route(THERE, 1), "both ways"


def test_heartbeats_keep_it() -> None:
    pair, now = found(), 0.0
    for _ in range(30):
        at = pair.paths.next_timeout()
        assert at is not None
        now = at
        pair.paths.handle_timeout(now)
        pings = pair.pinged()
        if THERE in pings:
            pair.say(encode_pong(pings[THERE], HERE), THERE, now + 0.001)
        assert pair.paths.route(pair.peer, now) == Route(THERE, None)
    assert now > 60


def test_a_heartbeat_without_answer_is_a_doubt() -> None:
    pair = found()
    pair.paths.handle_timeout(3.0)
    assert list(pair.pinged()) == [THERE]
    assert pair.paths.route(pair.peer, 3.99) == Route(THERE, None)
    assert pair.paths.route(pair.peer, 4.0) == Route(THERE, 1)


def test_who_is_idle_is_not_kept() -> None:
    pair = found()
    times = []
    while (at := pair.paths.next_timeout()) is not None:
        pair.paths.handle_timeout(at)
        times.append(at)
    assert 42 < max(times) <= 51
    assert pair.paths.handle_timeout(1000.0) == []


def test_a_path_is_compared_with_others_each_minute() -> None:
    pair, rounds = found(), 0
    pair.peer.best_seconds = 0.01
    for step in range(1, 41):
        now = 3.0 * step
        pair.paths.route(pair.peer, now - 1)
        pair.paths.handle_timeout(now)
        heard = pair.heard()
        rounds += any(isinstance(message, CallMeMaybe) for _, message in heard)
        for where, message in heard:
            if isinstance(message, Ping) and isinstance(where, Endpoint):
                pair.say(encode_pong(message.txid, HERE), where, now + 0.01)
        pair.heard()
    assert rounds == 2


def test_a_better_path_is_taken_and_a_worse_one_is_not() -> None:
    pair = Pair(THERE, ELSEWHERE)
    pair.paths.route(pair.peer, 0.0)
    pings = pair.pinged()
    pair.say(encode_pong(pings[THERE], HERE), THERE, 0.02)
    pair.say(encode_pong(pings[ELSEWHERE], HERE), ELSEWHERE, 0.03)
    assert pair.peer.best == THERE
    pair.paths.route(pair.peer, 20.0)
    pings = pair.pinged()
    pair.say(encode_pong(pings[ELSEWHERE], HERE), ELSEWHERE, 20.01)
    assert pair.peer.best == ELSEWHERE, "the old one was not trusted any more"


def test_a_path_whose_ping_timed_out_is_left_for_good() -> None:
    """Else copies would go there as long as packets go at all."""
    pair = found()
    pair.paths.route(pair.peer, 2.0)
    for now in (3.0, 6.0):
        pair.paths.handle_timeout(now)
    assert pair.paths.route(pair.peer, 7.9) == Route(THERE, 1)
    pair.paths.handle_timeout(8.0)
    assert pair.paths.route(pair.peer, 8.0) == Route(None, 1)


def test_an_endpoint_is_pinged_once_in_five_seconds() -> None:
    pair = Pair(THERE)
    pair.paths.route(pair.peer, 0.0)
    pair.say(encode_ping(b"a" * 12, THEIRS), ELSEWHERE, 4.0)
    assert set(pair.pinged()) == {THERE, ELSEWHERE}
    pair.paths.route(pair.peer, 5.0)
    assert set(pair.pinged()) == {THERE}


# --- pings of the peer ---


def test_a_ping_by_the_path_in_use_is_not_pinged_back() -> None:
    pair = found()
    pair.paths.route(pair.peer, 2.0)
    pair.paths.handle_timeout(3.0)
    pair.answer(THERE, 3.01)
    pair.say(encode_ping(b"a" * 12, THEIRS), THERE, 5.5)
    assert [type(message) for _, message in pair.heard()] == [Pong], "heartbeats do that"


def test_a_ping_is_answered_the_way_it_came() -> None:
    pair = Pair()
    pair.say(encode_ping(b"a" * 12, THEIRS), THERE, 1.0)
    pair.say(encode_ping(b"b" * 12, THEIRS), RELAYED, 1.0)
    pair.say(encode_ping(b"c" * 12, b"")[:14], THERE, 1.0)
    assert pair.heard() == [
        (THERE, Pong(b"a" * 12, THERE)),
        (1, Pong(b"b" * 12, None)),
        (THERE, Pong(b"c" * 12, THERE)),
    ]
    assert pair.peer.best is None, "that the peer reaches us proves nothing"
    assert pair.peer.heard_region == 1


def test_its_source_is_pinged_while_we_have_something_to_send() -> None:
    pair = Pair()
    pair.paths.route(pair.peer, 0.0)
    pair.heard()
    pair.say(encode_ping(b"a" * 12, THEIRS), THERE, 1.0)
    assert [type(message) for _, message in pair.heard()] == [Pong, Ping]
    pair.say(encode_ping(b"b" * 12, THEIRS), THERE, 2.0)
    assert [type(message) for _, message in pair.heard()] == [Pong], "once in 5 s"
    pair.say(encode_ping(b"b" * 12, THEIRS), THERE, 2.0)
    assert pair.heard() == []
    assert pair.dropped() == {Drop.DUPLICATE: 1}


def test_candidates_that_nobody_names_are_forgotten() -> None:
    pair = Pair(THERE)
    pair.say(encode_ping(b"a" * 12, THEIRS), ELSEWHERE, 0.0)
    assert set(pair.peer.candidates) == {THERE, ELSEWHERE}
    pair.paths.route(pair.peer, 44.0)
    assert set(pair.peer.candidates) == {THERE, ELSEWHERE}
    pair.paths.route(pair.peer, 50.0)
    assert set(pair.peer.candidates) == {THERE}


# --- call-me-maybe ---


def test_whoever_calls_is_pinged_at_once_and_everywhere() -> None:
    pair = Pair(THERE)
    pair.paths.route(pair.peer, 0.0)
    pair.heard()
    pair.say(encode_call_me_maybe((ELSEWHERE,)), RELAYED, 1.0)
    assert {where for where, _ in pair.heard()} == {THERE, ELSEWHERE}, "and no call in return"


def test_a_later_call_takes_back_what_an_earlier_one_named() -> None:
    pair = Pair(THERE)
    pair.say(encode_call_me_maybe((ELSEWHERE,)), RELAYED, 1.0)
    pair.say(encode_call_me_maybe(()), RELAYED, 2.0)
    assert set(pair.peer.candidates) == {THERE}


def test_a_path_that_works_survives_a_call_that_does_not_name_it() -> None:
    pair = Pair()
    pair.say(encode_call_me_maybe((ELSEWHERE,)), RELAYED, 1.0)
    pair.answer(ELSEWHERE, 1.01)
    pair.say(encode_call_me_maybe(()), RELAYED, 2.0)
    assert pair.paths.route(pair.peer, 2.0) == Route(ELSEWHERE, None)


def test_we_call_when_our_endpoints_are_known_later() -> None:
    pair = Pair(THERE)
    pair.paths.set_local_endpoints([], 0.0)
    pair.paths.route(pair.peer, 0.0)
    assert [type(message) for _, message in pair.heard()] == [Ping]
    pair.paths.set_local_endpoints([HERE], 0.5)
    assert pair.heard() == [(1, CallMeMaybe((HERE,)))]
    pair.paths.set_local_endpoints([HERE, ELSEWHERE], 0.6)
    assert pair.heard() == []
    pair.paths.set_local_endpoints([], 6.0)
    assert pair.heard() == [(1, CallMeMaybe(()))], "the peer forgets them"


# --- who is believed ---


def test_strangers_are_not_answered() -> None:
    pair = Pair()
    pair.paths.receive(pair.sealed(encode_ping(b"a" * 12, THEIRS), b"3" * 32), THERE, 1.0)
    forged = pair.sealed(encode_ping(b"a" * 12, THEIRS))
    pair.paths.receive(forged[:-1] + bytes((forged[-1] ^ 1,)), THERE, 1.0)
    pair.say(b"\x09\x00", THERE, 1.0)
    assert pair.heard() == []
    assert pair.dropped() == {Drop.UNKNOWN_SENDER: 1, Drop.FORGED: 1, Drop.MALFORMED: 1}


def test_a_ping_from_where_nothing_can_be_sent_is_not_answered() -> None:
    pair = Pair()
    for source in (Endpoint("203.0.113.1", 0), Endpoint("fe80::1%eth0", 5), Endpoint("fd7a:115c:a1e0::1", 5)):
        pair.say(encode_ping(b"a" * 12, THEIRS), source, 1.0)
    assert pair.heard() == []
    assert pair.dropped() == {Drop.UNUSABLE_SOURCE: 3}


def test_node_and_disco_key_belong_together() -> None:
    pair = Pair()
    pair.paths.configure(b"x" * 32, public_of(b"4" * 32), [], 1, 0.0)
    pair.say(encode_ping(b"a" * 12, b"x" * 32), THERE, 1.0)
    pair.say(encode_ping(b"a" * 12, b"x" * 32), RELAYED, 1.0)
    pair.say(encode_ping(b"a" * 12, THEIRS), RelaySource(1, b"x" * 32), 1.0)
    pair.say(encode_call_me_maybe((THERE,)), RelaySource(1, b"x" * 32), 1.0)
    pair.say(encode_call_me_maybe((THERE,)), THERE, 1.0)
    assert pair.heard() == []
    assert pair.dropped() == {Drop.WRONG_NODE: 4, Drop.WRONG_WAY: 1}


def test_a_peer_that_claims_the_disco_key_of_another_takes_nothing_from_it() -> None:
    pair = Pair(THERE)
    pair.paths.configure(b"x" * 32, public_of(THEIR_PRIVATE), [], 1, 0.0)
    pair.paths.route(pair.peer, 0.0)
    pair.answer(THERE, 0.01)
    assert pair.peer.best == THERE
    pair.say(encode_ping(b"a" * 12, b"")[:14], THERE, 1.0)
    assert pair.dropped() == {Drop.WRONG_NODE: 1}, "who did not say which of both it is"
    pair.paths.remove(b"x" * 32)
    pair.say(encode_ping(b"a" * 12, b"")[:14], THERE, 1.0)
    assert len(pair.heard()) == 1


def test_pongs_that_prove_nothing() -> None:
    pair = Pair(THERE)
    pair.paths.route(pair.peer, 0.0)
    txid = pair.pinged()[THERE]
    pair.say(encode_pong(b"z" * 12, HERE), THERE, 0.1)
    pair.say(encode_pong(txid, HERE), RelaySource(1, b"x" * 32), 0.1)
    pair.say(encode_pong(txid, HERE), THERE, 5.1)
    assert pair.peer.best is None
    assert pair.dropped() == {Drop.UNEXPECTED_PONG: 2, Drop.WRONG_NODE: 1}
    pair.paths.route(pair.peer, 10.0)
    txid = pair.pinged()[THERE]
    pair.say(encode_pong(txid, HERE), RELAYED, 10.1)
    pair.say(encode_pong(txid, HERE), THERE, 10.1)
    assert pair.peer.best is None, "by the relay it says nothing of THERE, and there is no second"


def test_a_pong_of_another_peer_is_none_of_this_one() -> None:
    pair = Pair(THERE)
    pair.paths.configure(b"x" * 32, public_of(b"4" * 32), [], 1, 0.0)
    pair.paths.route(pair.peer, 0.0)
    txid = pair.pinged()[THERE]
    pair.paths.receive(pair.sealed(encode_pong(txid, HERE), b"4" * 32), THERE, 0.1)
    assert pair.peer.best is None
    assert pair.dropped() == {Drop.UNEXPECTED_PONG: 1}
    pair.say(encode_pong(txid, HERE), THERE, 0.1)
    assert pair.peer.best == THERE


def test_a_pong_from_another_address_proves_where_the_ping_went() -> None:
    pair = Pair(THERE)
    pair.paths.route(pair.peer, 0.0)
    pair.say(encode_pong(pair.pinged()[THERE], HERE), ELSEWHERE, 0.1)
    assert pair.peer.best == THERE


# --- what hostile peers cost ---


def test_a_peer_that_names_third_parties_makes_few_pings() -> None:
    """It calls with 32 other victims a thousand times in 10 s."""
    pair = Pair()
    for step in range(1000):
        victims = tuple(Endpoint(f"192.0.2.{step % 250}", port) for port in range(1, 33))
        pair.say(encode_call_me_maybe(victims), RELAYED, step / 100)
    assert len(pair.heard()) <= PINGS_BURST + 10 * PINGS_PER_SECOND
    assert pair.paths.counters.pings_saved > 10_000
    assert len(pair.peer.candidates) <= 100


def test_many_such_peers_have_one_budget() -> None:
    pair, sent = Pair(), 0
    peers = [(bytes((number,)) * 32, bytes((number, 9)) * 16) for number in range(100)]
    for node_key, private in peers:
        pair.paths.configure(node_key, public_of(private), [], 1, 0.0)
    for step, (node_key, private) in product(range(5), peers):
        victims = tuple(Endpoint(f"192.0.2.{step}", port) for port in range(1, 33))
        source = RelaySource(1, node_key)
        pair.paths.receive(pair.sealed(encode_call_me_maybe(victims), private), source, step)
        sent += len(pair.paths.datagrams_to_send())
    assert sent <= ALL_PINGS_BURST + 4 * ALL_PINGS_PER_SECOND


def test_pings_from_everywhere_are_answered_within_a_budget() -> None:
    """Each from an address of its own, all in one second: replayed or not, they cannot be turned on somebody."""
    pair = Pair()
    pair.paths.route(pair.peer, 0.0)
    for step in range(2000):
        pair.say(encode_ping(step.to_bytes(12, "big"), THEIRS), Endpoint("192.0.2.9", 1 + step), 0.0)
    kinds = [type(message) for _, message in pair.heard()]
    assert kinds.count(Pong) == PONGS_BURST
    assert kinds.count(Ping) <= PINGS_BURST
    assert pair.dropped() == {Drop.BUDGET: 2000 - PONGS_BURST}
    assert len(pair.peer.candidates) == 100


def test_what_waits_for_pongs_is_bounded_and_forgotten() -> None:
    pair = Pair(*(Endpoint("203.0.113.9", port) for port in range(1, 200)))
    assert len(pair.peer.candidates) == 100
    for second in range(100):
        pair.paths.route(pair.peer, float(second))
        pair.paths.handle_timeout(float(second))
        assert len(pair.paths._sent) <= 250
    for late in (200.0, 210.0):
        pair.paths.handle_timeout(late)
    assert not pair.paths._sent
    assert not pair.paths._sent_order


# --- what the node knows ---


def test_a_new_process_of_the_peer_begins_anew() -> None:
    pair = found()
    pair.paths.configure(THEIRS, public_of(THEIR_PRIVATE), [THERE], 1, 1.0)
    assert pair.paths.route(pair.peer, 1.0) == Route(THERE, None), "nothing new"
    pair.paths.configure(THEIRS, public_of(b"5" * 32), [THERE], 1, 1.0)
    assert pair.paths.route(pair.peer, 1.0) == Route(None, 1)
    pair.say(encode_ping(b"a" * 12, THEIRS), THERE, 1.0)
    assert pair.dropped() == {Drop.UNKNOWN_SENDER: 1}


def test_a_peer_without_disco_is_reached_by_relay() -> None:
    pair = Pair()
    peer = pair.paths.configure(b"x" * 32, None, [THERE], 2, 0.0)
    assert pair.paths.route(peer, 0.0) == Route(None, 2)
    pair.paths.ping(peer, 0.0)
    assert pair.heard() == []


def test_without_udp_everything_goes_by_relay() -> None:
    pair = Pair(THERE, is_direct=False)
    assert pair.paths.route(pair.peer, 0.0) == Route(None, 1)
    pair.say(encode_call_me_maybe((THERE,)), RELAYED, 0.0)
    assert pair.heard() == []
    pair.say(encode_ping(b"a" * 12, THEIRS), RELAYED, 0.0)
    assert [type(message) for _, message in pair.heard()] == [Pong]
    assert pair.paths.next_timeout() is None


def test_which_region() -> None:
    pair = Pair()
    region = pair.paths.region_of
    pair.say(encode_ping(b"a" * 12, THEIRS), RelaySource(3, THEIRS), 0.0)
    pair.paths.region_up(3)
    assert region(pair.peer) == 1, "home, while there is a connection"
    pair.paths.region_down(1)
    assert region(pair.peer) == 3, "where it was heard"
    pair.paths.peer_gone(pair.peer, 3)
    assert region(pair.peer) == 1, "else home is to be dialled"
    pair.paths.heard(pair.peer, 3)
    pair.paths.configure(THEIRS, public_of(THEIR_PRIVATE), [], 0, 0.0)
    assert region(pair.peer) == 3, "a peer without home"
    pair.paths.region_down(3)
    assert pair.paths.route(pair.peer, 0.0) == Route(None, None)


def test_an_address_that_cannot_be_sent_to_is_left() -> None:
    pair = found()
    pair.paths.take_events()
    pair.paths.send_failed(pair.peer, ELSEWHERE, 1.0)
    assert pair.peer.best == THERE
    pair.paths.send_failed(pair.peer, THERE, 1.0)
    assert pair.paths.route(pair.peer, 1.0) == Route(None, 1)
    assert pair.paths.take_events() == [PathChanged(pair.peer, None)]


def test_a_removed_peer_is_forgotten() -> None:
    pair = found()
    pair.paths.remove(THEIRS)
    pair.paths.remove(THEIRS)
    assert pair.paths.find(THEIRS) is None
    assert pair.paths.next_timeout() is None
    assert not pair.paths._shared
    pair.say(encode_ping(b"a" * 12, THEIRS), THERE, 1.0)
    assert pair.dropped() == {Drop.UNKNOWN_SENDER: 1}


def test_a_disco_key_that_is_none_is_refused() -> None:
    pair = Pair()
    for key in (bytes(32), b"short"):
        with pytest.raises(LocalProtocolError, match="not a usable"):
            pair.paths.configure(b"x" * 32, key, [], 1, 0.0)


# --- ping of a user ---


def answers(*, kinds: tuple[str, str] = ("open", "open"), after: float = 0.0) -> list[tuple[bool, int | None]]:
    """Whether each answer came by UDP, and by which region, in their order."""
    world = World(*kinds)
    a, b = world.nodes
    if after:
        for _ in world.talk(0, after):
            pass
    a.events.clear()
    a.paths.ping(a.peer(b), world.now)
    a.flush()
    world.run(world.now - START + 1)
    return [(each.endpoint is not None, each.region) for each in a.events if isinstance(each, Ponged)]


def test_a_ping_says_which_way() -> None:
    assert answers() == [(True, None), (False, 1)], "the first decides"
    assert answers(kinds=("blocked", "open")) == [(False, 1)]
    assert answers(after=5.0) == [(True, None)], "a trusted path alone"


def test_a_ping_tells_the_round_trip() -> None:
    pair = found()
    pair.paths.take_events()
    pair.paths.ping(pair.peer, 1.0)
    pair.answer(THERE, 1.25)
    assert pair.paths.take_events() == [Ponged(pair.peer, 0.25, THERE, None)]


def test_outgoing_names_the_peer_for_the_relay() -> None:
    pair = Pair()
    pair.paths.ping(pair.peer, 0.0)
    (outgoing,) = pair.paths.datagrams_to_send()
    assert isinstance(outgoing, Outgoing)
    assert (outgoing.endpoint, outgoing.region, outgoing.node_key) == (None, 1, THEIRS)
    assert isinstance(pair.peer, PathPeer)
