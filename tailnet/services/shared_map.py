"""Whether replicas serve the same DERP map: each beat has a digest of it, and by this topic goes what it is made of.

Layer L3.  Replicas read the same sources by themselves, so their maps differ for a moment whenever one changes; health
warns when they do for longer (replicas_view.py), and `difference` says in which regions.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import trio

from derp.map import DERPMap, DERPRegion
from derp.text import printable, some_of
from tailnet.replica.messages import ReplicaID
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.replicas import Replicas
from tailnet.services.sharing import Shared

# Told of a map, at most 102 bytes each, so that one frame has room; the largest fleets have 100.  The digest is of all.
MAX_REGIONS: Final = 500
MAX_CODE_CHARS: Final = 20
_DIGEST_BYTES: Final = 8
# Named in one sentence.
_MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Content:
    """What a map is made of.  `regions`: code and digest by id; `rest`: a digest of scores and switches."""

    regions: dict[int, tuple[str, bytes]]
    rest: bytes


class SharedMap(Shared):
    """What replicas share of their maps (sharing.py).  One per replica."""

    topic = "map"

    def __init__(self, replicas: Replicas, maps: DerpMaps) -> None:
        self._replicas = replicas
        self._maps = maps
        self._ours = content_of(maps.current.unsteered)
        self._theirs: dict[ReplicaID, Content] = {}
        self._set_digest()

    def difference(self, other: ReplicaID) -> str:
        """In which regions the maps differ, as a part of a sentence; empty when it has not said, or they do not."""
        theirs = self._theirs.get(other)
        return "" if theirs is None else describe_difference(self._ours, theirs)

    def greet(self) -> bytes:
        return encode_content(self._ours)

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        content = decode_content(payload)
        if content is not None:
            self._theirs[other] = content

    def forget(self, other: ReplicaID) -> None:
        self._theirs.pop(other, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            content = content_of(self._maps.current.unsteered)
            if content != self._ours:
                self._ours = content
                self._set_digest()
                self._replicas.tell(self.topic, encode_content(content))
            await self._maps.feed.wait_changed()
            if self._maps.feed.closed_because is not None:
                return

    def _set_digest(self) -> None:
        ours = self._ours
        parts = (_digest([region_id, code, digest.hex()]) for region_id, (code, digest) in ours.regions.items())
        self._replicas.cluster.map_digest = hashlib.sha256(b"".join((*parts, ours.rest))).digest()[:16]


def content_of(derp_map: DERPMap) -> Content:
    """Of the embedded relay's region not where its relay is, which each replica's own peers know by its access URL."""
    regions = {
        region_id: (region.region_code[:MAX_CODE_CHARS], _digest(_comparable(region)))
        for region_id, region in sorted(derp_map.regions.items())
    }
    rest = derp_map.to_json()
    rest.pop("Regions", None)
    return Content(regions, _digest(rest))


def _comparable(region: DERPRegion) -> dict[str, Any]:
    shown: dict[str, Any] = region.to_json()
    nodes = [node.to_json() for node in region.nodes if node.stun_only or not region.embedded_relay]
    shown["Nodes"] = sorted(nodes, key=lambda node: str(node["Name"]))
    return shown


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:_DIGEST_BYTES]


def encode_content(content: Content) -> bytes:
    """msgpack `[[[id, code, digest], ...], rest]`."""
    regions = [[region_id, *told] for region_id, told in content.regions.items()]
    encoded: bytes = msgpack.packb([regions[:MAX_REGIONS], content.rest])
    return encoded


def decode_content(payload: bytes) -> Content | None:
    """None for what is no content, of a later version for example."""
    try:
        fields: Any = msgpack.unpackb(payload)
    except ValueError:
        return None
    match fields:
        case [list(regions), bytes(rest), *_]:
            found: dict[int, tuple[str, bytes]] = {}
            for region in regions[:MAX_REGIONS]:
                match region:
                    case [int(region_id), str(code), bytes(digest), *_]:
                        found[region_id] = code, digest
                    case _:
                        return None
            return Content(found, rest)
        case _:
            return None


def describe_difference(ours: Content, theirs: Content) -> str:
    """What `theirs` has otherwise, as a part of a sentence."""
    here, there = ours.regions, theirs.regions
    both = here.keys() & there.keys()
    found = [
        ("only here", here.keys() - there.keys()),
        ("only there", there.keys() - here.keys()),
        ("another there", {each for each in both if here[each] != there[each]}),
    ]
    said = [f"{_named(ids, here | there)} {what}" for what, ids in found if ids]
    return "; ".join(said + (["other scores there"] if ours.rest != theirs.rest else []))


def _named(ids: Iterable[int], known: dict[int, tuple[str, bytes]]) -> str:
    ordered = sorted(ids)
    names = [
        f"{each} ({printable(code, MAX_CODE_CHARS)})" if (code := known[each][0]) else str(each) for each in ordered
    ]
    return f"region{'s' if len(names) > 1 else ''} {some_of(names, _MAX_NAMED)}"
