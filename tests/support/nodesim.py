"""Whole nodes (WireGuard, paths and TCP joined by NodeCore) behind NATs, with relays and a clock between.

It is tests/tailnet/paths/world.py, whose ways here lose, repeat, delay and reorder what they carry, have queues, and
are listened to by somebody who sends again what he heard.

Laws that hold whatever happens are asserted where they would break: no datagram is taken twice, no key is used longer
than 180 s, and no deadline is due twice.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, cast

from derp.keys import NodePrivate
from tailnet.netstack.stack import Event
from tailnet.node.core import Event as CoreEvent
from tailnet.node.core import NodeCore, PeerNode
from tailnet.paths.core import Ponged, Source
from tests.tailnet.paths.world import START, Node, World
from tests.tailnet.wireguard.world import address

REJECT_AFTER_SECONDS: Final = 180.0
_TRANSPORT: Final = b"\4\0\0\0"
_DATAGRAM_BYTES: Final = 1400
_TAPE_DATAGRAMS: Final = 300


@dataclass(frozen=True, slots=True)
class Faults:
    """Of every way.  Shares of datagrams, seconds, bytes a second."""

    loss: float = 0.0
    duplication: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    """What a receiver's way carries; 0 is anything."""
    queue: int = 64
    """Datagrams of full length that wait for it; more are lost."""
    replay: float = 0.0
    """After so many, one that passed before comes again."""
    damage: float = 0.0
    """Of so many another form comes too, ahead of them: a byte is another, or the end is missing."""


class WholeNode(Node):
    """One of them: what its users are told goes to `world.users`."""

    def __init__(self, world: "World", number: int, kind: str) -> None:
        super().__init__(world, number, kind)
        whole = cast(WholeWorld, world)
        random = Random(f"{whole.seed} {number}")
        private = NodePrivate(random.randbytes(32))
        self.address = address(number)
        self.core = NodeCore(
            private, self.disco_private, [self.address], random=random.randbytes, now=START, unix_seconds=1e9
        )
        self.key = self.core.device.public
        self.paths = self.core.paths
        self.users = whole.users
        self.key_since: dict[bytes, float] = {}
        """When a session's index was first sent to."""
        self.opened: set[bytes] = set()
        """Heads of the datagrams that were taken: index and counter."""

    def receive(self, datagram: bytes, source: Source) -> None:
        counters = self.core.device.counters
        before = counters.packets_received
        self._tell(self.core.receive([datagram], source, self.world.now))
        if counters.packets_received > before:
            assert datagram[:16] not in self.opened, "it was taken before"
            self.opened.add(datagram[:16])
        self.flush()

    def _tell(self, events: Iterable[CoreEvent]) -> None:
        for event in events:
            if not isinstance(event, Ponged):
                for user in self.users:
                    user(self.number - 1, event)

    def flush(self) -> None:
        now = self.world.now
        while True:
            self._tell(self.core.stack.events())
            batches = self.core.datagrams_to_send(now)
            if not batches:
                return
            for endpoint, region, node_key, datagrams in batches:
                for datagram in datagrams:
                    if datagram.startswith(_TRANSPORT):
                        assert now - self.key_since.setdefault(datagram[4:8], now) <= REJECT_AFTER_SECONDS
                    if endpoint is not None:
                        self.world.send_udp(self, endpoint, datagram)
                    else:
                        assert region is not None
                        self.world.send_relay(self, region, node_key, datagram)

    def next_timeout(self) -> float | None:
        return self.core.next_timeout()

    def handle_timeout(self) -> None:
        due = self.core.next_timeout()
        if due is None or due > self.world.now:
            return
        self._tell(self.core.handle_timeout(self.world.now))
        self.flush()
        after = self.core.next_timeout()
        assert after is None or after > self.world.now, "a driver would be busy for ever"


class WholeWorld(World):
    """Nodes of these kinds, with a history that follows from the seed."""

    def __init__(self, *kinds: str, seed: int, faults: Faults | None = None) -> None:
        self.seed = seed
        self.faults = faults or Faults()
        self.random = Random(seed)
        self.users: list[Callable[[int, Event], None]] = []
        self.lost = 0
        self.replayed = 0
        self._free_at: dict[int, float] = {}
        self._tape: deque[tuple[Node, bytes, Source]] = deque(maxlen=_TAPE_DATAGRAMS)
        super().__init__(*kinds, make=WholeNode)

    @property
    def whole(self) -> list[WholeNode]:
        return [cast(WholeNode, node) for node in self.nodes]

    def tell(self, node: Node) -> None:
        known = cast(WholeNode, node)
        for other in self.whole:
            if other is not node:
                endpoints = tuple(known.endpoints())
                peer = PeerNode(known.key, (known.address,), known.disco_key, endpoints, known.region)
                other.core.configure(peer, self.now)
                other.flush()

    def _carry(self, delay: float, node: Node, datagram: bytes, source: Source) -> None:
        faults, chance = self.faults, self.random.random
        if chance() < faults.loss:
            self.lost += 1
            return
        if faults.rate:
            free_at = max(self._free_at.get(node.number, START), self.now)
            if (free_at - self.now) * faults.rate > faults.queue * _DATAGRAM_BYTES:
                self.lost += 1
                return
            self._free_at[node.number] = free_at + len(datagram) / faults.rate
            delay += self._free_at[node.number] - self.now
        if chance() < faults.damage:
            at = self.random.randrange(len(datagram))
            is_cut = chance() < 0.5
            changed = datagram[:at] + (b"" if is_cut else bytes((datagram[at] ^ 1,)) + datagram[at + 1 :])
            super()._carry(delay, node, changed, source)
        for _ in range(2 if chance() < faults.duplication else 1):
            super()._carry(delay + chance() * faults.jitter, node, datagram, source)
        self._tape.append((node, datagram, source))
        if chance() < faults.replay:
            self.replayed += 1
            super()._carry(delay, *self._tape[self.random.randrange(len(self._tape))])
