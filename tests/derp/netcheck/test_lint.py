"""Every slip that makes a silent dead region is named with its place; a good map is left in peace."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.map import DERPMap
from derp.netcheck import lint as lint_module
from derp.netcheck.lint import Severity, errors, lint

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
    # field.md item 45: the region that nobody reaches and nobody mentions
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
    (f"{NODE}.CertName", "sha256-raw:abc", f"{NODE}.CertName", "64 hex digits"),
    (f"{NODE}.CertName", "*.example.com", f"{NODE}.CertName", "neither a host name nor a pin"),
    (f"{NODE}.IPv4", "10.0.0.300", f"{NODE}.IPv4", "is no IPv4 address"),
    (f"{NODE}.IPv4", "::1", f"{NODE}.IPv4", "is no IPv4 address"),
    (f"{NODE}.IPv6", "10.0.0.1", f"{NODE}.IPv6", "is no IPv6 address"),
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
        ("Regions.900.Nodes[1].HostName", "derp901a.example.com", "Regions.901", "is the relay of Regions.900 too"),
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
        (f"{NODE}.CertName", "sha256-raw:" + "aB" * 32),
        (f"{NODE}.CertName", "other.example.com"),
        (f"{NODE}.IPv4", "none"),
        (f"{NODE}.IPv6", "2001:db8::1"),
        (f"{NODE}.STUNPort", -1),
        (f"{NODE}.STUNPort", 0),
        (f"{NODE}.STUNOnly", True),
        (f"{NODE}.HostName", "derp_1.example.com."),
        (f"{NODE}.CanPort80", True),
        ("HomeParams", None),
        ("Regions.900.Latitude", -33.9),
        ("omitDefaultRegions", None),
    ],
)
def test_what_is_fine(path: str, value: object) -> None:
    assert lint(changed(path, value)) == []


def test_both_families_off_is_a_dead_node() -> None:
    document = changed(f"{NODE}.IPv4", "none")
    document["Regions"]["900"]["Nodes"][0]["IPv6"] = "none"
    [finding] = lint(document)
    assert finding.place == NODE
    assert "no client can reach it" in finding.reason


def test_a_region_of_stun_servers_only() -> None:
    document = good_map()
    for node in document["Regions"]["900"]["Nodes"]:
        node["STUNOnly"] = True
    [finding] = errors(lint(document))
    assert finding.place == "Regions.900.Nodes"
    assert "find no relay" in finding.reason


def test_a_node_that_does_nothing_at_all() -> None:
    document = changed(f"{NODE}.STUNOnly", True)
    document["Regions"]["900"]["Nodes"][0]["STUNPort"] = -1
    [finding] = errors(lint(document))
    assert finding.place == f"{NODE}.STUNPort"


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
    assert "clients find no home" in finding.reason


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
        ('{"Regions": {}, "Regions": {}}', "has the key 'Regions' twice"),
        ('{"Regions": {}, "regions": {}}', "has the key 'regions' twice (or in another case)"),
    ],
)
def test_texts_that_are_no_map(text: str | bytes, reason: str) -> None:
    assert reason in str(lint(text)[0])
    assert lint(text)[0].severity is Severity.ERROR


def test_an_overlay_may_be_less_than_a_map() -> None:
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
    assert len(lint({f"key{number}": 1 for number in range(50)})) == 5


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
