"""DERP maps against what Go's decoder and encoder do with the same text (tailscale.com v1.102.5, tailcfg.DERPMap)."""

import json
import string
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import MapFormatError
from derp.map import DERPHomeParams, DERPMap, DERPNode, DERPRegion

# Text in, and what Go writes after reading it; Go writes nil lists and maps as null, we as empty ones.
GO_READS = [
    ("{}", '{"Regions":{}}'),
    ('{"Regions":null}', '{"Regions":{}}'),
    (
        '{"regions":{"900":{"regionid":900}}}',
        '{"Regions":{"900":{"RegionID":900,"RegionCode":"","RegionName":"","Nodes":[]}}}',
    ),
    (
        '{"REGIONS":{"900":null,"+7":{},"007":{"RegionCode":"x"}}}',
        '{"Regions":{"7":{"RegionID":0,"RegionCode":"x","RegionName":"","Nodes":[]}}}',
    ),
    (
        '{"Re\u017fions":{}, "Region\u017f":{"3":{}}}',
        '{"Regions":{"3":{"RegionID":0,"RegionCode":"","RegionName":"","Nodes":[]}}}',
    ),
    (
        '{"Regions":{"9":{"Nodes":null,"Unknown":[1]}}}',
        '{"Regions":{"9":{"RegionID":0,"RegionCode":"","RegionName":"","Nodes":[]}}}',
    ),
    ('{"HomeParams":{}}', '{"HomeParams":{},"Regions":{}}'),
    ('{"HomeParams":null}', '{"Regions":{}}'),
    (
        '{"HomeParams":{"RegionScore":{"9":null,"1":1.5}}}',
        '{"HomeParams":{"RegionScore":{"1":1.5,"9":0.0}},"Regions":{}}',
    ),
    ('{"omitdefaultregions":true,"OmitDefaultRegions":false}', '{"Regions":{}}'),
    ('{"omitDefaultRegions":true}', '{"Regions":{},"omitDefaultRegions":true}'),
    (
        '{"Regions":{"9":{"RegionCode":"\\ud800x","RegionName":null}}}',
        '{"Regions":{"9":{"RegionID":0,"RegionCode":"\ufffdx","RegionName":"","Nodes":[]}}}',
    ),
]
FULL = (
    '{"Regions":{"9":{"RegionID":9,"RegionCode":"c","RegionName":"n","Latitude":52.5,"Longitude":13.5,"Avoid":true,'
    '"NoMeasureNoHome":true,"Nodes":[{"Name":"9a","RegionID":9,"HostName":"h","CertName":"c","IPv4":"1.2.3.4",'
    '"IPv6":"none","STUNPort":-1,"STUNOnly":true,"DERPPort":8443,"InsecureForTests":true,"STUNTestIP":"127.0.0.1",'
    '"CanPort80":true}]}}}'
)


def as_upstream(document: dict[str, Any]) -> dict[str, Any]:
    """Without EmbeddedRelay, the one name that Coder's fork always writes and the upstream type does not have."""
    for region in document["Regions"].values():
        assert region.pop("EmbeddedRelay") is False
    return document


@pytest.mark.parametrize(("text", "go_writes"), [*GO_READS, (FULL, FULL)])
def test_reads_and_writes_as_go_does(text: str, go_writes: str) -> None:
    written = as_upstream(DERPMap.parse(text).to_json())
    assert json.dumps(written) == json.dumps(json.loads(go_writes))  # the order of names included
    assert DERPMap.parse(text.encode("utf-8", "surrogatepass")) == DERPMap.parse(text)


def test_the_shape_that_the_control_plane_sends() -> None:
    node = DERPNode(name="999b", region_id=999, host_name="relay.example", stun_port=-1, derp_port=443)
    region = DERPRegion(
        region_id=999, region_code="coder", region_name="Coder Embedded", embedded_relay=True, nodes=(node,)
    )
    assert DERPMap({999: region}).to_json() == {
        "Regions": {
            "999": {
                "EmbeddedRelay": True,
                "RegionID": 999,
                "RegionCode": "coder",
                "RegionName": "Coder Embedded",
                "Nodes": [
                    {"Name": "999b", "RegionID": 999, "HostName": "relay.example", "STUNPort": -1, "DERPPort": 443}
                ],
            }
        }
    }


