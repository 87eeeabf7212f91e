"""Expressions that could take for ever are refused, those of operators are not, and what is let through ends."""

import re

import pytest

from tailnet.config.external_auth import KNOWN
from tailnet.config.matching import MAX_MATCHED_CHARS, bounded_regex


@pytest.mark.parametrize(
    "pattern",
    [
        *(known["regex"] for known in KNOWN.values()),
        r"^(https?://)?forge\.example\.org(/.*)?$",
        r"^(https?://)?([a-z0-9-]+\.)?corp\.example(:[0-9]+)?(/.*)?$",
        r"git\.example",
        r"(?i)^https://(a|b|c)\.example/",
        r".*forge.*",
        r"^(?:[0-9]{3}-){2}x",
        r"^(?!evil)[^/]+\.example(?=/)",
        "",
    ],
)
def test_what_operators_write(pattern: str) -> None:
    assert bounded_regex(pattern) == re.compile(pattern)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a+)+$", "nothing that repeats may stand in something that repeats"),
        ("(a*)*$", "nothing that repeats"),
        ("^(a?){30}a{30}$", "nothing that repeats"),
        ("^((ab?c)+,)*$", "nothing that repeats"),
        ("^(?:(?=a+)b)*$", "nothing that repeats"),
        ("^(a+?)+?$", "nothing that repeats"),
        ("^(?>a+)+$", "nothing that repeats"),
        ("^(ab|a|b)*$", "no alternatives may stand in something that repeats"),
        ("^(x)?(?(1)a+|(b+)+)$", "nothing that repeats"),
        (".*.*.*x", "at most 3 parts of it repeat and begin with ^"),
        ("^.*.*.*.*x", "at most 3 parts of it repeat"),
        (r"^\d*\d{0,200}\w*[a-z]{2,9}$", "at most 3 parts"),
        ("^" + "a?" * 30 + "a" * 30, "at most 8 parts of it be optional"),
        ("^" + "(ab|a)" * 30 + "c", "at most 8 parts of it be optional or alternatives"),
        ("(", "is no regular expression"),
        ("a{99999999999999999999}", "is no regular expression"),
    ],
)
def test_what_could_take_for_ever(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        bounded_regex(pattern)


def test_the_worst_that_is_let_through_ends() -> None:
    """Some 50 ms; with one more part that repeats it is a coffee, with a nested one the end of the world."""
    for pattern in (".*.*x", "^.*.*.*x", "^" + "a?" * 8 + "a" * 8 + "x"):
        assert bounded_regex(pattern).search("a" * MAX_MATCHED_CHARS) is None
