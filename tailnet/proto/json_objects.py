"""Cuts a stream of bytes into JSON objects, one after the other, as version 1 of the coordinate protocol sends them.
Layer L1: no I/O.

Each byte is looked at once, however the stream arrives: parsing what there is anew with each message would cost the
square of an object's length, and a sender of single bytes would have a core to itself.  Next: services/legacy.py.
"""

import json
import re
from typing import Any, Final

from tailnet.errors import RemoteProtocolError

# What changes where we are: outside of a string, and inside of one.
_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_INSIDE: Final = re.compile(rb'["\\]')
_BLANKS: Final = b" \t\r\n"
# A Node is two deep.  The parser recurses, so the bound is well below what Python's stack takes.
MAX_DEPTH: Final = 32


class ObjectCutter:
    """`receive_data` gives the objects that are whole; RemoteProtocolError for anything else than objects.

    `max_bytes` is the longest object; the error names it as `what`.
    """

    __slots__ = ("_depth", "_in_string", "_is_escaped", "_pieces", "_what", "held_bytes", "max_bytes")

    def __init__(self, max_bytes: int, what: str) -> None:
        self.max_bytes = max_bytes
        self._what = what
        self._pieces: list[bytes] = []  # of the unfinished object
        self.held_bytes = 0  # of it, so far
        self._depth = 0
        self._in_string = False
        self._is_escaped = False  # the next byte of a string means itself

    def receive_data(self, data: bytes) -> list[dict[str, Any]]:
        """Take bytes of the stream, however cut."""
        objects: list[dict[str, Any]] = []
        at = 0
        while at < len(data):
            if not self._depth:
                rest = data[at:].lstrip(_BLANKS)
                at = len(data) - len(rest)
                if not rest:
                    break
                if rest[:1] != b"{":
                    raise RemoteProtocolError(f"{self._what} is a JSON object, one after the other")
            end = self._scan(data, at)
            self.held_bytes += end - at
            if self.held_bytes > self.max_bytes:
                raise RemoteProtocolError(f"{self._what} has more than {self.max_bytes} bytes")
            self._pieces.append(data[at:end])
            at = end
            if not self._depth:
                objects.append(self._finish())
        return objects

    def _scan(self, data: bytes, at: int) -> int:
        """Look at the bytes from `at` on; return where the object ends, or the end of the data."""
        while at < len(data):
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            match = (_INSIDE if self._in_string else _OUTSIDE).search(data, at)
            if match is None:
                return len(data)
            sign, at = match[0], match.end()
            if sign == b'"':
                self._in_string = not self._in_string
            elif sign == b"\\":
                self._is_escaped = True
            elif sign in b"{[":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise RemoteProtocolError(f"{self._what} is nested deeper than {MAX_DEPTH}")
            else:
                self._depth -= 1
                if not self._depth:
                    return at
        return at

    def _finish(self) -> dict[str, Any]:
        raw, self._pieces, self.held_bytes = b"".join(self._pieces), [], 0
        try:
            value = json.loads(raw.decode())
        except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise RemoteProtocolError(f"{self._what} is not JSON") from None
        assert isinstance(value, dict)
        return value
