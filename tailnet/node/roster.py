"""Whom a coordinator told a node of, and for how long each stays known.  No I/O, a timed core beside NodeCore.

A LOST peer stays: its session and streams need no coordinator, and it may come back with the same key.  It is forgotten
when its last handshake is a quarter of an hour old, as genuine nodes do.  Rules: docs/node.md.  Caller: membership.py.
"""

from ipaddress import IPv6Address
from math import inf
from typing import Final, TypeAlias

from derp.keys import KEY_BYTES
from derp.relay.deadlines import Deadlines
from tailnet.coordinator.nodes import DISCO_PREFIX
from tailnet.errors import LocalProtocolError, TailnetError
from tailnet.node.core import NodeCore, PeerNode
from tailnet.paths.core import MAX_PEERS
from tailnet.paths.endpoint import parse_endpoint
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.types import PeerID

# After the last handshake of a peer that was lost.
KEEP_SECONDS: Final = 900.0
# For a peer without any handshake: as long as somebody waits for a connection to it.
KEEP_UNMET_SECONDS: Final = 30.0

PeerUpdate: TypeAlias = tailnet.CoordinateResponse.PeerUpdate


class Roster:
    """The peers of one node.  Give it every update; it configures `core`.  Updates that make no sense are counted."""

    def __init__(self, core: NodeCore) -> None:
        self.refused_count = 0
        self._core = core
        self._keys: dict[PeerID, bytes] = {}
        self._ready: set[PeerID] = set()
        self._lost = Deadlines[PeerID]()

    def key_of(self, peer_id: PeerID) -> bytes | None:
        """The node key of a peer, while it is known."""
        return self._keys.get(peer_id)

    def is_ready(self, peer_id: PeerID) -> bool:
        """Whether the peer knows us: it has said so, or shaken hands."""
        peer = self._core.device.find(self._keys.get(peer_id, b""))
        return peer_id in self._ready or (peer is not None and peer.last_handshake_at is not None)

    def update(self, update: PeerUpdate, now: float) -> bool:
        """Take what the coordinator says of a peer; True: a node that is known from now on."""
        peer_id = PeerID(update.id)
        if update.kind == PeerUpdate.NODE:
            return self._take(peer_id, update.node, now)
        if update.kind == PeerUpdate.READY_FOR_HANDSHAKE:
            if len(self._ready) < MAX_PEERS:  # it may come before the peer's node
                self._ready.add(peer_id)
        elif update.kind == PeerUpdate.DISCONNECTED:
            self._forget(peer_id)
        elif update.kind == PeerUpdate.LOST:
            self._ready.discard(peer_id)  # another process may come back
            self._lose(peer_id, now)
        return False

    def lose_all(self, now: float) -> None:
        """The coordinator itself is lost, and nobody tells any more who is there."""
        for peer_id in self._keys:
            self._lose(peer_id, now)

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None: not before something else happens."""
        return self._lost.next_timeout()

    def handle_timeout(self, now: float) -> list[PeerID]:
        """Forget lost peers that are silent: these."""
        forgotten = []
        for peer_id in self._lost.handle_timeout(now):
            ends_at = self._end_of(peer_id, -inf)
            if ends_at > now:  # it is not, whatever the coordinator knows
                self._lost.set(peer_id, ends_at)
            else:
                self._forget(peer_id)
                forgotten.append(peer_id)
        return forgotten

    def _take(self, peer_id: PeerID, described: tailnet.Node, now: float) -> bool:
        node = peer_node(described)
        try:
            if node is None:
                raise LocalProtocolError("it has no home, or no key")
            self._core.configure(node, now)
        except LocalProtocolError:  # also a key that nobody can use, or our own
            self.refused_count += 1
            return False
        before = self._keys.get(peer_id)
        # A client that comes back under another id has the key that it had, and with it its session.
        for other in [other for other, key in self._keys.items() if key == node.node_key and other != peer_id]:
            del self._keys[other]
            self._ready.discard(other)
            self._lost.clear(other)
        self._keys[peer_id] = node.node_key
        self._lost.clear(peer_id)
        if before is not None and before != node.node_key:
            self._core.remove(before)
        return True

    def _lose(self, peer_id: PeerID, now: float) -> None:
        if peer_id in self._keys and peer_id not in self._lost:
            self._lost.set(peer_id, max(self._end_of(peer_id, now), now))

    def _end_of(self, peer_id: PeerID, lost_at: float) -> float:
        """Until when a lost peer is kept."""
        peer = self._core.device.find(self._keys[peer_id])
        if peer is None or peer.last_handshake_at is None:
            return lost_at + KEEP_UNMET_SECONDS
        return peer.last_handshake_at + KEEP_SECONDS

    def _forget(self, peer_id: PeerID) -> None:
        key = self._keys.pop(peer_id, None)
        self._ready.discard(peer_id)
        self._lost.clear(peer_id)
        if key is not None:
            self._core.remove(key)


def peer_node(node: tailnet.Node) -> PeerNode | None:
    """A node as a coordinator hands it on; None if it has no home or no sound key, as genuine nodes judge."""
    try:
        key = convert.node_key(node.key).raw
    except TailnetError:
        return None
    if not node.preferred_derp:
        return None
    disco = node.disco.removeprefix(DISCO_PREFIX)
    disco_key = bytes.fromhex(disco) if len(disco) == 2 * KEY_BYTES and _is_hex(disco) else None
    endpoints = tuple(each for text in node.endpoints if (each := parse_endpoint(text)) is not None)
    return PeerNode(key, tuple(_addresses(node)), disco_key, endpoints, node.preferred_derp)


def _addresses(node: tailnet.Node) -> list[bytes]:
    found = []
    for text in node.addresses:
        host, _, bits = text.partition("/")
        try:
            address = IPv6Address(host).packed
        except ValueError:
            continue
        if bits in ("", "128"):  # others are subnets, which nobody here may claim
            found.append(address)
    return found


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdefABCDEF" for letter in text)
