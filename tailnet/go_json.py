"""JSON as Go's encoder writes it: what genuine clients and their tests compare against (layer L0)."""

import json
from datetime import UTC, datetime
from typing import Final

_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def go_json(value: object) -> bytes:
    """One value and a newline, compact, with Go's escapes.  None is `null`."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return (text.translate(_ESCAPES) + "\n").encode("utf-8", "replace")


def go_time(moment: datetime) -> str:
    """A moment in UTC as Go writes it: RFC 3339, the fraction without trailing noughts, absent when it is nought."""
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"
