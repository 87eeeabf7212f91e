"""Who is connected: connections, and the keys they share.  Layer L1.

A key may have several connections.  One of them is active: packets for the key go there.  The newest connection
becomes active; after that whichever sent a frame last (genuine relays do the same, as the last writer is the one
that is alive).  When the active one leaves, the one that was active most recently takes over.
"""

from typing import Any, Final

from derp.protocol.frames import PeerPresentFlags
from derp.relay.losses import Losses
from derp.relay.mailbox import Mailbox
from derp.relay.queue import PacketQueue

# We tell a client that its disco packets go to an absent peer: three times at once, then once a second.
NOT_HERE_BURST: Final = 3
NOT_HERE_PER_SECOND: Final = 1.0


class Client:
    """One connection of one key, as the router sees it.  The router fills `pending`; server/session.py sends it.

    `wire` is the driver's, opaque here.  `queue` is None unless the socket is full.
    """

    __slots__ = (
        "address",
        "app_name",
        "bytes_in",
        "bytes_lost",
        "bytes_nowhere",
        "bytes_out",
        "can_ack_pings",
        "connected_at",
        "controls",
        "controls_since",
        "heard_from",
        "is_dirty",
        "is_duplicate",
        "is_ideal",
        "is_mesh_peer",
        "is_own",
        "is_preferred",
        "is_prober",
        "is_watcher",
        "key",
        "losses",
        "member",
        "named_tenant",
        "not_here_at",
        "not_here_tokens",
        "number",
        "packets_in",
        "packets_lost",
        "packets_nowhere",
        "packets_out",
        "pending",
        "pending_bytes",
        "port",
        "presence",
        "queue",
        "skip_bytes",
        "tenant",
        "wire",
    )

    # The hot path asks every route whether packets to it must be wrapped for another relay.
    is_forwarder: Final = False

    def __init__(
        self,
        key: bytes,
        number: int,
        wire: Any,
        now: float,
        *,
        address: str = "",
        port: int = 0,
        is_mesh_peer: bool = False,
        is_prober: bool = False,
        is_ideal: bool = True,
        can_ack_pings: bool = False,
        app_name: str = "",
        is_own: bool = False,
        named_tenant: str = "",
    ) -> None:
        self.key = key
        self.number = number
        self.wire = wire
        self.connected_at = self.controls_since = now
        self.controls = 0  # control frames since then: relay/inbound.py
        self.address = address
        self.port = port
        self.is_mesh_peer = is_mesh_peer
        self.is_prober = is_prober
        self.is_ideal = is_ideal
        self.can_ack_pings = can_ack_pings
        self.app_name = app_name
        self.is_own = is_own  # the server's, which checks itself: no watcher hears of it
        self.named_tenant = named_tenant  # by whoever let it in; empty: they did not say
        self.tenant = ""  # whose it is: Sessions.settle_tenant
        self.is_preferred = False
        self.is_watcher = False
        self.is_duplicate = False
        self.is_dirty = False
        self.member: Member | None = None
        self.presence = b""  # the frame that announces it to watchers, made when the first of them wants it
        self.pending: list[memoryview | bytes] = []
        self.pending_bytes = 0
        self.queue: PacketQueue | None = None
        self.skip_bytes = 0  # of an unknown frame, still to be thrown away
        # Keys that this connection got packets from; each forgets it when it leaves.  Made with the first packet.
        self.heard_from: set[Member] | None = None
        # Of what it sent and of what was routed to it: what is written is that less what was lost or still waits.
        self.packets_in = self.bytes_in = self.packets_out = self.bytes_out = 0
        self.packets_lost = self.bytes_lost = 0  # on the way to it
        self.losses: Losses | None = None  # which its queue dropped, once there were any
        self.packets_nowhere = self.bytes_nowhere = 0  # it sent them to keys that were not here
        self.not_here_tokens = float(NOT_HERE_BURST)
        self.not_here_at = now

    @property
    def flags(self) -> PeerPresentFlags:
        """What watchers are told about it."""
        flags = PeerPresentFlags(0)
        if self.is_mesh_peer:
            flags |= PeerPresentFlags.MESH_PEER
        if self.is_prober:
            flags |= PeerPresentFlags.PROBER
        if not self.is_ideal:
            flags |= PeerPresentFlags.NOT_IDEAL
        return flags or PeerPresentFlags.REGULAR

    @property
    def is_active(self) -> bool:
        """Whether packets for its key go to it."""
        return self.member is not None and self.member.active is self

    @property
    def sender_count(self) -> int:
        """Keys that it got packets from."""
        return len(self.heard_from or ())

    def may_tell_not_here(self, now: float) -> bool:
        """Take a token of the not-here notices; False when none is left."""
        refill = (now - self.not_here_at) * NOT_HERE_PER_SECOND
        self.not_here_tokens = min(self.not_here_tokens + refill, float(NOT_HERE_BURST))
        self.not_here_at = now
        if self.not_here_tokens < 1:
            return False
        self.not_here_tokens -= 1
        return True


class Member:
    """A key of the region as this relay knows it: its connections here, and whom its packets reached."""

    __slots__ = ("connections", "forwarders", "key", "mailbox", "sent_to")

    def __init__(self, key: bytes) -> None:
        self.key = key
        # Links to the relays that announced the key, the preferred one first; a tuple, since nearly all keys have none.
        self.forwarders: tuple[Any, ...] = ()
        self.mailbox: Mailbox | None = None  # while its client is on the way to another relay, as this one leaves
        # In the order of their activity: the last one is the active one.
        self.connections: list[Client] = []
        # Connections that got a packet of this key: each of them is told when the key leaves.
        self.sent_to: set[Client] | None = None

    @property
    def active(self) -> Client | None:
        return self.connections[-1] if self.connections else None

    def remember(self, destination: Client) -> None:
        """Note that `destination` got a packet of this key."""
        if self.sent_to is None:
            self.sent_to = set()
        self.sent_to.add(destination)
        if destination.heard_from is None:
            destination.heard_from = set()
        destination.heard_from.add(self)
