"""What a device knows of one peer: its keys' slots, its handshake, what waits for it (layer L1; white paper 5.1 and 6).

A record and the rules of the slots: current sends; next is what we answered and the peer has not used yet; old ones
still receive.  The initiator's and the responder's handshake are kept apart, so that two nodes that begin at once both
succeed, where the genuine implementation waits 5 s.  `device.py` owns it; others read.
"""

from collections import deque
from collections.abc import Iterable
from math import inf
from typing import Final, TypeAlias

from derp.keys import short_key
from tailnet.wireguard.cookies import CookieJar
from tailnet.wireguard.keypair import KeyPair
from tailnet.wireguard.messages import Payload
from tailnet.wireguard.noise import Remote, SentInitiation
from tailnet.wireguard.timers import Timers

# Packets that wait for a session, as many as the genuine implementation keeps batches; the oldest goes first.
MAX_STAGED: Final = 128

# The paper keeps one.  Two nodes that begin at once have two sessions, one for each direction, and may do so twice:
# with fewer than three a packet in flight would be lost each time.
MAX_OLD: Final = 3


class Peer:
    """Made by `Device.configure`, and the same object until `Device.remove`."""

    __slots__ = (
        "addresses",
        "cookies",
        "current",
        "initiation",
        "last_handshake_at",
        "last_initiation_at",
        "last_stamp",
        "next",
        "old",
        "remote",
        "sent_stamp",
        "staged",
        "staged_bytes",
        "timers",
        "wake_at",
    )

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.addresses: tuple[bytes, ...] = ()
        """Its addresses in the tunnel, 16 bytes each: what it may send from, and what is sent to it."""
        self.current: Pair | None = None
        self.next: Pair | None = None
        self.old: tuple[Pair, ...] = ()
        """Those that sent before; packets that are late still come in with them, while they are young enough."""
        self.initiation: SentInitiation | None = None
        """Ours, while no response came."""
        self.staged: deque[bytes] = deque()
        self.staged_bytes = 0
        self.timers = Timers()
        self.cookies = CookieJar(remote.public)
        self.last_handshake_at: float | None = None
        """When both sides last proved that they have new keys."""
        self.last_stamp = b""
        """Of the last initiation that was accepted; it outlives sessions."""
        self.last_initiation_at = -inf
        self.sent_stamp = b""
        self.wake_at = inf
        """When the device will look at the timers."""

    def __repr__(self) -> str:
        return f"<Peer {short_key(self.remote.public)}>"

    @property
    def public(self) -> bytes:
        """Its public key, 32 bytes: who it is, here and on relays."""
        return self.remote.public

    def take_response(self, pair: "Pair") -> list["Pair"]:
        """We are the initiator of new keys, and use them at once.  Returns the pairs that are over."""
        answered, self.next = self.next, None
        current, self.current = self.current, pair
        return self._retire(current, answered)  # the latter if both began at once: the peer sends with it

    def take_initiation(self, pair: "Pair") -> list["Pair"]:
        """We are the responder of new keys, and may not use them before the peer does."""
        unused, self.next = self.next, pair
        return [unused] if unused is not None else []

    def take_first_packet(self) -> list["Pair"]:
        """The peer uses the keys that we answered with."""
        current, self.current, self.next = self.current, self.next, None
        return self._retire(current)

    def drop_pairs(self) -> list["Pair"]:
        """Forget all keys."""
        over = [*self.old, *(each for each in (self.current, self.next) if each is not None)]
        self.current = self.next = None
        self.old = ()
        return over

    def _retire(self, *pairs: "Pair | None") -> list["Pair"]:
        kept = (*self.old, *(each for each in pairs if each is not None))
        self.old = kept[-MAX_OLD:]
        return list(kept[:-MAX_OLD])

    def stage(self, packets: Iterable[Payload]) -> int:
        """Keep copies of packets until there is a session.  Returns how many older ones had to go."""
        dropped = 0
        for packet in packets:
            if len(self.staged) == MAX_STAGED:
                self.drop_oldest()
                dropped += 1
            kept = bytes(packet)
            self.staged.append(kept)
            self.staged_bytes += len(kept)
        return dropped

    def drop_oldest(self) -> None:
        self.staged_bytes -= len(self.staged.popleft())

    def take_staged(self) -> list[bytes]:
        """What waited, in its order."""
        packets = list(self.staged)
        self.staged.clear()
        self.staged_bytes = 0
        return packets


Pair: TypeAlias = KeyPair[Peer]
