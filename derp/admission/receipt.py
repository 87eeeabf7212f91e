"""Receipts: a text of any kind with a last line by which an issuer signs all that stands before it.  Layer L1.

`derp ledger export` gives ledgers so.  The line is the document of admission/signed.py of this kind; its payload is
JSON with the SHA-256 of the text and what the issuer says of it.  Before it stands what makes it a comment.
"""

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Final

from derp.admission.signed import Issuer, IssuerPrivate, open_signed
from derp.errors import SignedFormatError

KIND: Final = "derp-ledger"
_MARK: Final = f"{KIND}.".encode()


def sign_receipt(private: IssuerPrivate, text: bytes, about: Mapping[str, Any]) -> bytes:
    """The line for a text; `about` is said of it."""
    fields = {"sha256": sha256(text).hexdigest(), **about}
    return private.sign(KIND, json.dumps(fields, separators=(",", ":")).encode())


def check_receipt(document: bytes, issuers: Collection[Issuer]) -> tuple[Issuer, dict[str, Any]]:
    """Who signed a text with its last line, and what he says of it.  Raises SignedFormatError."""
    text, newline, line = document.rstrip().rpartition(b"\n")
    at = line.find(_MARK)
    if at < 0:
        raise SignedFormatError("has no signature in its last line: it was cut, or never signed")
    issuer, payload = open_signed(line[at:].rstrip(b'"}'), KIND, issuers)
    try:
        about = json.loads(payload)
        digest = about.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise SignedFormatError("is signed, but not as this program knows it") from None
    if sha256(text + newline).hexdigest() != digest:
        raise SignedFormatError("was changed after it was signed")
    return issuer, about
