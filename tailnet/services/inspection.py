"""The tailnet as the person on call sees it (layer L3): who is here, who left, what the DERP map is, and why not.

All of it is read from memory, at one moment of the reactor's clock.  coordinator/explain.py makes the sentences.
api/debug.py asks, and agents.py for an agent's last node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from derp.map import DERPMap, DERPRegion
from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.explain import (
    PeerView,
    explain,
    explain_peer,
    last_node,
    node_key,
    peers_with_key,
    snapshot,
    view_of,
)
from tailnet.services.derp_maps import DerpMaps, SourceStatus
from tailnet.types import PeerID


@dataclass(frozen=True, slots=True)
class DepartureView:
    """Somebody who left."""

    peer_id: PeerID
    left_seconds: float  # ago
    kind: str  # LOST or DISCONNECTED
    reason: str
    refusal: str  # what the peer did wrong, if that is why


@dataclass(frozen=True, slots=True)
class MapView:
    """The DERP map and how its sources are doing."""

    version: int
    regions: Sequence[DERPRegion]
    warnings: Sequence[str]
    sources: Sequence[SourceStatus]


@dataclass(frozen=True, slots=True)
class TailnetView:
    """All of it.  `departures`: the last ones, the newest first."""

    peers: Sequence[PeerView]
    departures: Sequence[DepartureView]
    derp_map: MapView
    not_ready: Sequence[str]  # why requests should go to another server; empty when they should come


class Inspection:
    """Looks at a running coordinator and changes nothing.  `clock` is the clock that drives the coordinator."""

    def __init__(
        self,
        coordinator: Coordinator[Any],
        derp_maps: DerpMaps,
        clock: Callable[[], float],
        not_ready: Callable[[], Sequence[str]],
    ) -> None:
        self._coordinator = coordinator
        self._derp_maps = derp_maps
        self._clock = clock
        self.not_ready = not_ready

    def describe(self) -> TailnetView:
        """Everything at this moment."""
        now = self._clock()
        seen = snapshot(self._coordinator, now)
        published = self._derp_maps.current
        return TailnetView(
            peers=seen.peers,
            departures=[
                DepartureView(each.peer_id, now - each.at, each.kind.name, each.reason, each.refusal)
                for each in seen.departures
            ],
            derp_map=MapView(
                published.version, tuple(published.map.regions.values()), published.warnings, self._derp_maps.statuses
            ),
            not_ready=self.not_ready(),
        )

    @property
    def derp_map(self) -> DERPMap:
        """The map that peers have now."""
        return self._derp_maps.current.map

    def explain(self, a: PeerID, b: PeerID) -> list[str]:
        """Why A does, or does not, know B: sentences, the verdict last."""
        return explain(self._coordinator, a, b, self._clock())

    def explain_peer(self, peer_id: PeerID) -> list[str]:
        """What is known of one peer, in sentences."""
        return explain_peer(self._coordinator, peer_id, self._clock())

    def peer(self, peer_id: PeerID) -> PeerView | None:
        """One peer at this moment; None for one that is neither here nor at the end of a tunnel."""
        return view_of(self._coordinator, peer_id, self._clock())

    def node_key(self, peer_id: PeerID) -> bytes | None:
        """The raw key in the last node of a peer; None without one."""
        return node_key(self._coordinator, peer_id)

    def peers_with_key(self, digits: str) -> list[PeerID]:
        """Peers whose key begins with these hex digits."""
        return peers_with_key(self._coordinator, digits)

    def node(self, peer_id: PeerID) -> bytes | None:
        """The last Node message of a peer, serialized; None without one."""
        return last_node(self._coordinator, peer_id)
