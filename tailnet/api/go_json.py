"""JSON as Go's encoder writes it: what genuine clients and their tests compare against (layer L3)."""

import json
from typing import Final

_ESCAPES: Final = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def go_json(value: object) -> bytes:
    """One value and a newline, compact, with Go's escapes.  None is `null`."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return (text.translate(_ESCAPES) + "\n").encode("utf-8", "replace")
