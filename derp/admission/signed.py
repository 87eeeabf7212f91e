"""Documents that an issuer signed, for relays that check them without asking him.  Layer L1: bytes in, values out.

One line of ASCII: `<kind>.<version>.<issuer>.<payload>.<signature>`.  The issuer is his Ed25519 public key as 64 hex
digits; payload and signature are base64url without padding; the signature (RFC 8032) is over all that stands before its
dot, so a document of one kind is never good as one of another.  keyset.py and ticket.py say what payloads hold.
"""

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from derp.errors import KeyFormatError, SignedFormatError

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PUBLIC_PREFIX: Final = "issuerkey:"
PRIVATE_PREFIX: Final = "issuerprivkey:"
_VERSION: Final = "1"


@dataclass(frozen=True, slots=True)
class Issuer:
    """The public half of the key of somebody who signs: 32 bytes."""

    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `issuerkey:<64 hex>`.  Raises KeyFormatError."""
        return cls(_parse(text, PUBLIC_PREFIX, "issuer's public key"))

    def __str__(self) -> str:
        return f"{PUBLIC_PREFIX}{self.raw.hex()}"


@dataclass(frozen=True, slots=True)
class IssuerPrivate:
    """The half that signs: 32 bytes, a secret."""

    raw: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `issuerprivkey:<64 hex>`.  Raises KeyFormatError, whose text holds nothing of the key."""
        return cls(_parse(text, PRIVATE_PREFIX, "issuer's private key"))

    def text(self) -> str:
        """The form of key files.  Never log it."""
        return f"{PRIVATE_PREFIX}{self.raw.hex()}"

    def public(self) -> Issuer:
        return Issuer(Ed25519PrivateKey.from_private_bytes(self.raw).public_key().public_bytes_raw())

    def sign(self, kind: str, payload: bytes) -> bytes:
        """The signed document."""
        head = f"{kind}.{_VERSION}.{self.public().raw.hex()}.".encode() + _encode(payload)
        return head + b"." + _encode(Ed25519PrivateKey.from_private_bytes(self.raw).sign(head))


def open_signed(document: bytes, kind: str, issuers: Collection[Issuer]) -> tuple[Issuer, bytes]:
    """Who signed a document, and its payload.  Raises SignedFormatError: one sentence of what is wrong with it."""
    head, _, signature = document.strip().rpartition(b".")
    parts = head.split(b".")
    if not document.startswith(f"{kind}.".encode()):
        raise SignedFormatError(f"is no {kind}: it does not begin with that word")
    if len(parts) > 1 and parts[1] != _VERSION.encode():
        shown = parts[1][:20].decode("ascii", "replace")
        raise SignedFormatError(f"is of version {shown!r}, and this relay reads version {_VERSION}: update the relay")
    if len(parts) != 4:
        raise SignedFormatError(f"is no whole {kind}: it was cut, or changed on its way")
    try:
        issuer = Issuer.parse(PUBLIC_PREFIX + parts[2].decode("ascii", "replace"))
    except KeyFormatError:
        raise SignedFormatError("does not say whose it is: it was changed on its way") from None
    if issuer not in issuers:
        raise SignedFormatError(f"is signed by {issuer}, who is none of the issuers that are trusted here")
    try:
        Ed25519PublicKey.from_public_bytes(issuer.raw).verify(_decode(signature), head)
        return issuer, _decode(parts[3])
    except (InvalidSignature, ValueError):
        raise SignedFormatError("has a signature that does not fit: it was cut, or changed on its way") from None


def _parse(text: str, prefix: str, what: str) -> bytes:
    body = text.strip()
    digits = body.removeprefix(prefix)
    if not body.startswith(prefix) or len(digits) != 2 * KEY_BYTES or not digits.isalnum():
        raise KeyFormatError(f"an {what} is {prefix!r} and {2 * KEY_BYTES} hex digits")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise KeyFormatError(f"an {what} has only hex digits after {prefix!r}") from None


def _encode(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError from None
