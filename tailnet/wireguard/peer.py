"""What a device knows of one peer: its keys' slots, its handshake, what waits for it (layer L1; white paper 5.1 and 6).

A record and the rules of the slots: current sends; next is what we answered and the peer has not used yet; previous
still receives.  The initiator's and the responder's handshake are kept apart, so that two nodes that begin at once
both succeed, where the genuine implementation waits 5 s.  `device.py` owns it; others read.
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
        "previous",
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
        self.previous: Pair | None = None
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

    def take_response(self, pair: "Pair") -> list["Pair | None"]:
        """We are the initiator of new keys, and use them at once.  Returns the pairs that are over."""
        over = [self.previous]
        if self.next is not None:
            over.append(self.current)
            self.previous, self.next = self.next, None
        else:
            self.previous = self.current
        self.current = pair
        return over

    def take_initiation(self, pair: "Pair") -> list["Pair | None"]:
        """We are the responder of new keys, and may not use them before the peer does."""
        over = [self.next, self.previous]
        self.next, self.previous = pair, None
        return over

    def take_first_packet(self) -> list["Pair | None"]:
        """The peer uses the keys that we answered with."""
        over = [self.previous]
        self.previous, self.current, self.next = self.current, self.next, None
        return over

    def drop_pairs(self) -> list["Pair | None"]:
        """Forget all keys."""
        over = [self.previous, self.current, self.next]
        self.previous = self.current = self.next = None
        return over

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