# Each of these is an error for Go too, save the null node (which crashes its clients) and the null map.
BROKEN = [
    ("", "line 1, column 1"),
    ('{"Regions":{}} x', "line 1, column 16"),
    ("null", "wants an object, got null"),
    ("[]", "wants an object, got a list"),
    ('{"Regions":[]}', "Regions: wants an object, got a list"),
    ('{"Regions":{"9":[]}}', "Regions.9: wants an object, got a list"),
    ('{"Regions":{"9_0":{}}}', "Regions.9_0: region ids are whole numbers"),
    ('{"Regions":{" 9":{}}}', "Regions. 9: region ids are whole numbers"),
    ('{"Regions":{"":{}}}', "region ids are whole numbers"),
    ('{"Regions":{"-":{}}}', "region ids are whole numbers"),
    ('{"Regions":{"\u0663":{}}}', "region ids are whole numbers"),
    ('{"Regions":{"99999999999999999999999":{}}}', "64 bits"),
    ('{"Regions":{"9":{"RegionID":9.0}}}', "Regions.9.RegionID: wants a whole number, got number 9.0"),
    ('{"Regions":{"9":{"RegionID":1e2}}}', "Regions.9.RegionID: wants a whole number"),
    ('{"Regions":{"9":{"RegionID":"9"}}}', "Regions.9.RegionID: wants a whole number, got string '9'"),
    ('{"Regions":{"9":{"RegionID":true}}}', "Regions.9.RegionID: wants a whole number, got true"),
    ('{"Regions":{"9":{"RegionID":9223372036854775808}}}', "Regions.9.RegionID: the number does not fit"),
    ('{"Regions":{"9":{"RegionCode":1}}}', "Regions.9.RegionCode: wants a string, got number 1"),
    ('{"Regions":{"9":{"Nodes":{}}}}', "Regions.9.Nodes: wants a list of nodes, got an object"),
    ('{"Regions":{"9":{"Nodes":[{},null]}}}', "Regions.9.Nodes[1]: is null"),
    ('{"Regions":{"9":{"nodes":[{"derpport":"443"}]}}}', "Regions.9.nodes[0].derpport: wants a whole number"),
    ('{"omitDefaultRegions":1}', "omitDefaultRegions: wants true or false, got number 1"),
    ('{"HomeParams":{"RegionScore":{"9":1e999}}}', "HomeParams.RegionScore.9: the number is out of range"),
    ('{"HomeParams":{"RegionScore":{"9":NaN}}}', "NaN is not a JSON number"),
    ('{"HomeParams":{"RegionScore":{"9":true}}}', "HomeParams.RegionScore.9: wants a number, got true"),
    ("[" * 100_000, "nested too deeply"),
    ('{"Regions":{"9":{"RegionID":' + "9" * 5000 + "}}}", "DERP map:"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN, ids=[says for _, says in BROKEN])
def test_a_broken_map_is_one_error_that_names_the_place(text: str, says: str) -> None:
    with pytest.raises(MapFormatError) as caught:
        DERPMap.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_single_nodes_and_regions_are_read_too() -> None:
    node = DERPNode.parse('{"name":"1a","canport80":true}')
    assert (node.name, node.can_port_80) == ("1a", True)
    assert DERPRegion.parse({"RegionID": 1, "Nodes": [node.to_json()]}).nodes == (node,)


def test_our_own_field_comes_last_and_only_where_it_says_something() -> None:
    node = DERPNode.parse('{"Name": "1a", "QUICPort": 8443, "CanPort80": true}')
    assert list(node.to_json().items())[-2:] == [("CanPort80", True), ("QUICPort", 8443)]
    assert "QUICPort" not in DERPNode("1a").to_json()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
nodes = st.builds(
    DERPNode,
    name=texts,
    host_name=texts,
    cert_name=texts,
    ipv4=texts,
    stun_port=st.integers(-1, 65535),
    derp_port=st.integers(0, 65535),
    stun_only=st.booleans(),
    force_http=st.booleans(),
    can_port_80=st.booleans(),
    quic_port=st.integers(0, 65535),
)
regions = st.builds(
    DERPRegion,
    region_id=st.integers(-(1 << 63), (1 << 63) - 1),
    region_code=texts,
    embedded_relay=st.booleans(),
    no_measure_no_home=st.booleans(),
    latitude=st.floats(-90, 90),
    nodes=st.lists(nodes, max_size=3).map(tuple),
)
maps = st.builds(
    DERPMap,
    regions=st.dictionaries(st.integers(0, 1 << 53), regions, max_size=3),
    home_params=st.none()
    | st.builds(DERPHomeParams, st.dictionaries(st.integers(1, 999), st.floats(0.125, 8), max_size=3)),
    omit_default_regions=st.booleans(),
)


@given(maps)
def test_what_is_written_is_read_back(derp_map: DERPMap) -> None:
    document = derp_map.to_json()
    assert DERPMap.parse(json.dumps(document)) == derp_map
    assert DERPMap.parse(document) == derp_map
    assert derp_map.region_ids() == sorted(derp_map.regions)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.digits, max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["Regions", "HomeParams", "omitDefaultRegions"]), json_values, st.booleans())
def test_any_json_is_a_map_or_a_map_format_error(name: str, value: object, deeper: bool) -> None:
    document = {name: {"9": {"Nodes": [value], "RegionScore": value}} if deeper else value}
    with suppress(MapFormatError):
        DERPMap.parse(document)


@given(st.text(max_size=20) | st.binary(max_size=20))
def test_any_text_is_a_map_or_a_map_format_error(text: str | bytes) -> None:
    with suppress(MapFormatError):
        DERPMap.parse(text)
