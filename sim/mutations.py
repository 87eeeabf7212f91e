"""Rules of ours that are taken away, and faults that others had, in their words: the laws have to notice each.

`with MUTATIONS[name].taken_away():` plays without the rule; `python -m sim --mutations` tells which schedules notice.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from sim.store import Row
from sim.world import Process
from tailnet.coordinator.core import REASON_GRACEFUL, REASON_LOST, REASON_REMOVE_TUNNEL
from tailnet.coordinator.messages import EndConnection, Kind
from tailnet.replica import cluster, core
from tailnet.replica.cluster import Cluster
from tailnet.replica.cluster_time import ClusterTime
from tailnet.replica.codec import decode_frame
from tailnet.replica.core import SharedCoordinator
from tailnet.replica.messages import Gone, NodeIs, Publish, Sync, Withdraw
from tailnet.replica.pair import SILENCE_SECONDS, End, Pair
from tailnet.services.presence import AgentPresence
from tailnet.store.rows import PresenceChange

Core = SharedCoordinator[Any]


def _claims_ignored(real: Any) -> Any:
    def claim(self: Core, site: Any, peer: Any, epoch: int, now: float, effects: Any) -> bool:
        if peer.connection is site:
            return bool(real(self, site, peer, max(epoch, peer.epoch), now, effects))
        self._adopt(site, peer, max(epoch, 1), now, effects)
        return True

    return claim


def _gap_unnoticed(real: Any) -> Any:
    def receive_frame(self: Pair, sealed: bytes, now: float) -> Any:
        session = self._session
        frame = session.heard_key.unseal(sealed) if session is not None else None
        if session is not None and frame is not None:
            session.heard_seq = decode_frame(frame)[0] - 1
        return real(self, sealed, now)

    return receive_frame


def _no_sweep(real: Any) -> Any:
    def handle_replica_sync(self: Core, replica: Any, sync: Any, now: float) -> Any:
        if sync.last:
            site = self._site(replica)
            site.named |= {(peer, other) for peer in site.peers for other in peer.links}
        return real(self, replica, sync, now)

    return handle_replica_sync


def _gone_and_session_stays(real: Any) -> Any:
    def end(self: Pair, why: End, reason: str, now: float) -> Any:
        return [] if why is End.SILENCE else real(self, why, reason, now)

    return end


def _takeover_removes_tunnels(real: Any) -> Any:
    def adopt(self: Core, site: Any, peer: Any, epoch: int, now: float, effects: list[Any]) -> None:
        for other in list(peer.links):
            if other.policy is not None and self._tunnels.has_tunnel(peer, other.id):
                self._part(peer, other, REASON_REMOVE_TUNNEL, effects)
        if self._tunnels.peers.get(peer.id) is peer:
            real(self, site, peer, epoch, now, effects)

    return adopt


def _who_answered_by_node(real: Any) -> Any:
    """The other's node is read first and subscribed to afterwards, so an update in between is lost for ever."""

    def answer(self: Core, site: Any, peer: Any, known: Any, effects: list[Any]) -> None:
        said: list[Any] = []
        real(self, site, peer, known, said)
        for each in said:
            message = each.messages[0]
            assert isinstance(message, NodeIs)
            # The node of a moment ago, as a reader has it that read before it subscribed.
            cached = getattr(self, "cached", {})
            node = cached.get(peer.id, message.node)
            cached[peer.id] = message.node
            self.cached = cached  # type: ignore[attr-defined]  # of the fault alone
            effects.append(Publish(each.replicas, (NodeIs(peer.id, peer.epoch, peer.version, node),)))

    return answer


def _ends_on_silence(real: Any) -> Any:
    """A replica that hears no others thinks itself ill, and throws everybody out."""

    def handle_replica_down(self: Core, replica: Any, now: float) -> Any:
        ended = [EndConnection(connection, "unhealthy") for connection in self._connected]
        return [*real(self, replica, now), *ended]

    return handle_replica_down


def _disconnected_on_silence(real: Any) -> Any:
    """On missed heartbeats others were told DISCONNECTED, and cut live sessions."""

    def lose(self: Core, peer: Any, site: Any, kind: Kind, reason: str, effects: list[Any]) -> None:
        real(self, peer, site, Kind.DISCONNECTED if reason == REASON_LOST else kind, reason, effects)

    return lose


