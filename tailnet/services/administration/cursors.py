"""Cursors of pages: where the next one begins, signed so that only what we gave comes back (layer L3).

A cursor belongs to one list with its filters, and to the token of whoever asks: no server has to remember any.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from tailnet.errors import AdministrationError, Fault

_SIGNATURE_BYTES: Final = 16
_MAX_CHARS: Final = 512


def make_cursor(secret: bytes, place: str, filters: Mapping[str, Any], last: str) -> str:
    """The cursor behind `last`, an id, in the list at `place`."""
    raw = last.encode()
    return base64.urlsafe_b64encode(_signature(secret, place, filters, raw) + raw).decode().rstrip("=")


def read_cursor(secret: bytes, place: str, filters: Mapping[str, Any], cursor: str) -> str:
    """The id that it stands behind.  Raises AdministrationError."""
    try:
        if len(cursor) > _MAX_CHARS or not cursor.isascii():
            raise ValueError("too long")
        both = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        signature, raw = both[:_SIGNATURE_BYTES], both[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, _signature(secret, place, filters, raw)):
            raise ValueError("another list's")
        return raw.decode()
    except ValueError:
        raise AdministrationError(
            Fault.INVALID,
            "this cursor is none of this list with these filters",
            [("cursor", "wants `next` of the page before, with the same filters and the same token")],
        ) from None


def _signature(secret: bytes, place: str, filters: Mapping[str, Any], raw: bytes) -> bytes:
    asked = repr((place, sorted((name, str(value)) for name, value in filters.items())))
    key = hashlib.sha256(b"tailnet cursor " + secret).digest()
    return hmac.digest(key, asked.encode("utf-8", "replace") + b"\0" + raw, "sha256")[:_SIGNATURE_BYTES]
