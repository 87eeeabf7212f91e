"""Disco messages on the wire (layer L1): how nodes find the way to each other.

    54 53 f0 9f 92 ac   sender's disco key 32   nonce 24   box: crypto_box of a message
    1 ping           type, version 0, txid 12, node key 32, padding
    2 pong           type, version 0, txid 12, address 16, port u16: where the ping came from
    3 call-me-maybe  type, version 0, n times address 16, port u16

Big endian.  A receiver ignores bytes that follow, and types it does not know: newer nodes have more (peer relays),
which are not for us.  What makes no sense is None.  Next hop: core.py.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from tailnet.paths.endpoint import WIRE_BYTES, Endpoint, decode_endpoint, encode_endpoint
from tailnet.sodium import open_box, seal_box

MAGIC: Final = b"TS\xf0\x9f\x92\xac"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TXID_BYTES: Final = 12

_SENDER_END: Final = len(MAGIC) + KEY_BYTES
_HEAD_BYTES: Final = _SENDER_END + NONCE_BYTES

_PING: Final = 1
_PONG: Final = 2
_CALL_ME_MAYBE: Final = 3
_VERSION: Final = 0

# More than any node has: genuine ones name a dozen.  A datagram would hold 3,600, each of them a ping of ours.
MAX_CALLED_ENDPOINTS: Final = 32

Payload: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Ping:
    """Is anybody there?"""

    txid: bytes
    node_key: bytes | None
    """Of the sender; very old nodes do not say it."""
    padding_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    """Yes, and this is how you look from here."""

    txid: bytes
    source: Endpoint | None
    """Where the ping came from; None if that is no address that anything could be sent to (a relay, for instance)."""


@dataclass(frozen=True, slots=True)
class CallMeMaybe:
    """Ping me there, all at once: it opens my firewall for you and yours for me."""

    endpoints: tuple[Endpoint, ...]


Message: TypeAlias = Ping | Pong | CallMeMaybe


def is_disco(datagram: Payload) -> bool:
    """Whether a datagram is a disco message, of whomever."""
    return len(datagram) >= _SENDER_END and datagram[: len(MAGIC)] == MAGIC


def sender_of(datagram: Payload) -> bytes:
    """The disco key that the sender of such a datagram claims."""
    return bytes(datagram[len(MAGIC) : _SENDER_END])


def open_message(datagram: Payload, shared: bytes) -> bytes | None:
    """What is in the box; None if somebody else made it."""
    return open_box(shared, bytes(datagram[_SENDER_END:_HEAD_BYTES]), bytes(datagram[_HEAD_BYTES:]))


def seal_message(sender: bytes, shared: bytes, nonce: bytes, message: bytes) -> bytes:
    """The datagram; `sender` is our disco key."""
    return MAGIC + sender + nonce + seal_box(shared, nonce, message)


def encode_ping(txid: bytes, node_key: bytes) -> bytes:
    return bytes((_PING, _VERSION)) + txid + node_key


def encode_pong(txid: bytes, source: Endpoint) -> bytes:
    return bytes((_PONG, _VERSION)) + txid + encode_endpoint(source)


def encode_call_me_maybe(endpoints: tuple[Endpoint, ...]) -> bytes:
    return bytes((_CALL_ME_MAYBE, _VERSION)) + b"".join(map(encode_endpoint, endpoints))


def parse_message(message: bytes) -> Message | None:
    """Read what was in a box; None: malformed, or of a type that we do not know."""
    if len(message) < 2:
        return None
    kind, version, body = message[0], message[1], message[2:]
    txid, rest = body[:TXID_BYTES], body[TXID_BYTES:]
    if kind == _PING and len(txid) == TXID_BYTES:
        if len(rest) < KEY_BYTES:
            return Ping(txid, None, len(rest))
        return Ping(txid, rest[:KEY_BYTES], len(rest) - KEY_BYTES)
    if kind == _PONG and len(rest) >= WIRE_BYTES:
        return Pong(txid, decode_endpoint(rest[:WIRE_BYTES]))
    if kind == _CALL_ME_MAYBE:
        return CallMeMaybe(_called(body) if version == _VERSION else ())
    return None


def _called(body: bytes) -> tuple[Endpoint, ...]:
    if len(body) % WIRE_BYTES:
        return ()
    pieces = [body[at : at + WIRE_BYTES] for at in range(0, len(body), WIRE_BYTES)][:MAX_CALLED_ENDPOINTS]
    return tuple(endpoint for piece in pieces if (endpoint := decode_endpoint(piece)) is not None)
