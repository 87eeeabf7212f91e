"""The packets of a run: who sent which to whom, what came, and which of them had to come (layer: the judge).

No packet may come to a wrong key, or twice.  Where nothing was the matter, all of a pair come, in their order.
"""

from collections import Counter, defaultdict
from itertools import pairwise
from math import inf
from typing import Final

from sim.laws import LawBroken

# How long a packet may be on its way where nothing is the matter: a mailbox keeps it for 3 s, a hold for 0.25 s.
ON_ITS_WAY_SECONDS: Final = 4.0
# What others have to hear of it when a trouble is over: three hops.
SETTLED_SECONDS: Final = 1.0

Pair = tuple[str, str]
"""The names of the sender and of the receiver."""


class Troubles:
    """When something was the matter with one peer, or with the relays."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._since = inf

    @property
    def is_open(self) -> bool:
        return self._since != inf

    def begin(self, now: float) -> None:
        self._since = min(self._since, now)

    def end(self, now: float) -> None:
        if self._since != inf:
            self._spans.append((self._since, now + SETTLED_SECONDS))
            self._since = inf

    def touch(self, sent_at: float) -> bool:
        """Whether there was any while a packet might be on its way."""
        until = sent_at + ON_ITS_WAY_SECONDS
        return self._since <= until or any(began <= until and ended >= sent_at for began, ended in self._spans)


class Ledger:
    """All packets."""

    def __init__(self, met: Counter[str]) -> None:
        self.met = met
        self.everywhere = Troubles()
        self.of: dict[str, Troubles] = defaultdict(Troubles)
        self._sent: dict[Pair, list[float]] = defaultdict(list)
        self._came: dict[Pair, dict[int, None]] = defaultdict(dict)  # in their order

    def write(self, sender: str, receiver: str, now: float) -> bytes:
        """The next packet of a pair."""
        sent = self._sent[sender, receiver]
        sent.append(now)
        return f"{sender} {receiver} {len(sent)}".encode()

    def take(self, name: str, source: str, packet: bytes) -> None:
        """It came to `name`, as one of `source`."""
        sender, receiver, digits = packet.decode().split()
        if receiver != name:
            raise LawBroken(f"{name} got a packet of {sender} to {receiver}")
        if sender != source:
            raise LawBroken(f"{name} got a packet of {sender} as one of {source}")
        came, number = self._came[sender, receiver], int(digits)
        if number in came:
            raise LawBroken(f"{name} got packet {number} of {sender} twice")
        came[number] = None

    def check(self, now: float) -> None:
        """Whether all came that had to, and in which order."""
        for (sender, receiver), sent in self._sent.items():
            troubles = (self.everywhere, self.of[sender], self.of[receiver])
            owed = {
                number
                for number, at in enumerate(sent, 1)
                if at + ON_ITS_WAY_SECONDS < now and not any(trouble.touch(at) for trouble in troubles)
            }
            came = [number for number in self._came[sender, receiver] if number in owed]
            self.met["packet promised"] += len(owed)
            if len(came) < len(owed):
                number = min(owed.difference(came))
                raise LawBroken(f"packet {number} of {sender} to {receiver}, sent at {sent[number - 1]:.3f}, is lost")
            if came != sorted(came):
                late = next(two for one, two in pairwise(came) if two < one)
                raise LawBroken(f"packet {late} of {sender} to {receiver} came behind a later one")
