"""Cursors: what was given comes back, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.cursors import make_cursor, read_cursor

SECRET = b"a token"


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["q", "name"]), st.text(max_size=20)))
def test_there_and_back(last: str, filters: dict[str, str]) -> None:
    if any("\ud800" <= each <= "\udfff" for each in last):
        return
    assert read_cursor(SECRET, "/users", filters, make_cursor(SECRET, "/users", filters, last)) == last


GOOD = make_cursor(SECRET, "/users", {"q": "a"}, "some id")


@pytest.mark.parametrize(
    ("secret", "place", "filters", "cursor"),
    [
        (b"another token", "/users", {"q": "a"}, GOOD),
        (SECRET, "/agents", {"q": "a"}, GOOD),
        (SECRET, "/users", {"q": "b"}, GOOD),
        (SECRET, "/users", {}, GOOD),
        (SECRET, "/users", {"q": "a"}, GOOD[:-2] + "AA"),
        (SECRET, "/users", {"q": "a"}, "B" + GOOD[1:]),
        (SECRET, "/users", {"q": "a"}, "c29tZSBpZA"),
        (SECRET, "/users", {"q": "a"}, "!"),
        (SECRET, "/users", {"q": "a"}, "é"),
        (SECRET, "/users", {"q": "a"}, "A" * 600),
    ],
)
def test_forged(secret: bytes, place: str, filters: dict[str, str], cursor: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        read_cursor(secret, place, filters, cursor)
    assert caught.value.fault is Fault.INVALID
    assert caught.value.problems[0][0] == "cursor"
