"""One node without its sockets: datagrams in, streams between, datagrams out.  No I/O, a timed core.

    receive -> disco to paths/, the rest to wireguard/ -> packets to netstack/
    datagrams_to_send <- paths' messages, then what netstack/ has to send, sealed per peer, by the way paths/ names
Driven by engine.py in batches.  Whom to know is told by `configure`, from what a coordinator says.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import filterfalse
from typing import Final, NamedTuple, TypeAlias

from derp.keys import KEY_BYTES, NodePrivate
from tailnet.errors import LocalProtocolError
from tailnet.netstack.limits import Limits
from tailnet.netstack.stack import Event as StackEvent
from tailnet.netstack.stack import Stack
from tailnet.paths.core import Paths, Ponged, RelaySource, Source
from tailnet.paths.disco import MAGIC, is_disco
from tailnet.paths.endpoint import Endpoint
from tailnet.wireguard.device import Device

Event: TypeAlias = StackEvent | Ponged

_DESTINATION_ADDRESS: Final = slice(24, 40)
_REGION: Final = struct.Struct(">H")
# At once to a peer that is reached directly: two calls with as many datagrams as fit (49 of 1,312 bytes).  To one
# behind a relay half of the queue that its relay has, and no more than this: at 16 a segment cost 20 us, at 98 it is 9.
MAX_BURST_SEGMENTS: Final = 98


class Drop(IntEnum):
    """Why a packet went nowhere."""

    NO_PEER = 0  # nobody has the address it is for
    NO_WAY = 1  # its peer has neither an endpoint nor a relay


class Batch(NamedTuple):
    """To be sent, in this order: by UDP to `endpoint`, or, if that is None, to `node_key` by the relay of `region`."""

    endpoint: Endpoint | None
    region: int | None
    node_key: bytes
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class PeerNode:
    """What a coordinator says of a peer."""

    node_key: bytes
    addresses: tuple[bytes, ...]
    disco_key: bytes | None = None
    endpoints: tuple[Endpoint, ...] = ()
    home_region: int | None = None


class NodeCore:
    """One node.  Call `receive`, `handle_timeout` at `next_timeout`, or anything of `stack`; then `datagrams_to_send`.

    `stack` is its TCP, UDP and pings.  What peers send raises nothing and is counted.
    """

    def __init__(
        self,
        private: NodePrivate,
        disco_private: bytes,
        addresses: Iterable[bytes],
        *,
        random: Callable[[int], bytes],
        now: float,
        unix_seconds: float,
        is_direct: bool = True,
    ) -> None:
        self.drops: dict[Drop, int] = dict.fromkeys(Drop, 0)
        self.device = Device(private, random=random, now=now, unix_seconds=unix_seconds)
        self.paths = Paths(self.device.public, disco_private, random=random, now=now, is_direct=is_direct)
        # WireGuard has authenticated every byte, which a checksum of 16 bits does not improve: 1.7 us a segment.
        self.stack = Stack(addresses, random, now, Limits(verify_checksums=False))
        self._relay_bursts: dict[int, int] = {}
        self._bursts: dict[bytes, int] = {}  # by node key, what the stack was told

    # --- whom it knows ---

    def configure(self, peer: PeerNode, now: float) -> None:
        """Make a peer known, or take what is said of it now: sessions and streams go on.  LocalProtocolError: there are
        too many peers, or one of its keys is ours or of no use; then nothing has changed."""
        self.paths.configure(peer.node_key, peer.disco_key, peer.endpoints, peer.home_region, now)
        try:
            self.device.configure(peer.node_key, peer.addresses, now)
        except LocalProtocolError:  # only of a peer that is new
            self.paths.remove(peer.node_key)
            raise
        burst = self._bursts.pop(peer.node_key, None)
        if burst is not None:  # its addresses may be others
            self._set_burst(peer.node_key, burst)

    def remove(self, node_key: bytes) -> None:
        """Forget a peer, its session and its streams; it need not be known."""
        peer = self.device.find(node_key)
        for address in peer.addresses if peer is not None else ():
            self.stack.forget_peer(address)
        self.device.remove(node_key)
        self.paths.remove(node_key)
        self._bursts.pop(node_key, None)

    def relay_up(self, region: int, queue_depth: int) -> None:
        """We are connected to a region's relay, which keeps so many packets for a receiver; 0: it has not said."""
        burst = min(queue_depth // 2, MAX_BURST_SEGMENTS)
        self._relay_bursts[region] = burst if burst > 0 else self.stack.limits.burst_segments
        self.paths.region_up(region)

    # --- datagrams ---

    def receive(self, datagrams: Sequence[bytes | memoryview], source: Source, now: float) -> list[Event]:
        """Datagrams that came one after the other from one source."""
        events: list[Event] = []
        if isinstance(source, RelaySource) and (known := self.paths.find(source.node_key)) is not None:
            self.paths.heard(known, source.region)
        if [each for each in datagrams if each[: len(MAGIC)] == MAGIC]:  # written out: `is_disco` is a call for each
            for datagram in filter(is_disco, datagrams):
                self.paths.receive(datagram, source, now)
            datagrams = [*filterfalse(is_disco, datagrams)]
        # The device has dropped packets from addresses that their peer does not have.
        for _, packets in self.device.open(datagrams, _name(source), now):
            events += self.stack.receive_packets(packets, now)
        events += [event for event in self.paths.take_events() if isinstance(event, Ponged)]
        self.device.take_events()
        return events

    def datagrams_to_send(self, now: float) -> list[Batch]:
        """What is to be sent, in its order; handed out once."""
        out: list[Batch] = []
        by_destination: dict[bytes, list[bytes]] = {}
        for packet in self.stack.packets_to_send(now):
            by_destination.setdefault(packet[_DESTINATION_ADDRESS], []).append(packet)
        for address, packets in by_destination.items():
            peer = self.device.owner_of(address)
            if peer is None:
                self.drops[Drop.NO_PEER] += len(packets)
                continue
            self._send(out, peer.public, self.device.seal(peer, packets, now), now)
        for to_peer, source, datagram in self.device.datagrams_to_send():
            if to_peer is not None:
                self._send(out, to_peer.public, [datagram], now)
            elif source is not None:
                _add(out, *_origin(source), [datagram])
        # Disco first: a relay hands a peer's messages on in their order, and paths have to be known before packets.
        said: list[Batch] = []
        for endpoint, region, node_key, datagram in self.paths.datagrams_to_send():
            _add(said, endpoint, region, node_key, [datagram])
        return said + out

    def _send(self, out: list[Batch], node_key: bytes, datagrams: list[bytes], now: float) -> None:
        peer = self.paths.find(node_key)
        if peer is None or not datagrams:
            return
        endpoint, region = self.paths.route(peer, now)
        unknown = self.stack.limits.burst_segments
        self._set_burst(node_key, MAX_BURST_SEGMENTS if region is None else self._relay_bursts.get(region, unknown))
        if endpoint is None and region is None:
            self.drops[Drop.NO_WAY] += len(datagrams)
        if endpoint is not None:
            _add(out, endpoint, None, node_key, datagrams)
        if region is not None:
            _add(out, None, region, node_key, datagrams)

    def _set_burst(self, node_key: bytes, segments: int) -> None:
        """A relay's queue is short; a direct way has none of a fixed length, and batches are what makes it cheap."""
        if self._bursts.get(node_key) == segments:
            return
        self._bursts[node_key] = segments
        known = self.device.find(node_key)
        for address in known.addresses if known is not None else ():
            self.stack.set_burst(address, segments)

    # --- time ---

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None: not before something else happens."""
        moments = (self.device.next_timeout(), self.paths.next_timeout(), self.stack.next_timeout())
        return min((at for at in moments if at is not None), default=None)

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due by `now`; then look at `datagrams_to_send`."""
        self.device.handle_timeout(now)
        ponged: list[Event] = [event for event in self.paths.handle_timeout(now) if isinstance(event, Ponged)]
        return ponged + list(self.stack.handle_timeout(now))


def _name(source: Source) -> bytes:
    """A source as cookies are bound to it, and from which an answer finds back."""
    if isinstance(source, RelaySource):
        return _REGION.pack(source.region) + source.node_key
    return f"{source.host} {source.port}".encode()


def _origin(source: bytes) -> tuple[Endpoint | None, int | None, bytes]:
    """The way back to where a datagram came from, whoever sent it."""
    if len(source) == _REGION.size + KEY_BYTES:
        return None, _REGION.unpack_from(source)[0], source[_REGION.size :]
    host, _, port = source.decode().partition(" ")
    return Endpoint(host, int(port)), None, b""


def _add(
    out: list[Batch], endpoint: Endpoint | None, region: int | None, node_key: bytes, datagrams: Iterable[bytes]
) -> None:
    """What goes the way of the last batch goes with it."""
    if out and out[-1][:-1] == (endpoint, region, node_key):
        out[-1].datagrams.extend(datagrams)
    else:
        out.append(Batch(endpoint, region, node_key, [*datagrams]))
