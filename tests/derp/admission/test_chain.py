"""The chain of decisions: whatever is changed in it is found, and where."""

import json

import pytest

from derp.admission.chain import FIRST_HASH, Link, append, canonical, check


def chain(count: int) -> list[str]:
    end, lines = Link(), []
    for number in range(count):
        end, line = append(end, {"at": "now", "event": "admitted", "because": f"reason {number} ü"})
        lines.append(line)
    return lines


def test_a_chain_is_whole() -> None:
    lines = chain(5)
    found = check(lines)
    assert (found.lines, found.fault, found.begin, found.end.number) == (5, "", Link(), 5)
    first = json.loads(lines[0])
    assert (first["n"], first["prev"]) == (1, FIRST_HASH)
    assert json.loads(lines[4])["hash"] == found.end.hash
    assert check([]).end == Link()


def test_a_later_file_goes_on_where_the_older_one_ended() -> None:
    lines = chain(5)
    older, newer = check(lines[:3]), check(lines[3:])
    assert (older.fault, newer.fault) == ("", "")
    assert newer.begin == older.end


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: [*lines[:2], lines[2].replace("reason 2", "reason 9"), *lines[3:]], "line 3: was changed"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3: has number 4 after 2: lines are missing"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3: has number 2 after 2"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 2: has number 1 after 2"),
        (lambda lines: [*lines[:4], lines[4][:-20]], "line 5: is no line of this log"),
        (lambda lines: [*lines[:2], "\n", *lines[2:]], "line 3: is no line of this log"),
        (lambda lines: [*lines[:2], "[]\n", *lines[2:]], "line 3: is no line of this log"),
        (lambda lines: [*lines[:2], "[" * 9000, *lines[2:]], "line 3: is no line of this log"),
        (lambda lines: [*lines[:2], forged(lines[2]), *lines[3:]], "line 4: does not follow the line before it"),
    ],
)
def test_whatever_is_changed_is_found(change: object, reason: str) -> None:
    found = check(change(chain(5)))  # type: ignore[operator]  # a lambda of the table
    assert found.fault.startswith(reason)


def forged(line: str) -> str:
    """Another line in its place with a hash that fits."""
    content = json.loads(line)
    end = Link(content["n"] - 1, content["prev"])
    return append(end, {"at": "now", "event": "refused"})[1]


def test_a_line_is_written_in_one_way() -> None:
    assert canonical({"b": "ü", "a": 1}) == '{"b":"\\u00fc","a":1}'
