"""Variable-length integers as dRPC and protobuf write them.  Layer L1.  Used by: rpc/drpc.py, rpc/metadata.py."""

from typing import Final

from tailnet.errors import RemoteProtocolError

_U64: Final = (1 << 64) - 1
_ONE_BYTE: Final = [bytes((value,)) for value in range(128)]


def encode_varint(value: int) -> bytes:
    """Seven bits a byte, low ones first; `value` is 0 to 2**64 - 1."""
    if value < 128:
        return _ONE_BYTE[value]
    if value < 16384:
        return bytes((value & 127 | 128, value >> 7))
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the place behind it.

    Raises IndexError when `data` ends first, RemoteProtocolError above ten bytes.  Longer forms than needed are
    accepted and bits above 64 dropped, as genuine readers do.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _U64, at
    raise RemoteProtocolError("a varint of more than ten bytes")
