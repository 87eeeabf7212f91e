"""Two nodes without sockets over a link of the test's, in virtual time."""

from collections.abc import Callable
from random import Random

import pytest

from derp.errors import LocalProtocolError
from derp.keys import NodePrivate
from tailnet.netstack.connection import Connection
from tailnet.netstack.events import What
from tailnet.netstack.stack import Happened, PongReceived
from tailnet.netstack.states import State
from tailnet.node.core import MAX_BURST_SEGMENTS, Batch, Drop, Event, NodeCore, PeerNode
from tailnet.paths.core import Ponged, RelaySource
from tailnet.paths.endpoint import Endpoint
from tailnet.wireguard.counters import Drop as DeviceDrop
from tailnet.wireguard.messages import COOKIE_REPLY

REGION = 901
ADDRESSES = [bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes((number,)) for number in range(3)]


class Node:
    """One end: `events` is what it was told."""

    def __init__(self, number: int, now: float, *, is_direct: bool, addresses: int = 1) -> None:
        self.private = NodePrivate(bytes((number + 1,)) * 32)
        self.key = self.private.public().raw
        self.endpoint = Endpoint("192.0.2.1", 1000 + number)
        self.addresses = ADDRESSES[number : number + addresses]
        self.core = NodeCore(
            self.private,
            bytes((number + 65,)) * 32,
            self.addresses,
            random=Random(number).randbytes,
            now=now,
            unix_seconds=1e9 + now,
            is_direct=is_direct,
        )
        self.core.paths.region_up(REGION)
        self.events: list[Event] = []

    def known(self, *, with_endpoint: bool) -> PeerNode:
        endpoints = (self.endpoint,) if with_endpoint else ()
        return PeerNode(self.key, (self.addresses[0],), self.core.paths.disco_key, endpoints, REGION)


