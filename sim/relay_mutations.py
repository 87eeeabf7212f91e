"""Rules of relays that are taken away, as sim/mutations.py does it with the replicas': the laws of sim/packets.py and
sim/relays.py have to notice each.
"""

from typing import Any, Final

from derp.relay import forward
from derp.relay.mesh import MeshRoute
from derp.relay.router import Router
from derp.server.leaving import LeavingSession
from sim.mutations import Mutation


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


_LOST = "is lost"
_TWICE = "twice"
_LATE = "behind a later one"

RELAY_MUTATIONS: Final[dict[str, Mutation]] = {
    "a packet goes by the mesh twice": Mutation(8, ((forward, "_wrap_for_mesh", _twice),), _TWICE),
    "other relays are not told who left": Mutation(9, ((Router, "_tell_gone", _nothing),), "keeps its key"),
    "who is sent off gets no mailbox": Mutation(8, ((Router, "send_off", _no_mailbox),), _LOST),
    "nothing waits for what comes from a leaving relay": Mutation(38, ((Router, "_hold_back", _nothing),), _LATE),
    "keys stay when their relay's connection breaks": Mutation(8, ((MeshRoute, "handle_break", _nothing),)),
    "last words are not read": Mutation(8, ((LeavingSession, "received", _unread),), _LOST),
}
