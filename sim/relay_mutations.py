"""Rules of relays and of paths that are taken away, as sim/mutations.py does it with the replicas': the laws of
sim/packets.py, sim/relays.py and sim/nats.py have to notice each.
"""

from typing import Any, Final

from derp.relay import forward
from derp.relay.mesh import MeshRoute
from derp.relay.router import Router
from derp.server.leaving import LeavingSession
from sim.mutations import Mutation
from tailnet.paths.core import Paths
from tailnet.paths.endpoint import Endpoint
from tailnet.paths.peer import PathPeer


def _twice(real: Any) -> Any:
    def do(*arguments: Any) -> None:
        real(*arguments)
        real(*arguments)

    return do


def _no_mailbox(real: Any) -> Any:
    def send_off(self: Router, client: Any, now: float) -> None:
        is_leaving, self.is_leaving = self.is_leaving, False
        real(self, client, now)
        self.is_leaving = is_leaving

    return send_off


def _unread(real: Any) -> Any:
    return lambda self, at, end: end


def _nothing(real: Any) -> Any:
    return lambda *_: None


def _trusted_for_ever(real: Any) -> Any:
    return lambda self, now: self.best is not None


def _heard_is_proved(real: Any) -> Any:
    """Where a ping comes from packets go, though nothing went there and came back."""

    def receive_ping(self: Paths, peers: Any, txid: bytes, node_key: Any, source: Any, now: float) -> None:
        real(self, peers, txid, node_key, source, now)
        if isinstance(source, Endpoint):
            for peer in peers:
                peer.answered(source, 0.001, now)

    return receive_ping


_LOST = "is lost"
_TWICE = "twice"
_LATE = "behind a later one"
_DEAD = "that has been dead"

RELAY_MUTATIONS: Final[dict[str, Mutation]] = {
    "a packet goes by the mesh twice": Mutation(8, ((forward, "_wrap_for_mesh", _twice),), _TWICE),
    "other relays are not told who left": Mutation(8, ((Router, "_tell_gone", _nothing),), "keeps its key"),
    "who is sent off gets no mailbox": Mutation(42, ((Router, "send_off", _no_mailbox),), _LOST),
    "nothing waits for what comes from a leaving relay": Mutation(72, ((Router, "_hold_back", _nothing),), _LATE),
    "a relay from which a key came counts as one that has it": Mutation(
        1552, ((Router, "_forget_claim", _nothing),), _LATE
    ),
    "keys stay when their relay's connection breaks": Mutation(15, ((MeshRoute, "handle_break", _nothing),)),
    "a path is trusted for ever": Mutation(28, ((PathPeer, "is_trusted", _trusted_for_ever),), _DEAD),
    "a heartbeat without an answer is no doubt": Mutation(42, ((PathPeer, "pinged_best", _nothing),), _DEAD),
    "where a ping comes from is a path": Mutation(55, ((Paths, "_receive_ping", _heard_is_proved),)),
    "nobody calls the other end": Mutation(159, ((Paths, "_call", _nothing),), "no direct path"),
    "last words are not read": Mutation(13, ((LeavingSession, "received", _unread),), _LOST),
}
