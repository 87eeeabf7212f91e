"""The four messages of WireGuard on the wire (layer L1; white paper 5.4).  Integers are little endian.

    1 initiation   148  type u32, sender u32, ephemeral 32, static 32+16, TAI64N 12+16, mac1 16, mac2 16
    2 response      92  type u32, sender u32, receiver u32, ephemeral 32, nothing 0+16, mac1 16, mac2 16
    3 cookie reply  64  type u32, receiver u32, nonce 24, cookie 16+16
    4 transport   32+n  type u32, receiver u32, counter u64, packet n+16

The type is read as u32: its three upper bytes must be zero.  Next hop: noise.py, cookies.py, keypair.py.
"""

import struct
from collections.abc import Callable, Container
from typing import Final, TypeAlias

Payload: TypeAlias = bytes | bytearray | memoryview

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3
TRANSPORT: Final = 4

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
MAC_BYTES: Final = 16
TIMESTAMP_BYTES: Final = 12
COOKIE_NONCE_BYTES: Final = 24
HEAD_BYTES: Final = 16  # of a transport message, and of whatever is demultiplexed
OVERHEAD_BYTES: Final = HEAD_BYTES + TAG_BYTES
MACS_BYTES: Final = 2 * MAC_BYTES

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_REPLY_BYTES: Final = 64
# What a handshake message must have to be looked at; a transport message is any length from OVERHEAD_BYTES on.
LENGTHS: Final = {INITIATION: INITIATION_BYTES, RESPONSE: RESPONSE_BYTES, COOKIE_REPLY: COOKIE_REPLY_BYTES}

INITIATION_HEAD: Final = struct.Struct("<II")  # type, sender
RESPONSE_HEAD: Final = struct.Struct("<III")  # type, sender, receiver
COOKIE_REPLY_HEAD: Final = struct.Struct("<II")  # type, receiver
TRANSPORT_HEAD: Final = struct.Struct("<IIQ")  # type, receiver, counter

# As the receiver index at offset 4 it reads 21 12 a4 42, STUN's cookie: genuine nodes would take the packet for STUN.
_STUN_COOKIE: Final = 0x42A41221

_PADDING: Final = 16


def fresh_index(random: Callable[[int], bytes], *taken: Container[int]) -> int:
    """A random u32 that names a session towards the peer and is not in use here."""
    while True:
        index = int.from_bytes(random(4), "little")
        if index != _STUN_COOKIE and not any(index in each for each in taken):
            return index


def padding_bytes(size: int, mtu: int) -> int:
    """How many zeros follow a packet of `size` bytes: up to a multiple of 16, but not past the MTU (0: none)."""
    if not mtu:
        return -size % _PADDING
    last = size % mtu if size > mtu else size
    return min(last + -last % _PADDING, mtu) - last