class Link:
    """What one sends the other receives a millisecond later; `by` says which ways datagrams took."""

    def __init__(self, *, is_direct: bool = False, addresses: int = 1) -> None:
        self.now = 1000.0
        self.a = Node(0, self.now, is_direct=is_direct)
        self.b = Node(1, self.now, is_direct=is_direct, addresses=addresses)
        self.by: set[str] = set()
        self.largest = 0
        """Datagrams that one node sent at once."""
        for one, other in ((self.a, self.b), (self.b, self.a)):
            one.core.configure(other.known(with_endpoint=is_direct), self.now)

    def carry(self) -> bool:
        """Everything that is to be sent now; False when there was nothing."""
        found = False
        for one, other in ((self.a, self.b), (self.b, self.a)):
            batches = one.core.datagrams_to_send(self.now)
            self.largest = max(self.largest, sum(len(batch.datagrams) for batch in batches))
            for batch in batches:
                found = True
                self._hand_over(one, other, batch)
        self.now += 0.001
        return found

    def _hand_over(self, one: Node, other: Node, batch: Batch) -> None:
        assert batch.node_key in (other.key, b"")
        self.by.add("relay" if batch.endpoint is None else "udp")
        source = RelaySource(REGION, one.key) if batch.endpoint is None else one.endpoint
        for datagram in batch.datagrams:
            other.events += other.core.receive([datagram], source, self.now)

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Carry, and let time pass to the next deadline, until it holds."""
        end = self.now + seconds
        while not condition():
            assert self.now < end, "it never came to that"
            self._go_on(end)

    def rest(self, until: float) -> None:
        """Carry what becomes due by then."""
        while self.now < until:
            self._go_on(until)

    def _go_on(self, end: float) -> None:
        if self.carry():
            return
        moments = [at for node in (self.a, self.b) if (at := node.core.next_timeout()) is not None]
        self.now = max(self.now, min([*moments, end]))
        for node in (self.a, self.b):
            node.events += node.core.handle_timeout(self.now)


@pytest.mark.parametrize("is_direct", [False, True])
def test_a_ping_through_the_tunnel(is_direct: bool) -> None:
    link = Link(is_direct=is_direct)
    link.a.core.stack.send_ping(link.b.addresses[0], b"12345678")
    link.until(lambda: PongReceived(link.b.addresses[0], b"12345678") in link.a.events)
    if not is_direct:
        assert link.by == {"relay"}


def test_packets_take_the_direct_way_once_a_pong_proved_it() -> None:
    link = Link(is_direct=True)
    link.a.core.stack.send_ping(link.b.addresses[0], b"12345678")
    peer = link.a.core.paths.find(link.b.key)
    assert peer is not None
    link.until(lambda: peer.best == link.b.endpoint)
    link.by.clear()
    link.a.core.stack.send_ping(link.b.addresses[0], b"87654321")
    link.until(lambda: PongReceived(link.b.addresses[0], b"87654321") in link.a.events)
    assert link.by == {"udp"}


def test_a_disco_ping_is_answered_by_the_way_it_took() -> None:
    link = Link()
    peer = link.a.core.paths.find(link.b.key)
    assert peer is not None
    link.a.core.paths.ping(peer, link.now)
    link.until(lambda: any(isinstance(event, Ponged) for event in link.a.events))
    (ponged,) = [event for event in link.a.events if isinstance(event, Ponged)]
    assert (ponged.endpoint, ponged.region) == (None, REGION)


@pytest.mark.parametrize(
    ("is_direct", "queue_depth", "most"),
    [(True, 0, MAX_BURST_SEGMENTS), (False, 0, 16), (False, -1, 16), (False, 64, 32), (False, 1 << 40, 98)],
)
def test_a_relay_is_sent_at_once_half_of_its_queue_and_a_direct_way_as_many_as_make_calls_cheap(
    is_direct: bool, queue_depth: int, most: int
) -> None:
    link = Link(is_direct=is_direct)
    link.a.core.relay_up(REGION, queue_depth)
    link.b.core.stack.listen(80)
    connection = link.a.core.stack.connect(link.b.addresses[0], 80)
    peer = link.a.core.paths.find(link.b.key)
    assert peer is not None
    link.until(lambda: connection.state is State.ESTABLISHED and (peer.best is not None) is is_direct)
    link.largest = 0
    left = [1_000_000]

    def move() -> bool:
        left[0] -= connection.send(bytes(left[0])) if left[0] else 0
        return left[0] == 0

    link.until(move)
    assert most / 2 < link.largest <= most + 8  # and what paths say meanwhile


def test_a_stream_and_its_end() -> None:
    link = Link()
    listener = link.b.core.stack.listen(80)
    connection = link.a.core.stack.connect(link.b.addresses[0], 80)
    link.until(lambda: bool(listener.queue))
    accepted = listener.accept()
    assert accepted is not None
    data, received = bytes(range(256)) * 1000, bytearray()
    sent = 0

    def move() -> bool:
        nonlocal sent
        sent += connection.send(data[sent:])
        received.extend(accepted.receive(1 << 20))
        return len(received) == len(data)

    link.until(move)
    assert bytes(received) == data
    connection.close()
    link.until(lambda: accepted.eof)


def test_a_peer_that_is_forgotten_takes_its_streams_along() -> None:
    link = Link()
    link.b.core.stack.listen(80)
    connection = link.a.core.stack.connect(link.b.addresses[0], 80)
    link.until(lambda: any(isinstance(event, Happened) and event.what & What.CONNECTED for event in link.a.events))
    link.a.core.remove(link.b.key)
    events = link.a.core.stack.events()
    assert [event.subject for event in events if isinstance(event, Happened)] == [connection]
    assert isinstance(connection, Connection)
    assert connection.end is not None
    link.a.core.remove(link.b.key)  # nobody any more
    assert link.a.core.datagrams_to_send(link.now) == []
    before = link.a.core.drops[Drop.NO_PEER]
    link.a.core.stack.send_ping(link.b.addresses[0], b"12345678")
    assert link.a.core.datagrams_to_send(link.now) == []
    assert link.a.core.drops[Drop.NO_PEER] == before + 1


def test_a_peer_may_not_speak_for_an_address_that_is_not_its_own() -> None:
    link = Link(addresses=2)  # the second is not told to the first node
    link.b.core.stack.send_ping(link.a.addresses[0], b"12345678", local_address=link.b.addresses[1])
    link.until(lambda: link.a.core.device.counters.drops[DeviceDrop.FOREIGN_SOURCE] > 0)
    link.b.core.stack.send_ping(link.a.addresses[0], b"12345678", local_address=link.b.addresses[0])
    link.until(lambda: PongReceived(link.a.addresses[0], b"12345678") in link.b.events)


UNUSABLE = bytes(32)  # a point of small order


@pytest.mark.parametrize(("node_key", "disco_key"), [(UNUSABLE, None), (b"n" * 32, UNUSABLE)])
def test_of_a_peer_with_an_unusable_key_nothing_is_kept(node_key: bytes, disco_key: bytes | None) -> None:
    core = Link().a.core
    with pytest.raises(LocalProtocolError, match="not a usable"):
        core.configure(PeerNode(node_key, (ADDRESSES[2],), disco_key, (), REGION), 1000.0)
    assert (core.device.find(node_key), core.paths.find(node_key), core.device.owner_of(ADDRESSES[2])) == (None,) * 3


def test_a_known_peer_stays_what_it_was_when_it_names_an_unusable_key() -> None:
    link = Link()
    core = link.a.core
    with pytest.raises(LocalProtocolError, match="not a usable"):
        core.configure(PeerNode(link.b.key, (ADDRESSES[2],), UNUSABLE, (), REGION + 1), link.now)
    assert core.device.owner_of(ADDRESSES[2]) is None
    link.a.core.stack.send_ping(link.b.addresses[0], b"12345678")
    link.until(lambda: PongReceived(link.b.addresses[0], b"12345678") in link.a.events)


def test_a_peer_without_a_way() -> None:
    link = Link()
    link.a.core.configure(PeerNode(link.b.key, (link.b.addresses[0],)), link.now)
    link.a.core.stack.send_ping(link.b.addresses[0], b"12345678")
    assert link.a.core.datagrams_to_send(link.now) == []
    assert link.a.core.drops[Drop.NO_WAY] == 1


@pytest.mark.parametrize(
    "source", [RelaySource(REGION, b"s" * 32), Endpoint("2001:db8::1", 1), Endpoint("192.0.2.9", 9)]
)
def test_a_stranger_s_handshake_is_answered_where_it_came_from_and_nowhere_else(source: RelaySource | Endpoint) -> None:
    """Under load the answer is a cookie, which proves that whoever asked gets what is sent there."""
    link = Link()
    floods = []
    for number in range(400):
        stranger = NodeCore(
            NodePrivate(number.to_bytes(32, "big")),
            b"d" * 32,
            [ADDRESSES[2]],
            random=lambda size, number=number: (number.to_bytes(2, "big") * 40)[:size],  # type: ignore[misc]
            now=link.now,
            unix_seconds=1e9,
        )
        stranger.configure(PeerNode(link.a.key, (ADDRESSES[0],), None, (), REGION), link.now)
        stranger.stack.send_ping(ADDRESSES[0], b"12345678")
        floods += [each for batch in stranger.datagrams_to_send(link.now) for each in batch.datagrams]
    assert len(floods) == 400
    link.a.core.receive(floods, source, link.now)
    answers = link.a.core.datagrams_to_send(link.now)
    assert answers, "it is under load"
    for answer in answers:
        assert {datagram[0] for datagram in answer.datagrams} == {COOKIE_REPLY}
        if isinstance(source, RelaySource):
            assert (answer.endpoint, answer.region, answer.node_key) == (None, source.region, source.node_key)
        else:
            assert (answer.endpoint, answer.region) == (source, None)
