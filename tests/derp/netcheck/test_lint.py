"""Every slip that makes a silent dead region is named with its place; a good map is left in peace."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.client.mapsource import load_map
from derp.errors import ConfigError
from derp.map import DERPMap
from derp.netcheck import lint as lint_module
from derp.netcheck.lint import Severity, errors, lint, lint_text

REMOVED = object()


def good_map() -> dict[str, Any]:
    def node(region: int, letter: str) -> dict[str, Any]:
        return {"Name": f"{region}{letter}", "RegionID": region, "HostName": f"derp{region}{letter}.example.com"}

    def region(number: int, code: str) -> dict[str, Any]:
        return {
            "RegionID": number,
            "RegionCode": code,
            "RegionName": code.title(),
            "Nodes": [node(number, "a"), node(number, "b")],
        }

    return {
        "HomeParams": {"RegionScore": {"900": 1.5}},
        "Regions": {"900": region(900, "fra"), "901": region(901, "sin")},
        "omitDefaultRegions": True,
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """The good map with one value set; path as in findings."""
    document = good_map()
    target: Any = document
    *steps, last = path.replace("[", ".").replace("]", "").split(".")
    for step in steps:
        target = target[int(step)] if isinstance(target, list) else target[step]
    if value is REMOVED:
        del target[last]
    elif isinstance(target, list):
        target[int(last)] = value
    else:
        target[last] = value
    return document


def test_a_good_map_is_left_in_peace() -> None:
    assert lint(good_map()) == []
    assert lint(json.dumps(good_map())) == []
    assert lint(json.dumps(good_map()).encode()) == []


def test_what_our_own_maps_write_is_good() -> None:
    assert lint(DERPMap.parse(good_map()).to_json()) == []


NODE = "Regions.900.Nodes[0]"
REFUSED = [
    # the region that nobody reaches and nobody mentions
    ("Regions.900.RegionID", REMOVED, "Regions.900.RegionID", "is missing"),
    ("Regions.900.RegionID", 9, "Regions.900.RegionID", "is 9, but the region stands under 900"),
    (f"{NODE}.RegionID", REMOVED, f"{NODE}.RegionID", "is missing"),
    (f"{NODE}.RegionID", 901, f"{NODE}.RegionID", "is 901, but the node stands in region 900"),
    ("Regions.900.Nodes", [], "Regions.900.Nodes", "at least one relay"),
    ("Regions.900.Nodes", REMOVED, "Regions.900.Nodes", "at least one relay"),
    ("Regions.900.Nodes", {}, "Regions.900.Nodes", "at least one relay"),
    (NODE, None, NODE, "crashes genuine clients"),
    (NODE, "derp1.example.com", NODE, "wants an object"),
    (f"{NODE}.Name", REMOVED, f"{NODE}.Name", "is missing"),
    (f"{NODE}.Name", "900b", "Regions.900.Nodes[1].Name", f"is that of {NODE} too"),
    (f"{NODE}.Name", "901a", "Regions.901.Nodes[0].Name", f"is that of {NODE} too"),
    (f"{NODE}.HostName", REMOVED, f"{NODE}.HostName", "is missing"),
    (f"{NODE}.HostName", "https://derp.example.com", f"{NODE}.HostName", "is a URL"),
    (f"{NODE}.HostName", "derp.example.com:8443", f"{NODE}.HostName", "put the port into DERPPort"),
    (f"{NODE}.HostName", "derp example com", f"{NODE}.HostName", "is no host name"),
    (f"{NODE}.HostName", "10.0.0.300", f"{NODE}.HostName", "is no host name"),
    (f"{NODE}.HostName", "derp.invalid", f"{NODE}.HostName", "never resolves"),
    (f"{NODE}.HostName", "derp.example.com/derp", f"{NODE}.HostName", "is no host name"),
    (f"{NODE}.HostName", " derp.example.com", f"{NODE}.HostName", "is no host name"),
    (f"{NODE}.HostName", "[2001:db8::1]", f"{NODE}.HostName", "without brackets"),
    (f"{NODE}.HostName", "0.0.0.0", f"{NODE}.HostName", "the address of no machine"),
    (f"{NODE}.HostName", "127.1", f"{NODE}.HostName", "is no host name"),
    (f"{NODE}.CertName", "sha256-raw:abc", f"{NODE}.CertName", "64 hex digits"),
    (f"{NODE}.CertName", "sha256-raw:" + "aB" * 32, f"{NODE}.CertName", "lower case"),
    (f"{NODE}.CertName", "sha256-raw:" + "ab:" * 31 + "ab", f"{NODE}.CertName", "64 hex digits"),
    (f"{NODE}.CertName", "SHA256-RAW:" + "ab" * 32, f"{NODE}.CertName", "neither a host name nor a pin"),
    (f"{NODE}.CertName", "*.example.com", f"{NODE}.CertName", "neither a host name nor a pin"),
    (f"{NODE}.IPv4", "10.0.0.300", f"{NODE}.IPv4", "is no IPv4 address"),
    (f"{NODE}.IPv4", "::1", f"{NODE}.IPv4", "is no IPv4 address"),
    (f"{NODE}.IPv6", "10.0.0.1", f"{NODE}.IPv6", "is no IPv6 address"),
    (f"{NODE}.IPv6", "[2001:db8::1]", f"{NODE}.IPv6", "is no IPv6 address"),
    (f"{NODE}.IPv4", "derp.example.com", f"{NODE}.IPv4", "is no IPv4 address"),
    (f"{NODE}.IPv4", "010.0.0.1", f"{NODE}.IPv4", "is no IPv4 address"),
    (f"{NODE}.IPv4", "0.0.0.0", f"{NODE}.IPv4", "the address of no machine"),
    (f"{NODE}.IPv4", "255.255.255.255", f"{NODE}.IPv4", "the address of no machine"),
    (f"{NODE}.IPv6", "ff02::1", f"{NODE}.IPv6", "the address of no machine"),
    (f"{NODE}.IPv4", 10, f"{NODE}.IPv4", "wants a string"),
    (f"{NODE}.STUNPort", -2, f"{NODE}.STUNPort", "-1 means no STUN"),
    (f"{NODE}.STUNPort", 65536, f"{NODE}.STUNPort", "is no port"),
    (f"{NODE}.STUNPort", "3478", f"{NODE}.STUNPort", "wants a whole number"),
    (f"{NODE}.DERPPort", -1, f"{NODE}.DERPPort", "0 means 443"),
    (f"{NODE}.DERPPort", 443.0, f"{NODE}.DERPPort", "wants a whole number"),
    (f"{NODE}.STUNOnly", "yes", f"{NODE}.STUNOnly", "wants true or false"),
    (f"{NODE}.STUNTestIP", "here", f"{NODE}.STUNTestIP", "is no IP address"),
    ("Regions.900.RegionCode", 7, "Regions.900.RegionCode", "wants a string"),
    ("Regions.0", {}, "Regions.0", "region ids are plain numbers"),
    ("Regions.fra", {}, "Regions.fra", "region ids are plain numbers"),
    ("Regions.-1", {}, "Regions.-1", "region ids are plain numbers"),
    ("Regions.0900", {}, "Regions.0900", "region ids are plain numbers"),
    ("Regions.2147483648", {}, "Regions.2147483648", "region ids are plain numbers from 1 to 2147483647"),
    ("Regions.900", [], "Regions.900", "wants an object"),
    ("Regions", [], "Regions", "wants an object"),
    ("Regions", {}, "Regions", "there are none"),
    ("Regions", REMOVED, "Regions", "there are none"),
    ("HomeParams", 1.5, "HomeParams", "wants an object"),
    ("HomeParams.RegionScore", [], "HomeParams.RegionScore", "wants an object"),
    ("HomeParams.RegionScore.900", "1.5", "HomeParams.RegionScore.900", "wants a factor"),
    ("HomeParams.RegionScore.900", float("nan"), "HomeParams.RegionScore.900", "wants a factor"),
    ("HomeParams.RegionScore.900", 10**400, "HomeParams.RegionScore.900", "wants a factor"),
    ("HomeParams.RegionScore.fra", 1.5, "HomeParams.RegionScore.fra", "plain numbers"),
    ("omitDefaultRegions", "yes", "omitDefaultRegions", "wants true or false"),
    ("derpMap", {"Regions": {}}, "derpMap", "as in a policy file"),
]


@pytest.mark.parametrize(("path", "value", "place", "reason"), REFUSED)
def test_errors(path: str, value: object, place: str, reason: str) -> None:
    found = errors(lint(changed(path, value)))
    assert [finding.place for finding in found] == [place]
    assert reason in found[0].reason
    assert str(found[0]) == f"{place}: {found[0].reason}"


@pytest.mark.parametrize(
    ("path", "value", "place", "reason"),
    [
        (f"{NODE}.InsecureForTests", True, f"{NODE}.InsecureForTests", "pose as this relay"),
        (f"{NODE}.HostName", "192.0.2.1", f"{NODE}.HostName", "pin it by CertName"),
        (f"{NODE}.STUNTestIP", "127.0.0.1", f"{NODE}.STUNTestIP", "is for tests"),
        (f"{NODE}.ForceHTTP", True, f"{NODE}.ForceHTTP", "plain HTTP on port 443"),
        (f"{NODE}.HostNam", "x", f"{NODE}.HostNam", "did you mean HostName?"),
        ("Regions.900.Node", [], "Regions.900.Node", "did you mean Nodes?"),
        ("Region", {}, "Region", "did you mean Regions?"),
        ("zzz", {}, "zzz", "no client knows this key"),
        ("Regions.900.RegionCode", REMOVED, "Regions.900.RegionCode", "is missing"),
        ("Regions.901.RegionCode", "fra", "Regions.901.RegionCode", "is that of Regions.900 too"),
        ("Regions.900.RegionName", "", "Regions.900.RegionName", "is missing"),
        ("Regions.900.Latitude", 91, "Regions.900.Latitude", "is no angle"),
        ("Regions.900.Avoid", True, "Regions.900.Avoid", "NoMeasureNoHome"),
        ("Regions.900.Nodes[1].HostName", "derp901a.example.com", "Regions.901.Nodes[0]", "same relay as Regions.900"),
        (f"{NODE}.HostName", "derp900b.example.com", "Regions.900.Nodes[1]", f"same relay as {NODE}"),
        (f"{NODE}.HostName", "Derp.Example.com", f"{NODE}.HostName", "write 'derp.example.com'"),
        (f"{NODE}.HostName", "localhost", f"{NODE}.HostName", "from this machine only"),
        (f"{NODE}.IPv4", "127.0.0.1", f"{NODE}.IPv4", "from this machine only"),
        (f"{NODE}.IPv6", "fe80::1", f"{NODE}.IPv6", "from the same link only"),
        (f"{NODE}.STUNPort", 443, f"{NODE}.STUNPort", "is it the relay's own port"),
        (f"{NODE}.DERPPort", 3478, f"{NODE}.DERPPort", "mixed up"),
        (f"{NODE}.DERPPort", 80, f"{NODE}.DERPPort", "clients speak TLS"),
        (f"{NODE}.CanPort80", True, f"{NODE}.CanPort80", "does nothing without an address in IPv4"),
        ("Regions.7", None, "Regions.7", "there is none below"),
        ("HomeParams.RegionScore.7", 2, "HomeParams.RegionScore.7", "there is no such region"),
        ("HomeParams.RegionScore.900", 0, "HomeParams.RegionScore.900", "does nothing"),
        ("HomeParams.RegionScore.900", -1, "HomeParams.RegionScore.900", "does nothing"),
    ],
)
def test_warnings(path: str, value: object, place: str, reason: str) -> None:
    [finding] = lint(changed(path, value))
    assert (finding.severity, finding.place) == (Severity.WARNING, place)
    assert reason in finding.reason


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{NODE}.CertName", "sha256-raw:" + "ab" * 32),
        (f"{NODE}.CertName", "other.example.com"),
        (f"{NODE}.IPv4", "none"),
        (f"{NODE}.IPv6", "2001:db8::1"),
        (f"{NODE}.STUNPort", -1),
        (f"{NODE}.STUNPort", 0),
        (f"{NODE}.STUNOnly", True),
        (f"{NODE}.HostName", "derp_1.example.com."),
        ("HomeParams", None),
        ("Regions.900.Latitude", -33.9),
        ("omitDefaultRegions", None),
    ],
)
def test_what_is_fine(path: str, value: object) -> None:
    assert lint(changed(path, value)) == []


def node_with(**fields: object) -> dict[str, Any]:
    """The good map with these fields in its first node."""
    document = good_map()
    document["Regions"]["900"]["Nodes"][0].update(fields)
    return document


PIN = "sha256-raw:" + "ab" * 32


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"IPv4": "none", "IPv6": "none"}, "both none: no client can reach it"),
        ({"HostName": ""}, "clients have nothing to dial"),
        ({"HostName": "", "IPv6": "none"}, "clients have nothing to dial"),
        ({"HostName": "192.0.2.1", "CertName": PIN, "IPv4": "none"}, "the family of HostName 192.0.2.1 is none"),
        ({"HostName": "2001:db8::1", "CertName": PIN}, "clients refuse https://2001:db8::1/"),
        ({"STUNOnly": True, "STUNPort": -1}, "does nothing at all"),
    ],
)
def test_errors_of_fields_together(fields: dict[str, object], says: str) -> None:
    [finding] = lint(node_with(**fields))
    assert finding.severity is Severity.ERROR
    assert finding.place.startswith(NODE)
    assert says in finding.reason


@pytest.mark.parametrize(
    ("fields", "place", "says"),
    [
        ({"CertName": PIN, "InsecureForTests": True}, f"{NODE}.InsecureForTests", "does nothing"),
        ({"CertName": "derp900a.example.com", "InsecureForTests": True}, f"{NODE}.InsecureForTests", "can pose"),
        # Genuine clients connect to such a node, and maps for tests are often like that.
        ({"HostName": "", "IPv4": "192.0.2.1"}, f"{NODE}.HostName", "clients dial the address alone"),
        ({"HostName": "", "IPv6": "2001:db8::1", "IPv4": "none"}, f"{NODE}.HostName", "dial the address alone"),
        ({"HostName": "", "IPv4": "192.0.2.1", "CertName": PIN}, f"{NODE}.HostName", "clients dial the address alone"),
        ({"STUNOnly": True, "DERPPort": 8443}, f"{NODE}.STUNOnly", "though it has DERPPort"),
        ({"STUNOnly": True, "CertName": PIN}, f"{NODE}.STUNOnly", "though it has CertName"),
        ({"CanPort80": True, "IPv4": "none"}, f"{NODE}.CanPort80", "does nothing"),
        ({"QUICPort": 443, "DERPPort": 80, "ForceHTTP": True}, f"{NODE}.QUICPort", "plain HTTP"),
        ({"QUICPort": 443, "STUNOnly": True}, f"{NODE}.QUICPort", "no relay"),
        (
            {"HostName": "2001:db8::1", "CertName": PIN, "DERPPort": 8443},
            f"{NODE}.HostName",
            "cannot measure an IPv6 address over HTTPS",
        ),
    ],
)
def test_warnings_of_fields_together(fields: dict[str, object], place: str, says: str) -> None:
    [finding] = lint(node_with(**fields))
    assert (finding.severity, finding.place) == (Severity.WARNING, place)
    assert says in finding.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"CanPort80": True, "IPv4": "192.0.2.1"},
        {"HostName": "192.0.2.1", "CertName": PIN, "IPv6": "none"},
        {"HostName": "192.0.2.1", "STUNOnly": True},
        {"HostName": "", "IPv4": "192.0.2.1", "STUNOnly": True},
        {"HostName": "localhost", "IPv4": "192.0.2.1", "CertName": PIN},
        {"HostName": "derp900b.example.com", "IPv4": "192.0.2.1"},  # one name, told apart by address
        {"DERPPort": 80, "ForceHTTP": True},
        {"QUICPort": 443},
        {"QUICPort": 3478, "STUNPort": -1},
    ],
)
def test_what_is_fine_together(fields: dict[str, object]) -> None:
    assert lint(node_with(**fields)) == []


def test_an_ipv6_address_whose_family_is_none() -> None:
    found = errors(lint(node_with(HostName="2001:db8::1", CertName=PIN, IPv6="none", DERPPort=8443)))
    assert [str(finding) for finding in found] == [
        f"{NODE}: the family of HostName 2001:db8::1 is none here: no client can reach it"
    ]


def test_the_embedded_relay_may_be_on_this_machine() -> None:
    document = node_with(HostName="127.0.0.1", CertName=PIN)
    assert [finding.place for finding in lint(document)] == [f"{NODE}.HostName"]
    document["Regions"]["900"]["EmbeddedRelay"] = True
    assert lint(document) == []


def test_a_region_of_stun_servers_only() -> None:
    document = good_map()
    for node in document["Regions"]["900"]["Nodes"]:
        node["STUNOnly"] = True
    [finding] = errors(lint(document))
    assert finding.place == "Regions.900.Nodes"
    assert "find no relay" in finding.reason


def test_stun_only_on_nodes_that_nobody_asks() -> None:
    document = good_map()
    nodes = document["Regions"]["900"]["Nodes"]
    nodes += [dict(nodes[0], Name=f"900{letter}", HostName=f"derp900{letter}.example.com") for letter in "cd"]
    for node in nodes[:3]:
        node["STUNPort"] = -1
    [finding] = lint(document)
    assert (finding.severity, finding.place) == (Severity.WARNING, "Regions.900.Nodes")
    assert "clients ask no others" in finding.reason
    del nodes[2]["STUNPort"]
    assert lint(document) == []


def test_a_region_without_stun_beside_one_with_it() -> None:
    document = good_map()
    for node in document["Regions"]["900"]["Nodes"]:
        node["STUNPort"] = -1
    [finding] = lint(document)
    assert (finding.severity, finding.place) == (Severity.WARNING, "Regions.900")
    assert "never becomes a home" in finding.reason
    for node in document["Regions"]["901"]["Nodes"]:
        node["STUNPort"] = -1
    assert lint(document) == []  # then clients measure by HTTPS


def test_no_home_anywhere() -> None:
    document = good_map()
    for region in document["Regions"].values():
        region["NoMeasureNoHome"] = True
    [finding] = lint(document)
    assert "none may become a home" in finding.reason
    for region in document["Regions"].values():
        del region["NoMeasureNoHome"]
        region["Avoid"] = True
    # Clients measure these by STUN all the same, but not over HTTPS.
    assert not any("may become a home" in finding.reason for finding in lint(document))
    for region in document["Regions"].values():
        for node in region["Nodes"]:
            node["STUNPort"] = -1
    assert any("none may become a home" in finding.reason for finding in lint(document))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("DERPPort", "443"),
        ("DERPPort", 70_000),
        ("STUNPort", "3478"),
        ("STUNPort", 34_788),
        ("STUNPort", 347_888),
        ("STUNOnly", "no"),
        ("IPv4", 10),
    ],
)
def test_a_typing_mistake_is_all_that_is_said_of_it(field: str, value: object) -> None:
    """Not that there is no home or no STUN: what the node will be once it is mended is not known."""
    document = node_with(**{field: value})
    document["Regions"]["900"]["Nodes"] = document["Regions"]["900"]["Nodes"][:1]
    for regions in (document["Regions"], {"900": document["Regions"]["900"]}):
        assert {finding.place for finding in lint({"Regions": regions})} <= {f"{NODE}.{field}"}


MAP = '{"Regions": {"900": {"RegionID": 900, "RegionCode": "a", "RegionName": "b", "Nodes": [%s]}}}'
ONE_NODE = '{"Name": "900a", "RegionID": 900, "HostName": "relay.example"}'


def test_a_byte_order_mark_is_named() -> None:
    text = (MAP % ONE_NODE).encode()
    assert lint_text(text) == lint(text) == []
    for found in (lint_text(b"\xef\xbb\xbf" + text), lint(b"\xef\xbb\xbf" + text)):
        assert [(one.severity, one.place) for one in found] == [(Severity.WARNING, "")]
        assert "byte-order mark" in found[0].reason
    assert [one.reason for one in lint_text(text.decode().encode("utf-16"))] == [
        "is written in UTF-16: save it as UTF-8"
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'"derpMap": {MAP % ONE_NODE}', '"derpMap": ...: the map stands inside this key'),
        (f'  // a policy file\n"derpMap": {MAP % ONE_NODE},\n', "the map stands inside this key"),
        (f'{{"acls": [], "derpMap": {MAP % ONE_NODE}}}', "the map stands inside this key"),
        (f'{{"DERPMap": {MAP % ONE_NODE}}}', "the map stands inside this key"),
        ((MAP % ONE_NODE)[1:-1], 'a piece of a map, "Regions": ..., without the braces around it'),
        ('"omitDefaultRegions": true,\n"Regions": {}', "a piece of a map"),
        (ONE_NODE, "this is one node and no map: put it into the Nodes of a region"),
        ('{"Name": "x", "stunport": 3478}', "this is one node and no map"),
        (f"[{ONE_NODE}, {ONE_NODE}]", "this is a list whose first element is one node and no map"),
        (f'{{"RegionID": 900, "RegionCode": "a", "Nodes": [{ONE_NODE}]}}', "this is one region and no map"),
        (f'"Nodes": [{ONE_NODE}]', '"Nodes": ...: this is one region and no map'),
        (f'{{"900": {{"RegionID": 900, "Nodes": [{ONE_NODE}]}}}}', "these are regions by their ids and no map"),
        (f'"900": {{"RegionID": 900, "Nodes": [{ONE_NODE}]}}', '"900": ...: these are regions by their ids and no map'),
        ('{"RegionScore": {"900": 2}}', "this is what HomeParams holds and no map"),
        ('"RegionScore": {"900": 2', "this is a piece of a JSON file"),
        ('HostName = "relay.example"', "this is one node and no map"),
        ("[[Nodes]]\nHostName = 'x'", "this is one region and no map"),
    ],
)
async def test_a_part_of_a_map_is_named_as_what_it_is(text: str, says: str, tmp_path: Path) -> None:
    [finding] = lint_text(text.encode())
    assert finding.severity is Severity.ERROR
    assert says in finding.reason
    # A reader that follows Go takes some of these for an empty map.
    (tmp_path / "map").write_text(text)
    with pytest.raises(ConfigError) as caught:
        await load_map(str(tmp_path / "map"))
    assert says in str(caught.value)


def test_all_mistakes_at_once_errors_first() -> None:
    document = changed(f"{NODE}.InsecureForTests", True)
    document["Regions"]["901"]["RegionID"] = 7
    document["Regions"]["901"]["Nodes"][1]["HostName"] = ""
    found = lint(document)
    assert [finding.place for finding in found] == [
        "Regions.901.RegionID",
        "Regions.901.Nodes[1].HostName",
        f"{NODE}.InsecureForTests",
    ]


def test_names_count_whatever_their_case() -> None:
    document = json.loads(json.dumps(good_map()).replace('"RegionID"', '"regionID"').replace("HostName", "hostName"))
    assert lint(document) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1, column 1"),
        ("{\n  oops}", "line 2, column 3"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        ("[]", "a DERP map is an object, got list"),
        ("null", "a DERP map is an object, got NoneType"),
        ('{"Regions": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "is not JSON that a map could be"),
        ('{"Regions": {}, "Regions": {}}', "Regions: stands here twice"),
        ('{"Regions": {}, "regions": {}}', "regions: stands here twice (or in another case)"),
    ],
)
def test_texts_that_are_no_map(text: str | bytes, reason: str) -> None:
    assert reason in str(lint(text)[0])
    assert lint(text)[0].severity is Severity.ERROR


def test_keys_given_twice_are_told_with_their_place() -> None:
    text = json.dumps(good_map())
    text = text.replace('"Name": "901b"', '"Name": "901c", "name": "901b"', 1)
    text = text.replace('"900": 1.5', '"900": 1.5, "900": 2')
    text = text.replace('"Regions": {', '"Regions": {"901": {}, ', 1)
    assert [str(finding) for finding in lint(text)] == [
        f"{place}: stands here twice (or in another case): clients read only the last one"
        for place in ("HomeParams.RegionScore.900", "Regions.901", "Regions.901.Nodes[1].name")
    ]


def test_nesting_deeper_than_calls_can_be() -> None:
    text = '{"Regions": ' + '{"1": ' * 5000 + "{}" + "}" * 5001
    assert errors(lint(text))


def test_an_overlay_may_be_less_than_a_map() -> None:
    document: dict[str, Any]
    for document in (
        {},
        {"Regions": {}},
        {"Regions": {"1": None}},
        {"HomeParams": {"RegionScore": {"1": 2, "2": None}}},
        changed("Regions.900.NoMeasureNoHome", True),
    ):
        assert lint(document, overlay=True) == [], document
    assert errors(lint({"Regions": {"1": {}}}, overlay=True))


def test_a_file_that_is_wrong_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_module, "MAX_FINDINGS", 5)
    document: dict[str, Any] = good_map() | {f"key{number}": 1 for number in range(50)}
    found = lint(document)
    assert len(found) == 5
    assert str(found[-1]) == "there are more warnings than these 4"
    # Errors are not lost behind them.
    del document["Regions"]["901"]["RegionID"]
    assert [finding.place for finding in errors(lint(document))] == ["Regions.901.RegionID"]


def test_a_map_as_the_field_writes_it_is_good() -> None:
    """In the shape of the public maps: several regions, fixed addresses, ports, coordinates, scores."""
    text = (Path(__file__).parent / "field_map.json").read_text()
    assert lint(text) == []
    assert lint(DERPMap.parse(text).to_json()) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70_000) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Regions", "HomeParams", "RegionScore", "1", "900", "Nodes", "RegionID", "Name", "HostName"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(values)
def test_any_json_is_judged(value: object) -> None:
    found = lint(json.dumps(value))
    # What is found free of errors, clients can read.
    if isinstance(value, Mapping) and not errors(found):
        DERPMap.parse(value)


@given(st.sampled_from([row[0] for row in REFUSED]), values)
def test_a_good_map_with_one_value_of_any_kind(path: str, value: object) -> None:
    document = changed(path, value)
    if not errors(lint(document)):
        DERPMap.parse(document)
