"""DERP maps laid over each other (layer L3, pure).

Layers come from the bottom up: the embedded relay, what URLs say, what files say, what the settings say.  Of a region
or a score the highest layer that has it counts as a whole; null in a higher layer drops what lies below.
Next hop: derp_maps.py keeps the layers and publishes the result.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from derp.map import DERPHomeParams, DERPMap, DERPRegion
from derp.netcheck.lint import Finding, errors, lint


@dataclass(frozen=True, slots=True)
class MapLayer:
    """One source's map: values that count, and None for what it drops."""

    name: str
    regions: Mapping[int, DERPRegion | None] = field(default_factory=dict)
    scores: Mapping[int, float | None] = field(default_factory=dict)
    omit_default_regions: bool = False
    warnings: Sequence[Finding] = ()


class MapRefused(ValueError):
    """A map has errors; `findings` are only those."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = tuple(findings)


def read_layer(text: bytes, name: str) -> MapLayer:
    """Read a map that is to be laid over others.  Raises MapRefused."""
    findings = lint(text, overlay=True)
    wrong = errors(findings)
    if wrong:
        raise MapRefused(wrong)
    document = {key.casefold(): value for key, value in json.loads(text).items()}
    regions = document.get("regions") or {}
    home = {key.casefold(): value for key, value in (document.get("homeparams") or {}).items()}
    return MapLayer(
        name,
        {int(key): None if value is None else DERPRegion.parse(value) for key, value in regions.items()},
        {int(key): None if value is None else float(value) for key, value in (home.get("regionscore") or {}).items()},
        bool(document.get("omitdefaultregions")),
        [finding for finding in findings if finding not in wrong],
    )


def merge_layers(layers: Sequence[MapLayer], *, avoid: Collection[int] = ()) -> DERPMap:
    """One map of all layers, the first at the bottom.  Regions in `avoid` are nobody's home."""
    regions: dict[int, DERPRegion] = {}
    scores: dict[int, float] = {}
    for layer in layers:
        for region_id, region in layer.regions.items():
            if region is None:
                regions.pop(region_id, None)
            else:
                regions[region_id] = region
        for region_id, score in layer.scores.items():
            if score is None:
                scores.pop(region_id, None)
            else:
                scores[region_id] = score
    for region_id in avoid:
        if region_id in regions:
            # Old clients read `avoid`, new ones `no_measure_no_home`.
            regions[region_id] = replace(regions[region_id], avoid=True, no_measure_no_home=True)
    # Clients have no use for the score of a region that is not there.
    scores = {region_id: score for region_id, score in scores.items() if region_id in regions}
    return DERPMap(
        {region_id: regions[region_id] for region_id in sorted(regions)},
        DERPHomeParams(scores) if scores else None,
        any(layer.omit_default_regions for layer in layers),
    )


def merge_findings(layers: Sequence[MapLayer], merged: DERPMap) -> list[str]:
    """Sentences about what is wrong only with the whole: lost relays, dead scores, no home."""
    sentences = []
    bottom = {
        region_id for layer in layers for region_id, region in layer.regions.items() if region and region.embedded_relay
    }
    for region_id in sorted(bottom):
        region = merged.regions.get(region_id)
        if region is not None and not region.embedded_relay:
            owner = next(layer.name for layer in reversed(layers) if region_id in layer.regions)
            sentences.append(
                f"region {region_id} of {owner} stands in the place of the embedded relay, which nobody uses now: "
                "give one of them another id (--derp-region-id)"
            )
    if not has_relay(merged):
        sentences.append(
            "the DERP map has no relay: peers that cannot reach each other directly will not meet; "
            "switch the embedded relay on (--derp) or name a map (--derp-map, --derp-map-url)"
        )
    else:
        sentences += [str(finding) for finding in lint(merged.to_json())]
    return sentences


def has_relay(derp_map: DERPMap) -> bool:
    """Whether there is any relay in it at all."""
    return any(not node.stun_only for region in derp_map.regions.values() for node in region.nodes)
