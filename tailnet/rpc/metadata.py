"""Metadata of a dRPC call: string pairs in protobuf's form, `repeated {1: key, 2: value}` as field 1.  Layer L1.

Genuine clients send none to a coordinator; it is read because the protocol allows it, and refused where a genuine
server would refuse it.  Used by: rpc/drpc.py.
"""

from typing import Final

from tailnet.errors import RemoteProtocolError
from tailnet.rpc.varint import decode_varint, encode_varint

_ENTRY: Final = 0x0A
_KEY: Final = 0x0A
_VALUE: Final = 0x12


def encode_metadata(pairs: dict[str, str]) -> bytes:
    """The data of an InvokeMetadata packet."""
    entries = bytearray()
    for key, value in pairs.items():
        entry = _field(_KEY, key.encode()) + _field(_VALUE, value.encode())
        entries += _field(_ENTRY, entry)
    return bytes(entries)


def decode_metadata(data: bytes) -> dict[str, str]:
    """Read the data of an InvokeMetadata packet; the last of two equal keys wins.  Raises RemoteProtocolError."""
    pairs: dict[str, str] = {}
    at = 0
    while at < len(data):
        entry, at = _read_field(data, at, _ENTRY)
        key, behind = _read_field(entry, 0, _KEY)
        value, behind = _read_field(entry, behind, _VALUE)
        if behind != len(entry):
            raise RemoteProtocolError("metadata: an entry holds more than key and value")
        # Go strings may hold any bytes; a pair nobody acts on is not worth an error.
        pairs[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return pairs


def _field(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + encode_varint(len(data)) + data


def _read_field(data: bytes, at: int, tag: int) -> tuple[bytes, int]:
    try:
        found = data[at]
        length, start = decode_varint(data, at + 1)
    except IndexError:
        raise RemoteProtocolError("metadata ends within a field") from None
    if found != tag:
        raise RemoteProtocolError(f"metadata: field tag 0x{found:02x}, expected 0x{tag:02x}")
    if length > len(data) - start:
        raise RemoteProtocolError("metadata ends within a field")
    return data[start : start + length], start + length
