"""Regular expressions of operators that are tried on texts of strangers: which could take for ever (layer L2).

Python's `re` goes back and tries again: `(a+)+$` on thirty letters takes minutes, in which the whole server stands
still.  So an expression is looked at before it is used, and one whose steps are not bounded by a small power of the
text's length is refused.  Called by external_auth.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# All of it is public but for the name: the module was called sre_parse, and was given this name without a successor.
from re import _parser as sre  # type: ignore[attr-defined]
from typing import Any, Final

from derp.text import error_text

# Each part that repeats, and a start that may be anywhere, is a power of the text's length: of 256 characters some
# 3 million steps at the most, 50 ms.
MAX_REPEATS: Final = 3
MAX_MATCHED_CHARS: Final = 256
# Each choice doubles the steps: of a host's optional parts some five are needed.
MAX_CHOICES: Final = 8


@dataclass(slots=True)
class _Counts:
    repeats: int = 0
    choices: int = 0


def bounded_regex(pattern: str) -> re.Pattern[str]:
    """The expression, for `search` in texts of MAX_MATCHED_CHARS.  Raises ValueError: what to write instead."""
    try:
        compiled = re.compile(pattern)
        parsed = sre.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error_text(error)}") from None
    counts = _Counts()
    _count(parsed, counts, is_repeated=False)
    is_anchored = len(parsed) > 0 and parsed[0] in ((sre.AT, sre.AT_BEGINNING), (sre.AT, sre.AT_BEGINNING_STRING))
    if counts.repeats + (not is_anchored) > MAX_REPEATS:
        begin = "" if is_anchored else " and begin with ^"
        raise ValueError(f"could take for ever: let at most {MAX_REPEATS} parts of it repeat{begin}")
    if counts.choices > MAX_CHOICES:
        raise ValueError(f"could take for ever: let at most {MAX_CHOICES} parts of it be optional or alternatives")
    return compiled


def _count(parsed: Any, counts: _Counts, *, is_repeated: bool) -> None:
    for operation, argument in parsed:
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            least, most, _ = argument
            varies, repeats = least != most, most > 1
            if is_repeated and varies:
                raise ValueError("could take for ever: nothing that repeats may stand in something that repeats")
            counts.repeats += varies and repeats
            counts.choices += varies and not repeats
        elif operation == sre.BRANCH:
            if is_repeated:
                raise ValueError("could take for ever: no alternatives may stand in something that repeats: use [...]")
            counts.choices += len(argument[1]) - 1
            repeats = False
        else:
            repeats = False
        for inner in _inside(argument):
            _count(inner, counts, is_repeated=is_repeated or repeats)


def _inside(argument: Any) -> Iterator[Any]:
    """The expressions inside the argument of an operation, whatever its shape."""
    if isinstance(argument, sre.SubPattern):
        yield argument
    elif isinstance(argument, tuple | list):
        for each in argument:
            yield from _inside(each)
