"""Mistakes are gathered with their places, and there is an end to them."""

import pytest

from tailnet.errors import SeedError
from tailnet.store.problems import MAX_PROBLEMS, Problems, kind


def test_nothing_is_wrong() -> None:
    Problems("seed.json").raise_if_any()


def test_each_is_a_line_with_its_place() -> None:
    problems = Problems("seed.json")
    problems.add("users[0].id", "is missing")
    problems.add("agents[1]", "wants an object")
    assert len(problems) == 2
    with pytest.raises(SeedError) as caught:
        problems.raise_if_any()
    assert list(caught.value.problems) == [
        "seed.json: users[0].id: is missing",
        "seed.json: agents[1]: wants an object",
    ]


def test_the_twentieth_is_the_last() -> None:
    problems = Problems("seed.json")
    for number in range(MAX_PROBLEMS - 1):
        problems.add(str(number), "is wrong")
    with pytest.raises(SeedError, match="there may be more"):
        problems.add("here", "is wrong")


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "null"), (True, "true"), (7, "7"), (1.5, "1.5"), ("x", "text"), ([], "a list"), ({}, "an object")],
)
def test_what_a_value_is(value: object, words: str) -> None:
    assert kind(value) == words
