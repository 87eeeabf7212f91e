"""Numbers of more digits than Python converts are a mistake with its place, in every file that is read."""

import json
from pathlib import Path

import pytest

from derp.config import load_config
from derp.errors import ConfigError, MapFormatError
from derp.json_numbers import MAX_DIGITS, HugeNumber, huge_number_in, parse_int
from derp.map import DERPMap
from derp.netcheck.lint import lint_text

LONG = "1" * 5000


def test_numbers_of_sense_are_numbers() -> None:
    assert json.loads("[0, -7, 12345678901234567890]", parse_int=parse_int) == [0, -7, 12345678901234567890]
    assert parse_int("-" + "9" * MAX_DIGITS) == -int("9" * MAX_DIGITS)
    assert parse_int("9" * (MAX_DIGITS + 1)) == HugeNumber(MAX_DIGITS + 1)
    assert str(parse_int(f"-{LONG}")) == "a number of 5,000 digits"


def test_where_it_stands_in_a_text() -> None:
    assert huge_number_in("a = 1\nb = 22\n") == ""
    assert huge_number_in(f"a = 1\n\nb = [{LONG}]\n") == "line 3: a number of 5,000 digits"
    assert huge_number_in("x = " + "1_0" * 300) == "line 1: a number of 600 digits"


@pytest.mark.parametrize(
    ("field", "place"), [("STUNPort", "Nodes[0].STUNPort"), ("HostName", "Nodes[0].HostName"), ("RegionID", "RegionID")]
)
def test_in_a_map(field: str, place: str) -> None:
    node = {"Name": "900a", "RegionID": 900, "HostName": "relay.example"}
    region = {"RegionID": 900, "RegionCode": "a", "RegionName": "b", "Nodes": [node]}
    (node if place.startswith("Nodes") else region)[field] = "HERE"  # type: ignore[assignment]  # any JSON
    text = json.dumps({"Regions": {"900": region}}).replace('"HERE"', LONG)
    with pytest.raises(MapFormatError, match="a number of 5,000 digits") as caught:
        DERPMap.parse(text)
    assert f"Regions.900.{place}: " in str(caught.value)
    assert [(one.place, "a number of 5,000 digits" in one.reason) for one in lint_text(text.encode())] == [
        (f"Regions.900.{place}", True)
    ]


def test_in_toml(tmp_path: Path) -> None:
    [finding] = lint_text(f"[Regions.900]\nRegionID = {LONG}\n".encode())
    assert finding.reason == "line 2: a number of 5,000 digits: no field takes one"
    (tmp_path / "relay.toml").write_text(f"# ours\nmax_connections = {LONG}\n")
    with pytest.raises(ConfigError, match=r"relay\.toml: line 2: a number of 5,000 digits: no setting takes one"):
        load_config({}, config_file=str(tmp_path / "relay.toml"))


@pytest.mark.parametrize("flag", ["max_connections", "stun_port"])
def test_in_a_flag(flag: str) -> None:
    with pytest.raises(ConfigError, match=flag.replace("_", "-")):
        load_config({flag: LONG, "listen": "127.0.0.1:0"})
