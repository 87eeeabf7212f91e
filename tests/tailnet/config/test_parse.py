"""The kinds that only the coordinator has; what they refuse is in test_load.py, with its place."""

import pytest

from tailnet.config import parse
from tailnet.config.coordinator import Banner


def test_taken() -> None:
    assert parse.off_or_addresses("off") == ()
    assert parse.off_or_addresses("0.0.0.0:1,[::]:1") == (("", 1),)
    assert parse.region_id("7") == 7
    assert parse.score("7=0.5") == (7, 0.5)
    assert parse.text(3)("abc") == "abc"
    assert parse.suffix("") == ""
    assert parse.suffix("a.example") == "a.example"
    assert parse.file_or_url("https://control.example/keys") == "https://control.example/keys"
    assert parse.file_or_url("/etc/keys.json") == "/etc/keys.json"
    assert parse.banners("") == ()
    assert parse.banners("one") == (Banner("one"),)


@pytest.mark.parametrize("value", ["abcd", "", "a\n", 3])
def test_text_is_short_and_printable(value: object) -> None:
    with pytest.raises(ValueError, match="wants"):
        parse.text(3)(value)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Dash.Example.com", "https://dash.example.com"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_an_origin(text: str, origin: str) -> None:
    assert parse.origin(text) == origin


@pytest.mark.parametrize(
    "text",
    ["*", "null", "https://*.example.com", "https://a.example.com/", "https://a.example.com:443", "http://a:80",
     "a.example.com", "ftp://a.example.com", "https://a.example.com:0", "https://a.example.com:65536", "https://a b",
     "https://u@a.example.com", ""],
)  # fmt: skip
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="wants origins such as"):
        parse.origin(text)
