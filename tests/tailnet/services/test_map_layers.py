"""Maps laid over each other, and what is wrong only with the whole."""

import json
from typing import Any

import pytest

from derp.server.ports import Listening
from tailnet.config import CoordinatorConfig
from tailnet.server.embedded import embedded_region
from tailnet.services.map_layers import (
    MapLayer,
    MapRefused,
    has_relay,
    merge_findings,
    merge_layers,
    read_layer,
)
from tests.support.maps import map_text, region


def layer(document: Any, name: str = "layer") -> MapLayer:
    return read_layer(json.dumps(document).encode(), name)


EMBEDDED = embedded_region(
    CoordinatorConfig(access_url="http://127.0.0.1:3000"), [Listening("stun", "127.0.0.1", 3478)]
)
BOTTOM = MapLayer("the embedded relay", {EMBEDDED.region_id: EMBEDDED})


def test_a_region_counts_as_a_whole() -> None:
    below = layer({"Regions": {"1": region(1, code="one"), "2": region(2)}})
    above = layer({"Regions": {"1": region(1, code="uno")}})
    merged = merge_layers([below, above])
    assert [(each.region_id, each.region_code) for each in merged.regions.values()] == [(1, "uno"), (2, "r2")]


def test_null_drops_what_is_below_and_not_what_is_above() -> None:
    drop = layer({"Regions": {"1": None, "999": None, "7": None}})
    one = layer({"Regions": {"1": region(1)}})
    assert merge_layers([BOTTOM, one, drop]).region_ids() == []
    assert merge_layers([BOTTOM, drop, one]).region_ids() == [1]


def test_scores() -> None:
    below = layer({"HomeParams": {"RegionScore": {"1": 2, "2": 3, "9": 1.5}}, "Regions": {"1": region(1)}})
    above = layer({"HomeParams": {"RegionScore": {"2": None, "1": 0.5}}, "Regions": {"2": region(2)}})
    merged = merge_layers([below, above])
    assert merged.home_params is not None
    # One that is dropped, and one of a region that is not there, are gone.
    assert merged.home_params.region_score == {1: 0.5}
    assert merge_layers([layer({"Regions": {"1": region(1)}})]).home_params is None


def test_regions_to_avoid_have_both_flags() -> None:
    merged = merge_layers([layer({"Regions": {"1": region(1), "2": region(2)}})], avoid=[1, 7])
    assert [(each.avoid, each.no_measure_no_home) for each in merged.regions.values()] == [(True, True), (False, False)]


def test_one_layer_leaves_out_the_defaults_for_all() -> None:
    assert merge_layers([layer({"omitDefaultRegions": True}), layer({})]).omit_default_regions
    assert not merge_layers([layer({})]).omit_default_regions


def test_names_in_any_case() -> None:
    found = read_layer(map_text(1).lower().replace(b"regionid", b"regionID"), "x")
    assert list(found.regions) == [1]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"", "line 1"),
        (b"\xff", "byte 0"),
        (b"[]", "a DERP map is an object"),
        (b'{"Regions": {"1": {}}}', "Regions.1.RegionID"),
        (b'{"Regions": {"x": null}}', "Regions.x"),
    ],
)
def test_a_map_with_errors_is_refused_whole(text: bytes, place: str) -> None:
    with pytest.raises(MapRefused) as caught:
        read_layer(text, "x")
    assert str(caught.value).startswith(place)
    assert caught.value.findings


def test_warnings_are_kept() -> None:
    document = {"Regions": {"1": region(1) | {"RegionNam": "x"}}}
    assert [finding.place for finding in layer(document).warnings] == ["Regions.1.RegionNam"]


def test_a_map_without_any_relay_is_told_loudly() -> None:
    stun_only = region(1)
    stun_only["Nodes"].append(stun_only["Nodes"][0] | {"Name": "1s", "STUNOnly": True})
    merged = merge_layers([layer({"Regions": {"1": stun_only}})])
    assert has_relay(merged)
    for layers in ([], [BOTTOM, layer({"Regions": {"999": None}})]):
        empty = merge_layers(layers)
        assert not has_relay(empty)
        [sentence] = merge_findings(layers, empty)
        assert "the DERP map has no relay" in sentence
        assert "--derp-map-url" in sentence


def test_a_region_in_the_place_of_the_embedded_relay_is_told() -> None:
    layers = [BOTTOM, layer({"Regions": {"999": region(999)}}, "maps.example.com")]
    [sentence] = merge_findings(layers, merge_layers(layers))
    assert "region 999 of maps.example.com stands in the place of the embedded relay" in sentence
    # Tuning it is fine, as long as it stays the embedded relay.
    layers = [BOTTOM, layer({"Regions": {"999": region(999) | {"EmbeddedRelay": True}}})]
    assert merge_findings(layers, merge_layers(layers)) == []


def test_what_is_wrong_only_with_the_whole() -> None:
    one, two = region(1), region(2)
    two["Nodes"][0]["Name"] = one["Nodes"][0]["Name"]
    layers = [layer({"Regions": {"1": one}}), layer({"Regions": {"2": two}})]
    [sentence] = merge_findings(layers, merge_layers(layers))
    assert sentence.startswith("Regions.2.Nodes[0].Name: is that of Regions.1.Nodes[0] too")


def test_what_genuine_clients_take_stops_no_coordinator() -> None:
    """A node without HostName that has an address, and a byte-order mark: warnings, and the map is used."""
    node = {"Name": "900a", "RegionID": 900, "HostName": "", "IPv4": "192.0.2.1", "InsecureForTests": True}
    region = {"RegionID": 900, "RegionCode": "a", "RegionName": "b", "Nodes": [node]}
    text = b"\xef\xbb\xbf" + json.dumps({"Regions": {"900": region}}).encode()
    layer = read_layer(text, "map.json")
    read = layer.regions[900]
    assert read is not None
    assert (read.nodes[0].host_name, read.nodes[0].ipv4) == ("", "192.0.2.1")
    told = [warning.reason for warning in layer.warnings]
    assert any("byte-order mark" in reason for reason in told)
    assert any("clients dial the address alone" in reason for reason in told)
