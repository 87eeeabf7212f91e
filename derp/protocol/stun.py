"""STUN binding, the little of RFC 8489 that netcheck and relays speak.  Layer L1: datagrams in, datagrams out.

A relay answers only requests with SOFTWARE "tailnode" and a right FINGERPRINT at the end, as the genuine one does: what
it does not answer cannot be used to flood somebody else.  Its answer is never longer than the request + 4 bytes.
Layout: type u16, length u16 after the 20 B head, cookie, 12 B transaction id; attributes type u16, length u16, value
padded to 4.  Next hop: server/stun.py (answers), netcheck/plan.py (asks).
"""

import struct
from binascii import crc32
from collections.abc import Iterator
from typing import Final, TypeAlias

from derp.errors import LocalProtocolError, RemoteProtocolError

Payload: TypeAlias = bytes | bytearray | memoryview

TRANSACTION_ID_BYTES: Final = 12

_COOKIE: Final = b"\x21\x12\xa4\x42"
_HEAD: Final = struct.Struct("!HH4s12s")
_ATTRIBUTE: Final = struct.Struct("!HH")
_ADDRESS: Final = struct.Struct("!xBH")

_BINDING_REQUEST: Final = 0x0001
_BINDING_SUCCESS: Final = 0x0101
_MAPPED_ADDRESS: Final = 0x0001
_XOR_MAPPED_ADDRESS: Final = 0x0020
_XOR_MAPPED_ADDRESS_EARLY: Final = 0x8020  # some servers still send the number of a draft
_SOFTWARE: Final = 0x8022
_FINGERPRINT: Final = 0x8028

_TAILNODE: Final = b"tailnode"
_FINGERPRINT_XOR: Final = 0x5354554E
_FINGERPRINT_BYTES: Final = 8  # the whole attribute
_IP_BYTES: Final = {1: 4, 2: 16}


def is_stun(datagram: Payload) -> bool:
    """Whether a datagram is STUN and no other protocol of the same socket (RFC 8489 section 5)."""
    return len(datagram) >= _HEAD.size and datagram[0] < 0x40 and bytes(datagram[4:8]) == _COOKIE


# --- the relay's side ---


def parse_request(datagram: Payload) -> bytes | None:
    """The 12 B transaction id of a binding request worth an answer; None for everything else."""
    datagram = bytes(datagram)
    if len(datagram) < _HEAD.size + _FINGERPRINT_BYTES:
        return None
    message_type, _, cookie, transaction_id = _HEAD.unpack_from(datagram)
    if message_type != _BINDING_REQUEST or cookie != _COOKIE:
        return None
    attributes = list(_attributes(datagram[_HEAD.size :]))
    if (_SOFTWARE, _TAILNODE) not in attributes:
        return None
    # A malformed tail ends the walk with None, so it is never a fingerprint.
    if attributes[-1] != (_FINGERPRINT, _fingerprint(datagram[:-_FINGERPRINT_BYTES])):
        return None
    return bytes(transaction_id)


def encode_response(transaction_id: bytes, ip: bytes, port: int) -> bytes:
    """Tell a client where its request came from.  `ip`: 4 or 16 bytes; ::ffff:a.b.c.d is told as IPv4."""
    _check_transaction_id(transaction_id)
    ip = _unmapped(ip)
    if len(ip) not in (4, 16) or not 0 <= port <= 0xFFFF:
        raise LocalProtocolError(f"an address has 4 or 16 bytes and a port 16 bits, got {len(ip)} bytes and {port}")
    family = 1 if len(ip) == 4 else 2
    masked_port = port ^ int.from_bytes(_COOKIE[:2], "big")
    value = _ADDRESS.pack(family, masked_port) + _masked_ip(ip, transaction_id)
    head = _HEAD.pack(_BINDING_SUCCESS, _ATTRIBUTE.size + len(value), _COOKIE, transaction_id)
    return head + _ATTRIBUTE.pack(_XOR_MAPPED_ADDRESS, len(value)) + value


# --- the client's side ---


