"""Signatures of what we tell others, so that they know who says it (layer L0).

HMAC-SHA256 as the Standard Webhooks specification has it: over `id.timestamp.body`, in base64, `v1,` before it; one for
each secret while secrets are being exchanged.  A secret is 24 to 64 bytes, `whsec_` and their base64.
"""

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
# The new one and the old one, and one that somebody forgot.
MAX_SECRETS: Final = 3


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Secrets, one a line; empty lines and those that begin with # are passed over.

    Raises ValueError, whose text holds nothing of a secret.
    """
    lines = [line.strip() for line in text.splitlines()]
    secrets = tuple(_secret(line) for line in lines if line and not line.startswith("#"))
    if not 0 < len(secrets) <= MAX_SECRETS:
        raise ValueError(f"wants 1 to {MAX_SECRETS} secrets, one a line, has {len(secrets)}")
    return secrets


def sign(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature` of a message that is sent at `timestamp`, in seconds since 1970."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(secret, signed, 'sha256')).decode()}" for secret in secrets)


def _secret(line: str) -> bytes:
    wanted = f"wants {PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes on each line"
    if not line.startswith(PREFIX):
        raise ValueError(f"{wanted}; one begins otherwise")
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{wanted}; one is no base64") from None
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"{wanted}; one has {len(secret)}")
    return secret
