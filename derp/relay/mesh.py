"""What one relay knows of another of its region: a route to all keys the other has.  Layer L1.

server/mesh.py dials the other relay and hands over what arrives; the router writes ForwardPackets into `pending`, and
the flush sends them like a client's.  When the connection breaks, all keys that were learnt over it are void at once.
"""

from dataclasses import dataclass
from typing import Any, Final

from derp.protocol.messages import Message, PeerGone, PeerPresent, Restarting
from derp.relay.queue import PacketQueue
from derp.relay.router import Router


@dataclass(slots=True)
class MeshPeerState:
    """What we know of one relay that we are to mesh with.  server/mesh.py writes it; pages and metrics read it."""

    name: str  # as --mesh-with spells it
    past_connects: int = 0  # connections that the other relay accepted, and that have ended
    trouble: str = ""  # why there is no connection, or why the last one ended
    is_ourselves: bool = False
    route: "MeshRoute | None" = None  # while connected

    @property
    def is_up(self) -> bool:
        """Whether we are connected, and the other relay takes us for a mesh peer."""
        return self.route is not None and self.route.is_accepted

    @property
    def connects(self) -> int:
        """Connections that the other relay accepted, the present one included."""
        return self.past_connects + self.is_up


class MeshRoute:
    """The relay at the other end of one of our mesh connections.

    `max_keys` bounds what it may announce: `too_many` turns true then, and the driver hangs up.  `is_accepted` tells
    that it takes us for a mesh peer.
    """

    __slots__ = (
        "_max_keys",
        "_router",
        "bytes_out",
        "is_accepted",
        "is_dirty",
        "is_leaving",
        "key",
        "keys",
        "packets_out",
        "pending",
        "pending_bytes",
        "queue",
        "too_many",
        "wire",
    )

    is_forwarder: Final = True

    def __init__(self, router: Router, key: bytes, wire: Any, max_keys: int) -> None:
        self.key = key
        self.wire = wire
        self.keys: set[bytes] = set()
        self.pending: list[memoryview | bytes] = []
        self.pending_bytes = 0
        self.is_dirty = False
        self.queue: PacketQueue | None = None
        self.packets_out = self.bytes_out = 0
        self.too_many = False
        self.is_accepted = False
        self.is_leaving = False  # it sends its clients to other relays
        self._max_keys = max_keys
        self._router = router

    def handle_message(self, message: Message) -> None:
        """A frame of the other relay says who came or who went there; all other frames are of no concern here."""
        match message:
            case PeerPresent(key):
                self.is_accepted = True
                # The other relay announces our own connection too; a route to ourselves would be a loop.
                if key in (self._router.own_key, self.key) or key in self.keys:
                    return
                if len(self.keys) >= self._max_keys:
                    self.too_many = True
                    return
                self.keys.add(key)
                self._router.add_forwarder(key, self)
            case PeerGone(key):
                self.keys.discard(key)
                self._router.remove_forwarder(key, self)  # the router counts a key that was never announced
            case Restarting():
                self.is_leaving = True
            case _:
                pass

    def handle_break(self) -> None:
        """The connection ended: nothing that was learnt over it holds any more."""
        self.pending = []
        self.pending_bytes = 0
        self.forget_some(len(self.keys))

    def forget_some(self, count: int) -> bool:
        """Do a part of that, for a caller with other work to do in between: forget `count` keys; False when none is
        left.  Packets for the keys that are left still go to the broken wire, which counts them as write errors."""
        for _ in range(min(count, len(self.keys))):
            self._router.remove_forwarder(self.keys.pop(), self)
        return bool(self.keys)
