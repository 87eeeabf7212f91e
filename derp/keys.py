"""Keys in their text and byte forms (layer L0).

A node's public key is its address on a relay.  Text forms are those of the field: `nodekey:` and `privkey:`
before 64 hex digits; a mesh key is 64 bare hex digits.  Secrets never appear in a repr, and compare in constant time.
"""

import hmac
from base64 import b64encode
from dataclasses import dataclass
from typing import ClassVar, Self

from nacl.public import PrivateKey

from derp.errors import KeyFormatError

KEY_BYTES = 32


def _parse_hex(text: str, prefix: str, what: str, *, secret: bool = False) -> bytes:
    body = text.strip()
    if not body.startswith(prefix):
        raise KeyFormatError(f"a {what} starts with {prefix!r}")
    body = body[len(prefix) :]
    # bytes.fromhex alone would accept blanks between digits, which no genuine parser does.
    if len(body) != 2 * KEY_BYTES or not body.isalnum():
        shown = "" if secret else f", got {text.strip()[:80]!r}"
        raise KeyFormatError(f"a {what} has {2 * KEY_BYTES} hex digits after {prefix!r}{shown}")
    try:
        return bytes.fromhex(body)
    except ValueError:
        raise KeyFormatError(f"a {what} has only hex digits after {prefix!r}") from None


@dataclass(frozen=True, slots=True)
class NodePublic:
    """The public half of a node key: 32 bytes, the address of a client on a relay."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise KeyFormatError(f"a node public key has {KEY_BYTES} bytes, got {len(self.raw)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `nodekey:<64 hex>`.  Raises KeyFormatError."""
        return cls(_parse_hex(text, "nodekey:", "node public key"))

    def __str__(self) -> str:
        return f"nodekey:{self.raw.hex()}"

    def short(self) -> str:
        """The form for logs: enough to recognise a key, as the field's tools print it."""
        return short_key(self.raw)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Secret:
    raw: bytes
    _what: ClassVar[str]

    # Here and not in the subclasses: the generated __init__ calls it only where the dataclass itself has one.
    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise KeyFormatError(f"a {self._what} has {KEY_BYTES} bytes, got {len(self.raw)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and hmac.compare_digest(self.raw, other.raw)

    def __hash__(self) -> int:
        return hash((type(self), self.raw))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<secret>)"


class NodePrivate(_Secret):
    """The private half of a node key: 32 bytes, clamped by the curve when it is used."""

    __slots__ = ()
    _what = "node private key"

    @classmethod
    def generate(cls) -> Self:
        return cls(bytes(PrivateKey.generate()))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `privkey:<64 hex>`.  Raises KeyFormatError, whose text holds nothing of the key."""
        return cls(_parse_hex(text, "privkey:", "node private key", secret=True))

    def text(self) -> str:
        """The form of key files.  Never log it."""
        return f"privkey:{self.raw.hex()}"

    def public(self) -> NodePublic:
        return NodePublic(bytes(PrivateKey(self.raw).public_key))


class MeshKey(_Secret):
    """The secret that the relays of one region share."""

    __slots__ = ()
    _what = "mesh key"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read 64 hex digits, blanks around them allowed.  Raises KeyFormatError."""
        return cls(_parse_hex(text, "", "mesh key", secret=True))

    def text(self) -> str:
        """The wire form inside ClientInfo.  Never log it."""
        return self.raw.hex()


def short_key(raw: bytes) -> str:
    """Shorten 32 key bytes for a log line: `[` + five base64 digits + `]`, as the field's tools do."""
    return f"[{b64encode(raw)[:5].decode()}]"
