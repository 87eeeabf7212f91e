"""Whole numbers in files, however long (layer L0).

Python converts no text of more than 4,300 digits, and says so without a place.  In JSON such a number is read as a
HugeNumber, so that whoever checks the value names its place; in TOML, whose reader takes no hook, its line is found.
"""

import re
from dataclasses import dataclass
from typing import Final

# More than any number in a file of ours may have, and fewer than PYTHONINTMAXSTRDIGITS can be set to.
MAX_DIGITS: Final = 400
_LONG: Final = re.compile(rf"[0-9][0-9_]{{{MAX_DIGITS},}}")


@dataclass(frozen=True, slots=True)
class HugeNumber:
    """Stands where a number of so many digits stood; it is none of the types that a value may have."""

    digit_count: int

    def __str__(self) -> str:
        return f"a number of {self.digit_count:,} digits"

    __repr__ = __str__


def parse_int(text: str) -> int | HugeNumber:
    """For `json.loads(..., parse_int=parse_int)`."""
    digits = len(text.removeprefix("-"))
    return int(text) if digits <= MAX_DIGITS else HugeNumber(digits)


def huge_number_in(text: str) -> str:
    """Where the first number stands that is too long, and how long it is, as a sentence's beginning; empty: nowhere."""
    found = _LONG.search(text)
    if found is None:
        return ""
    return f"line {text.count(chr(10), 0, found.start()) + 1}: {HugeNumber(len(found[0].replace('_', '')))}"
