"""What is known of the ways to one peer (layer L1): its candidates, the best of them, and how far it is trusted.

A record and its rules; `core.py` owns it and says what happened.  An endpoint is a candidate because coordination
names it, because the peer called for it (call-me-maybe), or because a ping of the peer came from there; it is a path
once a pong came to a ping of ours.  Others read `best`, `candidates` and `route`.
"""

from collections.abc import Iterable
from itertools import islice
from math import inf
from typing import Final, NamedTuple

from derp.keys import short_key
from derp.relay.limits import TokenBucket
from tailnet.paths.endpoint import Endpoint, is_better

# A peer names a dozen.  A hundred is what genuine nodes keep; more would only be more pings.
MAX_CANDIDATES: Final = 100

# What a pong is worth: two heartbeats and half a second.
TRUST_SECONDS: Final = 6.5

# A heartbeat that is not answered within this (or four round trips) is a doubt: packets take both ways from then on.
# Without it all that is sent in up to 6.5 s after a cable was pulled is lost, with it what is sent in 4 s.
DOUBT_SECONDS: Final = 1.0

# A candidate from which the peer pings no more was one side of a firewall that has closed.
_HEARD_SECONDS: Final = 45.0

# Pings that a peer can make us send: each discovery is one for every candidate, at least 5 s apart.
PINGS_PER_SECOND: Final = 20.0
PINGS_BURST: Final = float(MAX_CANDIDATES)
# Answers to its pings: its own discovery through several sockets, and its heartbeats.
PONGS_PER_SECOND: Final = 50.0
PONGS_BURST: Final = 200.0


class Route(NamedTuple):
    """Where packets for a peer go: to the endpoint, to the relay's region, or both; None and None: nowhere."""

    endpoint: Endpoint | None
    region: int | None


class Candidate:
    """An endpoint of a peer, and what came of it."""

    __slots__ = ("answered_at", "heard_at", "is_called", "is_told", "last_txid", "pinged_at", "seconds")

    def __init__(self) -> None:
        self.is_told = False
        """By coordination."""
        self.is_called = False
        """By the last call-me-maybe."""
        self.heard_at = -inf
        """When a ping of the peer last came from there."""
        self.last_txid = b""
        self.pinged_at = -inf
        self.answered_at = -inf
        self.seconds = inf
        """Round trip of the last answer."""


class PathPeer:
    """Made by `Paths.configure`, and the same object until `Paths.remove`."""

    __slots__ = (
        "beat_at",
        "best",
        "best_seconds",
        "called_at",
        "candidates",
        "disco_key",
        "doubted_at",
        "heard_region",
        "home_region",
        "node_key",
        "pings",
        "pongs",
        "round_at",
        "routed_at",
        "shown",
        "trusted_until",
    )

    def __init__(self, node_key: bytes, now: float) -> None:
        self.node_key = node_key
        self.disco_key: bytes | None = None
        """None: a peer that speaks no disco, and is reached by the relay alone."""
        self.home_region: int | None = None
        self.heard_region: int | None = None
        """Of the relay by which it was last heard."""
        self.routed_at = -inf
        """When something was last sent to it."""
        self.beat_at = -inf
        """When its next heartbeat is due, or the last one was."""
        self.pings = TokenBucket(PINGS_PER_SECOND, PINGS_BURST, now)
        self.pongs = TokenBucket(PONGS_PER_SECOND, PONGS_BURST, now)
        self.candidates: dict[Endpoint, Candidate] = {}
        self.shown: Endpoint | None = None
        """The path that was last told in an event."""
        self.reset()

    def __repr__(self) -> str:
        return f"<PathPeer {short_key(self.node_key)} {self.best or 'by relay'}>"

    def reset(self) -> None:
        """Forget every way: the peer is a new process, or our own network is another."""
        for endpoint, candidate in list(self.candidates.items()):
            if candidate.is_told:
                self.candidates[endpoint] = Candidate()
                self.candidates[endpoint].is_told = True
            else:
                del self.candidates[endpoint]
        self.round_at = -inf
        """When all candidates were last pinged."""
        self.called_at = -inf
        """When we last sent a call-me-maybe."""
        self.drop_best()

    def drop_best(self) -> None:
        self.best: Endpoint | None = None
        self.best_seconds = inf
        self.trusted_until = -inf
        self.doubted_at = inf

    def is_trusted(self, now: float) -> bool:
        """Whether packets go to the best endpoint and nowhere else."""
        return now <= self.trusted_until and now < self.doubted_at

    def tell(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """What coordination says now.  A path that works stays one, whatever it says."""
        told = dict.fromkeys(islice(endpoints, MAX_CANDIDATES))
        for endpoint, candidate in self.candidates.items():
            candidate.is_told = endpoint in told
        self.drop_idle(now)
        for endpoint in told:
            if (found := self.add(endpoint)) is not None:
                found.is_told = True

    def call(self, endpoints: tuple[Endpoint, ...], now: float) -> None:
        """What a call-me-maybe says: those of an earlier one that it does not name go, whoever else names them."""
        for endpoint, candidate in self.candidates.items():
            if candidate.is_called and endpoint not in endpoints:
                candidate.is_called = candidate.is_told = False
        self.drop_idle(now)
        for endpoint in endpoints:
            if (found := self.add(endpoint)) is not None:
                found.is_called = True

    def add(self, endpoint: Endpoint) -> Candidate | None:
        """The candidate, a new one if need be; None if there are too many."""
        found = self.candidates.get(endpoint)
        if found is None and len(self.candidates) < MAX_CANDIDATES:
            found = self.candidates[endpoint] = Candidate()
        return found

    def drop_idle(self, now: float) -> None:
        """Endpoints that nobody names, and from which nothing came for 45 s."""
        for endpoint, candidate in list(self.candidates.items()):
            last = max(candidate.heard_at, candidate.answered_at)
            if not candidate.is_told and not candidate.is_called and now - last > _HEARD_SECONDS:
                del self.candidates[endpoint]
                if endpoint == self.best:
                    self.drop_best()

    def drop(self, endpoint: Endpoint) -> None:
        """Nothing can be sent there: what is known of it was wrong."""
        candidate = self.candidates.get(endpoint)
        if candidate is not None:
            candidate.answered_at = candidate.heard_at = -inf
        if endpoint == self.best:
            self.drop_best()

    def answered(self, endpoint: Endpoint, seconds: float, now: float) -> None:
        """A pong came to a ping of ours that went there."""
        candidate = self.candidates.get(endpoint)
        if candidate is None:
            return  # dropped meanwhile
        candidate.seconds, candidate.answered_at = seconds, now
        best = self.best
        is_rival = best is not None and best != endpoint and self.is_trusted(now)
        if is_rival and best is not None and not is_better(endpoint, seconds, best, self.best_seconds):
            return
        self.best, self.best_seconds = endpoint, seconds
        self.trusted_until = now + TRUST_SECONDS
        self.doubted_at = inf

    def pinged_best(self, now: float) -> None:
        """A heartbeat went out: if nothing comes of it, the path is doubtful."""
        self.doubted_at = min(self.doubted_at, now + max(DOUBT_SECONDS, 4 * self.best_seconds))
