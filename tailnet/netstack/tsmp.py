"""TSMP, next header 99: pings between nodes, refusals, a changed disco key; WireGuard is its checksum.  Layer L1.

'p' and 8 bytes; 'o', the same 8 bytes and a port u16 (0 is none, and it may be missing); '!', protocol u8, reason u8,
source and destination port u16 of the refused flow, flags u8 (may be missing); 'a' and a disco key of 32 bytes.
Next hop: stack.py.
"""

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from tailnet.netstack.ip import Packet
from tailnet.netstack.limits import Drop

TOKEN_BYTES: Final = 8
_DISCO_KEY_BYTES: Final = 32
_REJECT: Final = struct.Struct("!xBBHH")
_REASONS: Final = {
    ord("A"): "its access rules refuse it",
    ord("S"): "it takes no connections (shields up)",
    ord("F"): "it does not forward",
    ord("W"): "its host's firewall refuses it",
    ord("T"): "a rule of its own refuses it",
}


@dataclass(frozen=True, slots=True)
class Ping:
    token: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    token: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A node refuses a flow of ours.  Ports are those of our packet."""

    protocol: int
    reason: str
    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class DiscoKey:
    key: bytes


Message: TypeAlias = Ping | Pong | Reject | DiscoKey


def build_ping(token: bytes) -> bytes:
    return b"p" + token


def build_pong(token: bytes, port: int = 0) -> bytes:
    return b"o" + token + port.to_bytes(2, "big")


def parse(message: Packet) -> Message | Drop:
    """A message without its IPv6 header."""
    if not message:
        return Drop.MALFORMED_TSMP
    kind, body = message[0], bytes(message[1:])
    if kind == ord("p") and len(body) >= TOKEN_BYTES:
        return Ping(body[:TOKEN_BYTES])
    if kind == ord("o") and len(body) >= TOKEN_BYTES:
        return Pong(body[:TOKEN_BYTES], int.from_bytes(body[8:10], "big") if len(body) >= 10 else 0)
    if kind == ord("!") and len(message) >= _REJECT.size:
        protocol, reason, source, destination = _REJECT.unpack_from(message)
        return Reject(protocol, _REASONS.get(reason, "it does not say why"), source, destination)
    if kind == ord("a") and len(body) >= _DISCO_KEY_BYTES:
        return DiscoKey(body[:_DISCO_KEY_BYTES])
    return Drop.MALFORMED_TSMP
