"""Value types that every room of the tailnet shares (layer L0): peer ids and the addresses made from them.

A peer id is 16 raw UUID bytes on the wire and the hyphenated form in URLs, tokens, logs and error texts.
An address is a service prefix (its first 6 bytes) followed by the last 10 bytes of the id.
"""

from ipaddress import IPv6Address
from typing import Final, Self
from uuid import UUID

from tailnet.errors import MalformedField

PEER_ID_BYTES: Final = 16
PREFIX_BYTES: Final = 6

# fd7a:115c:a1e0::/48, which every client knows, and fd60:627a:a42b::/48, which newer ones prefer.
TAILSCALE_SERVICE_PREFIX: Final = bytes.fromhex("fd7a115ca1e0")
CODER_SERVICE_PREFIX: Final = bytes.fromhex("fd60627aa42b")
# One fixed address that every agent carried beside its own until late 2024; such agents are still running.
LEGACY_AGENT_ADDRESS: Final = IPv6Address("fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4")

_HYPHENS: Final = (8, 13, 18, 23)


class PeerID(bytes):
    """The id of an agent or client: 16 bytes.

    A subclass of bytes, so that an id straight from a protobuf message finds the same dictionary entry without
    being wrapped first.  Raises MalformedField for any other length.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != PEER_ID_BYTES:
            raise MalformedField(f"a peer id has {PEER_ID_BYTES} bytes, got {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the hyphenated form only (uuid.UUID takes braces, urn: and stray hyphens).  Raises MalformedField."""
        if len(text) == 36 and all(text[at] == "-" for at in _HYPHENS):
            digits = text.replace("-", "")
            # fromhex alone would skip blanks between digits.
            if len(digits) == 2 * PEER_ID_BYTES and digits.isalnum():
                try:
                    return cls(bytes.fromhex(digits))
                except ValueError:
                    pass
        raise MalformedField(f"a peer id looks like 01234567-89ab-cdef-0123-456789abcdef, got {text[:80]!r}")

    def __str__(self) -> str:
        digits = self.hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def __repr__(self) -> str:
        return f"PeerID({self})"

    @property
    def uuid(self) -> UUID:
        """The same id as the API's models have ids."""
        return UUID(bytes=bytes(self))

    def address(self, prefix: bytes) -> IPv6Address:
        """This id's address under a 6-byte service prefix."""
        return IPv6Address(prefix + self[PREFIX_BYTES:])