def _stop_says_goodbye(real: Any) -> Any:
    """A replica that stops in good order deletes its peers, so each deployment cuts sessions."""

    def handle_close(self: Core, now: float) -> Any:
        replicas = tuple(self._sites)
        gone = [Gone(peer.id, peer.epoch, Kind.DISCONNECTED, REASON_GRACEFUL) for peer in self._connected.values()]
        return [Publish(replicas, tuple(gone)), *real(self, now)]

    return handle_close


def _tunnel_removed_as_gone(real: Any) -> Any:
    def part(self: Core, src: Any, dst: Any, reason: str, effects: list[Any], kind: Kind = Kind.DISCONNECTED) -> None:
        epoch, site = src.epoch, dst.connection
        real(self, src, dst, reason, effects, kind)
        if src.policy is not None and hasattr(site, "replica"):
            effects.append(Publish((site.replica,), (Gone(src.id, epoch, Kind.DISCONNECTED, reason),)))

    return part


def _node_unversioned(real: Any) -> Any:
    def take(self: Core, peer: Any, version: int, node: Any, effects: list[Any]) -> None:
        peer.version = 0
        real(self, peer, max(version, 1), node, effects)

    return take


def _not_named_again(real: Any) -> Any:
    def handle_connect(self: Core, peer_id: Any, policy: Any, connection: Any, now: float) -> Any:
        effects = real(self, peer_id, policy, connection, now)
        peer = self.peers[peer_id]
        for other in peer.links:
            self._unconfirmed.clear((peer, other))
        return effects

    return handle_connect


def _overtaken_in_silence(real: Any) -> Any:
    def adopt(self: Core, site: Any, peer: Any, epoch: int, now: float, effects: list[Any]) -> None:
        said: list[Any] = []
        real(self, site, peer, epoch, now, said)
        absent = [each for each in said if isinstance(each, Publish) and isinstance(each.messages[0], Gone)]
        effects += [each for each in said if each not in absent]

    return adopt


def _never_withdrawn(real: Any) -> Any:
    def carry_out(self: Cluster[Any], effects: Any, now: float) -> Any:
        return real(self, [each for each in effects if not isinstance(each, Withdraw)], now)

    return carry_out


def _deaf_judges(real: Any) -> Any:
    def handle_timeout(self: Cluster[Any], now: float) -> Any:
        is_deaf, self.is_deaf = self.is_deaf, False
        effects = real(self, now)
        self.is_deaf = is_deaf
        return effects

    return handle_timeout


def _greeting_is_life(real: Any) -> Any:
    def greeted(self: Pair, sealed: bytes, now: float) -> Any:
        self._silent_at = now + SILENCE_SECONDS
        return real(self, sealed, now)

    return greeted


def _left_replaces_came(real: Any) -> Any:
    """What waits to be written is replaced by what came later."""

    def then(self: PresenceChange, later: PresenceChange) -> PresenceChange:
        return PresenceChange(self.agent_id, later.came_at, later.seen_at, later.left_at or self.left_at)

    return then


def _one_channel_is_all(real: Any) -> Any:
    def left(self: AgentPresence, channel: Any) -> None:
        mine = self._channels.get(channel.caller.peer_id, set())
        if channel in mine:
            mine.clear()
            mine.add(channel)
        real(self, channel)

    return left


def _leaver_compares_all(real: Any) -> Any:
    def compare(self: Core, site: Any) -> Any:
        parts = real(self, site)
        return parts if parts and parts[-1].last else [*parts, Sync(last=True)]

    return compare


def _sent_away_is_lost(real: Any) -> Any:
    """Whom a replica that leaves sends away has left it, and the others hear so."""

    def move(self: Process, connection: Any) -> None:
        self.core(self.cluster.coordinator.handle_disconnect(connection, False, self.now))
        real(self, connection)

    return move


class Mutation(NamedTuple):
    """What is taken away: owners, names of methods, and what is made of them.

    `seed` is a schedule that notices; `law` a part of what it says then, where several might.
    """

    seed: int
    changes: tuple[tuple[object, str, Callable[[Any], Any]], ...]
    law: str = ""

    @contextmanager
    def taken_away(self) -> Iterator[None]:
        """Play without the rule meanwhile."""
        with ExitStack() as stack:
            for owner, name, make in self.changes:
                stack.enter_context(patch.object(owner, name, make(getattr(owner, name))))
            yield

    def is_noticed(self, broken: str | None) -> bool:
        """Whether what a schedule said is what it has to say."""
        return broken is not None and self.law in broken


