"""What a request is for, in one spelling, whatever form its target has.  Layer L1: no I/O.

A proxy's client asks for `http://host/derp`, and any client may write a letter as `%64`: both mean the same resource
(RFC 9112 section 3.2.2, RFC 3986 section 6.2.2.2), which the genuine relay serves.  transport/http.py gives
every request in this spelling, so routes compare plain text.
"""

import re
from typing import Final

_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_ENCODED: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def origin_form(target: str) -> str:
    """`/path?query` of a request target; other forms (of CONNECT and OPTIONS) as they came.

    Only characters that need no encoding are decoded: `%2F` stays, it is no slash between segments.
    """
    if target.startswith("/"):
        if "%" not in target:
            return target
    else:
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            return target
        target = match[2] if match[2].startswith("/") else f"/{match[2]}"
    path, mark, query = target.partition("?")
    return _ENCODED.sub(_decode, path) + mark + query


def authority(target: str) -> str | None:
    """Whom a target in absolute form is for, `host:port`: it counts instead of the Host header.  None without one."""
    match = None if target.startswith("/") else _ABSOLUTE.fullmatch(target)
    return None if match is None else match[1].rpartition("@")[2]


def _decode(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()