def encode_request(transaction_id: bytes) -> bytes:
    """A binding request of 40 bytes.  `transaction_id`: 12 fresh random bytes."""
    _check_transaction_id(transaction_id)
    software = _ATTRIBUTE.pack(_SOFTWARE, len(_TAILNODE)) + _TAILNODE
    head = _HEAD.pack(_BINDING_REQUEST, len(software) + _FINGERPRINT_BYTES, _COOKIE, transaction_id)
    fingerprint = _fingerprint(head + software)
    return head + software + _ATTRIBUTE.pack(_FINGERPRINT, len(fingerprint)) + fingerprint


def parse_response(datagram: Payload) -> tuple[bytes, bytes, int]:
    """Transaction id, our address as others see it (4 or 16 bytes), our port.

    RemoteProtocolError: not a STUN answer, an error answer, or one without a usable address.
    """
    datagram = bytes(datagram)
    if len(datagram) < _HEAD.size:
        raise RemoteProtocolError("not a STUN message: shorter than its head")
    message_type, length, cookie, transaction_id = _HEAD.unpack_from(datagram)
    if message_type & 0xC000 or cookie != _COOKIE:
        raise RemoteProtocolError("not a STUN message")
    if message_type != _BINDING_SUCCESS:
        raise RemoteProtocolError(f"a STUN message of type 0x{message_type:04x}, not a binding success")
    if length > len(datagram) - _HEAD.size:
        raise RemoteProtocolError("a STUN answer was cut short")
    found: tuple[bytes, int] | None = None
    fallback: tuple[bytes, int] | None = None
    for attribute in _attributes(datagram[_HEAD.size : _HEAD.size + length]):
        if attribute is None:
            raise RemoteProtocolError("a STUN answer has malformed attributes")
        kind, value = attribute
        if kind in (_XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_EARLY):
            ip, port = _address(value)
            found = _masked_ip(ip, transaction_id), port ^ int.from_bytes(_COOKIE[:2], "big")
        elif kind == _MAPPED_ADDRESS:
            # Not masked, so routers that rewrite addresses in passing may have spoilt it: only if nothing else is told.
            fallback = _address(value)
    address = found or fallback
    if address is None:
        raise RemoteProtocolError("a STUN answer without an address")
    return transaction_id, _unmapped(address[0]), address[1]


# --- below ---


def _attributes(data: bytes) -> Iterator[tuple[int, bytes] | None]:
    """Each attribute as (type, value); a last None when the rest is malformed."""
    at = 0
    while at < len(data):
        if at + _ATTRIBUTE.size > len(data):
            yield None
            return
        kind, length = _ATTRIBUTE.unpack_from(data, at)
        at += _ATTRIBUTE.size
        end = at + (length + 3 & ~3)
        if end > len(data):
            yield None
            return
        yield kind, data[at : at + length]
        at = end


def _fingerprint(message: bytes) -> bytes:
    return (crc32(message) ^ _FINGERPRINT_XOR).to_bytes(4, "big")


def _address(value: bytes) -> tuple[bytes, int]:
    if len(value) < _ADDRESS.size:
        raise RemoteProtocolError("a STUN address is too short")
    family, port = _ADDRESS.unpack_from(value)
    length = _IP_BYTES.get(family)
    ip = value[_ADDRESS.size : _ADDRESS.size + length] if length else b""
    if not length or len(ip) != length:
        raise RemoteProtocolError(f"a STUN address of family {family} with {len(value)} bytes")
    return ip, port


def _masked_ip(ip: bytes, transaction_id: bytes) -> bytes:
    mask = (_COOKIE + transaction_id)[: len(ip)]
    return (int.from_bytes(ip, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(ip), "big")


def _unmapped(ip: bytes) -> bytes:
    return ip[12:] if ip.startswith(bytes(10) + b"\xff\xff") else ip


def _check_transaction_id(transaction_id: bytes) -> None:
    if len(transaction_id) != TRANSACTION_ID_BYTES:
        raise LocalProtocolError(f"a transaction id has {TRANSACTION_ID_BYTES} bytes, got {len(transaction_id)}")
