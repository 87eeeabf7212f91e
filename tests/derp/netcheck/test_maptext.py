"""Maps with comments, and maps in TOML, read as what they mean and complained about where they stand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import MapFormatError
from derp.map import DERPMap
from derp.netcheck.lint import lint
from derp.netcheck.maptext import plain_json, read_map_text

COMMENTED = b"""\xef\xbb\xbf// our relays
{
  "Regions": {
    /* the only
       one */
    "900": {"RegionID": 900, "RegionCode": "a//b", "RegionName": "/* no comment */ \\" // nor this",
      "Nodes": [
        {"Name": "900a", "RegionID": 900, "HostName": "relay.example",}, // home
      ],
    },
  },
}
"""

TOML = b"""
# our relays
[Regions.900]
RegionID = 900
RegionCode = "fra"
RegionName = "Frankfurt"

[[Regions.900.Nodes]]
Name = "900a"
RegionID = 900
HostName = "relay.example"
"""


def test_comments_and_trailing_commas_are_no_mistakes() -> None:
    text = read_map_text(COMMENTED)
    assert isinstance(text, str)
    assert lint(text) == []
    region = DERPMap.parse(text).regions[900]
    assert (region.region_code, region.region_name) == ("a//b", '/* no comment */ " // nor this')


def test_toml_has_the_same_names() -> None:
    document = read_map_text(TOML)
    assert lint(document) == []
    assert DERPMap.parse(document).regions[900].nodes[0].host_name == "relay.example"


@pytest.mark.parametrize(
    "content", [b"[[Regions]]\nx = 1\n", b'"Regions" = {}\n', b"0 = 1\n", b"# only words\nA.b = 1\n"]
)
def test_toml_of_any_shape_is_toml(content: bytes) -> None:
    assert isinstance(read_map_text(content), dict)


def test_complaints_name_the_line_of_the_file() -> None:
    text = read_map_text(b'// one\n/* two\n three */ {\n "Regions": x }')
    with pytest.raises(MapFormatError, match="line 4, column 13"):
        DERPMap.parse(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff", "byte 0 is not UTF-8"),
        (b"{\n /* for ever }", "line 2: a comment begins here"),
        (b"hello", "neither JSON"),
        (b"[Regions.900\n", "neither JSON"),
        (b"[Regions.900]\nRegionID = 900\nRegionID = 901\n", "line 3"),
        (b"", "there is nothing in it"),
        (b"  // nothing\n", "there is nothing in it"),
        (b"\n<!DOCTYPE html><title>x</title>", "web page"),
        (b'[{"RegionID": 900}]', "no object with Regions"),
        (b"[]", "no object with Regions"),
        (b"null", "no object with Regions"),
        (b'"Regions"', "no object with Regions"),
        (b"# headscale\n\nregions:\n  900:\n    regionid: 900\n", "looks like YAML"),
        (b"---\nregions:\n", "looks like YAML"),
    ],
)
def test_what_is_no_map_is_told(content: bytes, words: str) -> None:
    with pytest.raises(MapFormatError, match=words):
        read_map_text(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, st.sampled_from([None, 2]))
def test_json_without_comments_stays_as_it_is(value: object, indent: int | None) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        assert plain_json(text) == text
