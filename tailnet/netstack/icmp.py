"""ICMPv6 (RFC 4443): echo both ways, what could not be delivered, and what an error is about.  Layer L1.

Type u8, code u8, checksum u16, then: echo has identifier u16, sequence u16, data; errors have 4 bytes (the MTU of
"packet too big") and as much of the packet as fits into 1,280 bytes.  Next hop: stack.py.
"""

import struct
from dataclasses import dataclass
from typing import Final

from tailnet.netstack.ip import HEADER_BYTES, ICMPV6, Packet, build_checked
from tailnet.netstack.limits import Drop

DESTINATION_UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
PORT_UNREACHABLE: Final = 4
_FIRST_INFORMATIONAL: Final = 128

_ECHO: Final = struct.Struct("!BBHHH")
_ERROR: Final = struct.Struct("!BBHI")
_MAX_ERROR_BYTES: Final = 1280
# Of the packet that an error quotes: enough for addresses, ports and the sequence number.
_QUOTED_TRANSPORT_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request or reply."""

    is_reply: bool
    identifier: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class PacketError:
    """An error about a packet that we sent."""

    kind: int
    code: int
    mtu: int
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int
    sequence: int
    """Of a TCP segment; of others four bytes without meaning."""


def build_echo(source: bytes, destination: bytes, echo: Echo) -> bytes:
    """A whole packet."""
    kind = ECHO_REPLY if echo.is_reply else ECHO_REQUEST
    body = _ECHO.pack(kind, 0, 0, echo.identifier, echo.sequence) + echo.payload
    return build_checked(source, destination, ICMPV6, body, 2)


def build_error(source: bytes, destination: bytes, kind: int, code: int, about: Packet, argument: int = 0) -> bytes:
    """A whole packet that quotes the start of `about`."""
    quoted = bytes(about[: _MAX_ERROR_BYTES - HEADER_BYTES - _ERROR.size])
    return build_checked(source, destination, ICMPV6, _ERROR.pack(kind, code, 0, argument) + quoted, 2)


def parse(message: Packet) -> Echo | PacketError | Drop:
    """A message without its IPv6 header, whose checksum was looked at before."""
    if len(message) < _ECHO.size:
        return Drop.MALFORMED_ICMP
    kind, code, _, first, second = _ECHO.unpack_from(message)
    if kind in (ECHO_REQUEST, ECHO_REPLY):
        if code != 0:
            return Drop.MALFORMED_ICMP
        return Echo(kind == ECHO_REPLY, first, second, bytes(message[_ECHO.size :]))
    if kind >= _FIRST_INFORMATIONAL:
        return Drop.UNKNOWN_PROTOCOL  # neighbours and routers: there are none inside a tunnel
    if kind not in (DESTINATION_UNREACHABLE, PACKET_TOO_BIG, TIME_EXCEEDED, PARAMETER_PROBLEM):
        return Drop.MALFORMED_ICMP
    about = message[_ERROR.size :]
    if len(about) < HEADER_BYTES + _QUOTED_TRANSPORT_BYTES:
        return Drop.MALFORMED_ICMP
    ports = struct.unpack_from("!HHI", about, HEADER_BYTES)
    return PacketError(kind, code, first << 16 | second, bytes(about[8:24]), bytes(about[24:40]), about[6], *ports)