def _one(seed: int, owner: object, name: str, make: Callable[[Any], Any], law: str = "") -> Mutation:
    return Mutation(seed, ((owner, name, make),), law)


_CUT = "disconnected, which it did not"
_APART = "knows"
_STALE = "was ended by an older one"
_SLEPT = "after it had slept"
_LOST = "was told LOST of"
_WRITTEN = " left, which "

MUTATIONS: Final[dict[str, Mutation]] = {
    # What others had.
    "the node is read before it is subscribed to": _one(0, SharedCoordinator, "_answer", _who_answered_by_node),
    "silence ends own connections": _one(0, SharedCoordinator, "handle_replica_down", _ends_on_silence, "unhealthy"),
    "silence is told as DISCONNECTED": _one(4, SharedCoordinator, "_lose", _disconnected_on_silence, _CUT),
    "a stop says goodbye for all": _one(11, SharedCoordinator, "handle_close", _stop_says_goodbye, _CUT),
    # Rules of ours.
    "claims are ignored": _one(0, SharedCoordinator, "_claim", _claims_ignored),
    "a gap is not noticed": _one(138, Pair, "receive_frame", _gap_unnoticed, _APART),
    "frames in any order, and versions are ignored": Mutation(
        136,
        (
            (Pair, "receive_frame", _gap_unnoticed),
            (SharedCoordinator, "_take_remote_node", _node_unversioned),
        ),
        "after a newer one",
    ),
    "no cluster time": _one(0, ClusterTime, "hear", lambda real: lambda *_, **__: False, _STALE),
    "stamps are not made anew": _one(
        29, SharedCoordinator, "handle_clock_jump", lambda real: lambda self, now: [], _STALE
    ),
    "claims go before the clock": _one(495, Pair, "beat", lambda real: lambda self, now: [], _STALE),
    "nothing is swept": _one(101, SharedCoordinator, "handle_replica_sync", _no_sweep, _APART),
    "gone, and the session stays": _one(82, Pair, "_end", _gone_and_session_stays),
    "a takeover removes tunnels": _one(1, SharedCoordinator, "_adopt", _takeover_removes_tunnels, _CUT),
    "a takeover is not told to those who cannot hear the owner": _one(
        1483, SharedCoordinator, "_adopt", _overtaken_in_silence, "does not know where"
    ),
    "a tunnel that came over need not be named again": _one(
        370, SharedCoordinator, "handle_connect", _not_named_again, _APART
    ),
    "a removed tunnel is told as gone": _one(249, SharedCoordinator, "_part", _tunnel_removed_as_gone, _CUT),
    "who comes and goes at once is not withdrawn": _one(5287, Cluster, "carry_out", _never_withdrawn),
    "a sleeper judges others": _one(6, cluster, "SLEPT_SECONDS", lambda real: float("inf"), _SLEPT),
    "the deaf judge others": _one(0, Cluster, "handle_timeout", _deaf_judges, "its own beat"),
    "a greeting is a sign of life": _one(299, Pair, "_greeted", _greeting_is_life, "one direction is cut"),
    "who left and came again has left": _one(0, PresenceChange, "then", _left_replaces_came, _WRITTEN),
    "one of two channels is all": _one(2, AgentPresence, "left", _one_channel_is_all, _WRITTEN),
    "nobody compares with the store": _one(
        5, AgentPresence, "compare", lambda real: lambda self, held: [], "the store"
    ),
    "any server may write that an agent left": _one(0, Row, "is_held_by", lambda real: lambda *_: True, _WRITTEN),
    "whom a replica sent away is missed when it compares": _one(
        1290, SharedCoordinator, "_compare", _leaver_compares_all, _LOST
    ),
    "who is sent away has left": _one(9, Process, "move", _sent_away_is_lost, _LOST),
    "nobody waits for whom another one does not have": _one(9, core, "DOUBT_SECONDS", lambda real: 0.2, _LOST),
    "nobody compares": _one(2, SharedCoordinator, "_compare", lambda real: lambda self, site: []),
    "a loss is not asked about": _one(
        2, SharedCoordinator, "handle_remote_who", lambda real: lambda self, replica, ids: []
    ),
}
