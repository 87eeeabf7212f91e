"""A log of decisions that can be checked later: lines that each hold the hash of the one before.  Layer L1: no I/O.

One JSON object a line.  `hash` is SHA-256 over the line without it, as `canonical` writes it, and that has `prev`:
whoever changes, removes or puts in a line has to change all behind it.  Lines cut off at the end leave a whole chain:
compare the number and the hash of the last line with those that the relay's own log tells.  server/decisions.py writes
such files.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

FIRST_HASH: Final = "0" * 64  # what the first line of all has before it


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain: the number and the hash of its last line; number 0: there is none yet."""

    number: int = 0
    hash: str = FIRST_HASH


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look at a file found.  `fault`: what is wrong in which line; empty: nothing."""

    lines: int
    begin: Link  # what its first line says of the one before it
    end: Link
    fault: str = ""


def append(end: Link, fields: Mapping[str, Any]) -> tuple[Link, str]:
    """The next line of a chain, with its line feed, and the chain's new end."""
    content = {"n": end.number + 1, **fields, "prev": end.hash}
    digest = _hash(content)
    return Link(end.number + 1, digest), f"{canonical(content | {'hash': digest})}\n"


def check(lines: Iterable[str]) -> Checked:
    """Check the lines of one file, which may go on where an older file ended."""
    count, begin, end = 0, Link(), Link()
    for count, line in enumerate(lines, 1):  # it is also how many there are
        read = _read(line)
        if isinstance(read, str):
            return Checked(count, begin, end, f"line {count}: {read}")
        number, previous, digest = read
        if count == 1:
            begin = end = Link(number - 1, previous)
        if number != end.number + 1:
            return Checked(
                count, begin, end, f"line {count}: has number {number} after {end.number}: lines are missing"
            )
        if previous != end.hash:
            return Checked(count, begin, end, f"line {count}: does not follow the line before it")
        end = Link(number, digest)
    return Checked(count, begin, end)


def canonical(content: Mapping[str, Any]) -> str:
    """The one way in which a line is written."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True)


def _read(line: str) -> tuple[int, str, str] | str:
    """Number, hash of the line before, own hash; or what is wrong."""
    try:
        content = json.loads(line)
        digest, number, previous = content.pop("hash"), content["n"], content["prev"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "is no line of this log: it was cut or changed"
    if type(number) is not int or _hash(content) != digest:
        return "was changed: its hash does not fit"
    return number, previous, digest


def _hash(content: Mapping[str, Any]) -> str:
    return sha256(canonical(content).encode()).hexdigest()
