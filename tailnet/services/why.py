"""Why something does not arrive (layer L3): peers by the coordinator's graph, packets by the relay's registry; and why
a region is whose home.

Answers /debug/why of a coordinator.  Who asks names a peer by its id, and a client of the relay by its key, as on the
relay's own page.  A peer's key stands in the node that it sent, so that one question gets both answers.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from derp.keys import NodePublic
from derp.netcheck.report import why_home
from derp.server.debug import why
from derp.server.explain import MIN_PREFIX_DIGITS
from derp.server.pages import Query, Reply
from derp.server.relay import Relay
from tailnet.services.agents import home_and_seconds
from tailnet.services.inspection import Inspection
from tailnet.services.region_load import RegionLoads
from tailnet.types import PeerID

# Of a region's number, which has ten at the most.
_MAX_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class SlowQuestion:
    """A Question that others are asked too, before it is answered."""

    title: str
    reply: Callable[[Query], Awaitable[Reply]]


class Why:
    """Answers operators.  Without a relay it knows of peers alone."""

    def __init__(self, inspection: Inspection, relay: Relay | None, loads: RegionLoads) -> None:
        self._inspection = inspection
        self._relay = relay
        self._loads = loads

    def answer(self, asked: Mapping[str, str]) -> str:
        """A sentence a line.  `asked`: the query, `from` and `to`, or `key`, or `region`."""
        region = asked.get("region", "").strip()
        if region.isascii() and region.isdecimal():
            return "\n".join(self._loads.explain(int(region[:_MAX_DIGITS]))) + "\n"
        names = ("from", "to") if "from" in asked or "to" in asked else ("key",)
        texts = [asked.get(name, "").strip().lower() for name in names]
        if not all(texts):
            return (
                "ask for ?from=ID&to=ID or ?key=ID, where ID is a peer's id, or a key of the relay: "
                f"nodekey:<64 hex digits>, or its first {MIN_PREFIX_DIGITS} or more digits; or for ?region=NUMBER\n"
            )
        peers = [peer_id_of(text) for text in texts]
        keys = [self._key(peer) if peer is not None else text for peer, text in zip(peers, texts, strict=True)]
        lines = [*self._of_peers(texts, peers, keys), *self._of_relay(names, keys)]
        return "\n".join(lines) + "\n"

    def _of_peers(self, texts: Sequence[str], peers: Sequence[PeerID | None], keys: Sequence[str]) -> list[str]:
        known = [peer for peer in peers if peer is not None]
        lines = []
        if len(known) == 2:
            lines += self._inspection.explain(*known)
        else:
            for each in known:
                lines += self._inspection.explain_peer(each)
        for text, peer, key in zip(texts, peers, keys, strict=True):
            if peer is not None and key:
                lines.append(f"{peer} has the key {key}.")
                lines += self._of_home(peer)
            digits = text.removeprefix("nodekey:")
            if peer is None and len(digits) >= MIN_PREFIX_DIGITS:
                owners = self._inspection.peers_with_key(digits)
                lines += [f"{text} is the key of the peer {owner}." for owner in owners]
        return lines

    def _of_home(self, peer: PeerID) -> list[str]:
        """Why a peer has the home that it has, by the latencies in its node and the scores of the map."""
        home, measured = home_and_seconds(self._inspection.node(peer))
        seconds: dict[int, float] = {}
        for region_id, latency in measured:
            seconds[region_id] = min(latency, seconds.get(region_id, latency))
        because = why_home(home, seconds, self._inspection.derp_map)
        return [f"Its home, by what it measured and the map of now: {because}."] if seconds and because else []

    def _of_relay(self, names: Sequence[str], keys: Sequence[str]) -> list[str]:
        if self._relay is None:
            return ["This server has no relay, so it knows nothing of packets."]
        if not all(keys):
            return ["Of packets nothing can be said: whoever has sent no node has no key here."]
        return ["On the relay of this server:", *why(self._relay, dict(zip(names, keys, strict=True))).splitlines()]

    def _key(self, peer: PeerID) -> str:
        """The key in a peer's last node, "" without one."""
        raw = self._inspection.node_key(peer)
        return str(NodePublic(raw)) if raw is not None else ""


def peer_id_of(text: str) -> PeerID | None:
    """The id that somebody typed; None: it is none."""
    try:
        return PeerID.parse(text)
    except ValueError:
        return None
