"""Tickets: one key may come in until a time, as an issuer signed it.  Layer L1.

For whoever gets a DERP map of his own: a ticket is short enough to stand in front of the relay's name there, as labels,
so an unmodified client shows it in its Host header with each connection; our client may send it as `Derp-Ticket`.

    u8 version (1) | u32 issued | u32 ends, Unix minutes | 64 B Ed25519 signature     73 bytes, 117 digits of base32

The signature is over `derp-ticket`, those nine bytes and the raw key of the node that may come in, which proves in its
handshake that it has the private half: a ticket is of no use to others.  server/admission.py checks them.
"""

import base64
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from derp.admission.keyset import SKEW_SECONDS
from derp.admission.signed import SIGNATURE_BYTES, Issuer, IssuerPrivate
from derp.errors import SignedFormatError
from derp.text import utc

HEADER: Final = "derp-ticket"
_HEAD: Final = struct.Struct(">BII")
_VERSION: Final = 1
_MINUTE: Final = 60
# A label of a host name has 63 characters at the most.
_LABEL_CHARS: Final = 60
_PREFIX: Final = "t-"
_DIGITS: Final = 117
_CONTEXT: Final = b"derp-ticket"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whoever has the key may come in until `ends_at`, Unix seconds."""

    key: bytes
    ends_at: float


def sign_ticket(private: IssuerPrivate, key: bytes, now: float, ends_at: float) -> str:
    """The text of a ticket: labels of a host name, without a dot at either end.  Times are rounded up to minutes."""
    head = _HEAD.pack(_VERSION, int(now // _MINUTE), int(-(-ends_at // _MINUTE)))
    signature = Ed25519PrivateKey.from_private_bytes(private.raw).sign(_CONTEXT + head + key)
    digits = base64.b32encode(head + signature).decode().rstrip("=").lower()
    return ".".join((_PREFIX + digits[:_LABEL_CHARS], digits[_LABEL_CHARS:]))


def find_ticket(host: str) -> str:
    """The ticket in front of a host name; empty: there is none."""
    labels = host.lower().split(".", 2)
    return ".".join(labels[:2]) if labels[0].startswith(_PREFIX) and len(labels) > 1 else ""


def open_ticket(text: str, key: bytes, issuers: Iterable[Issuer], now: float) -> Ticket:
    """Check what a client with `key` shows.  Raises SignedFormatError: one sentence of what is wrong with it."""
    digits = text.lower().removeprefix(_PREFIX).replace(".", "")
    try:
        raw = base64.b32decode(digits.upper() + "=" * (-len(digits) % 8))
    except ValueError:  # other digits; no ASCII at all
        raw = b""
    if raw and raw[0] != _VERSION:
        raise SignedFormatError(f"is of version {raw[0]}, and this relay reads version {_VERSION}: update the relay")
    if len(raw) != _HEAD.size + SIGNATURE_BYTES or len(digits) != _DIGITS:
        raise SignedFormatError("is no whole ticket: it was cut, or changed on its way")
    head = raw[: _HEAD.size]
    if not any(_fits(issuer, raw[_HEAD.size :], _CONTEXT + head + key) for issuer in issuers):
        raise SignedFormatError("is for another key, or of no issuer that is trusted here")
    _, issued, ends = _HEAD.unpack(head)
    if issued * _MINUTE > now + SKEW_SECONDS:
        raise SignedFormatError(
            f"was issued at {utc(issued * _MINUTE)}, and here it is {utc(now)}: one of the two clocks is wrong"
        )
    if ends * _MINUTE <= now:
        raise SignedFormatError(f"ended at {utc(ends * _MINUTE)}, and here it is {utc(now)}")
    return Ticket(key, float(ends * _MINUTE))


def _fits(issuer: Issuer, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(issuer.raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
