"""Tickets: one key may come in until a time, as an issuer signed it.  Layer L1.

For whoever gets a DERP map of his own: a ticket is short enough to stand in front of the relay's name there, as labels,
so an unmodified client shows it in its Host header with each connection; our client may send it as `Derp-Ticket`.

    u8 version (1) | u32 issued | u32 ends, Unix minutes | 64 B Ed25519 signature     73 bytes, 117 digits of base32
    u8 version (2) | u32 issued | u32 ends | tenant, 1 to 39 characters | 64 B signature       three labels, not two

The signature is over `derp-ticket`, all that stands before it and the raw key of the node that may come in, which
proves in its handshake that it has the private half.  server/admission.py checks them.
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
from derp.admission.terms import tenant_name
from derp.errors import SignedFormatError
from derp.text import error_text, utc

HEADER: Final = "derp-ticket"
_HEAD: Final = struct.Struct(">BII")
_VERSION: Final = 1
_WITH_TENANT: Final = 2
# Three labels of 60 digits have room for it, and so has a host name of 253 characters before a relay's name of 67.
MAX_TENANT_CHARS: Final = 39
_MINUTE: Final = 60
# A label of a host name has 63 characters at the most.
_LABEL_CHARS: Final = 60
# What a ticket begins with says how many labels it has.
_LABELS: Final = {"t-": 2, "t3-": 3}
_CONTEXT: Final = b"derp-ticket"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whoever has the key may come in until `ends_at`, Unix seconds.  `tenant`: whose client it is; empty: no word."""

    key: bytes
    ends_at: float
    tenant: str = ""


def sign_ticket(private: IssuerPrivate, key: bytes, now: float, ends_at: float, tenant: str = "") -> str:
    """The text of a ticket: labels of a host name, without a dot at either end.  Times are rounded up to minutes.

    `tenant` has at most MAX_TENANT_CHARS.
    """
    assert len(tenant) <= MAX_TENANT_CHARS, "derp admission ticket refuses it"
    version = _WITH_TENANT if tenant else _VERSION
    head = _HEAD.pack(version, int(now // _MINUTE), int(-(-ends_at // _MINUTE))) + tenant.encode()
    signature = Ed25519PrivateKey.from_private_bytes(private.raw).sign(_CONTEXT + head + key)
    digits = base64.b32encode(head + signature).decode().rstrip("=").lower()
    prefix, count = ("t3-", 3) if tenant else ("t-", 2)
    size = -(-len(digits) // count) if tenant else _LABEL_CHARS  # three labels, however short the tenant's name is
    return prefix + ".".join(digits[at : at + size] for at in range(0, len(digits), size))


def find_ticket(host: str) -> str:
    """The ticket in front of a host name; empty: there is none."""
    labels = host.lower().split(".", 3)
    count = _LABELS.get(labels[0][: labels[0].find("-") + 1], 0)
    return ".".join(labels[:count]) if count and len(labels) >= count else ""


def open_ticket(text: str, key: bytes, issuers: Iterable[Issuer], now: float) -> Ticket:
    """Check what a client with `key` shows.  Raises SignedFormatError: one sentence of what is wrong with it."""
    digits = text.lower().partition("-")[2].replace(".", "")
    try:
        raw = base64.b32decode(digits.upper() + "=" * (-len(digits) % 8))
    except ValueError:  # other digits; no ASCII at all
        raw = b""
    if raw and raw[0] not in (_VERSION, _WITH_TENANT):
        raise SignedFormatError(
            f"is of version {raw[0]}, and this relay reads versions {_VERSION} and {_WITH_TENANT}: update the relay"
        )
    signed, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    longest = _HEAD.size + (MAX_TENANT_CHARS if raw[:1] == bytes((_WITH_TENANT,)) else 0)
    if not _HEAD.size <= len(signed) <= longest or len(digits) != -(-len(raw) * 8 // 5):
        raise SignedFormatError("is no whole ticket: it was cut, or changed on its way")
    if not any(_fits(issuer, signature, _CONTEXT + signed + key) for issuer in issuers):
        raise SignedFormatError("is for another key, or of no issuer that is trusted here")
    _, issued, ends = _HEAD.unpack_from(signed)
    if issued * _MINUTE > now + SKEW_SECONDS:
        raise SignedFormatError(
            f"was issued at {utc(issued * _MINUTE)}, and here it is {utc(now)}: one of the two clocks is wrong"
        )
    if ends * _MINUTE <= now:
        raise SignedFormatError(f"ended at {utc(ends * _MINUTE)}, and here it is {utc(now)}")
    return Ticket(key, float(ends * _MINUTE), _tenant(signed[_HEAD.size :]))


def _tenant(name: bytes) -> str:
    try:
        return tenant_name(name.decode("ascii", "replace")) if name else ""
    except ValueError as error:
        raise SignedFormatError(f"names a tenant that {error_text(error)}") from None


def _fits(issuer: Issuer, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(issuer.raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
