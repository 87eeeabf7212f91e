"""Both cores together, as a node will join them: WireGuard's datagrams take the paths that disco finds.

In virtual time a ping loop goes on across relay -> direct -> relay and across new keys: nothing is lost that the relay
could carry.
"""

from itertools import pairwise
from random import Random
from typing import cast

import pytest

from derp.keys import NodePrivate
from tailnet.paths.core import Paths, Source
from tailnet.paths.disco import is_disco
from tailnet.paths.endpoint import Endpoint
from tailnet.wireguard.counters import Drop
from tailnet.wireguard.device import Device
from tests.tailnet.paths.world import START, Node, World
from tests.tailnet.wireguard.world import address, packet


class TunnelNode(Node):
    """A node whose packets go through WireGuard: the numbers of those that came are in `inbox`."""

    def __init__(self, world: World, number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        random = Random(number)
        private = NodePrivate(random.randbytes(32))
        self.device = Device(private, random=random.randbytes, now=START, unix_seconds=1e9)
        self.key = self.device.public
        self.paths = Paths(self.key, self.disco_private, random=random.randbytes, now=START)

    def send(self, other: Node) -> None:
        self.sent += 1
        inside = packet(self.number, other.number, self.sent.to_bytes(4, "big"))
        peer = self.device.find(other.key)
        assert peer is not None
        self.carry(other.key, self.device.seal(peer, [inside], self.world.now))
        self.flush()

    def carry(self, key: bytes, datagrams: list[bytes]) -> None:
        peer = self.paths.find(key)
        assert peer is not None
        for datagram in datagrams:
            endpoint, region = self.paths.route(peer, self.world.now)
            if endpoint is not None:
                self.world.send_udp(self, endpoint, datagram)
            if region is not None:
                self.world.send_relay(self, region, key, datagram)

    def receive(self, datagram: bytes, source: Source) -> None:
        if is_disco(datagram):
            return super().receive(datagram, source)
        for _, packets in self.device.open([datagram], repr(source).encode(), self.world.now):
            for each in packets:
                number = int.from_bytes(each[40:], "big")
                self.seen.add((each[23], number))
                self.inbox.append((self.world.now - START, number, isinstance(source, Endpoint)))
        self.flush()
        return None

    def flush(self) -> None:
        for outgoing in self.device.datagrams_to_send():
            assert outgoing.peer is not None
            self.carry(outgoing.peer.public, [outgoing.datagram])
        super().flush()

    def next_timeout(self) -> float | None:
        times = [at for at in (self.paths.next_timeout(), self.device.next_timeout()) if at is not None]
        return min(times, default=None)

    def handle_timeout(self) -> None:
        self.device.handle_timeout(self.world.now)
        super().handle_timeout()


def connected(*kinds: str) -> tuple[World, TunnelNode, TunnelNode]:
    world = World(*kinds, make=TunnelNode)
    a, b = (cast(TunnelNode, node) for node in world.nodes)
    a.device.configure(b.key, [address(b.number)], START)
    b.device.configure(a.key, [address(a.number)], START)
    return world, a, b


def is_direct(node: Node) -> bool:
    """Whether the last packet came by UDP."""
    return node.inbox[-1][2]


def talk(world: World, start: float, end: float) -> None:
    for _ in world.talk(start, end, every=0.2):
        pass


@pytest.mark.parametrize("kinds", [("open", "open"), ("easy", "easy"), ("hard", "open")])
def test_a_ping_loop_across_relay_direct_relay_and_new_keys(kinds: tuple[str, str]) -> None:
    world, a, b = connected(*kinds)
    talk(world, 0, 100)
    assert is_direct(a)
    assert is_direct(b)
    world.cut |= {(1, 2), (2, 1)}
    talk(world, 100, 140)  # with the old keys, and the next
    assert not is_direct(a)
    world.cut.clear()
    talk(world, 140, 400)
    assert is_direct(a)
    for node, other in ((a, b), (b, a)):
        numbers = [number for _, number, _ in node.inbox]
        assert len(numbers) == len(set(numbers)), "copies that took both ways count once"
        assert max(after - before for (before, _, _), (after, _, _) in pairwise(node.inbox)) < 4.5
        missing = {number for number in range(1, other.sent) if number not in set(numbers)}
        assert all(100 <= (number - 1) * 0.2 <= 104.2 for number in missing), "lost on the cut path, and nowhere else"
        assert node.device.counters.drops[Drop.FORGED_PACKET] == 0
    assert a.device.counters.initiations_sent + b.device.counters.initiations_sent <= 8


def test_a_handshake_takes_both_ways_when_the_path_is_doubtful() -> None:
    """Keys are asked for right after the path was cut: the initiation by the relay gets through."""
    world, a, b = connected("open", "open")
    talk(world, 0, 115)
    world.cut |= {(1, 2), (2, 1)}
    talk(world, 115, 135)
    at = a.device.find(b.key)
    assert at is not None
    assert at.current is not None
    assert at.current.born - START < 127
    assert b.inbox[-1][0] > 134.7


def test_by_relay_alone() -> None:
    world, a, b = connected("blocked", "easy")
    talk(world, 0, 300)
    for node, other in ((a, b), (b, a)):
        assert {number for _, number, _ in node.inbox} >= set(range(1, other.sent))
        assert not any(by_udp for _, _, by_udp in node.inbox)
