"""What the three kinds of proof have in common: what is proved, and how it fails.  Layer L2."""

from base64 import b64decode
from binascii import Error
from dataclasses import dataclass
from typing import Final

# A clock of a cloud and ours may differ by this much before a document counts as expired or not yet valid.
CLOCK_SKEW_SECONDS: Final = 60.0
# The largest genuine ones, an Azure signature with its chain, have 6 KiB.
MAX_PROOF_BYTES: Final = 64 * 1024


class IdentityRefused(Exception):
    """The proof proves nothing; the text says why, for the agent's owner.  It repeats nothing of the document."""


class ClaimsUnreadable(IdentityRefused):
    """A signature holds, and what it signs makes no sense: genuine servers answer that with another status."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance whose cloud vouches for it.  `region` is empty where the proof names none."""

    instance_id: str
    region: str = ""


def decode_base64(text: str) -> bytes:
    """Standard base64; line breaks are allowed, as clouds' metadata services fold it.  Raises IdentityRefused."""
    if len(text) > MAX_PROOF_BYTES:
        raise IdentityRefused(f"the signature has more than {MAX_PROOF_BYTES} bytes")
    try:
        return b64decode("".join(text.split()), validate=True)
    except (Error, ValueError):
        raise IdentityRefused("the signature is no base64") from None
