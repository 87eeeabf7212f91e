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
    assert parse.banners("") == ()
    assert parse.banners("one") == (Banner("one"),)


@pytest.mark.parametrize("value", ["abcd", "", "a\n", 3])
def test_text_is_short_and_printable(value: object) -> None:
    with pytest.raises(ValueError, match="wants"):
        parse.text(3)(value)
